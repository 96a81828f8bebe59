"""Rows of a table of which each device has a part."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl.parallel import scope, vocabulary
from bigdl.parallel.layout import Layout

CLOSE = 1e-6  # Of gradients, which are summed in another order.
LAYOUTS = {
  'tensor': Layout(data=2, tensor=4),
  'all': Layout(data=1, fsdp=2, context=2, tensor=2),
}


def run(table_VD, ids, weights):
  rows, back = jax.vjp(lambda t: vocabulary.lookup(t, ids), table_VD)
  return rows, *back(weights)


@pytest.mark.parametrize('layout', LAYOUTS)
@pytest.mark.parametrize(
  ('vocab', 'ids'),
  [(16, (4, 8)), (16, (4, 7)), (17, (4, 8)), (16, (8,)), (16, (3, 8))],
  ids=['even', 'odd length', 'odd vocabulary', 'one row', 'odd rows'],
)
def test_rows_and_gradients_are_those_of_a_whole_table(layout, vocab, ids):
  keys = jax.random.split(jax.random.key(0), 3)
  table_VD = jax.random.normal(keys[0], (vocab, 6))
  given = jax.random.randint(keys[1], ids, 0, vocab)
  arrays = table_VD, given, jax.random.normal(keys[2], (*ids, 6))
  want = table_VD[given], jnp.zeros_like(table_VD).at[given].add(arrays[2])
  layout = LAYOUTS[layout]
  with scope.entered(layout, layout.mesh()):
    found = jax.device_get(jax.jit(run)(*arrays))
  np.testing.assert_array_equal(found[0], want[0])
  np.testing.assert_allclose(found[1], want[1], atol=CLOSE)


def test_gradients_of_half_as_wide_rows_are_summed_in_full_width():
  table_VD, ids = jnp.ones((16, 6)), jnp.zeros((8, 64), jnp.int32)

  def total(table_VD):
    rows = vocabulary.lookup(table_VD, ids, 'bfloat16')
    assert rows.dtype == jnp.bfloat16
    return rows.astype(jnp.float32).sum() * 1.0078125

  layout = LAYOUTS['tensor']
  with scope.entered(layout, layout.mesh()):
    grad_VD = jax.jit(jax.grad(total))(table_VD)
  # Sums of 512 in bfloat16 would stop at 256.
  np.testing.assert_array_equal(grad_VD[0], 512 * 1.0078125)
  assert not grad_VD[1:].any()
