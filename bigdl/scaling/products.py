"""FLOPs of the matrix products in a program as it is traced.

What is rematerialised counts as often as it is computed. `scaling.count` gives
what a model needs; this is what a program does, to be compared with what the
compiler made of it.
"""

from __future__ import annotations

import math

from jax.extend import core

from bigdl.scaling import trace


def flops(jaxpr: core.Jaxpr) -> int:
  """Returns FLOPs of products and convolutions, 2 a multiply-add.

  Over all devices together, times the rounds of the loops around them; of a
  conditional, the heavier branch. A loop whose rounds are not known counts
  once. The insides of kernels are left out.
  """
  return sum(_equation(eqn) for eqn in trace.live(jaxpr))


def _equation(eqn) -> int:
  name, params = eqn.primitive.name, eqn.params
  if name == 'dot_general':
    (inner, _), _ = params['dimension_numbers']
    shape = eqn.invars[0].aval.shape
    contracted = math.prod(shape[d] for d in inner)
    return 2 * eqn.outvars[0].aval.size * contracted
  if name == 'conv_general_dilated':
    kernel = eqn.invars[1].aval
    outputs = kernel.shape[params['dimension_numbers'].rhs_spec[0]]
    return 2 * eqn.outvars[0].aval.size * (kernel.size // outputs)
  if name == 'pallas_call':
    return 0
  inside = [
    flops(getattr(j, 'jaxpr', j)) for j in core.jaxprs_in_params(params)
  ]
  if not any(inside):
    return 0
  if name == 'cond':
    return max(inside)
  times = 1
  if name == 'scan':
    times = params['length']
  elif name == 'while':
    times = trace.trips(eqn) or 1
  elif name == 'shard_map':
    # Each device along these axes runs the body; along others it is whole.
    axes = params['newly_manual_axes']
    times = math.prod(params['mesh'].shape[axis] for axis in axes)
  return times * sum(inside)
