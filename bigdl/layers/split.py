"""How attention is split over the mesh it is traced for.

Heads lie on `tensor`. Where `context` splits positions, they are gathered, and
heads split over it instead (Jacobs et al., 2023, arXiv:2309.14509, section 3.1:
one all-to-all before attention and one after), if there are heads enough; else
keys and values go round a ring (bigdl/parallel/ring.py).
"""

# Shapes: B batch, T query positions, H heads, G key-value heads, K head width.
from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from bigdl.parallel import activations


def by_ring(q_BTHK: jax.Array) -> bool:
  """Returns whether there are too few heads to be split over `context`.

  Raises:
    ValueError: `context` does not divide the positions.
  """
  T, H = q_BTHK.shape[1:3]
  parts = activations.parts('context')
  if T % parts:
    raise ValueError(f'layout.context={parts} must divide length={T}')
  return parts > 1 and 'context' not in activations.axes_of(H, 'spread')


def heads(x_BTHK: jax.Array) -> jax.Array:
  """Returns it as projections make and take it: positions stay split."""
  return activations.constrain(x_BTHK, 'rows', 'length', 'heads', None)


def shared(k_BTGK: jax.Array, H: int, *, ring: bool) -> jax.Array:
  """Returns keys or values of so many groups that each device has its own.

  Fewer groups than there are parts of H heads are copied.
  """
  G = k_BTGK.shape[2]
  axes = activations.axes_of(H, 'heads' if ring else 'spread')
  parts = activations.parts(*axes)
  copies = math.lcm(G, parts) // G
  return k_BTGK if copies == 1 else jnp.repeat(k_BTGK, copies, axis=2)


def spread(x_BTHK: jax.Array) -> jax.Array:
  """Returns it with all positions of its part of the heads on each device."""
  return activations.constrain(x_BTHK, 'rows', None, 'spread', None)


def whole(x_BTHK: jax.Array) -> jax.Array:
  """Returns it with all positions of a device's heads, the same on each."""
  return activations.constrain(x_BTHK, 'rows', None, 'heads', None)
