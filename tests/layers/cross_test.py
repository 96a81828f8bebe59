"""Attention across sequences, against its definition, and the block of it."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl.layers import cross
from bigdl.layers.attention import Attention
from bigdl.layers.mlp import MLP
from bigdl.layers.norm import Norm

B, T, S, D, H, K = 2, 5, 7, 6, 2, 3


def draw(*shape, seed=0):
  return jnp.asarray(np.random.default_rng(seed).normal(size=shape), 'float32')


def plain(q_BTHK, k_BHSK, v_BHSK, seen_BTS):
  """The definition, row by row and head by head."""
  q, k, v = (np.asarray(x, np.float64) for x in (q_BTHK, k_BHSK, v_BHSK))
  out = np.zeros(q.shape)
  for b, t, h in np.ndindex(*q.shape[:3]):
    seen = np.broadcast_to(seen_BTS, (B, T, S))[b, t].astype(bool)
    weights = np.exp(k[b, h][seen] @ q[b, t, h] / np.sqrt(q.shape[-1]))
    out[b, t, h] = weights @ v[b, h][seen] / weights.sum()
  return out


@pytest.mark.parametrize('mask', ['none', 'one', 'each'])
def test_it_is_the_softmax_of_what_is_seen(mask):
  q, k, v = draw(B, T, H, K), draw(B, H, S, K, seed=1), draw(B, H, S, K, seed=2)
  seen = {
    'none': None,
    'one': np.arange(S) < np.array([[[4]], [[7]]]),
    'each': (np.arange(S) + np.arange(T)[:, None]) % 3 < np.ones((B, 1, 1)),
  }[mask]
  got = cross.attend(q, k, v, None if seen is None else jnp.asarray(seen))
  want = plain(q, k, v, np.ones((1, 1, S)) if seen is None else seen)
  np.testing.assert_allclose(got, want, atol=1e-6)


def test_a_target_that_sees_nothing_stays_finite():
  q, k, v = draw(B, T, H, K), draw(B, H, S, K, seed=1), draw(B, H, S, K, seed=2)
  seen = jnp.zeros((B, 1, S), bool)

  def loss(q, k, v):
    return cross.attend(q, k, v, seen).sum()

  for x in jax.grad(loss, argnums=(0, 1, 2))(q, k, v):
    assert np.isfinite(x).all()


def block(kind='post', **fields):
  return cross.CrossBlock(
    attention=functools.partial(
      Attention, heads=H, kv_heads=H, head_width=K, **fields
    ),
    cross=functools.partial(
      cross.CrossAttention, heads=H, head_width=K, **fields
    ),
    mlp=functools.partial(MLP, hidden=8, **fields),
    norm=Norm,
    kind=kind,
  )


@pytest.fixture(scope='module')
def params():
  start = jax.jit(block().init)(jax.random.key(0), draw(B, T, D), draw(B, S, D))
  return jax.tree.map(
    lambda x: x + 0.3 * draw(*x.shape, seed=x.size), start['params']
  )


@pytest.mark.parametrize('kind', ['pre', 'post'])
def test_a_block_is_its_equation(params, kind):
  x, memory = draw(B, T, D), draw(B, S, D, seed=1)
  seen = jnp.asarray(np.arange(S) < np.array([[[4]], [[7]]]))
  own = block(kind)
  got = own.apply({'params': params}, x, memory, None, seen)

  def norm(name, y):
    return Norm().apply({'params': params[name]}, y)

  layers = (
    (
      'attention_norm',
      lambda y: own.attention().apply({'params': params['attention']}, y),
    ),
    (
      'cross_norm',
      lambda y: own.cross().apply({'params': params['cross']}, y, memory, seen),
    ),
    ('mlp_norm', lambda y: own.mlp().apply({'params': params['mlp']}, y)),
  )
  want = x
  for name, layer in layers:
    if kind == 'pre':
      want = want + layer(norm(name, want))
    else:
      want = norm(name, want + layer(want))
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_the_cache_keeps_a_memory_and_its_mask(params):
  layer = block().cross()
  x, memory = draw(B, T, D), draw(B, S, D, seed=1)
  seen = jnp.asarray(np.arange(S) < np.array([[[4]], [[7]]]))
  variables = {'params': params['cross']}
  want = layer.apply(variables, x, memory, seen)
  first, state = layer.apply(
    variables, x[:, :2], memory, seen, cached=True, mutable=['cache']
  )
  rest, same = layer.apply(
    {**variables, **state}, x[:, 2:], None, cached=True, mutable=['cache']
  )
  np.testing.assert_allclose(jnp.concatenate([first, rest], 1), want, atol=1e-6)
  jax.tree.map(np.testing.assert_array_equal, state, same)


def test_the_first_tokens_must_come_with_a_memory(params):
  with pytest.raises(ValueError, match='^memory_BSD=None: the first tokens'):
    block().cross().apply(
      {'params': params['cross']}, draw(B, T, D), None, cached=True
    )


@pytest.mark.parametrize(
  ('T', 'S', 'masked', 'fused'),
  [(4, 6, True, True), (5, 6, True, False), (4, 7, True, False)]
  + [(5, 7, False, True), (1, 6, False, False)],
)
def test_a_kernel_is_chosen_where_it_takes_the_mask(
  monkeypatch, T, S, masked, fused
):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  told = []

  def kernel(q, k, v, *, mask, implementation):
    told.append(None if mask is None else mask.shape)
    return q

  monkeypatch.setattr(jax.nn, 'dot_product_attention', kernel)
  q_BTHK = jnp.ones((2, T, 2, 8), jnp.bfloat16)
  k_BHSK = jnp.ones((2, 2, S, 8), jnp.bfloat16)
  # One row of a mask serves all queries.
  seen_BTS = jnp.ones((2, 1, S), bool) if masked else None
  cross.attend(q_BTHK, k_BHSK, k_BHSK, seen_BTS)
  assert told == ([(2, 1, T, S) if masked else None] if fused else [])
