"""Which axis of the mesh splits which dimension of which array.

Rules are read from the right: a rule for a kernel `[D, F]` also fits the same
kernels stacked by a scan, `[L, D, F]`, whose leading dimension stays whole.
"""

from __future__ import annotations

from collections.abc import Sequence
import math
import re
from typing import Any

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bigdl import tree

# Pairs of a regular expression over paths and the axes of the last dimensions.
Rules = Sequence[tuple[str, tuple[str | None, ...]]]

# Splitting a smaller array costs more in messages than it saves in memory.
SMALLEST = 1024


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of batches: rows split over all of the mesh."""
  return NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))


def state_shardings(mesh: Mesh, shapes: Any, *, rules: Rules = ()) -> Any:
  """Returns the tree of shardings of parameters and optimizer state.

  Where `fsdp` is above 1, each array is split along the largest of its last
  two dimensions that `fsdp` divides, failing that the largest of the others.
  The choice depends on the shape alone, so moments lie where their weights do.
  An array of fewer than `SMALLEST` elements is copied to all devices.

  Args:
    mesh: Devices by axis.
    shapes: A pytree of arrays or `ShapeDtypeStruct`s.
    rules: Go before the sizes; the first whose pattern is found in a path, and
      that names no more dimensions than there are, holds.
  """

  def shard(path, leaf):
    for pattern, axes in rules:
      if len(axes) <= len(leaf.shape) and re.search(pattern, path):
        return NamedSharding(mesh, _right_aligned(path, leaf.shape, axes, mesh))
    return NamedSharding(mesh, _by_size(leaf.shape, mesh.shape['fsdp']))

  return tree.map_with_path(shard, shapes)


def _right_aligned(path, shape, axes, mesh) -> PartitionSpec:
  whole = (None,) * (len(shape) - len(axes)) + tuple(axes)
  for size, axis in zip(shape, whole, strict=True):
    if axis is not None and size % mesh.shape[axis]:
      raise ValueError(
        f'layout.{axis}={mesh.shape[axis]} must divide {size} of {path}'
        f' {list(shape)}, as layout.rules ask'
      )
  return PartitionSpec(*whole)


def _by_size(shape, parts: int) -> PartitionSpec:
  if parts == 1 or math.prod(shape) < SMALLEST:
    return PartitionSpec()
  fits = [i for i, size in enumerate(shape) if size % parts == 0]
  if not fits:
    return PartitionSpec()
  # Of equals the rightmost: it is contiguous in memory.
  last = len(shape) - 2
  dim = max(fits, key=lambda i: (i >= last, shape[i], i))
  return PartitionSpec(*('fsdp' if i == dim else None for i in range(dim + 1)))
