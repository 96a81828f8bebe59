"""Relative attention against its equation, pair by pair, in numpy."""

# Shapes: B batch, T positions, D width, H heads, K head width.
from __future__ import annotations

import functools
from typing import Any

from flax import linen as nn
import jax
from jax.extend import core
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl.layers import relative, stack
from bigdl.layers.block import Block
from bigdl.layers.mlp import MLP
from bigdl.layers.norm import Norm
from bigdl.layers.relative import RelativeAttention
from bigdl.objectives.base import Objective
from bigdl.parallel import rules
from bigdl.parallel.layout import Layout
from bigdl.scaling import count

CLOSE: dict[str, Any] = {'rtol': 1e-4, 'atol': 1e-5}
D, H, K = 10, 2, 3


def layer(**fields):
  fields = {'heads': H, 'head_width': K, **fields}
  wide = nn.initializers.normal(0.6)
  inits = {'kernel_init': wide, 'out_init': wide, 'bias_init': wide}
  return RelativeAttention(**{**inits, **fields})


@functools.cache
def drawn(bias=True):
  """Returns parameters of which none is zero."""
  params = layer(bias=bias).init(jax.random.key(0), jnp.zeros((1, 1, D)))
  leaves, structure = jax.tree.flatten(params['params'])
  rng = np.random.default_rng(3)
  return jax.tree.unflatten(
    structure, [0.6 * rng.normal(size=x.shape).astype('f') for x in leaves]
  )


def stream(T, B=2):
  return np.random.default_rng(T).normal(size=(B, T, D)).astype('float32')


def packed(T):
  """Two rows of documents, and padding at the end of one."""
  t = np.arange(T)
  row = np.where(t < T // 3, 1, np.where(t < T - 5, 2, 0))
  return np.stack([row, 1 + (t > T - 9)]).astype('int32')


def definition(params, x, *, causal=True, window=0, segments=None):
  """Returns the equation, query by query, in float64."""
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

  def project(name, x):
    y = x @ p[name]['kernel'] + p[name].get('bias', 0)
    return y.reshape(*x.shape[:-1], H, K)

  q, k, v = (project(n, x) for n in ('query', 'key', 'value'))
  B, T, _ = x.shape
  out = np.zeros((B, T, H, K))
  rates = 10000.0 ** (-np.arange(0, D, 2) / D)
  for b in range(B):
    for i in range(T):
      see = [
        j
        for j in range(T)
        if (j <= i or not causal)
        and (not window or i - j < window)
        and (segments is None or segments[b, i] == segments[b, j])
      ]
      angles = (i - np.array(see))[:, None] * rates
      r = project(
        'relative', np.concatenate([np.sin(angles), np.cos(angles)], 1)
      )
      content = ((q[b, i] + p['content_bias']) * k[b, see]).sum(-1)
      places = ((q[b, i] + p['position_bias']) * r).sum(-1)
      s = (content + places) / K**0.5
      w = np.exp(s - s.max(0))
      out[b, i] = ((w / w.sum(0))[..., None] * v[b, see]).sum(0)
  flat = out.reshape(B, T, H * K)
  return flat @ p['out']['kernel'] + p['out'].get('bias', 0)


@functools.partial(jax.jit, static_argnums=(0, 4))
def run(model, params, x, segments, window=0):
  """Returns the output and the gradients of a weighted sum of it."""

  def total(params, x):
    y = model.apply({'params': params}, x, segments, window=window)
    weights = jnp.cos(jnp.arange(y.size, dtype=jnp.float32)).reshape(y.shape)
    return (y * weights).sum(), y

  (_, y), grads = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(
    params, x
  )
  return y, grads


CASES: dict[str, dict[str, Any]] = {
  'causal': dict(T=70),
  'packed': dict(T=131, segments=True),
  'banded': dict(T=130, window=40),
  'banded and packed': dict(T=67, window=5, segments=True),
  'both ways': dict(T=9, causal=False),
  'both ways, packed': dict(T=66, causal=False, segments=True),
  'one token': dict(T=1),
}


@pytest.mark.parametrize('name', CASES)
def test_all_at_once_and_in_tiles_it_is_the_equation(name):
  fields = dict(CASES[name])
  T, bias = fields.pop('T'), name != 'banded'
  segments = packed(T) if fields.pop('segments', False) else None
  x, params = stream(T), drawn(bias)
  want = definition(params, x, segments=segments, **fields)
  window = fields.pop('window', 0)
  models = (layer(kind=k, bias=bias, **fields) for k in ('xla', 'tiled'))
  (plain, want_grads), (tiles, grads) = (
    run(model, params, x, segments, window) for model in models
  )
  np.testing.assert_allclose(plain, want, **CLOSE)
  np.testing.assert_allclose(tiles, want, **CLOSE)
  for a, b in zip(
    jax.tree.leaves(grads), jax.tree.leaves(want_grads), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_scores_by_distance_come_to_stand_under_their_keys():
  # Of each query, the columns are the distances 2, 1, 0, -1, -2.
  x = jnp.tile(jnp.arange(2, -3, -1), (3, 1))
  i, j = np.arange(3)[:, None], np.arange(3)
  np.testing.assert_array_equal(relative.shift(x, 3), i - j)
  # Without the distances after 0, that is so up to the diagonal.
  causal = relative.shift(x[:, :3], 3)
  np.testing.assert_array_equal(np.tril(causal), np.tril(i - j))


def test_future_tokens_get_zero_gradient():
  x = stream(70, B=1)

  def at(t, x):
    return layer().apply({'params': drawn()}, x)[0, t].sum()

  grad = jax.jit(jax.grad(at, argnums=1))(jnp.int32(65), x)[0]
  assert not np.any(grad[66:])
  assert np.all(np.any(grad[:66] != 0, axis=1))


@pytest.mark.parametrize('window', [0, 4])
@pytest.mark.parametrize('ragged', [False, True])
def test_decoding_from_a_cache_equals_the_whole(window, ragged):
  model, x = layer(), stream(11, B=3)
  want, _ = run(model, drawn(), x, None, window)
  want = np.asarray(want)

  @jax.jit
  def step(cache, x, start):
    variables = {'params': drawn(), **cache}
    options = {'capacity': 13, 'window': window, 'mutable': ['cache']}
    return model.apply(variables, x, None, None, start, **options)

  # Rows of 4 to 6 tokens, then one or two at a time from where each ended.
  starts = np.array([4, 6, 5] if ragged else [5, 5, 5], np.int32)
  got, cache = step({}, x[:, :6], jnp.zeros((), jnp.int32))
  for b, size in enumerate(starts):
    np.testing.assert_allclose(got[b, :size], want[b, :size], **CLOSE)
  for size in (1, 2, 1):
    at = starts[:, None] + np.arange(size)
    new = np.take_along_axis(x, at[:, :, None], axis=1)
    start = jnp.asarray(starts if ragged else starts[0])
    got, cache = step(cache, new, start)
    np.testing.assert_allclose(
      got, np.take_along_axis(want, at[:, :, None], axis=1), **CLOSE
    )
    starts = starts + size
  # Rows can be taken out of a cache and put back in another order.
  assert {a.shape[0] for a in jax.tree.leaves(cache)} == {3}


def test_scores_are_summed_in_float32_where_inputs_have_16_bits():
  x = stream(67)
  want, _ = run(layer(), drawn(), x, None)
  half = layer(dtype='bfloat16')
  got, grads = run(half, drawn(), x, None)
  assert got.dtype == jnp.bfloat16
  assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype('float32')}
  np.testing.assert_allclose(
    got.astype('float32'), want, rtol=0.03, atol=0.03 * np.abs(want).max()
  )
  jaxpr = jax.make_jaxpr(lambda x: half.apply({'params': drawn()}, x))(x)
  exps = [str(e.outvars[0].aval) for e in equations(jaxpr.jaxpr, 'exp')]
  assert exps and all(e.startswith('float32') for e in exps), exps


def equations(jaxpr, name):
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == name:
      yield eqn
    for sub in core.jaxprs_in_params(eqn.params):
      yield from equations(sub, name)


class Reader(nn.Module):
  """Two blocks around the layer, as a model has them."""

  stack: stack.StackKind = 'loop'
  kind: relative.RelativeKind = 'tiled'
  window: int = 0
  causal: bool = True

  def setup(self):
    fields = {'kind': self.kind, 'causal': self.causal}
    block = functools.partial(
      Block,
      attention=functools.partial(layer, **fields),
      mlp=functools.partial(MLP, hidden=7),
      norm=Norm,
    )
    self.blocks = stack.build(block, 2, kind=self.stack)

  def __call__(self, x_BTD, segments=None):
    how: dict[str, Any] = {'depth': 2, 'remat': 'none', 'window': self.window}
    return stack.run(self.blocks, x_BTD, segments, **how)


def test_a_scan_of_blocks_is_a_loop_of_them():
  x, loop = stream(9), Reader()
  params = jax.jit(loop.init)(jax.random.key(1), x)['params']
  want = jax.jit(loop.apply)({'params': params}, x)
  scan = jax.jit(Reader(stack='scan').apply)
  got = scan({'params': stack.to_scan(params)}, x)
  np.testing.assert_allclose(got, want, **CLOSE)


def test_eight_devices_compute_what_one_does():
  x, segments = stream(66, B=8), np.tile(packed(66), (4, 1))
  want, want_grads = run(layer(), drawn(), x, segments)
  mesh = Layout(data=8).mesh()
  with jax.set_mesh(mesh):
    rows = jax.device_put((x, segments), rules.batch_sharding(mesh))
    got, grads = run(layer(), drawn(), *rows)
  np.testing.assert_allclose(got, want, **CLOSE)
  for a, b in zip(
    jax.tree.leaves(grads), jax.tree.leaves(want_grads), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


class Sum(Objective):
  """A loss of one unit a row."""

  def units(self, spec):
    return 1

  def init(self, model, key, batch):
    return model.init(key, batch['x'])['params'], {}

  def loss(self, model, params, extra, batch, key):
    y = model.apply({'params': params}, batch['x'])
    return y.sum(), (extra, {'weight': jnp.float32(1)})


@pytest.mark.parametrize('kind', ['xla', 'tiled'])
@pytest.mark.parametrize(
  ('fields', 'distances', 'pairs'),
  [
    ({}, 70, 70 * 71 // 2),
    ({'window': 8}, 70, 8 * 9 // 2 + 62 * 8),
    ({'causal': False}, 139, 70 * 70),
  ],
)
def test_the_ledger_counts_the_products_that_there_are(
  kind, fields, distances, pairs
):
  T = 70
  spec = {'x': jax.ShapeDtypeStruct((T, D), jnp.dtype('float32'))}
  rate = count.flops_per_unit(
    Reader(kind=kind, **fields), Sum(), spec, xla=False
  )
  # Query, key, value, out; up and down; W_R R of every distance.
  dense = 2 * (T * 4 * D * H * K + T * 2 * D * 7 + distances * D * H * K)
  # q k, q r and p v of every pair.
  attention = 2 * 3 * H * K
  assert rate['matmul_full'] == 3 * 2 * (dense + attention * T * T)
  assert rate['matmul_causal'] == 3 * 2 * (dense + attention * pairs)


def test_tiles_leave_out_what_no_query_has():
  x = jax.ShapeDtypeStruct((1, 256, D), jnp.dtype('float32'))

  def flops(kind, window=0):
    model = layer(head_width=64, kind=kind)
    start = jax.eval_shape(model.init, jax.random.key(0), x)
    apply = jax.jit(functools.partial(model.apply, window=window))
    found = apply.lower(start, x).cost_analysis()
    assert found is not None
    return found['flops']

  # Four tiles are given 1, 2, 3 and 4 quarters of the keys.
  assert flops('tiled') < 0.72 * flops('xla')
  assert flops('tiled', window=32) < 0.6 * flops('tiled')


def test_parameters_have_the_names_and_shapes_that_rules_address():
  params = jax.eval_shape(
    layer(bias=False, out_bias=True).init,
    jax.random.key(0),
    jnp.zeros((1, 3, D)),
  )['params']
  kernel = {'kernel': (D, H * K)}
  assert jax.tree.map(lambda x: x.shape, params) == {
    **dict.fromkeys(('query', 'key', 'value', 'relative'), kernel),
    'content_bias': (H, K),
    'position_bias': (H, K),
    'out': {'kernel': (H * K, D), 'bias': (D,)},
  }


def test_what_it_cannot_be_is_refused():
  with pytest.raises(ValueError, match='^attention=cudnn must be auto, xla or'):
    layer(kind='cudnn')
  with pytest.raises(ValueError, match='^window=4 must be 0 where causal=Fal'):
    layer(causal=False).init(jax.random.key(0), jnp.zeros((1, 3, D)), window=4)
