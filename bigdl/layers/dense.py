"""A linear map whose gradients are products that every backend is fast at.

On CPU, XLA gives a product to its fast kernels only where the contracted
dimension of the left side is its last. The gradient of a kernel contracts
positions, which are not: as JAX derives it, it took up to five times as long as
the forward product (2048 positions, 64 to 256 wide). Here the narrower side is
transposed first. Such a map has no forward-mode derivative there.
"""

# Shapes: M rows, K inputs, N outputs.
from __future__ import annotations

import functools
from typing import Any

from flax import linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp

from bigdl.parallel import activations, target

# Of products, for policies of rematerialisation, which do not see into them.
NAME = 'dense'


def Dense(features: int, **options: Any) -> nn.Dense:
  """Returns flax's `Dense` of that many features, faster to train on CPU."""
  if _is_fast():
    options['dot_general'] = _dot_general
  return nn.Dense(features, **options)


def logits(x: jax.Array, weights: jax.Array, *, turned: bool) -> jax.Array:
  """Returns the product of `x` `[..., K]` with a head, in float32 or wider.

  Args:
    x: Hidden states, of the dtype of compute.
    weights: `[K, N]`, or `[N, K]` where turned, of the same dtype.
    turned: Whether they are a table of vectors, one for each of N.
  """
  wide = jnp.promote_types(x.dtype, jnp.float32)
  if _is_fast() and x.dtype == wide:
    return (_turned if turned else _map)(None, x, weights)
  dims = (((x.ndim - 1,), (int(turned),)), ((), ()))
  return jax.lax.dot_general(x, weights, dims, preferred_element_type=wide)


def _is_fast() -> bool:
  """Whether gradients are taken here, which makes rows of all positions."""
  # Rows and positions that are both split are no rows of one product.
  return target.platform() == 'cpu' and activations.parts('context') == 1


def contract(x_MK: jax.Array, y_MN: jax.Array) -> jax.Array:
  """Returns the product x^T y `[K, N]`."""
  if target.platform() != 'cpu' or x_MK.shape[-1] <= y_MN.shape[-1]:
    return product(x_MK.T, y_MN)
  # The compiler would undo this transpose as well.
  return jax.lax.optimization_barrier(product(y_MN.T, x_MK)).T


def product(x_BKM: jax.Array, y_BMN: jax.Array) -> jax.Array:
  """Returns the products x y `[B, K, N]`, where x is a transpose."""
  if target.platform() == 'cpu':
    # Or the compiler would undo it, to make the product slow.
    x_BKM = jax.lax.optimization_barrier(x_BKM)
  return x_BKM @ y_BMN


def _dot_general(x, kernel_KN, dimensions, precision=None, **_):
  assert dimensions == (((x.ndim - 1,), (0,)), ((), ()))
  return checkpoint_name(_map(precision, x, kernel_KN), NAME)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _map(precision, x, kernel_KN):
  dims = (((x.ndim - 1,), (0,)), ((), ()))
  return jax.lax.dot_general(x, kernel_KN, dims, precision=precision)


def _forward(precision, x, kernel_KN):
  return _map(precision, x, kernel_KN), (x, kernel_KN)


def _backward(precision, saved, dy):
  x, kernel_KN = saved
  K, N = kernel_KN.shape
  dims = (((dy.ndim - 1,), (1,)), ((), ()))
  dx = jax.lax.dot_general(dy, kernel_KN, dims, precision=precision)
  return dx, contract(x.reshape(-1, K), dy.reshape(-1, N))


_map.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _turned(precision, x, table_NK):
  dims = (((x.ndim - 1,), (1,)), ((), ()))
  return jax.lax.dot_general(x, table_NK, dims, precision=precision)


def _turned_forward(precision, x, table_NK):
  return _turned(precision, x, table_NK), (x, table_NK)


def _turned_backward(precision, saved, dy):
  x, table_NK = saved
  N, K = table_NK.shape
  dims = (((dy.ndim - 1,), (0,)), ((), ()))
  dx = jax.lax.dot_general(dy, table_NK, dims, precision=precision)
  return dx, contract(dy.reshape(-1, N), x.reshape(-1, K))


_turned.defvjp(_turned_forward, _turned_backward)
