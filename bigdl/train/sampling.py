"""How a token is drawn from logits.

Top-k: Fan et al., 2018, arXiv:1805.04833, section 5.3. Nucleus (top-p): Holtzman
et al., 2020, arXiv:1904.09751, section 3.1. Min-p: Nguyen et al., 2024,
arXiv:2407.01082, section 3.
Differs from the papers: where several are asked for, each restricts what those
before it left, in this order, after the temperature.
"""

# Shapes: B rows, V vocabulary.
from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Sampling:
  """How a token is drawn from the model's logits."""

  temperature: float = 1.0  # 0 takes the likeliest token.
  top_k: int = 0  # Only the so many likeliest; 0: all.
  top_p: float = 1.0  # Only the likeliest that hold this much probability.
  min_p: float = 0.0  # Only those of this share of the likeliest one's.

  def __post_init__(self):
    if not self.temperature >= 0:
      raise ValueError(f'temperature={self.temperature} must not be negative')
    if self.top_k < 0:
      raise ValueError(f'top_k={self.top_k} must not be negative')
    if not 0 < self.top_p <= 1:
      raise ValueError(f'top_p={self.top_p} must be in (0, 1]')
    if not 0 <= self.min_p <= 1:
      raise ValueError(f'min_p={self.min_p} must be in [0, 1]')

  def draw(self, logits_BV: jax.Array, key: jax.Array) -> jax.Array:
    """Returns a token a row, int32 `[B]`."""
    if not self.temperature:
      return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
    logits_BV = self.restrict(logits_BV / self.temperature)
    return jax.random.categorical(key, logits_BV).astype(jnp.int32)

  def restrict(self, logits_BV: jax.Array) -> jax.Array:
    """Returns the logits with -inf for tokens that may not be drawn."""
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
    if self.min_p:
      p_BV = jax.nn.softmax(logits_BV, axis=-1)
      least_B1 = self.min_p * p_BV.max(-1, keepdims=True)
      logits_BV = jnp.where(p_BV < least_B1, -jnp.inf, logits_BV)
    return logits_BV


def ban(logits_BV: jax.Array, ends: tuple[int, ...], until: jax.Array):
  """Returns logits under which no row ends while `until` (a bool) holds."""
  if not ends:
    return logits_BV
  banned_BV = logits_BV.at[:, jnp.asarray(ends)].set(-jnp.inf)
  return jnp.where(until, banned_BV, logits_BV)
