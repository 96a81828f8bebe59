"""Blocks around a stand-in attention and MLP."""

from __future__ import annotations

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl.layers.block import Block
from bigdl.layers.norm import Norm


class Scale(nn.Module):
  """Multiplies by a matrix of its own; takes the context a block passes on."""

  @nn.compact
  def __call__(self, x, *context, **static):
    w = self.param('w', nn.initializers.normal(1.0), (6, 6))
    return jnp.einsum('BTD,DE->BTE', x, w) + sum(context)


@pytest.mark.parametrize(
  'kind', ['pre', 'post', 'parallel', 'parallel_two_norms']
)
def test_a_block_is_the_formula_of_its_kind(kind):
  rng = np.random.default_rng(0)
  block = Block(Scale, Scale, functools.partial(Norm, kind='rmsnorm'), kind)
  x = rng.normal(size=(2, 3, 6))
  shapes = jax.eval_shape(block.init, jax.random.key(0), x, 0.5)['params']
  p = jax.tree.map(lambda s: rng.normal(size=s.shape), shapes)

  def n(name, x):
    power = (x**2).mean(-1, keepdims=True)
    return x / np.sqrt(power + 1e-5) * p[f'{name}_norm']['scale']

  def a(x):
    return np.einsum('BTD,DE->BTE', x, p['attention']['w']) + 0.5

  def m(x):
    return np.einsum('BTD,DE->BTE', x, p['mlp']['w'])

  if kind == 'pre':
    y = x + a(n('attention', x))
    want = y + m(n('mlp', y))
  elif kind == 'post':
    y = n('attention', x + a(x))
    want = n('mlp', y + m(y))
  elif kind == 'parallel':
    want = x + a(n('attention', x)) + m(n('attention', x))
    assert 'mlp_norm' not in p
  else:
    want = x + a(n('attention', x)) + m(n('mlp', x))
  out = block.apply({'params': p}, jnp.asarray(x), 0.5)
  np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-4)


class Same(nn.Module):
  """A norm that changes nothing."""

  def __call__(self, x):
    return x


@pytest.mark.parametrize(
  'kind', ['pre', 'post', 'parallel', 'parallel_two_norms']
)
def test_dropout_hits_what_is_added_and_never_the_stream(kind):
  block = Block(Scale, Scale, Same, kind, dropout=0.5)
  x = jnp.ones((1, 64, 6))
  # Matrices of zeros: what is added is the constant 8 of the context.
  shapes = jax.eval_shape(block.init, jax.random.key(0), x, 8.0)['params']
  p = jax.tree.map(lambda s: jnp.zeros(s.shape), shapes)
  out = block.apply(
    {'params': p},
    x,
    8.0,
    deterministic=False,
    rngs={'dropout': jax.random.key(0)},
  )
  assert set(np.unique(out)) == {1.0, 17.0}
  np.testing.assert_array_equal(block.apply({'params': p}, x, 8.0), 9.0)
