"""Which axis of the mesh splits which dimension of which array.

Rules are read from the right: a rule for a kernel `[D, F]` also fits the same
kernels stacked by a scan, `[L, D, F]`, whose leading dimension only a pipeline
splits. `TENSOR` are the columns and rows of Shoeybi et al., 2019,
arXiv:1909.08053, section 3: what makes heads, features or logits is split by
them, what adds them up by the same ones, and `fsdp` splits the other dimension.
"""

from __future__ import annotations

from collections.abc import Sequence
import math
import re
from typing import Any

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bigdl import tree
from bigdl.parallel.layout import ROW_AXES

# Pairs of a regular expression over paths and the axes of the last dimensions.
Rules = Sequence[tuple[str, tuple[str | None, ...]]]

# Splitting a smaller array over `fsdp` costs more in messages than it saves.
SMALLEST = 1024

_COLUMNS = (
  r'((attention|cross)/(query|key|value|relative)|mlp/(up|gate)|(^|/)head)'
)
_ROWS = r'((attention|cross)/out|mlp/down)'
_TABLE = r'(^|/)embed/embedding$'
TENSOR: Rules = (
  (rf'{_COLUMNS}/kernel$', ('fsdp', 'tensor')),
  (rf'{_COLUMNS}/bias$', ('tensor',)),
  (rf'{_ROWS}/kernel$', ('tensor', 'fsdp')),
  (_TABLE, ('tensor', 'fsdp')),
  (r'(^|/)(head|logit)_bias$', ('tensor',)),
  # Relative positions have vectors for each head.
  (r'attention/\w+_(bias|embedding)$', ('tensor', None)),
  # The product of a LoRA's two lies where its kernel does.
  (rf'{_COLUMNS}/kernel/a$', ('fsdp', None)),
  (rf'{_COLUMNS}/kernel/b$', (None, 'tensor')),
  (rf'{_ROWS}/kernel/a$', ('tensor', None)),
  (rf'{_ROWS}/kernel/b$', (None, 'fsdp')),
)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Returns the sharding of batches: rows over `data` and `fsdp`."""
  return NamedSharding(mesh, PartitionSpec(ROW_AXES))


def state_shardings(mesh: Mesh, shapes: Any, *, rules: Rules = ()) -> Any:
  """Returns the tree of shardings of parameters and optimizer state.

  Given rules come first, then `TENSOR`, then sizes: where `fsdp` is above 1, an
  array is split along the largest of its last two dimensions that `fsdp`
  divides, failing that the largest of the others. An axis of `TENSOR` that does
  not divide its dimension goes to another that it divides. The choice depends on
  path and shape alone, so moments lie where their weights do. An array of fewer
  than `SMALLEST` elements is not split over `fsdp`, but by given rules.

  Args:
    mesh: Devices by axis.
    shapes: A pytree of arrays or `ShapeDtypeStruct`s.
    rules: Go before all else; the first whose pattern is found in a path, and
      that names no more dimensions than there are, holds.
  """

  def shard(path, leaf):
    for pattern, axes in rules:
      if len(axes) <= len(leaf.shape) and re.search(pattern, path):
        return NamedSharding(mesh, _right_aligned(path, leaf.shape, axes, mesh))
    return NamedSharding(mesh, _own(path, leaf.shape, mesh))

  return tree.map_with_path(shard, shapes)


def splits_vocabulary(path: str) -> bool:
  """Returns whether `tensor` splits the rows of the table of that path."""
  return re.search(_TABLE, path) is not None


def _right_aligned(path, shape, axes, mesh) -> PartitionSpec:
  whole = (None,) * (len(shape) - len(axes)) + tuple(axes)
  if (
    mesh.shape['pipeline'] > 1 and _is_stacked(path) and len(axes) < len(whole)
  ):
    whole = ('pipeline', *whole[1:])
  for size, axis in zip(shape, whole, strict=True):
    if axis is not None and size % mesh.shape[axis]:
      raise ValueError(
        f'layout.{axis}={mesh.shape[axis]} must divide {size} of {path}'
        f' {list(shape)}, as layout.rules ask'
      )
  return PartitionSpec(*whole)


def _is_stacked(path: str) -> bool:
  """Whether a scan has stacked what is there, block by block."""
  return 'blocks' in path.split('/')


def _own(path: str, shape: tuple[int, ...], mesh: Mesh) -> PartitionSpec:
  """Returns how an array is split that no given rule speaks of."""
  sizes = {axis: n for axis, n in mesh.shape.items() if n > 1}
  # The axes of each dimension.
  split: list[tuple[str, ...]] = [()] * len(shape)
  first = 0
  if _is_stacked(path) and shape:
    first = 1
    stages = sizes.get('pipeline')
    if stages and shape[0] % stages == 0 and shape[0] > 1:
      split[0] = ('pipeline',)
  wanted = {}
  for pattern, axes in TENSOR:
    # Of other rank are an optimizer's sums over a dimension.
    if len(axes) == len(shape) - first and re.search(pattern, path):
      wanted = {a: first + i for i, a in enumerate(axes) if a is not None}
      break
  elements = math.prod(shape[first:])
  for axis in ('tensor', 'fsdp'):
    if axis not in sizes or (axis == 'tensor' and axis not in wanted):
      continue
    if axis == 'fsdp' and elements < SMALLEST:
      continue
    dim = _dimension(shape, split, sizes, axis, wanted.get(axis))
    if dim is not None:
      split[dim] += (axis,)
  while split and not split[-1]:
    split.pop()
  return PartitionSpec(*(a[0] if len(a) == 1 else a or None for a in split))


def _dimension(shape, split, sizes, axis, wanted) -> int | None:
  """Returns the dimension that an axis should split, if there is one."""

  def part(i):
    return shape[i] // math.prod(sizes[a] for a in split[i])

  fits = [
    i
    for i in range(len(shape))
    if part(i) % sizes[axis] == 0 and 'pipeline' not in split[i]
  ]
  if wanted in fits:
    return wanted
  if math.prod(shape) < SMALLEST:
    return None
  # Of equals the rightmost: it is contiguous in memory.
  last = len(shape) - 2
  return max(fits, key=lambda i: (i >= last, part(i), i), default=None)
