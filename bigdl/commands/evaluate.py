"""Asks a trained decoder questions with choices, after some answered ones."""

from __future__ import annotations

import dataclasses

from bigdl import flags
from bigdl.commands import _text


@dataclasses.dataclass(frozen=True)
class Flags:
  """Asks a trained decoder questions with choices, after some answered ones.

  Items are JSON lines of `prompt`, `choices` and `answer` (a choice or its number
  from 0); the text of a choice follows the prompt as it stands, so that one or
  the other says the space between them. Printed are the shares answered rightly
  by the largest log-probability: summed, per token, and per byte.
  """

  run: str  # Run folder, a sweep's (its best cell), or a converted model.
  tasks: str  # File of JSON lines.
  shots: int = 0  # Answered items before each one.
  shots_from: str = ''  # File they are drawn from; '': the other items.
  separator: str = '\n\n'  # Stands after each answered item.
  batch: int = 16  # Rows at a time.
  seed: int = 0  # Of the draw.


def main(argv: list[str]) -> int:
  """Runs `bigdl evaluate` and returns the exit code."""
  given, _ = flags.parse(Flags, argv, verb='evaluate', positional=('run',))
  if given.batch < 1:
    raise ValueError(f'batch={given.batch} must be at least 1')
  # JAX is imported from here on.
  from bigdl.train import fewshot

  items = fewshot.read(given.tasks)
  pool = fewshot.read(given.shots_from) if given.shots_from else None
  before = fewshot.contexts(
    items,
    shots=given.shots,
    pool=pool,
    seed=given.seed,
    separator=given.separator,
  )
  model, params, tokenizer = _load(given.run)
  found = fewshot.evaluate(
    model, params, tokenizer, items, before, batch=given.batch
  )
  print(f'{found.items} items, {given.shots} shots, chance {found.chance:.3f}')
  for name, words in (
    ('sum', 'summed log-probability'),
    ('token', 'per token'),
    ('byte', 'per byte'),
  ):
    share, error = found.accuracy[name]
    print(f'accuracy  {share:.3f} ± {error:.3f}  {words}')
  if found.cut:
    print(f'{found.cut} rows lost their beginning to length={model.length}')
  return 0


def _load(path: str) -> _text.Text:
  """Returns model, parameters and tokenizer of a run, or of a model folder."""
  try:
    found = _text.load(path)
  except ValueError as error:
    told = str(error)
    raise ValueError(told if 'run=' in told else f'run={told}') from error
  kind = type(found.model).__name__
  if hasattr(found.model, 'encode'):
    raise ValueError(
      f'run={path}: {kind} is an encoder-decoder; questions are asked of a'
      ' decoder'
    )
  if found.tokenizer.vocab > found.model.vocab:
    raise ValueError(
      f'run={path}: its tokenizer has {found.tokenizer.vocab} ids, the model'
      f' vocab={found.model.vocab}'
    )
  return found
