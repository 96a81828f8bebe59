"""Pipelines over depth: each stage of devices holds a share of the blocks.

Huang et al., 2019, arXiv:1811.06965, figure 2; with repeats, the interleaved
schedule of Narayanan et al., 2021, arXiv:2104.04473, section 2.2, whose p, m and v
are S stages, M microbatches and R repeats here. The blocks are cut into R S runs,
of which stage s holds those numbered s, S + s, 2 S + s, ... A microbatch visits
the stages R times in a ring; after each step every stage hands on what it has.
At step t, stage s is at its piece of work u = t - s: of each S microbatches, it
does all R repeats before it turns to the next S.
Differs from the papers: the backward pass is the derivative of the forward pass
as a whole. It idles for the same share of time, but starts when all microbatches
are through, so that what it needs of every one is kept (rematerialisation says
how much), where 1F1B keeps no more than S.

Parameters lie as they do without a pipeline, `[L, ...]` in the order of the
blocks, so that a checkpoint does not know of it: a stage keeps the L / S blocks
from s L / S on. Where R = 1 these are the blocks that it runs. Else the stages
deal blocks out once before the first step, and gradients back after the last, in
R permutations each: a share of (1 - 1 / S) of the weights of a stage goes through
a link once, whereas FSDP over as many devices would move those of all stages. No
order of `[L, ...]` that is cut into S pieces could spare this.

What `fsdp` splits, a stage gathers in every step, R M + S - 1 times in an update
and again backward, not once: few microbatches, or tensor instead, move less.
"""

# Shapes: B rows, b rows of a microbatch, L blocks, M microbatches.
from __future__ import annotations

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType
import numpy as np

from bigdl.parallel import activations, scope
from bigdl.parallel.layout import Layout

AXIS = 'pipeline'


def bubble(stages: int, microbatches: int, repeats: int = 1) -> float:
  """Returns the share of time in which a stage has nothing to do.

  That is (S - 1) / (R M + S - 1); Narayanan et al. state it over the time that is
  no bubble, (p - 1) / (v m).
  """
  return (stages - 1) / (repeats * microbatches + stages - 1)


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Which stage does what, and when."""

  stages: int  # S
  microbatches: int  # M
  repeats: int = 1  # R

  def __post_init__(self):
    # Or a microbatch would come round before its stage is free.
    if self.repeats > 1 and self.microbatches % self.stages:
      raise ValueError(
        f'layout.microbatches={self.microbatches} must be divisible by'
        f' layout.pipeline={self.stages} where layout.repeats={self.repeats}'
      )

  @property
  def steps(self) -> int:
    return self.repeats * self.microbatches + self.stages - 1

  @property
  def bubble(self) -> float:
    return bubble(self.stages, self.microbatches, self.repeats)

  @property
  def runs(self) -> int:
    """R S: the runs that blocks are cut into."""
    return self.repeats * self.stages

  def work(self, u: Any) -> tuple[Any, Any]:
    """Returns microbatch and repeat of a stage's piece of work `u`.

    Before the first piece and after the last they mean nothing, but exist.
    """
    turn = u // self.stages
    first = turn // self.repeats * self.stages
    return (first + u % self.stages) % self.microbatches, turn % self.repeats


def schedule(layout: Layout | None, stages: int) -> Schedule:
  """Returns the schedule that a layout asks for on so many stages."""
  if layout is None or stages == 1:
    return Schedule(stages, stages)
  return Schedule(stages, layout.microbatches or stages, layout.repeats)


def current() -> Schedule | None:
  """Returns the schedule of the program being traced; None: no pipeline."""
  mesh = jax.sharding.get_abstract_mesh()
  kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
  stages = dict(mesh.shape).get(AXIS, 1)
  # Inside of a stage the axis is taken.
  if stages == 1 or kinds[AXIS] == AxisType.Manual:
    return None
  return schedule(scope.layout(), stages)


def check(plan: Schedule, model: Any) -> None:
  """Raises ValueError where a model's blocks cannot be dealt out to stages.

  Args:
    plan: The schedule.
    model: Asked for the fields it has: `depth`, `decoder_depth`, `groups` (of
      blocks that share weights), `stack`.
  """
  if plan.stages == 1:
    return
  if getattr(model, 'stack', None) == 'loop':
    raise ValueError(
      'model.stack=loop must be scan, or auto, where'
      f' layout.pipeline={plan.stages}'
    )
  # Where blocks share weights, a stage keeps those of some groups.
  names = ['depth', 'decoder_depth']
  if getattr(model, 'groups', 0):
    names = ['groups']
  for name in names:
    depth = getattr(model, name, 0)
    if isinstance(depth, int):
      check_depth(plan, f'model.{name}', depth)


def check_depth(plan: Schedule, name: str, depth: int) -> None:
  """Raises ValueError where so many blocks cannot be dealt out evenly."""
  if depth % plan.runs:
    repeats = f' x layout.repeats={plan.repeats}' if plan.repeats > 1 else ''
    raise ValueError(
      f'{name}={depth} must be divisible by layout.pipeline={plan.stages}'
      f'{repeats}'
    )


def check_rows(plan: Schedule, name: str, rows: int, *, parts: int = 1) -> None:
  """Raises ValueError where rows cannot be cut into microbatches.

  Args:
    plan: The schedule.
    name: The field that says how many rows there are.
    rows: Its value.
    parts: Groups of devices that have rows of their own: data x fsdp.
  """
  if rows % (plan.microbatches * parts):
    raise ValueError(
      f'{name}={rows} must be divisible by {parts} parts of rows x'
      f' {plan.microbatches} microbatches of layout.pipeline={plan.stages}'
    )


def run(
  blocks: Callable[..., jax.Array],
  x: jax.Array,
  arrays: Any,
  own: Any,
  plan: Schedule,
) -> jax.Array:
  """Returns what a stack makes of `x`, `[B, ...]`.

  Args:
    blocks: `(x, arrays, own, microbatch) -> x`: applies some blocks in a row,
      to rows and arrays of one microbatch, whose number is no constant.
    x: What the first block is given.
    arrays: A pytree of what all blocks are given alike: `[B, ...]`, or scalars
      and `[1, ...]`, which all rows share.
    own: A pytree of `[L, ...]`, what each block has for itself.
    plan: The schedule.
  """
  S, B = plan.stages, len(x)
  check_rows(plan, 'batch', B)
  check_depth(plan, 'depth', len(jax.tree.leaves(own)[0]))
  leaves, kind = jax.tree.flatten(arrays)
  split = [_has_rows(leaf, B) for leaf in leaves]

  def stage(given, own):
    s, feed, leaves = jax.tree.map(lambda a: a[0], given)
    dealt = _deal(own, s, plan) if plan.repeats > 1 else None

    def step(state, inputs):
      t, entering = inputs
      micro, repeat = plan.work(t - s)
      seen = [
        _at(leaf, micro) if cut else leaf
        for leaf, cut in zip(leaves, split, strict=True)
      ]
      state = blocks(
        jnp.where((s == 0) & (repeat == 0), entering, state),
        jax.tree.unflatten(kind, seen),
        jax.tree.map(lambda leaf: _at(leaf, repeat), dealt) if dealt else own,
        micro,
      )
      ring = [(i, (i + 1) % S) for i in range(S)]
      state = jax.lax.ppermute(state, AXIS, ring)
      return state, state

    # A stage that has nothing to do yet works on what may well be there: the
    # derivatives of some blocks at zeros are no numbers.
    inputs = jnp.arange(plan.steps), _entering(feed, plan)
    _, states = jax.lax.scan(step, feed[0], inputs)
    return _leaving(states, plan)[None]

  cut = [
    _cut(leaf, plan) if rows else _spread(leaf, S)
    for leaf, rows in zip(leaves, split, strict=True)
  ]
  out = jax.shard_map(
    stage,
    in_specs=jax.P(AXIS),
    out_specs=jax.P(AXIS),
    axis_names={AXIS},
    # Blocks are whatever a model has.
    check_vma=False,
  )((jnp.arange(S), _cut(x, plan), cut), own)
  # What the last stage hands on is with the first.
  return activations.stream(out[0].swapaxes(0, 1).reshape(x.shape))


def _has_rows(leaf, B):
  """Returns whether a microbatch has a part of its own of an array."""
  if leaf.ndim and len(leaf) not in (1, B):
    raise ValueError(
      f'layout.pipeline: an array {list(leaf.shape)} that blocks are given must'
      f' have as many rows as the batch, {B}, or 1'
    )
  return leaf.ndim > 0 and len(leaf) == B


def _cut(x, plan):
  """Returns `[S, M, b, ...]`: row r, of microbatch r % M, for each stage.

  So the rows of a microbatch are spread over all devices that split rows.
  """
  x_bM = x.reshape(-1, plan.microbatches, *x.shape[1:])
  return _spread(x_bM.swapaxes(0, 1), plan.stages, rows=1)


def _spread(x, stages, *, rows=None):
  """Returns a copy for each stage, split over the stages.

  Its derivative is their sum, which the compiler knows how to split; inside of
  the stages it could not be in 16 bits, of which XLA's CPU backend makes none.
  """
  copies = jnp.broadcast_to(x, (stages, *x.shape))
  dims: list[Any] = [jax.P.UNCONSTRAINED] * x.ndim
  if rows is not None:
    dims[rows] = activations.axes_of(x.shape[rows], 'rows') or None
  return jax.lax.with_sharding_constraint(copies, jax.P(AXIS, *dims))


def _entering(x, plan):
  """Returns what the first stage could take up, step by step."""
  if plan.repeats > 1:
    x = x.reshape(-1, 1, plan.stages, *x.shape[1:])
    x = jnp.broadcast_to(x, (len(x), plan.repeats, *x.shape[2:]))
    x = x.reshape(-1, *x.shape[3:])
  rest = jnp.broadcast_to(x[-1:], (plan.stages - 1, *x.shape[1:]))
  return jnp.concatenate([x, rest])


def _leaving(states, plan):
  """Returns what has been through all stages, `[M, ...]`."""
  states = states[plan.stages - 1 :]
  if plan.repeats == 1:
    return states
  shape = states.shape[1:]
  rounds = states.reshape(-1, plan.repeats, plan.stages, *shape)
  return rounds[:, -1].reshape(-1, *shape)


def _deal(own, s, plan):
  """Returns `[R, n, ...]` blocks to run of `[L / S, ...]` blocks kept."""
  R, S = plan.repeats, plan.stages
  sends, gets = deals(plan)

  def deal(leaf):
    leaf = leaf.reshape(R, -1, *leaf.shape[1:])
    parts = []
    for runs in sends:
      part, to = _at(leaf, jnp.asarray(runs % R)[s]), (runs % S).tolist()
      if to != list(range(S)):
        part = jax.lax.ppermute(part, AXIS, list(enumerate(to)))
      parts.append(part)
    return jnp.stack(parts)[jnp.asarray(gets)[s]]

  return jax.tree.map(deal, own)


def deals(plan: Schedule) -> tuple[np.ndarray, np.ndarray]:
  """Returns how runs of blocks get from where they are kept to where they run.

  Run c is kept by stage c // R, run by stage c % S. Returns `[R, S]`, the run that
  stage s sends in exchange k, each of which is a permutation of the stages; and
  `[S, R]`, in which exchange stage s gets its run of repeat r.
  """
  R, S = plan.repeats, plan.stages
  s, shared = np.arange(S), math.gcd(R, S)
  # Stages S / gcd(R, S) apart would send to the same stage, were it not for
  # their different start.
  own = (np.arange(R)[:, None] + s // (S // shared)) % R
  sends = s * R + own
  gets = np.empty((S, R), int)
  for k, runs in enumerate(sends):
    gets[runs % S, runs // S] = k
  return sends, gets


def _at(leaf, index):
  return jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False)
