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

Rules = Sequence[tuple[str, PartitionSpec]]

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
    rules: Pairs of a regular expression over paths and the spec of the last
      dimensions, `('mlp/up/kernel$', PartitionSpec('fsdp', None))`. The first
      one found goes before the shape.
  """

  def shard(path, leaf):
    for pattern, spec in rules:
      if re.search(pattern, path) and len(spec) <= len(leaf.shape):
        return NamedSharding(mesh, _right_aligned(path, leaf.shape, spec, mesh))
    return NamedSharding(mesh, _by_size(leaf.shape, mesh.shape['fsdp']))

  return tree.map_with_path(shard, shapes)


def _right_aligned(path, shape, spec, mesh) -> PartitionSpec:
  whole = PartitionSpec(*(None,) * (len(shape) - len(spec)), *spec)
  for size, axes in zip(shape, whole, strict=True):
    names = axes if isinstance(axes, tuple) else (axes,)
    parts = math.prod(mesh.shape[a] for a in names if a is not None)
    if size % parts:
      raise ValueError(
        f'{path}: {axes}={parts} of the mesh must divide {size} in {shape}'
      )
  return whole


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
