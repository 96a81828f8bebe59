"""Depth, chosen in one place: a loop or a scan, with or without remat.

A loop compiles each block by itself: slow to compile when deep, fastest to run
on CPU. A scan compiles one block and runs it `depth` times. Remat recomputes
activations in the backward pass (Chen et al., 2016, arXiv:1604.06174).

The parameters of a loop are named `blocks_0/...`, `blocks_1/...`; those of a
scan `blocks/...` with a leading axis. `to_scan` and `to_loop` convert.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from flax import linen as nn
import jax
import jax.numpy as jnp

from bigdl.layers import dense

StackKind = Literal['auto', 'loop', 'scan']
RematKind = Literal['none', 'full', 'dots']
Blocks = nn.Module | list[nn.Module]

# 'dots' keeps the outputs of weight matmuls and recomputes the attention.
_POLICIES = {
  'full': jax.checkpoint_policies.nothing_saveable,
  'dots': jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names(dense.NAME),
  ),
}


def resolve(kind: StackKind) -> Literal['loop', 'scan']:
  """Returns what 'auto' means here: a loop on CPU, else a scan."""
  if kind != 'auto':
    return kind
  return 'loop' if jax.default_backend() == 'cpu' else 'scan'


def build(
  make: Callable[[], nn.Module], depth: int, *, kind: StackKind
) -> Blocks:
  """Returns what `setup` should assign to `self.blocks`."""
  if resolve(kind) == 'scan':
    return make()
  return [make() for _ in range(depth)]


def run(
  blocks: Blocks,
  x: jax.Array,
  *arrays: Any,
  depth: int,
  remat: RematKind,
  **static: Any,
) -> jax.Array:
  """Applies the blocks to `x`; each is called `(x, *arrays, **static)`.

  Args:
    blocks: What `build` returned.
    x: The residual stream.
    *arrays: Pytrees of arrays that every block is given alike.
    depth: The number of blocks.
    remat: What the backward pass recomputes.
    **static: Python values that every block is given alike.
  """

  def step(block, x, *arrays):
    return block(x, *arrays, **static)

  scanned = not isinstance(blocks, list | tuple)
  if remat != 'none':
    # Inside a scan, common subexpressions cannot undo the recomputation.
    step = nn.remat(step, policy=_POLICIES[remat], prevent_cse=not scanned)
  if isinstance(blocks, list | tuple):
    for block in blocks:
      x = step(block, x, *arrays)
    return x
  scan = nn.scan(
    lambda block, x, *arrays: (step(block, x, *arrays), None),
    variable_axes={'params': 0, 'cache': 0},
    split_rngs={'params': True, 'dropout': True},
    in_axes=nn.broadcast,
    length=depth,
  )
  return scan(blocks, x, *arrays)[0]


def to_scan(tree: Any, *, name: str = 'blocks') -> Any:
  """Stacks `{name}_0`, `{name}_1`, ... into `{name}`, anywhere in a pytree.

  Works on parameters and on whatever mirrors them (optimizer state, EMA).
  """

  def holds(node):
    return isinstance(node, dict) and f'{name}_0' in node

  def convert(node):
    if not holds(node):
      return node
    depth = sum(f'{name}_{i}' in node for i in range(len(node)))
    parts = [node[f'{name}_{i}'] for i in range(depth)]
    rest = {k: v for k, v in node.items() if k[: len(name) + 1] != f'{name}_'}
    return {**rest, name: jax.tree.map(lambda *x: jnp.stack(x), *parts)}

  return jax.tree.map(convert, tree, is_leaf=holds)


def to_loop(tree: Any, *, name: str = 'blocks') -> Any:
  """The inverse of `to_scan`."""

  def holds(node):
    return isinstance(node, dict) and name in node

  def convert(node):
    if not holds(node):
      return node
    rest = {k: v for k, v in node.items() if k != name}
    leaves = jax.tree.leaves(node[name])
    depth = leaves[0].shape[0] if leaves else 0
    for i in range(depth):
      rest[f'{name}_{i}'] = jax.tree.map(lambda x, i=i: x[i], node[name])
    return rest

  return jax.tree.map(convert, tree, is_leaf=holds)
