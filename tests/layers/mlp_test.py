"""The feed-forward layer against its formulas."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from bigdl import tree
from bigdl.layers.mlp import MLP

FORMULAS = {
  'gelu': lambda x: (
    x / 2 * (1 + np.tanh((2 / np.pi) ** 0.5 * (x + 0.044715 * x**3)))
  ),
  'gelu_exact': lambda x: x * special.ndtr(x),
  'relu': lambda x: np.maximum(x, 0),
  'swiglu': lambda x: x * special.expit(x),
}
FORMULAS['geglu'] = FORMULAS['gelu']


@pytest.mark.parametrize('bias', [True, False])
@pytest.mark.parametrize('activation', FORMULAS)
def test_the_layer_is_its_formula(activation, bias):
  rng = np.random.default_rng(0)
  x = rng.normal(size=(2, 3, 6))
  layer = MLP(hidden=10, activation=activation, bias=bias)
  shapes = jax.eval_shape(layer.init, jax.random.key(0), x)['params']
  p = tree.map_with_path(lambda _, s: rng.normal(size=s.shape), shapes)
  gated = activation in ('swiglu', 'geglu')
  names = {'up', 'down', 'gate'} if gated else {'up', 'down'}
  assert set(p) == names
  leaves = {'kernel', 'bias'} if bias else {'kernel'}
  assert all(set(part) == leaves for part in p.values())

  def dense(name, x):
    return x @ p[name]['kernel'] + p[name].get('bias', 0)

  act = FORMULAS[activation]
  if gated:
    want = dense('down', act(dense('gate', x)) * dense('up', x))
  else:
    want = dense('down', act(dense('up', x)))
  out = layer.apply({'params': p}, x)
  np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-4)


def test_hidden_values_are_kept_once_for_the_backward_pass():
  # The activation is computed again, not stored beside its input.
  layer, x = MLP(hidden=1000), jnp.ones((1, 50, 4))
  params = layer.init(jax.random.key(0), x)

  def pull(params):
    return jax.vjp(lambda p: layer.apply(p, x).sum(), params)[1]

  kept = tree.bytes_of(jax.eval_shape(pull, params))
  hidden = 50 * 1000 * 4
  assert hidden <= kept - tree.bytes_of(params) < 2.2 * hidden
