"""Which axes of the mesh split activations, where layers say what they hold.

A layer names the dimensions of an array, and the mesh in whose context it is
traced says which axes split them. Between layers, positions are split over
`tensor` as well (Korthikanti et al., 2022, arXiv:2205.05198, section 4.2.2): a
layer that splits heads or features gathers them on its way in and scatters sums
over them on its way out, which moves as much as the two all-reduces of Shoeybi et
al. (2019, arXiv:1909.08053, section 3), and norms, dropout and what blocks pass on
are not the same on every device. (Compilers may still choose an all-reduce: XLA for
TPUs did over 16 devices of v5e, not over 8. With `remat=none` what layers have
gathered is kept for the backward pass, whole; with `dots` and `full` it is not.)
Without a mesh, or where no axis splits anything, nothing is done.
"""

from __future__ import annotations

from collections.abc import Iterable
import math
from typing import Any, Literal

import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AxisType

from bigdl.parallel.layout import ROW_AXES

# The name of what is kept of products that `tensor` splits, by `remat=dots`.
KEPT = 'kept'

DimKind = Literal[
  'rows', 'length', 'stream', 'heads', 'spread', 'features', 'vocab'
]

# Axes that split a dimension, as many of them, from the first, as divide it.
_AXES: dict[str, tuple[str, ...]] = {
  'rows': ROW_AXES,
  'length': ('context',),  # Positions, inside of a layer.
  'stream': ('context', 'tensor'),  # Positions, between layers.
  'heads': ('tensor',),
  'spread': ('tensor', 'context'),  # Heads, where each has all positions.
  'features': ('tensor',),
  'vocab': ('tensor',),
}


def parts(*axes: str) -> int:
  """Returns into how many parts these axes split, 1 without a mesh."""
  return math.prod(size for axis, size in _sizes().items() if axis in axes)


def axes_of(size: int, dim: DimKind | None) -> tuple[str, ...]:
  """Returns the axes that split a dimension of that size and kind."""
  return _fitting(size, () if dim is None else _AXES[dim], _sizes())


def spec(shape: Iterable[int], *dims: DimKind | None) -> jax.P:
  """Returns which axes split an array of that shape, dimension by dimension."""
  found = [axes_of(s, d) for s, d in zip(shape, dims, strict=True)]
  return jax.P(*(a or None for a in found))


def constrain(x: jax.Array, *dims: DimKind | None) -> jax.Array:
  """Returns x, split as its dimensions are named; None: whole.

  An axis that does not divide a dimension leaves it whole.
  """
  if math.prod(_sizes().values()) == 1:
    return x
  return jax.lax.with_sharding_constraint(x, spec(x.shape, *dims))


def stream(x_BTD: jax.Array) -> jax.Array:
  """Returns what passes between layers, split by rows and positions.

  Where `tensor` does not divide the positions, it splits the width: what is
  kept for the backward pass must not be the same on every device.
  """
  if x_BTD.ndim != 3:
    return x_BTD
  if _splits_width(x_BTD):
    return constrain(x_BTD, 'rows', 'length', 'features')
  return constrain(x_BTD, 'rows', 'stream', None)


def _splits_width(x_BTD):
  return parts('tensor') > 1 and (
    'tensor' not in axes_of(x_BTD.shape[1], 'stream')
  )


def whole_width(x_BTD: jax.Array) -> jax.Array:
  """Returns what passes between layers, its whole width on each device."""
  if x_BTD.ndim != 3 or not _splits_width(x_BTD):
    return x_BTD
  return gathered(x_BTD)


def scattered(x_BTD: jax.Array) -> jax.Array:
  """Returns the same of what a layer has summed over `tensor`."""
  # In two steps: or else the compiler may look for another way there, through
  # positions that it gathers over `context`.
  return kept(stream(gathered(x_BTD)))


def gathered(x_BTD: jax.Array) -> jax.Array:
  """Returns what a layer reads, split by rows and, over `context`, positions."""
  if x_BTD.ndim != 3:
    return x_BTD
  return constrain(x_BTD, 'rows', 'length', None)


def kept(x: jax.Array) -> jax.Array:
  """Returns it, for what is kept of the products of a layer (`remat=dots`)."""
  return checkpoint_name(x, KEPT)


def axes(entry: Any) -> tuple[str, ...]:
  """Returns the axes that an entry of a spec names."""
  return entry if isinstance(entry, tuple) else (entry,) if entry else ()


def _sizes() -> dict[str, int]:
  """Returns the axes that split activations, without those of a `shard_map`."""
  mesh = jax.sharding.get_abstract_mesh()
  pairs = zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
  return {
    axis: size
    for axis, size, kind in pairs
    if axis != 'pipeline' and kind == AxisType.Auto and size > 1
  }


def _fitting(size, axes, sizes):
  """Returns as many of the axes, from the first, as divide the size."""
  found: tuple[str, ...] = ()
  for axis in axes:
    if axis not in sizes:
      continue
    if size % sizes[axis]:
      break
    size //= sizes[axis]
    found += (axis,)
  return found
