"""Text from a trained model, token by token, over a cache of keys and values.

A decoder goes on from its prompts. An encoder-decoder (a module with `encode`)
reads `source` first, and its prompts are what each output begins with.
"""

# Shapes: B rows, S positions, V vocabulary.
from __future__ import annotations

from collections.abc import Iterator, Sequence
import functools
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigdl.train.sampling import Sampling, ban

# Prompts are padded to a power of two from here on, to compile few programs.
LEAST = 16
# What stands in a row after its end.
NOTHING = -1


class Encoded(NamedTuple):
  """What an encoder-decoder reads: `[B, S]` tokens; segment 0 is padding."""

  source_BS: jax.typing.ArrayLike
  segments_BS: jax.typing.ArrayLike | None = None


def generate(
  model: nn.Module,
  params: Any,
  prompts: Sequence[Sequence[int]] | np.ndarray,
  *,
  tokens: int,
  sampling: Sampling | None = None,
  seed: int = 0,
  chunk: int = 16,
  ends: tuple[int, ...] = (),
  min_tokens: int = 0,
  source: Encoded | None = None,
) -> Iterator[np.ndarray]:
  """Yields the continuation of each prompt, int32 `[B, at most chunk]` a time.

  Token t is drawn with the seed folded with t, so that it does not depend on
  `chunk`. A row that has ended is filled with `NOTHING`; once all have, there is
  no more. When the model's context is full, a row goes on from the later half
  of what it has read and written.

  Args:
    model: A module with `decode`, `logits` and the fields `length`, `vocab`.
    params: Its parameters.
    prompts: Tokens to continue, at least one a row; rows may differ in length.
    tokens: How many to add to each row.
    sampling: How tokens are drawn; None samples from the model as it is.
    seed: Of what is drawn.
    chunk: Tokens computed between two yields.
    ends: Tokens after which a row has ended; they are yielded themselves.
    min_tokens: Tokens of a row before which it cannot end.
    source: What an encoder-decoder reads.

  Raises:
    ValueError: A prompt is empty or holds a token outside the vocabulary.
  """
  sampling = sampling or Sampling()
  texts = check_prompts(model, prompts)
  key, made = jax.random.key(seed), 0
  ended_B = np.zeros(len(texts), bool)
  while made < tokens and not ended_B.all():
    # At least one position must be left to write to.
    keep = max(1, model.length // 2)
    texts = [t if len(t) < model.length else t[-keep:] for t in texts]
    most = max(map(len, texts))
    room = capacity(model, most, tokens - made)
    cache, logits_BV, used = read(model, params, texts, room, source)
    last_B = None
    while most < model.length and made < tokens and not ended_B.all():
      size = min(chunk, model.length - most, tokens - made)
      if last_B is None:
        # The prompt's own logits give the first token.
        last_B = _first(
          sampling, ends, logits_BV, key, jnp.int32(made), min_tokens
        )
        new_BS = last_B[:, None]
      else:
        # Of one size always, so that one program does; what is too much falls
        # off, with a cache that nobody reads again.
        cache, new_BS = _write(
          model,
          (sampling, ends, chunk, room),
          params,
          cache,
          last_B,
          used - 1,
          key,
          jnp.int32(made),
          min_tokens,
        )
        new_BS = new_BS[:, :size]
        last_B = new_BS[:, -1]
      new = np.asarray(new_BS)
      texts = [np.concatenate(pair) for pair in zip(texts, new, strict=True)]
      grown = new.shape[1]
      used, most, made = used + grown, most + grown, made + grown
      yield _cut(new, ends, ended_B)


def check_prompts(
  model: nn.Module, prompts: Sequence[Sequence[int]] | np.ndarray
) -> list[np.ndarray]:
  """Returns the prompts as int32 arrays, or raises what is wrong with them."""
  texts = []
  for row in prompts:
    text = np.asarray(row, np.int32)
    if text.ndim != 1 or not text.size:
      raise ValueError(
        f'prompt of shape {np.shape(prompts)} must hold at least one token a'
        ' row'
      )
    strange = text[(text < 0) | (text >= model.vocab)]
    if strange.size:
      raise ValueError(
        f'prompt: token {strange[0]} must be in [0, {model.vocab})'
      )
    texts.append(text)
  if not texts:
    raise ValueError('prompt: there is no row')
  return texts


def capacity(model: nn.Module, used: int, tokens: int) -> int:
  """Returns how many positions a cache should have room for.

  A power of two, so that few programs are compiled, or the whole context.
  """
  needed = max(LEAST, min(model.length, used + tokens))
  return min(model.length, 1 << (needed - 1).bit_length())


def read(
  model: nn.Module,
  params: Any,
  texts: list[np.ndarray],
  room: int,
  source: Encoded | None,
) -> tuple[Any, jax.Array, jax.Array]:
  """Fills a cache of `room` positions with texts.

  Returns the cache, the logits `[B, V]` after the last token of each text, and
  how many positions are used: a scalar, or `[B]` where texts differ in length.
  """
  sizes = [len(t) for t in texts]
  padded = min(max(LEAST, 1 << (max(sizes) - 1).bit_length()), room)
  rows_BS = np.stack([np.pad(t, (0, padded - len(t))) for t in texts])
  same = len(set(sizes)) == 1
  used = jnp.asarray(sizes[0] if same else sizes, jnp.int32)
  if source is not None:
    own, segments = source
    source = Encoded(
      jnp.asarray(own), None if segments is None else jnp.asarray(segments)
    )
  cache, logits_BV = _fill(model, room, params, rows_BS, used, source)
  return cache, logits_BV, used


def _cut(new_BS: np.ndarray, ends: tuple[int, ...], ended_B: np.ndarray):
  """Returns new tokens with NOTHING after each end, and notes who has ended."""
  if not ends:
    return new_BS
  new_BS = new_BS.copy()
  is_end_BS = np.isin(new_BS, ends)
  before_BS = np.cumsum(is_end_BS, axis=1) - is_end_BS > 0
  new_BS[before_BS | ended_B[:, None]] = NOTHING
  ended_B |= is_end_BS.any(1)
  return new_BS


def fill(model, room, params, prompts_BS, used, source):
  """Fills a cache; returns it and the logits after token `used` - 1.

  Keys of the padding behind it are hidden until tokens overwrite them.
  """
  variables, memory = {'params': params}, {}
  if source is not None:
    memory['memory_BSD'] = model.apply(
      variables, source.source_BS, source.segments_BS, method='encode'
    )
    memory['memory_segments'] = source.segments_BS
  hidden_BSD, state = model.apply(
    variables,
    prompts_BS,
    jnp.zeros_like(used),
    capacity=room,
    method='decode',
    mutable=['cache'],
    **memory,
  )
  last_B11 = jnp.broadcast_to(used - 1, len(prompts_BS))[:, None, None]
  last_BD = jnp.take_along_axis(hidden_BSD, last_B11, axis=1)[:, 0]
  logits_BV = model.apply(variables, last_BD, method='logits')
  return state['cache'], logits_BV


_fill = jax.jit(fill, static_argnums=(0, 1))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _first(sampling, ends, logits_BV, key, made, min_tokens):
  logits_BV = ban(logits_BV, ends, made < min_tokens)
  return sampling.draw(logits_BV, jax.random.fold_in(key, made))


@functools.partial(jax.jit, static_argnums=(0, 1), donate_argnums=3)
def _write(model, how, params, cache, last_B, used, key, made, min_tokens):
  """Draws tokens after `last_B`, which stands at position `used`."""
  sampling, ends, size, room = how

  def step(carry, i):
    cache, last_B = carry
    hidden_BSD, state = model.apply(
      {'params': params, 'cache': cache},
      last_B[:, None],
      used + i,
      capacity=room,
      method='decode',
      mutable=['cache'],
    )
    logits_BV = model.apply(
      {'params': params}, hidden_BSD[:, 0], method='logits'
    )
    logits_BV = ban(logits_BV, ends, made + i < min_tokens)
    last_B = sampling.draw(logits_BV, jax.random.fold_in(key, made + i))
    return (state['cache'], last_B), last_B

  (cache, _), new_SB = jax.lax.scan(step, (cache, last_B), jnp.arange(size))
  return cache, new_SB.T
