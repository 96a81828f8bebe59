"""Parameters and FLOPs of any model, by tracing: no formula per model.

The forward loss of one row of data is traced on abstract parameters (nothing
is allocated or computed, so 175 B parameters take seconds) and the jaxpr is
walked: matrix products and convolutions, times the trip counts of the loops
around them. Training is three times forward, one for the loss and two for the
gradient; a traced backward pass is not counted, since rematerialisation
inflates it. `CONVENTIONS` says what each way of counting means.

What is an embedding, by the role that a parameter plays in the trace:
  * its rows are looked up by values of the data (a gather, a one-hot product,
    or a product inside `named_scope('embedding_lookup')`), or
  * it is added along an axis of the data, so that positions differ by it (a
    table of positions, sliced or looked up).
A bias is added along feature axes, so it is none. The head is each parameter
whose product reaches the loss through no later product with a parameter and,
where tokens are looked up, that has the size of the vocabulary. A tied table is
embedding and head at once.

Attention is recognised by `named_scope`: products inside `causal_attention`,
`full_attention` or `banded_attention_<window>`; a tile that is given only some
of the keys names them, `keys_<some>_of_<all>`, and counts as if it were given
all, so that the count does not depend on the kernel.
"""

from __future__ import annotations

import dataclasses
from fractions import Fraction
import functools
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from bigdl import values as values_of
from bigdl.objectives.base import Objective
from bigdl.scaling import trace

Spec = dict[str, jax.ShapeDtypeStruct]

CONVENTIONS: dict[str, str] = {
  '6N': (
    '6 x all parameters, the C = 6 N D of Hoffmann et al. (2022, '
    'arXiv:2203.15556, section 3.3) with embeddings and head in N.'
  ),
  '6N_nonembedding': (
    '6 x parameters without token and position embeddings and without the '
    'head, the C = 6 N of Kaplan et al. (2020, arXiv:2001.08361, section 2.1).'
  ),
  'matmul_causal': (
    '3 x forward matrix products and convolutions, 2 FLOPs a multiply-add, '
    'masked attention at the share its mask leaves: (T + 1) / (2 T) of T x T '
    'for a causal one, the exact triangle with its diagonal.'
  ),
  'matmul_full': (
    '3 x forward matrix products and convolutions, 2 FLOPs a multiply-add, '
    'attention in full as in PaLM (Chowdhery et al., 2022, arXiv:2204.02311, '
    'appendix B): 6 N + 12 L H Q T where N are the parameters that multiply.'
  ),
  'chinchilla_f': (
    'Hoffmann et al. (2022, arXiv:2203.15556, appendix F): matmul_full, plus '
    'each token lookup as a dense product (2 S V d), plus 3 FLOPs an entry of '
    'the softmax in attention; backward = 2 x forward.'
  ),
  'xla': (
    "XLA's cost analysis of loss and gradient on one row, layers unrolled, "
    'attention in plain XLA, before optimisation: every operation counts, '
    'elementwise ones too, and what is rematerialised counts twice.'
  ),
}

# Unrolling and lowering a larger model takes longer than its number is worth.
XLA_PARAMETERS = 500_000_000


def describe() -> str:
  """Returns the conventions as lines of text, one a convention."""
  width = max(map(len, CONVENTIONS))
  return '\n'.join(f'{k:<{width}}  {v}' for k, v in CONVENTIONS.items())


def params(
  model: nn.Module, objective: Objective, spec: Spec
) -> dict[str, int]:
  """Returns parameter counts: total, nonembedding, nonembedding_head.

  Args:
    model: The module to count.
    objective: What it is trained for; its loss is traced.
    spec: Shape and dtype of one row of data, by field.
  """
  return dict(_ledger(model, objective, spec).params)


def flops_per_unit(
  model: nn.Module, objective: Objective, spec: Spec, *, xla: bool = True
) -> dict[str, int | float | None]:
  """Returns training FLOPs per unit of data (token) under each convention.

  `xla` is None above `XLA_PARAMETERS` parameters, or where it is not wanted.
  """
  ledger = _ledger(model, objective, spec)
  units = objective.units(spec)
  per_row = dict(ledger.flops)
  if xla and ledger.params['total'] <= XLA_PARAMETERS:
    per_row['xla'] = _cached(_xla, model, objective, _fields(spec))
  counts: dict[str, int | float | None] = {
    '6N': 6 * ledger.params['total'],
    '6N_nonembedding': 6 * ledger.params['nonembedding'],
  }
  for name in CONVENTIONS:
    if name not in counts:
      flops = per_row.get(name)
      counts[name] = None if flops is None else _number(Fraction(flops) / units)
  return counts


def activation_bytes(model: nn.Module, objective: Objective, spec: Spec) -> int:
  """Returns bytes that one row's backward pass keeps from its forward pass.

  These are the residuals of reverse-mode differentiation, rematerialisation
  taken into account; XLA's fusions need less, its temporary buffers more.
  Parameters are not included.
  """
  return _cached(_residuals, model, objective, _fields(spec))


@dataclasses.dataclass(frozen=True)
class _Ledger:
  params: dict[str, int]
  flops: dict[str, Any]  # Training FLOPs of one row, by convention.


def _ledger(model, objective, spec) -> _Ledger:
  return _cached(_count, model, objective, _fields(spec))


def _fields(spec):
  return tuple(
    sorted((k, tuple(v.shape), jnp.dtype(v.dtype)) for k, v in spec.items())
  )


def _cached(function, model, objective, fields):
  try:
    return _remember(function, model, objective, fields)
  except TypeError as error:
    # A model with a list among its fields has no hash; it is traced again.
    if 'unhashable' not in str(error):
      raise
    return function(model, objective, fields)


@functools.lru_cache(maxsize=4096)
def _remember(function, model, objective, fields):
  return function(model, objective, fields)


def _with(model, **fields):
  """Returns the model with those fields changed that it, or a part, has."""
  own = {f.name: getattr(model, f.name) for f in values_of.fields(model)}
  changes = {k: v for k, v in fields.items() if k in own}
  changes |= {
    k: _with(v, **fields) for k, v in own.items() if isinstance(v, nn.Module)
  }
  return dataclasses.replace(model, **changes)


def _abstract(model, objective, fields):
  """Returns shapes of params, extra, a batch of one row, and a key."""
  key = jax.eval_shape(lambda: jax.random.key(0))
  row = {k: jax.ShapeDtypeStruct((1, *s), d) for k, s, d in fields}
  start = jax.eval_shape(
    lambda key, row: objective.init(model, key, row), key, row
  )
  return *start, row, key


def _count(model, objective, fields) -> _Ledger:
  # A scan is the same work, and its trace does not grow with depth.
  model = _with(model, stack='scan')
  values, extra, row, key = _cached(_abstract, model, objective, fields)

  def loss(values, extra, row, key):
    return objective.loss(model, values, extra, row, key)[0]

  jaxpr = jax.make_jaxpr(loss)(values, extra, row, key).jaxpr
  leaves, _ = jax.tree_util.tree_flatten_with_path(values)
  named = {
    jax.tree_util.keystr(path, simple=True, separator='/'): leaf
    for path, leaf in leaves
  }
  facts = [
    trace.Fact(
      axes=tuple(trace.OWN if size > 1 else 0 for size in leaf.shape),
      views=frozenset([name]),
    )
    for name, leaf in named.items()
  ]
  facts += [
    trace.Fact(axes=(0,) * len(leaf.shape)) for leaf in jax.tree.leaves(extra)
  ]
  facts += [
    trace.Fact(axes=(trace.ROW,) * len(leaf.shape), row=True)
    for leaf in jax.tree.leaves(row)
  ]
  facts.append(trace.Fact())
  work = trace.read(jaxpr, facts)
  return _Ledger(_split(named, work), _training(work))


def _split(named, work) -> dict[str, int]:
  sizes = {name: math.prod(leaf.shape) for name, leaf in named.items()}
  # Of several tables the largest is of tokens; others may be as small as the
  # number of classes.
  vocab = {
    k: max(work.vocab & set(named[k].shape), default=0) for k in work.heads
  }
  most = max(vocab.values(), default=0)
  heads = {k for k, v in vocab.items() if not work.vocab or v == most > 0}
  bare = sum(n for k, n in sizes.items() if k not in work.tables | heads)
  return {
    'total': sum(sizes.values()),
    'nonembedding': bare,
    'nonembedding_head': bare + sum(sizes[k] for k in heads),
  }


def _training(work) -> dict[str, Any]:
  return {
    'matmul_causal': 3 * work.causal,
    'matmul_full': 3 * work.full,
    'chinchilla_f': 3 * (work.full + work.lookup + 3 * work.softmax),
  }


def _number(value: Fraction) -> int | float:
  return int(value) if value.denominator == 1 else float(value)


def _gradient(model, objective):
  def loss(values, extra, row, key):
    return objective.loss(model, values, extra, row, key)[0]

  return jax.value_and_grad(loss)


def _xla(model, objective, fields) -> float | None:
  # Cost analysis counts the body of a scan once, however often it runs, and
  # cannot look into the kernels of attention.
  model = _with(model, stack='loop', attention='xla')
  shapes = _cached(_abstract, model, objective, fields)
  analysis = jax.jit(_gradient(model, objective)).lower(*shapes).cost_analysis()
  return analysis.get('flops') if analysis else None


def _residuals(model, objective, fields) -> int:
  model = _with(model, stack='scan')
  values, extra, row, key = _cached(_abstract, model, objective, fields)

  def pull(values, extra, row, key):
    def loss(values):
      return objective.loss(model, values, extra, row, key)[0]

    return jax.vjp(loss, values)[1]

  kept = jax.tree.leaves(jax.eval_shape(pull, values, extra, row, key))
  sizes = [leaf.size * leaf.dtype.itemsize for leaf in kept]
  own = [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(values)]
  for leaf, size in zip(kept, list(sizes), strict=True):
    # The parameters themselves are among the residuals.
    if (leaf.shape, leaf.dtype) in own:
      own.remove((leaf.shape, leaf.dtype))
      sizes.remove(size)
  return sum(sizes)
