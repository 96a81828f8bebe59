"""Norms against their formulas."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl.layers.norm import Norm


def draw(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize('kind', ['layernorm', 'rmsnorm'])
def test_norms_are_their_formulas(kind):
  x, scale, bias = draw(3, 5, 8) * 4 + 2, draw(8, seed=1), draw(8, seed=2)
  params = {'scale': jnp.asarray(scale, jnp.float32)}
  if kind == 'layernorm':
    params['bias'] = jnp.asarray(bias, jnp.float32)
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    want = (x - mean) / np.sqrt(variance + 0.5) * scale + bias
  else:
    want = x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.5) * scale
  layer = Norm(kind=kind, epsilon=0.5)
  out = layer.apply({'params': params}, jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-5)
  shapes = jax.eval_shape(layer.init, jax.random.key(0), x)['params']
  assert set(shapes) == set(params)


def test_layernorm_may_have_no_bias():
  layer = Norm(bias=False)
  params = layer.init(jax.random.key(0), jnp.ones((2, 4)))['params']
  assert set(params) == {'scale'}
  np.testing.assert_array_equal(params['scale'], 1)


def test_a_large_mean_does_not_cost_the_digits_of_the_variance():
  x = draw(4, 64)
  out = Norm(epsilon=0.0).apply(
    {'params': {'scale': jnp.ones(64), 'bias': jnp.zeros(64)}},
    jnp.asarray(x + 1000, jnp.float32),
  )
  want = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
  # Float32 keeps 6e-5 of an entry near 1000.
  np.testing.assert_allclose(out, want, atol=5e-4)


def test_statistics_of_16_bits_are_summed_in_float32():
  # Bfloat16 would round every square, and its epsilon away.
  x = jnp.asarray(1 + 0.1 * draw(8, 512), jnp.bfloat16)
  layer = Norm(kind='rmsnorm', dtype='bfloat16')
  params = {'params': {'scale': jnp.ones(512)}}
  out = layer.apply(params, x)
  assert out.dtype == jnp.bfloat16
  wide = Norm(kind='rmsnorm').apply(params, x.astype(jnp.float32))
  np.testing.assert_array_equal(out, wide.astype(jnp.bfloat16))
