"""Answers by likelihood: which of some continuations a decoder finds likeliest.

Few-shot evaluation without training: Brown et al., 2020, arXiv:2005.14165,
section 2.4: K answered items stand before the one that is asked, and each choice
is scored by the log-probability of its tokens given all before them. Three scores
are taken: their sum; that sum per token, as there; and per byte of the choice in
UTF-8, which does not depend on the tokenizer.
Differs from the paper: no division by the probability of the choice alone.
"""

# Shapes: B rows, T positions, K tokens of a continuation, D width, V vocabulary.
from __future__ import annotations

from collections.abc import Iterator, Sequence
import dataclasses
import functools
import json
import math
import os
import pathlib
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# The ways in which log-probabilities are compared.
SCORES = ('sum', 'token', 'byte')
# Rows are padded to powers of two from here on, to compile few programs.
LEAST = 16


@dataclasses.dataclass(frozen=True)
class Item:
  """A question with its choices; `answer` numbers the right one from 0."""

  prompt: str
  choices: tuple[str, ...]
  answer: int


@dataclasses.dataclass(frozen=True)
class Result:
  """Shares of items answered rightly, by score, with standard errors."""

  accuracy: dict[str, tuple[float, float]]
  chance: float  # Of guessing: the mean of 1 / choices.
  items: int
  cut: int  # Rows that lost the beginning of what stands before the choice.


def read(path: str | os.PathLike) -> list[Item]:
  """Returns the items of a file of JSON lines: prompt, choices, answer.

  `answer` is the number of the right choice, from 0, or the choice itself.

  Raises:
    ValueError: Names file, line and field.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ValueError(f'{path}: no such file')
  found = [
    _item(f'{path}:{number}', line)
    for number, line in enumerate(path.read_text('utf-8').split('\n'), 1)
    if line.strip()
  ]
  if not found:
    raise ValueError(f'{path} holds no item')
  return found


def _item(place: str, line: str) -> Item:
  try:
    row = json.loads(line)
  except json.JSONDecodeError as error:
    raise ValueError(f'{place} is not JSON: {error}') from error
  if not isinstance(row, dict):
    raise ValueError(f'{place} must be a JSON object, got {line[:40]!r}')
  for name in ('prompt', 'choices', 'answer'):
    if name not in row:
      raise ValueError(f'{place}: {name} is not there; it has {", ".join(row)}')
  prompt, choices, answer = row['prompt'], row['choices'], row['answer']
  if not isinstance(prompt, str):
    raise ValueError(f'{place}: prompt={prompt!r} must be text')
  texts = isinstance(choices, list) and all(
    isinstance(c, str) and c for c in choices
  )
  if not texts or len(choices) < 2 or len(set(choices)) < len(choices):
    raise ValueError(f'{place}: choices={choices!r} must be two texts or more')
  if answer in choices:
    answer = choices.index(answer)
  whole = isinstance(answer, int) and not isinstance(answer, bool)
  if not whole or not 0 <= answer < len(choices):
    raise ValueError(
      f'{place}: answer={answer!r} must be a choice, or its number below'
      f' {len(choices)}'
    )
  return Item(prompt, tuple(choices), answer)


def contexts(
  items: Sequence[Item],
  *,
  shots: int,
  pool: Sequence[Item] | None = None,
  seed: int = 0,
  separator: str = '\n\n',
) -> list[str]:
  """Returns what stands before the choices of each item.

  Args:
    items: The items that are asked.
    shots: Answered items before each, drawn without replacement.
    pool: What they are drawn from; None: the other items themselves.
    seed: Item i draws by a generator of (seed, i).
    separator: Stands after each answered item.
  """
  found = []
  for i, item in enumerate(items):
    # An item must not stand before itself with its answer.
    others = [o for o in (items if pool is None else pool) if o != item]
    if not 0 <= shots <= len(others):
      raise ValueError(
        f'shots={shots} must be from 0 to the {len(others)} items there'
      )
    drawn = np.random.default_rng([seed, i]).permutation(len(others))[:shots]
    told = [others[n] for n in drawn]
    texts = [f'{t.prompt}{t.choices[t.answer]}{separator}' for t in told]
    found.append(''.join(texts) + item.prompt)
  return found


def evaluate(
  model: nn.Module,
  params: Any,
  tokenizer: Any,
  items: Sequence[Item],
  before: Sequence[str],
  *,
  batch: int = 16,
) -> Result:
  """Returns how often the choice of the best score is the right one.

  Each text begins with the tokenizer's end of a document. What stands before a
  choice and the choice are encoded apart; a space at the end of the one moves to
  the other, as most tokenizers spell words with the space before them. Too long
  a text loses its beginning.

  Args:
    model: A decoder with `hidden`, `logits` and a field `length`.
    params: Its parameters.
    tokenizer: What its data was encoded by.
    items: What is asked.
    before: What stands before the choices of each.
    batch: Rows at a time.
  """
  rows, cut = [], 0
  for item, context in zip(items, before, strict=True):
    for choice in item.choices:
      row, shortened = _row(context, choice, tokenizer, model.length)
      rows.append(row)
      cut += shortened
  sums = score(model, params, rows, batch=batch)
  if not np.isfinite(sums).all():
    raise ValueError(
      'a choice has no finite log-probability: weights are not finite, or tokens'
      f' are not below vocab={model.vocab}'
    )
  counts = np.array([len(own) for _, own in rows])
  sizes = [len(c.encode()) for item in items for c in item.choices]
  right: dict[str, list[bool]] = {name: [] for name in SCORES}
  start = 0
  for item in items:
    own = slice(start, start := start + len(item.choices))
    for name, by in zip(SCORES, (1, counts[own], sizes[own]), strict=True):
      best = int(np.argmax(sums[own] / np.asarray(by)))
      right[name].append(best == item.answer)
  return Result(
    {name: _mean(values) for name, values in right.items()},
    float(np.mean([1 / len(item.choices) for item in items])),
    len(items),
    cut,
  )


def _row(context, choice, tokenizer, length):
  """Returns tokens before and of a choice, and whether some were cut off."""
  spaces = context[len(context.rstrip(' ')) :]
  context, choice = context[: len(context) - len(spaces)], spaces + choice
  own = [int(t) for t in tokenizer.encode(choice)]
  if not 0 < len(own) <= length:
    raise ValueError(
      f'choice={choice[:40]!r} of {len(own)} tokens must have from 1 to'
      f' length={length}'
    )
  told = [tokenizer.eod, *(int(t) for t in tokenizer.encode(context))]
  # The last token of a choice is predicted and not read.
  room = length + 1 - len(own)
  return (told[-room:], own), len(told) > room


def _mean(right: list[bool]) -> tuple[float, float]:
  share, count = float(np.mean(right)), len(right)
  return share, math.sqrt(share * (1 - share) / max(count - 1, 1))


def score(
  model: nn.Module,
  params: Any,
  rows: Sequence[tuple[list[int], list[int]]],
  *,
  batch: int = 16,
) -> np.ndarray:
  """Returns the summed log-probability of each row's second part, in nats.

  Args:
    model: A decoder with `hidden` and `logits`.
    params: Its parameters.
    rows: Tokens that are given, at least one, and tokens that follow them.
    batch: Rows at a time.
  """
  most = max(len(own) for _, own in rows)
  sums = np.empty(len(rows))
  for chosen, read_BT, segments_BT, at_BK, targets_BK in _batches(
    rows, batch, most, model.length
  ):
    found = _score(model, params, read_BT, segments_BT, at_BK, targets_BK)
    sums[chosen] = np.asarray(found, np.float64)[: len(chosen)]
  return sums


def _batches(rows, size, most, length) -> Iterator[tuple[Any, ...]]:
  """Yields which rows, and padded arrays of them, the shortest rows first."""
  sizes = [len(told) + len(own) - 1 for told, own in rows]
  order = sorted(range(len(rows)), key=lambda i: sizes[i])
  for first in range(0, len(rows), size):
    chosen = order[first : first + size]
    longest = max(sizes[i] for i in chosen)
    T = min(max(LEAST, 1 << (longest - 1).bit_length()), length)
    # All batches have one number of rows: those missing repeat nothing.
    read_BT, segments_BT = np.zeros((2, size, T), np.int32)
    at_BK = np.zeros((size, most), np.int32)
    targets_BK = np.full((size, most), -1, np.int32)
    for row, i in enumerate(chosen):
      told, own = rows[i]
      read_BT[row, : sizes[i]] = [*told, *own[:-1]]
      segments_BT[row, : sizes[i]] = 1
      at_BK[row, : len(own)] = len(told) - 1 + np.arange(len(own))
      targets_BK[row, : len(own)] = own
    yield chosen, read_BT, segments_BT, at_BK, targets_BK


@functools.partial(jax.jit, static_argnums=0)
def _score(model, params, read_BT, segments_BT, at_BK, targets_BK):
  """Returns summed log-probabilities `[B]`; targets below 0 count nothing."""
  variables = {'params': params}
  x_BTD = model.apply(variables, read_BT, segments=segments_BT, method='hidden')
  x_BKD = jnp.take_along_axis(x_BTD, at_BK[..., None], axis=1)
  log_p_BKV = jax.nn.log_softmax(model.apply(variables, x_BKD, method='logits'))
  own_BK = jnp.take_along_axis(
    log_p_BKV, jnp.maximum(targets_BK, 0)[..., None], axis=-1
  )[..., 0]
  return jnp.where(targets_BK >= 0, own_BK, 0).sum(1)
