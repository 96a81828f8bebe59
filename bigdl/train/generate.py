"""Text from a trained decoder, token by token, over a cache of keys and values.

Sampling by nucleus: Holtzman et al., 2020, arXiv:1904.09751, section 3.1.
Differs from the paper: top-k and temperature, where asked for, come first.
"""

# Shapes: B rows, S new tokens, V vocabulary.
from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# Prompts are padded to a power of two from here on, to compile few programs.
LEAST = 16


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a token is drawn from the model's logits."""

  temperature: float = 1.0  # 0 takes the likeliest token.
  top_k: int = 0  # Only the so many likeliest; 0: all.
  top_p: float = 1.0  # Only the likeliest that hold this much probability.

  def __post_init__(self):
    if not self.temperature >= 0:
      raise ValueError(f'temperature={self.temperature} must not be negative')
    if self.top_k < 0:
      raise ValueError(f'top_k={self.top_k} must not be negative')
    if not 0 < self.top_p <= 1:
      raise ValueError(f'top_p={self.top_p} must be in (0, 1]')

  def draw(self, logits_BV: jax.Array, key: jax.Array) -> jax.Array:
    """Returns a token a row, int32 `[B]`."""
    if not self.temperature:
      return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = logits_BV / self.temperature
    if 0 < self.top_k < logits_BV.shape[-1]:
      least_B1 = jax.lax.top_k(logits_BV, self.top_k)[0][:, -1:]
      logits_BV = jnp.where(logits_BV < least_B1, -jnp.inf, logits_BV)
    if self.top_p < 1:
      order_BV = jnp.argsort(-logits_BV, axis=-1)
      sorted_BV = jnp.take_along_axis(logits_BV, order_BV, axis=-1)
      p_BV = jax.nn.softmax(sorted_BV, axis=-1)
      # A token stays while those before it hold less than top_p.
      stays_BV = jnp.cumsum(p_BV, axis=-1) - p_BV < self.top_p
      sorted_BV = jnp.where(stays_BV, sorted_BV, -jnp.inf)
      rows = jnp.arange(logits_BV.shape[0])[:, None]
      logits_BV = logits_BV.at[rows, order_BV].set(sorted_BV)
    return jax.random.categorical(key, logits_BV).astype(jnp.int32)


def generate(
  model: nn.Module,
  params: Any,
  prompts_BS: np.typing.ArrayLike,
  *,
  tokens: int,
  sampling: Sampling | None = None,
  seed: int = 0,
  chunk: int = 16,
) -> Iterator[np.ndarray]:
  """Yields the continuation of each prompt, int32 `[B, at most chunk]` a time.

  Token t is drawn with the seed folded with t, so that it does not depend on
  `chunk`. Once the model's context is full, it goes on from the later half of
  what it has read and written.

  Args:
    model: A decoder with `decode`, `logits` and a field `length`.
    params: Its parameters.
    prompts_BS: Tokens to continue, at least one a row.
    tokens: How many to add to each row.
    sampling: How tokens are drawn; None samples from the model as it is.
    seed: Of what is drawn.
    chunk: Tokens computed between two yields.

  Raises:
    ValueError: A prompt is empty or holds a token outside the vocabulary.
  """
  sampling = sampling or Sampling()
  prompts_BS = np.asarray(prompts_BS, np.int32)
  if prompts_BS.ndim != 2 or not prompts_BS.size:
    raise ValueError(
      f'prompt of shape {prompts_BS.shape} must hold at least one token a row'
    )
  strange = prompts_BS[(prompts_BS < 0) | (prompts_BS >= model.vocab)]
  if strange.size:
    raise ValueError(
      f'prompt: token {strange[0]} must be in [0, {model.vocab})'
    )
  key = jax.random.key(seed)
  text_BS, made = prompts_BS, 0
  while made < tokens:
    # At least one position must be left to write to.
    keep = max(1, model.length // 2)
    if text_BS.shape[1] >= model.length:
      text_BS = text_BS[:, -keep:]
    used = text_BS.shape[1]
    padded = min(max(LEAST, 1 << (used - 1).bit_length()), model.length)
    read_BS = np.pad(text_BS, ((0, 0), (0, padded - used)))
    cache, logits_BV = _read(model, params, read_BS, jnp.int32(used))
    last_B = None
    while used < model.length and made < tokens:
      size = min(chunk, model.length - used, tokens - made)
      if last_B is None:
        # The prompt's own logits give the first token.
        last_B = _first(sampling, logits_BV, key, jnp.int32(made))
        new_BS = last_B[:, None]
      else:
        # Of one size always, so that one program does; what is too much falls
        # off, with a cache that nobody reads again.
        cache, new_BS = _write(
          model,
          sampling,
          chunk,
          params,
          cache,
          last_B,
          jnp.int32(used - 1),
          key,
          jnp.int32(made),
        )
        new_BS = new_BS[:, :size]
        last_B = new_BS[:, -1]
      new = np.asarray(new_BS)
      text_BS = np.concatenate([text_BS, new], axis=1)
      used, made = used + new.shape[1], made + new.shape[1]
      yield new


@functools.partial(jax.jit, static_argnums=0)
def _read(model, params, prompts_BS, used):
  """Fills the cache; returns it and the logits after token `used` - 1.

  Keys of the padding behind it are hidden until tokens overwrite them.
  """
  hidden_BSD, state = model.apply(
    {'params': params},
    prompts_BS,
    jnp.int32(0),
    capacity=model.length,
    method='decode',
    mutable=['cache'],
  )
  last_BD = jax.lax.dynamic_index_in_dim(hidden_BSD, used - 1, 1, False)
  logits_BV = model.apply({'params': params}, last_BD, method='logits')
  return state['cache'], logits_BV


@functools.partial(jax.jit, static_argnums=0)
def _first(sampling, logits_BV, key, made):
  return sampling.draw(logits_BV, jax.random.fold_in(key, made))


@functools.partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=4)
def _write(model, sampling, size, params, cache, last_B, used, key, made):
  """Draws `size` tokens after `last_B`, which stands at position `used`."""

  def step(carry, i):
    cache, last_B = carry
    hidden_BSD, state = model.apply(
      {'params': params, 'cache': cache},
      last_B[:, None],
      used + i,
      capacity=model.length,
      method='decode',
      mutable=['cache'],
    )
    logits_BV = model.apply(
      {'params': params}, hidden_BSD[:, 0], method='logits'
    )
    last_B = sampling.draw(logits_BV, jax.random.fold_in(key, made + i))
    return (state['cache'], last_B), last_B

  (cache, _), new_SB = jax.lax.scan(step, (cache, last_B), jnp.arange(size))
  return cache, new_SB.T
