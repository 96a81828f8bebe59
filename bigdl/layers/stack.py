"""Depth, chosen in one place: a loop or a scan, with or without remat.

A loop compiles each block by itself: slow to compile when deep, fastest to run
on CPU. A scan compiles one block and runs it `depth` times. Remat recomputes
activations in the backward pass (Chen et al., 2016, arXiv:1604.06174).

The parameters of a loop are named `blocks_0/...`, `blocks_1/...`; those of a
scan `blocks/...` with a leading axis. `to_scan` and `to_loop` convert.

Blocks may take turns in what they are told. A step of the scan then runs a whole
turn, each block on its slice of the same stacked parameters, so that neither
conversion nor a checkpoint has to know. (Were a window data of the scan, no
kernel could leave work out, and no ledger count what is left.)

Where the mesh in context has a pipeline, each of its stages scans over the blocks
it holds (bigdl/parallel/pipeline.py). Parameters are those of a scan, and so is
what comes out, but that dropout draws otherwise: by block and microbatch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import functools
import math
from typing import Any, Literal

from flax import linen as nn
import jax
import jax.numpy as jnp

from bigdl.layers import dense
from bigdl.parallel import activations, pipeline, target

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


def _policy(remat: RematKind) -> Callable[..., Any] | None:
  """Returns what the backward pass keeps; None: all that it needs."""
  # Where `tensor` splits layers, the sums of their products are whole until they
  # are scattered: each device keeps its part, and gathers again what it reads.
  if remat == 'dots' and activations.parts('tensor') > 1:
    return jax.checkpoint_policies.save_only_these_names(activations.KEPT)
  return _POLICIES.get(remat)


def resolve(kind: StackKind) -> Literal['loop', 'scan']:
  """Returns what 'auto' means here: a loop on CPU, else a scan.

  In a pipeline it means a scan, and a loop is refused: parameters that are
  stacked can be split by depth.
  """
  plan = pipeline.current()
  if plan:
    if kind == 'loop':
      raise ValueError(
        'model.stack=loop must be scan, or auto, where'
        f' layout.pipeline={plan.stages}'
      )
    return 'scan'
  if kind != 'auto':
    return kind
  return 'loop' if target.platform() == 'cpu' else 'scan'


def build(
  make: Callable[[], nn.Module], depth: int, *, kind: StackKind
) -> Blocks:
  """Returns what `setup` should assign to `self.blocks`."""
  plan = pipeline.current()
  if plan:
    pipeline.check_depth(plan, 'depth', depth)
  if resolve(kind) == 'scan':
    return make()
  return [make() for _ in range(depth)]


def run(
  blocks: Blocks,
  x: jax.Array,
  *arrays: Any,
  depth: int,
  remat: RematKind,
  turns: Sequence[Mapping[str, Any]] = ({},),
  times: int = 1,
  **static: Any,
) -> jax.Array:
  """Applies the blocks to `x`; each is called `(x, *arrays, **static)`.

  Args:
    blocks: What `build` returned.
    x: The residual stream.
    *arrays: Pytrees of arrays that every block is given alike: `[B, ...]` where
      each row has its own, scalars or `[1, ...]` where rows share them.
    depth: The number of blocks.
    remat: What the backward pass recomputes.
    turns: Python values for block i, at i modulo their number. Parameters must
      not depend on them.
    times: How often in a row each block is applied, with the same parameters
      (Lan et al., 2019, arXiv:1909.11942); where above 1, none take turns.
    **static: Python values that every block is given alike.
  """
  told = [{**static, **turn} for turn in turns]

  def step_of(turn, prevent_cse):
    def step(block, x, *arrays):
      return block(x, *arrays, **turn)

    policy = _policy(remat)
    if policy is None:
      return step
    return nn.remat(step, policy=policy, prevent_cse=prevent_cse)

  assert times == 1 or len(told) == 1
  if isinstance(blocks, list | tuple):
    blocks = [block for block in blocks for _ in range(times)]
    steps = [step_of(turn, prevent_cse=True) for turn in told]
    for i, block in enumerate(blocks):
      x = steps[i % len(steps)](block, x, *arrays)
    return x
  if not blocks.is_initializing():
    plan = pipeline.current()
    # What is generated goes token by token, and has nothing to fill a pipeline.
    if plan and not blocks.is_mutable_collection('cache'):
      return _pipelined(blocks, x, arrays, told, depth, remat, times, plan)
  if len(told) > 1 and not blocks.is_initializing():
    return _take_turns(blocks, x, arrays, told, depth, remat)
  # Inside a scan, common subexpressions cannot undo the recomputation.
  step = step_of(told[0], prevent_cse=False)
  if times > 1:
    step = _repeat(step, times)
  scan = nn.scan(
    lambda block, x, *arrays: (step(block, x, *arrays), None),
    variable_axes={'params': 0, 'cache': 0},
    split_rngs={'params': True, 'dropout': True},
    in_axes=nn.broadcast,
    length=depth,
  )
  return scan(blocks, x, *arrays)[0]


def _repeat(step, times):
  """Returns the step taken that often in a row, with the same parameters."""

  def repeat(block, x, *arrays):
    scan = nn.scan(
      lambda block, x, *arrays: (step(block, x, *arrays), None),
      variable_broadcast='params',
      split_rngs={'params': False, 'dropout': True},
      in_axes=nn.broadcast,
      length=times,
    )
    return scan(block, x, *arrays)[0]

  return repeat


def _take_turns(block, x, arrays, turns, depth, remat):
  """Scans over groups of one block a turn; what is left over comes after."""
  mutable = ['cache'] if block.is_mutable_collection('cache') else []
  keys = None
  if block.has_rng('dropout'):
    keys = jax.random.split(block.make_rng('dropout'), depth)
  steps = _steps(block, arrays, turns, remat, mutable=mutable)
  x, changes = _in_turn(steps, x, (dict(block.variables), keys), depth)
  for collection, values in changes.items():
    for name, value in values.items():
      block.put_variable(collection, name, value)
  return x


def _steps(block, arrays, turns, remat, *, mutable=(), times=1):
  """Returns pure functions `(x, variables, key) -> (x, changes)`, one a turn."""
  pure = block.clone(parent=None)

  def step_of(turn):
    def step(x, variables, key):
      rngs = None if key is None else {'dropout': key}
      return pure.apply(
        variables, x, *arrays, rngs=rngs, mutable=list(mutable), **turn
      )

    policy = _policy(remat)
    if policy is not None:
      step = jax.checkpoint(step, policy=policy, prevent_cse=False)
    if times == 1:
      return step

    def repeat(x, variables, key):
      keys = None if key is None else jax.random.split(key, times)
      return jax.lax.scan(
        lambda x, key: step(x, variables, key), x, keys, length=times
      )

    return repeat

  return [step_of(turn) for turn in turns]


def _pipelined(block, x, arrays, turns, depth, remat, times, plan):
  """Runs each block where its parameters are; rows pass from stage to stage."""
  own = dict(block.variables), jnp.arange(depth)
  key = None
  if block.has_rng('dropout'):
    # Stages know their own number alone: they fold in those of the blocks.
    key = block.make_rng('dropout')[None]

  def blocks(x, given, own, microbatch):
    arrays, key = given
    variables, numbers = own
    keys = None
    if key is not None:
      key = jax.random.fold_in(key[0], microbatch)
      keys = jax.vmap(functools.partial(jax.random.fold_in, key))(numbers)

    def start(turn, x):
      order = [*turns[turn:], *turns[:turn]]
      steps = _steps(block, arrays, order, remat, times=times)
      return _in_turn(steps, x, (variables, keys), len(numbers))[0]

    # Runs of blocks may begin at other turns: each stage takes its own branch.
    shared = math.gcd(len(numbers), len(turns))
    starts = [functools.partial(start, i) for i in range(0, len(turns), shared)]
    return jax.lax.switch(numbers[0] % len(turns) // shared, starts, x)

  return pipeline.run(blocks, x, (arrays, key), own, plan)


def _in_turn(steps, x, own, depth):
  """Returns what blocks make of `x`, and what they changed, block by block."""

  def group(x, own, steps=steps):
    changes = []
    for i, step in enumerate(steps):
      x, changed = step(x, *jax.tree.map(lambda leaf, i=i: leaf[i], own))
      changes.append(changed)
    return x, jax.tree.map(lambda *leaves: jnp.stack(leaves), *changes)

  size = len(steps)
  groups, rest = divmod(depth, size)
  grouped = jax.tree.map(
    lambda leaf: leaf[: groups * size].reshape(groups, size, *leaf.shape[1:]),
    own,
  )
  x, changes = jax.lax.scan(group, x, grouped)
  changes = jax.tree.map(
    lambda leaf: leaf.reshape(groups * size, *leaf.shape[2:]), changes
  )
  if rest:
    last = jax.tree.map(lambda leaf: leaf[groups * size :], own)
    x, more = group(x, last, steps[:rest])
    changes = jax.tree.map(lambda *a: jnp.concatenate(a), changes, more)
  return x, changes


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
    # Beside the blocks there may be others, which mirror these.
    rest = to_scan(rest, name=name)
    return {**rest, name: jax.tree.map(lambda *x: jnp.stack(x), *parts)}

  return jax.tree.map(convert, tree, is_leaf=holds)


def to_loop(tree: Any, *, name: str = 'blocks') -> Any:
  """The inverse of `to_scan`."""

  def holds(node):
    return isinstance(node, dict) and name in node

  def convert(node):
    if not holds(node):
      return node
    rest = to_loop({k: v for k, v in node.items() if k != name}, name=name)
    leaves = jax.tree.leaves(node[name])
    depth = leaves[0].shape[0] if leaves else 0
    for i in range(depth):
      rest[f'{name}_{i}'] = jax.tree.map(lambda x, i=i: x[i], node[name])
    return rest

  return jax.tree.map(convert, tree, is_leaf=holds)
