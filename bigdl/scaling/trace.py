"""Reads a jaxpr: which work it does, and what each parameter is there for.

One forward walk over the equations, in the manner of abstract interpretation.
For every array it knows which axes run along the row of data (positions,
pixels) and which parameters it is a mere view of (a cast, a slice, a reshape).
That is enough to tell a weight matrix from a table whose rows are looked up,
and an attention matrix from a projection, without knowing the model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import math

from jax.extend import core
import numpy as np

from bigdl.scaling import rules
from bigdl.scaling.rules import OWN, ROW, Fact, Work

__all__ = ['OWN', 'ROW', 'Fact', 'Work', 'live', 'read', 'trips']


def read(jaxpr: core.Jaxpr, facts: Sequence[Fact]) -> Work:
  """Returns the work of a jaxpr whose inputs are described by `facts`."""
  work = Work()
  outs = _walk(jaxpr, facts, work, times=1, stack='')
  for out in outs:
    work.heads |= out.products
  return work


def _walk(jaxpr, facts, work, *, times, stack) -> list[Fact]:
  known = dict(zip(jaxpr.invars, facts, strict=True))
  for var in jaxpr.constvars:
    known[var] = Fact(axes=(0,) * len(var.aval.shape))

  def fact(atom):
    if isinstance(atom, core.Literal):
      return Fact(axes=(0,) * np.ndim(atom.val))
    return known[atom]

  for eqn in live(jaxpr):
    inputs = [fact(atom) for atom in eqn.invars]
    name = f'{stack}/{eqn.source_info.name_stack}'
    outs = _apply(eqn, inputs, work, times, name)
    known.update(zip(eqn.outvars, outs, strict=True))
  return [fact(atom) for atom in jaxpr.outvars]


def live(jaxpr) -> list:
  """Returns the equations that outputs depend on: XLA drops the others."""
  wanted = {v for v in jaxpr.outvars if isinstance(v, core.Var)}
  kept = []
  for eqn in reversed(jaxpr.eqns):
    if eqn.effects or any(v in wanted for v in eqn.outvars):
      kept.append(eqn)
      wanted.update(v for v in eqn.invars if isinstance(v, core.Var))
  return kept[::-1]


def _apply(eqn, inputs, work, times, name) -> list[Fact]:
  primitive = eqn.primitive.name
  scope = rules.ATTENTION.search(name)
  if scope:
    rules.note_length(eqn, inputs, work, name[: scope.end()])
  control = _CONTROL.get(primitive)
  if control:
    return control(eqn, inputs, work, times, name)
  rule = rules.RULES.get(primitive)
  if rule:
    return [rule(eqn, inputs, work, times, name)]
  called = _called(eqn)
  if called is not None:
    return _walk(called, inputs, work, times=times, stack=name)
  if any(_multiplies(sub) for sub in core.jaxprs_in_params(eqn.params)):
    raise ValueError(
      f'FLOPs of {primitive!r} at {name!r} are not countable: it holds matrix'
      ' products and is none of scan, cond, while, jit, remat, shard_map'
    )
  if primitive.startswith('dot_product_attention'):
    rules.fused_attention(eqn, inputs, work, times, name)
  elif primitive == 'exp' and scope:
    entries = times * math.prod(eqn.outvars[0].aval.shape)
    work.softmax += rules.whole(entries, name)
  return rules.default(eqn, inputs, work)


def _called(eqn):
  """Returns the body of a plain call: its ends fit those of the equation."""
  bodies = [_open(b) for b in core.jaxprs_in_params(eqn.params)]
  if len(bodies) != 1:
    return None

  def shapes(atoms):
    return [getattr(a.aval, 'shape', None) for a in atoms]

  body = bodies[0]
  fits = shapes(body.invars) == shapes(eqn.invars)
  if fits and shapes(body.outvars) == shapes(eqn.outvars):
    return body
  return None


def _open(jaxpr):
  return getattr(jaxpr, 'jaxpr', jaxpr)


def _multiplies(jaxpr) -> bool:
  for eqn in _open(jaxpr).eqns:
    if eqn.primitive.name in ('dot_general', 'conv_general_dilated'):
      return True
    if any(_multiplies(sub) for sub in core.jaxprs_in_params(eqn.params)):
      return True
  return False


def _scan(eqn, inputs, work, times, name):
  # Ranks tell what is carried from what is sliced or stacked, in any version
  # of jax: an array of slices has an axis more than the body sees.
  body, length = _open(eqn.params['jaxpr']), eqn.params['length']
  carries = _same_rank(eqn.outvars, body.outvars)
  whole = _same_rank(eqn.invars, body.invars)
  fixed, carry = inputs[: whole - carries], inputs[whole - carries : whole]
  xs = inputs[whole:]
  along = any(x.axes[0] & ROW for x in xs if x.axes)
  slices = [dataclasses.replace(x, axes=x.axes[1:]) for x in xs]

  def step(carry, work, times):
    return _walk(body, [*fixed, *carry, *slices], work, times=times, stack=name)

  carry = _settle(lambda c: step(c, Work(), 0)[:carries], carry)
  outs = step(carry, work, times * length)
  stacked = [
    dataclasses.replace(y, axes=(ROW if along and y.row else 0, *y.axes))
    for y in outs[carries:]
  ]
  return outs[:carries] + stacked


def _same_rank(outer, inner) -> int:
  pairs = zip(outer, inner, strict=True)
  return sum(len(a.aval.shape) == len(b.aval.shape) for a, b in pairs)


def _while(eqn, inputs, work, times, name):
  params = eqn.params
  body = _open(params['body_jaxpr'])
  skip = params['cond_nconsts']
  consts = params['body_nconsts']
  fixed, carry = inputs[skip : skip + consts], inputs[skip + consts :]
  rounds = trips(eqn) if _multiplies(body) else 1
  if rounds is None:
    raise ValueError(
      f'FLOPs of the while loop at {name!r} are not countable: how often it'
      ' runs is decided while it runs; use scan or fori_loop with Python ints'
    )

  def step(carry, work, times):
    return _walk(body, [*fixed, *carry], work, times=times, stack=name)

  carry = _settle(lambda c: step(c, Work(), 0), carry)
  return step(carry, work, times * rounds)


def trips(eqn) -> int | None:
  """Returns the count of `while i < stop: i += step` over literals."""
  cond, body = _open(eqn.params['cond_jaxpr']), _open(eqn.params['body_jaxpr'])
  skip, consts = eqn.params['cond_nconsts'], eqn.params['body_nconsts']
  if len(cond.eqns) != 1 or cond.eqns[0].primitive.name != 'lt':
    return None
  outer = dict(
    zip(
      cond.invars,
      [*eqn.invars[:skip], *eqn.invars[skip + consts :]],
      strict=True,
    )
  )

  def value(atom):
    atom = outer.get(atom, atom) if isinstance(atom, core.Var) else atom
    return int(atom.val) if isinstance(atom, core.Literal) else None

  index, stop = cond.eqns[0].invars
  if index not in cond.invars or cond.invars.index(index) < skip:
    return None
  place = cond.invars.index(index) - skip
  result = body.outvars[place]
  for step in body.eqns:
    if step.primitive.name == 'add' and result in step.outvars:
      if step.invars[0] is not body.invars[consts + place]:
        return None
      ends = value(index), value(stop), value(step.invars[1])
      if None in ends or ends[2] < 1:
        return None
      return max(0, -(-(ends[1] - ends[0]) // ends[2]))
  return None


def _settle(step, carry):
  """Iterates what is known of a loop's carry until it is stable."""
  while True:
    after = [_join(a, b) for a, b in zip(carry, step(carry), strict=True)]
    if after == list(carry):
      return after
    carry = after


def _join(a: Fact, b: Fact) -> Fact:
  axes = tuple(x | y for x, y in zip(a.axes, b.axes, strict=True))
  return rules.merge([a, b], axes, count=a.count and b.count)


def _cond(eqn, inputs, work, times, name):
  joined, heaviest = None, Work()
  for branch in eqn.params['branches']:
    own = Work(lengths=dict(work.lengths))
    outs = _walk(_open(branch), inputs[1:], own, times=times, stack=name)
    work.note(own)
    if own.full >= heaviest.full:
      heaviest = own
    joined = (
      outs
      if joined is None
      else [_join(*p) for p in zip(joined, outs, strict=True)]
    )
  work.add(heaviest)
  return joined


def _shard_map(eqn, inputs, work, times, name):
  # Every device along those axes of the mesh runs the body on its own block.
  sizes, axes = eqn.params['mesh'].shape, eqn.params['newly_manual_axes']
  devices = math.prod(sizes[axis] for axis in axes)
  body = _open(eqn.params['jaxpr'])
  return _walk(body, inputs, work, times=times * devices, stack=name)


def _pallas(eqn, inputs, work, times, name):
  if rules.ATTENTION.search(name):
    rules.fused_attention(eqn, inputs, work, times, name)
    return rules.default(eqn, inputs, work)
  # Inside a kernel there are references to blocks: only its products matter.
  body = _open(eqn.params['jaxpr'])
  blank = [Fact(axes=(0,) * len(v.aval.shape)) for v in body.invars]
  grid = math.prod(eqn.params['grid_mapping'].grid)
  _walk(body, blank, work, times=times * grid, stack=name)
  return rules.default(eqn, inputs, work)


_CONTROL: dict[str, Callable[..., list[Fact]]] = {
  'scan': _scan,
  'while': _while,
  'cond': _cond,
  'shard_map': _shard_map,
  'pallas_call': _pallas,
}
