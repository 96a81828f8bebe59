"""The table of vectors and the two heads."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl.layers.embed import Embed, Head


def table():
  return np.random.default_rng(0).normal(size=(7, 4))


def test_vectors_are_rows_of_the_table():
  params = {'embedding': jnp.asarray(table(), jnp.float32)}
  ids = jnp.array([[3, 0], [6, 3]])
  out = Embed(7, 4).apply({'params': params}, ids)
  np.testing.assert_allclose(out, table()[ids], rtol=1e-6)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_both_heads_multiply_and_give_float32(dtype):
  x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 4)), dtype)
  weights = jnp.asarray(table(), jnp.float32)
  tied = Embed(7, 4, dtype=dtype).apply(
    {'params': {'embedding': weights}}, x, method='logits'
  )
  free = Head(7, dtype=dtype).apply({'params': {'kernel': weights.T}}, x)
  assert tied.dtype == free.dtype == jnp.float32
  want = (
    np.asarray(x, np.float64) @ np.asarray(weights.astype(dtype), np.float64).T
  )
  np.testing.assert_allclose(tied, want, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(free, want, rtol=1e-5, atol=1e-5)


def test_a_token_beyond_the_table_is_not_taken_for_another():
  params = Embed(7, 4).init(jax.random.key(0), jnp.array([0]))
  out = Embed(7, 4).apply(params, jnp.array([6, 7]))
  assert np.isfinite(out[0]).all() and np.isnan(out[1]).all()
