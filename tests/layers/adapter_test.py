"""Adapters inside blocks of every kind."""

from __future__ import annotations

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl import tree
from bigdl.layers import adapter
from bigdl.layers.block import Block
from bigdl.layers.norm import Norm

WIDTH, HIDDEN = 6, 3
X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, WIDTH)))


class Mix(nn.Module):
  """Multiplies by a matrix of its own."""

  @nn.compact
  def __call__(self, x, *context):
    return nn.Dense(WIDTH, name='mix')(x)


def block(kind, hidden):
  return Block(Mix, Mix, Norm, kind, adapter=adapter.maker(hidden))


@pytest.mark.parametrize(
  'kind', ['pre', 'post', 'parallel', 'parallel_two_norms']
)
def test_new_adapters_change_nothing_and_moved_ones_change_both_layers(kind):
  with_adapters = block(kind, HIDDEN)
  params = with_adapters.init(jax.random.key(0), X)['params']
  plain = {k: v for k, v in params.items() if not k.endswith('adapter')}
  want = block(kind, 0).apply({'params': plain}, X)
  found = with_adapters.apply({'params': params}, X)
  np.testing.assert_array_equal(found, want)
  for name in ('attention_adapter', 'mlp_adapter'):
    up = params[name]['up']
    moved = {
      **params[name],
      'up': jax.tree.map(
        lambda x: x + jnp.sin(jnp.arange(x.size)).reshape(x.shape), up
      ),
    }
    found = with_adapters.apply({'params': {**params, name: moved}}, X)
    assert np.abs(found - want).max() > 0.1


def test_an_adapter_is_its_formula():
  layer = adapter.Adapter(HIDDEN)
  shapes = jax.eval_shape(layer.init, jax.random.key(0), X)['params']
  rng = np.random.default_rng(1)
  p = jax.tree.map(lambda s: rng.normal(size=s.shape), shapes)
  hidden = np.asarray(X) @ p['down']['kernel'] + p['down']['bias']
  bend = np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3))
  want = X + (hidden * (1 + bend) / 2) @ p['up']['kernel'] + p['up']['bias']
  np.testing.assert_allclose(layer.apply({'params': p}, X), want, rtol=1e-5)
  assert tree.size(shapes) == 2 * WIDTH * HIDDEN + WIDTH + HIDDEN


def test_a_width_of_zero_makes_none():
  assert adapter.maker(0) is None
  made = adapter.maker(4, dtype='bfloat16')
  assert isinstance(made, functools.partial)
  assert made() == adapter.Adapter(4, dtype='bfloat16')
