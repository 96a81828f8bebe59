"""Every way to compute attention against the definition in numpy."""

# Shapes: B batch, T positions, H heads, G key-value heads, K head width.
from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl.layers import attention, tiled
from bigdl.layers.attention import Attention, attend

CLOSE: dict[str, Any] = {'rtol': 1e-4, 'atol': 1e-5}


def inputs(T=70, H=4, G=2, K=6, B=2, dtype='float32'):
  rng = np.random.default_rng(0)
  return tuple(
    jnp.asarray(rng.normal(size=(B, T, heads, K)), dtype) for heads in (H, G, G)
  )


def packed(T):
  """Two rows of documents, and padding at the end of one."""
  t = np.arange(T)
  row = np.where(t < T // 3, 1, np.where(t < T - 5, 2, 0))
  return jnp.asarray(np.stack([row, 1 + (t > T - 9)]), jnp.int32)


def definition(q, k, v, *, causal, segments, softcap, window=0):
  """Returns attention query by query, in float64."""
  q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
  B, T, H, K = q.shape
  share = H // k.shape[2]
  out = np.zeros((B, T, H, K))
  for b in range(B):
    for t in range(T):
      see = np.arange(T) <= t if causal else np.ones(T, bool)
      see = see & (np.arange(T) > t - (window or T))
      if segments is not None:
        see = see & (np.asarray(segments)[b] == segments[b, t])
      for h in range(H):
        s = k[b, see, h // share] @ q[b, t, h] / K**0.5
        s = softcap * np.tanh(s / softcap) if softcap else s
        w = np.exp(s - s.max())
        out[b, t, h] = w @ v[b, see, h // share] / w.sum()
  return out


@functools.partial(
  jax.jit, static_argnames=('causal', 'softcap', 'window', 'kind')
)
def run(q, k, v, segments, *, causal, softcap, kind, window=0):
  """Returns the output and the gradients of a weighted sum of it."""

  def total(q, k, v):
    o = attend(
      q,
      k,
      v,
      causal=causal,
      segments_BT=segments,
      softcap=softcap,
      window=window,
      kind=kind,
    )
    weights = jnp.cos(jnp.arange(o.size, dtype=jnp.float32)).reshape(o.shape)
    return (o * weights).sum(), o

  return jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(q, k, v)


CASES: dict[str, dict[str, Any]] = {
  'causal': dict(G=4),
  'grouped': dict(softcap=0.7, segments=True),
  'multi_query': dict(G=1, T=131, segments=True),
  'one_token': dict(T=1, softcap=0.7),
  # Tiles of 65 queries: some are given keys of two tiles, none all keys.
  'banded': dict(T=195, window=65),
  'banded_grouped': dict(G=1, T=195, window=3, segments=True, softcap=0.7),
  'band_wider_than_all': dict(T=67, window=80),
  'band_of_itself': dict(T=67, window=1, segments=True),
}


def case(name):
  fields: dict[str, Any] = {'softcap': 0.0, 'segments': False, **CASES[name]}
  softcap, segments = fields.pop('softcap'), fields.pop('segments')
  window = fields.pop('window', 0)
  q, k, v = inputs(**fields)
  ids = packed(q.shape[1]) if segments else None
  return (q, k, v, ids), {'softcap': softcap, 'window': window}


@pytest.mark.parametrize('name', CASES)
def test_tiles_are_the_definition_and_have_its_gradients(name):
  arrays, mask = case(name)
  fields: dict[str, Any] = {'causal': True, **mask}
  (_, plain), want_grads = run(*arrays, **fields, kind='xla')
  (_, tiles), grads = run(*arrays, **fields, kind='tiled')
  want = definition(*arrays[:3], segments=arrays[3], **fields)
  np.testing.assert_allclose(plain, want, **CLOSE)
  np.testing.assert_allclose(tiles, want, **CLOSE)
  for a, b in zip(grads, want_grads, strict=True):
    np.testing.assert_allclose(a, b, **CLOSE)


@pytest.mark.parametrize('kind', ['xla', 'tiled', 'auto'])
def test_without_a_causal_mask_all_of_a_document_is_seen(kind):
  q, k, v = inputs(T=67)
  segments = packed(67)
  out = attend(q, k, v, causal=False, segments_BT=segments, kind=kind)
  want = definition(q, k, v, causal=False, segments=segments, softcap=0)
  np.testing.assert_allclose(out, want, **CLOSE)


@pytest.mark.parametrize('kind', ['xla', 'tiled'])
def test_scores_are_summed_in_float32_where_inputs_have_16_bits(kind):
  arrays = inputs(T=67, dtype='bfloat16')
  q, k, _ = arrays
  q_BGRTK, k_BGSK = tiled.heads_lead(q, k.shape[2]), k.swapaxes(1, 2)
  assert tiled.scores(q_BGRTK, k_BGSK).dtype == jnp.float32
  fields: dict[str, Any] = {'causal': True, 'softcap': 0.0}
  (_, out), grads = run(*arrays, None, **fields, kind=kind)
  assert {x.dtype for x in (out, *grads)} == {jnp.dtype('bfloat16')}
  wide = tuple(x.astype(jnp.float32) for x in arrays)
  (_, want), want_grads = run(*wide, None, **fields, kind=kind)
  for a, b in zip((out, *grads), (want, *want_grads), strict=True):
    np.testing.assert_allclose(
      a.astype(jnp.float32), b, rtol=0.02, atol=0.02 * np.abs(b).max()
    )


def test_scores_too_large_for_their_exponentials_stay_finite():
  q, k, v = inputs(T=67)
  fields: dict[str, Any] = {'causal': True, 'softcap': 0.0}
  (_, plain), want = run(100 * q, 100 * k, v, None, **fields, kind='xla')
  (_, out), grads = run(100 * q, 100 * k, v, None, **fields, kind='tiled')
  assert np.isfinite(out).all()
  np.testing.assert_allclose(out, plain, rtol=1e-3, atol=1e-3)
  for a, b in zip(grads, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3 * np.abs(b).max())


@pytest.mark.parametrize('T', [1, 63, 64, 65, 129, 256, 257, 1023])
def test_tiles_cover_every_query_once(T):
  tiles = tiled._tiles(T)
  assert [t for start, stop in tiles for t in range(start, stop)] == list(
    range(T)
  )
  assert len(tiles) == min(4, -(-T // 64))


def test_tiles_leave_out_keys_that_no_query_sees():
  q, k, v = inputs(T=256, G=4)

  def flops(kind):
    lowered = jax.jit(functools.partial(attend, kind=kind)).lower(q, k, v)
    return lowered.cost_analysis()['flops']

  # Four tiles are given 1, 2, 3 and 4 quarters of the keys.
  assert flops('tiled') == pytest.approx(10 / 16 * flops('xla'), rel=0.05)


def test_tiles_leave_out_keys_beside_the_band():
  q, k, v = inputs(T=512, G=4)

  def flops(kind):
    run = functools.partial(attend, kind=kind, window=64)
    return jax.jit(run).lower(q, k, v).cost_analysis()['flops']

  # Eight tiles of 64 queries; all but the first are given 127 keys.
  share = (64 + 7 * 127) / (8 * 512)
  assert flops('tiled') == pytest.approx(share * flops('xla'), rel=0.05)


@pytest.mark.parametrize('T', [1, 63, 65, 257, 1023, 5000])
@pytest.mark.parametrize('window', [1, 64, 200])
def test_banded_tiles_cover_every_query_once_and_are_few(T, window):
  tiles = tiled._tiles(T, window)
  assert [t for start, stop in tiles for t in range(start, stop)] == list(
    range(T)
  )
  assert len(tiles) <= 16


def test_a_band_without_a_causal_mask_is_refused():
  q, k, v = inputs(T=8)
  with pytest.raises(ValueError, match='^window=3 must be 0 where causal=Fal'):
    attend(q, k, v, causal=False, window=3)


@pytest.mark.parametrize('causal', [True, False])
def test_the_tpu_kernel_is_the_same_function(causal):
  # Interpreted: the machine of the tests has no TPU.
  q, k, v = inputs(T=128, K=64, B=1)
  segments = packed(128)[:1]
  for softcap, ids in ((0.0, None), (0.7, segments)):
    out = attention._pallas(q, k, v, ids, causal, softcap, interpret=True)
    want = attend(
      q, k, v, causal=causal, segments_BT=ids, softcap=softcap, kind='xla'
    )
    np.testing.assert_allclose(out, want, **CLOSE)


def test_the_tpu_kernel_has_the_band():
  arrays = *inputs(T=128, K=64, B=1), None
  out = attention._pallas(*arrays, True, 0.0, window=40, interpret=True)
  want = attend(*arrays[:3], window=40, kind='xla')
  np.testing.assert_allclose(out, want, **CLOSE)


def test_cudnn_is_told_the_band(monkeypatch):
  # The machine of the tests has no GPU; the same function, told the same in
  # plain XLA, must see the same positions.
  seen = {}
  plain = jax.nn.dot_product_attention

  def record(*arrays, implementation, **options):
    seen['implementation'] = implementation
    return plain(*arrays, **options, implementation='xla')

  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  monkeypatch.setattr(jax.nn, 'dot_product_attention', record)
  q, k, v = inputs(T=67, dtype='bfloat16')
  out = attend(q, k, v, window=5, kind='cudnn')
  assert seen == {'implementation': 'cudnn'}
  want = attend(q, k, v, window=5, kind='xla')
  wide = (x.astype(jnp.float32) for x in (out, want))
  np.testing.assert_allclose(*wide, rtol=0.05, atol=0.05)


def test_kernels_refuse_what_they_cannot_compute():
  q, k, v = inputs(T=8, dtype='bfloat16')
  with pytest.raises(ValueError, match='^attention=cudnn needs a GPU, .* cpu'):
    attend(q, k, v, kind='cudnn')
  with pytest.raises(ValueError, match='^attention=cudnn has no softcap'):
    attend(q, k, v, kind='cudnn', softcap=1.0)
  with pytest.raises(ValueError, match='16 bits, got dtype=float32'):
    attend(*inputs(T=8), kind='cudnn')
  with pytest.raises(ValueError, match='^attention=pallas needs length=8 to'):
    attend(q, k, v, kind='pallas')


@pytest.mark.parametrize(
  ('platform', 'shape', 'dtype', 'fields', 'kind'),
  [
    ('cpu', (1, 128, 2, 64), 'float32', {}, 'tiled'),
    ('cpu', (1, 128, 2, 64), 'bfloat16', {'softcap': 5.0}, 'tiled'),
    ('cpu', (1, 128, 2, 64), 'float32', {'causal': False}, 'xla'),
    ('gpu', (1, 128, 2, 64), 'bfloat16', {}, 'cudnn'),
    ('gpu', (1, 128, 2, 64), 'float16', {'causal': False}, 'cudnn'),
    ('gpu', (1, 128, 2, 64), 'float32', {}, 'xla'),
    ('gpu', (1, 128, 2, 64), 'bfloat16', {'softcap': 5.0}, 'xla'),
    ('gpu', (1, 128, 2, 60), 'bfloat16', {}, 'xla'),
    ('gpu', (1, 128, 2, 256), 'bfloat16', {}, 'xla'),
    ('gpu', (1, 127, 2, 64), 'bfloat16', {}, 'cudnn'),
    ('gpu', (1, 127, 2, 64), 'bfloat16', {'packed': True}, 'xla'),
    ('tpu', (1, 128, 2, 64), 'bfloat16', {}, 'pallas'),
    ('tpu', (1, 100, 2, 64), 'bfloat16', {}, 'xla'),
  ],
)
def test_auto_is_what_the_device_computes_fastest(
  platform, shape, dtype, fields, kind, monkeypatch
):
  monkeypatch.setattr(jax, 'default_backend', lambda: platform)
  q = jax.ShapeDtypeStruct(shape, jnp.dtype(dtype))
  assert attention.choose(q, **fields) == kind


def test_projections_have_the_names_and_shapes_that_rules_address():
  layer = Attention(heads=4, kv_heads=2, head_width=5)
  x = jnp.zeros((1, 3, 16))
  params = jax.eval_shape(layer.init, jax.random.key(0), x)['params']
  assert jax.tree.map(lambda x: x.shape, params) == {
    'query': {'kernel': (16, 20), 'bias': (20,)},
    'key': {'kernel': (16, 10), 'bias': (10,)},
    'value': {'kernel': (16, 10), 'bias': (10,)},
    'out': {'kernel': (20, 16), 'bias': (16,)},
  }


@pytest.mark.parametrize('causal', [True, False])
def test_the_name_of_its_scope_says_what_is_masked(causal):
  # The FLOP ledger and its readers find attention by these names.
  q, k, v = inputs(T=8)
  traced = jax.make_jaxpr(functools.partial(attend, causal=causal))(q, k, v)
  scope = 'causal_attention' if causal else 'full_attention'
  assert scope in traced.pretty_print(name_stack=True)


@pytest.mark.parametrize('kind', ['xla', 'tiled'])
def test_the_scope_of_banded_attention_names_its_window(kind):
  q, k, v = inputs(T=8)
  run = functools.partial(attend, window=3, kind=kind)
  text = jax.make_jaxpr(run)(q, k, v).pretty_print(name_stack=True)
  assert 'banded_attention_3' in text and 'causal_attention' not in text
