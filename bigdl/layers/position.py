"""Where a token stands: sinusoids that are added, rotations of queries, keys.

Sinusoids: Vaswani et al., 2017, arXiv:1706.03762, section 3.5; fairseq's (Ott
et al., 2019, arXiv:1904.01038) fall from 1 to exactly 1 / base.
Rotations: Su et al., 2021, arXiv:2104.09864, eq. 34.
Differs from the papers: sines and cosines (and the two coordinates of a
rotated pair) stand in the two halves of the vector instead of alternating, as
in GPT-NeoX and LLaMA; weights convert by a fixed permutation.
"""

# Shapes: B batch, T positions, H heads, K head width, R rotated width.
from __future__ import annotations

import jax
import jax.numpy as jnp

# cos_BTR2 and sin_BTR2, half as wide as what they rotate; B may be missing.
Rotary = tuple[jax.Array, jax.Array]


def segment_positions(segments_BT: jax.Array) -> jax.Array:
  """Returns each token's position within its run of equal segment ids."""
  t = jnp.arange(segments_BT.shape[-1], dtype=jnp.int32)
  opens = segments_BT[:, 1:] != segments_BT[:, :-1]
  opens_BT = jnp.pad(opens, ((0, 0), (1, 0)), constant_values=True)
  return t - jax.lax.cummax(jnp.where(opens_BT, t, 0), axis=1)


def _angles(positions, width, base, dtype, *, closed=False):
  # Angles reach `length` radians: bfloat16 could not hold them.
  wide = jnp.promote_types(dtype, jnp.float32)
  end = width - 2 if closed else width
  rates = base ** (-jnp.arange(0, width, 2, dtype=wide) / end)
  return positions.astype(wide)[..., None] * rates


def sinusoid(
  positions: jax.Array,
  width: int,
  *,
  base: float = 1e4,
  closed: bool = False,
  dtype='float32',
) -> jax.Array:
  """Returns `[..., width]`: sines in the first half, cosines in the second.

  Args:
    positions: `[...]` integers.
    width: How many coordinates, an even number.
    base: Rates fall from 1 towards 1 / base.
    closed: Whether the last rate is 1 / base, as fairseq has it; `width` must
      be at least 4.
    dtype: Of the result.
  """
  angles = _angles(positions, width, base, dtype, closed=closed)
  return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], -1).astype(dtype)


def rotary(
  positions: jax.Array, width: int, *, base: float = 1e4, dtype='float32'
) -> Rotary:
  """Returns the cosines and sines that rotate `width` coordinates."""
  angles = _angles(positions, width, base, dtype)
  return jnp.cos(angles).astype(dtype), jnp.sin(angles).astype(dtype)


def rotate(x_BTHK: jax.Array, table: Rotary) -> jax.Array:
  """Rotates the first R coordinates of each head; the rest pass through."""
  cos, sin = (t[..., :, None, :].astype(x_BTHK.dtype) for t in table)
  half = cos.shape[-1]
  a, b, rest = jnp.split(x_BTHK, (half, 2 * half), axis=-1)
  parts = [a * cos - b * sin, b * cos + a * sin]
  return jnp.concatenate([*parts, rest] if rest.shape[-1] else parts, axis=-1)
