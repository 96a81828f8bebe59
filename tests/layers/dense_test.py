"""A linear map equals flax's, and its gradients are fast products on CPU."""

from __future__ import annotations

import re

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl.layers import dense

SHAPES = [(6, 2), (2, 6)]  # Inputs and outputs: either side may be narrower.


def _values(module, x):
  """Returns the output and the gradients of a sum of its squares."""
  params = module.init(jax.random.key(0), x)

  def loss(params, x):
    y = module.apply(params, x)
    return jnp.square(y.astype(jnp.float32)).sum(), y

  grads, y = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, x)
  return params, y, grads


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize(('K', 'N'), SHAPES)
def test_it_is_flax_dense(K, N, dtype):
  x = jax.random.normal(jax.random.key(1), (2, 3, 5, K))
  options = {'dtype': dtype, 'kernel_init': nn.initializers.normal(1.0)}
  ours = _values(dense.Dense(N, **options), x)
  theirs = _values(nn.Dense(N, **options), x)
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  limit = 1e-5 if dtype == 'float32' else 0.05
  for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
    assert a.dtype == b.dtype
    a, b = np.float32(a), np.float32(b)
    np.testing.assert_allclose(a, b, rtol=limit, atol=limit * np.abs(b).max())


@pytest.mark.parametrize(('K', 'N'), SHAPES)
def test_contract_is_the_product_of_the_transpose(K, N):
  x, y = (
    jax.random.normal(jax.random.key(i), (7, w)) for i, w in [(0, K), (1, N)]
  )
  np.testing.assert_allclose(dense.contract(x, y), x.T @ y, rtol=1e-5)


def _contracted(function, *shapes):
  """Returns, of each compiled product, (contracted dimension, rank) on the left."""
  arrays = [jax.ShapeDtypeStruct(s, 'float32') for s in shapes]
  text = jax.jit(function).lower(*arrays).compile().as_text()
  shapes = dict(re.findall(r'%([\w.-]+) = \w+\[([\d,]*)\]', text))
  found = re.findall(r' dot\(%([\w.-]+), .*?lhs_contracting_dims={(\d+)}', text)
  return [(int(dim), shapes[name].count(',') + 1) for name, dim in found]


@pytest.mark.parametrize(('K', 'N'), [(32, 8), (8, 32)])
def test_the_compiler_contracts_the_last_dimension_of_the_left_side(K, N):
  layer = dense.Dense(N, use_bias=False)

  def grads(x, kernel):
    def loss(x, kernel):
      return jnp.square(layer.apply({'params': {'kernel': kernel}}, x)).sum()

    return jax.grad(loss, argnums=(0, 1))(x, kernel)

  products = _contracted(grads, (64, K), (K, N))
  # Forward, and the gradients of both sides.
  assert len(products) == 3
  assert all(dim == rank - 1 for dim, rank in products)
  # Without the detour, it does not.
  plain = _contracted(lambda x, dy: x.T @ dy, (64, K), (64, N))
  assert [dim for dim, _ in plain] == [0]


def _head(x, weights, turned):
  """The same product, as JAX derives its gradients."""
  other = weights.T if turned else weights
  return jnp.matmul(x, other, preferred_element_type=jnp.float32)


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
@pytest.mark.parametrize('turned', [False, True])
@pytest.mark.parametrize(('K', 'N'), [(32, 8), (8, 32)])
def test_a_head_is_its_product_and_its_gradients_are_fast(K, N, turned, dtype):
  x = jax.random.normal(jax.random.key(1), (4, 16, K), dtype)
  shape = (N, K) if turned else (K, N)
  weights = jax.random.normal(jax.random.key(2), shape, dtype)

  def both(head):
    def loss(x, weights):
      y = head(x, weights, turned=turned)
      return jnp.square(y).mean(), y

    return jax.grad(loss, argnums=(0, 1), has_aux=True)

  ours, theirs = (both(head)(x, weights) for head in (dense.logits, _head))
  limit = 1e-5 if dtype == 'float32' else 0.02
  for a, b in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
    assert a.dtype == b.dtype
    a, b = np.float32(a), np.float32(b)
    np.testing.assert_allclose(a, b, rtol=limit, atol=limit * np.abs(b).max())
  if dtype == 'float32':
    products = _contracted(both(dense.logits), x.shape, shape)
    assert len(products) == 3
    assert all(dim == rank - 1 for dim, rank in products)
