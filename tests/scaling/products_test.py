"""FLOPs of the products in a traced program, loops and recomputation included."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from bigdl.scaling import products

X = jnp.ones((4, 8))
W = jnp.ones((8, 8))
ONE = 2 * 4 * 8 * 8


def _flops(function, *args) -> int:
  return products.flops(jax.make_jaxpr(function)(*args).jaxpr)


def _block(x, w):
  return jnp.sin(x @ w)


@pytest.mark.parametrize('times', [1, 7])
def test_a_loop_counts_as_often_as_it_runs(times):
  def scan(x, w):
    return jax.lax.scan(lambda x, _: (_block(x, w), None), x, length=times)[0]

  def loop(x, w):
    return jax.lax.fori_loop(0, times, lambda i, x: _block(x, w), x)

  assert _flops(scan, X, W) == _flops(loop, X, W) == times * ONE


def test_what_is_recomputed_counts_again():
  def loss(w, remat):
    block = jax.checkpoint(_block) if remat else _block
    return block(block(X, w), w).sum()

  # Two forward; backward two for the weights and one for the first result.
  # Rematerialised, both products are computed twice.
  assert _flops(lambda w: jax.value_and_grad(loss)(w, False), W) == 5 * ONE
  assert _flops(lambda w: jax.value_and_grad(loss)(w, True), W) == 7 * ONE


def test_of_branches_the_heavier_counts():
  def both(x, w):
    return jax.lax.cond(x.sum() > 0, lambda x: x @ w @ w, lambda x: x @ w, x)

  assert _flops(both, X, W) == 2 * ONE


def test_all_devices_of_a_shard_map_count():
  auto = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh((2, 4), ('a', 'b'), axis_types=auto)
  spec = jax.P('a', None)
  both = jax.shard_map(
    lambda x, w: x @ w, mesh=mesh, in_specs=(spec, jax.P()), out_specs=spec
  )
  # Along 'b' each device does the same work as its neighbours.
  assert _flops(both, X, W) == 4 * ONE


def test_a_convolution_counts_what_its_window_sees():
  def convolve(x, k):
    dims = ('NHWC', 'HWIO', 'NHWC')
    return jax.lax.conv_general_dilated(
      x, k, (1, 1), 'VALID', dimension_numbers=dims
    )

  image, kernel = jnp.ones((2, 5, 5, 3)), jnp.ones((3, 3, 3, 4))
  assert _flops(convolve, image, kernel) == 2 * (2 * 3 * 3 * 4) * (3 * 3 * 3)


def test_what_nobody_reads_does_not_count():
  assert _flops(lambda x, w: (x @ w, x.sum())[1], X, W) == 0
