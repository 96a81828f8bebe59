"""Depth by loop and by scan: names, conversion, application."""

from __future__ import annotations

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl import tree
from bigdl.layers import stack


class Step(nn.Module):
  """Multiplies, adds what every block is given, and adds a flag."""

  @nn.compact
  def __call__(self, x, shift, *, flag=False):
    w = self.param('w', nn.initializers.normal(1.0), (3, 3))
    return x @ w + shift + flag


class Tower(nn.Module):
  kind: str
  remat: str = 'none'

  def setup(self):
    self.blocks = stack.build(Step, 4, kind=self.kind)

  def __call__(self, x):
    shift = jnp.arange(3.0)
    return stack.run(
      self.blocks, x, shift, depth=4, remat=self.remat, flag=True
    )


def test_a_scan_stacks_what_a_loop_numbers():
  x = jnp.ones((1, 3))
  loop = Tower('loop').init(jax.random.key(0), x)['params']
  scan = Tower('scan').init(jax.random.key(0), x)['params']
  assert tree.paths(loop) == [f'blocks_{i}/w' for i in range(4)]
  assert {k: v.shape for k, v in tree.items(scan)} == {'blocks/w': (4, 3, 3)}
  assert tree.paths(stack.to_scan(loop)) == ['blocks/w']


@pytest.mark.parametrize('kind', ['loop', 'scan'])
@pytest.mark.parametrize('remat', ['none', 'full', 'dots'])
def test_blocks_are_applied_in_order(kind, remat):
  rng = np.random.default_rng(0)
  w, x = rng.normal(size=(4, 3, 3)), rng.normal(size=(2, 3))
  params = {'blocks': {'w': jnp.asarray(w)}}
  if kind == 'loop':
    params = stack.to_loop(params)
  out = Tower(kind, remat).apply({'params': params}, jnp.asarray(x))
  for matrix in w:
    x = x @ matrix + np.arange(3) + 1
  np.testing.assert_allclose(out, x, rtol=1e-4)


def test_conversion_goes_there_and_back_anywhere_in_a_pytree():
  rng = np.random.default_rng(0)
  # More than ten, where the order of names is not that of numbers.
  params = {f'blocks_{i}': {'a': rng.normal(size=2)} for i in range(12)}
  params['embed'] = {'table': rng.normal(size=3)}
  state = {'mu': params, 'count': np.array(3)}
  scan = stack.to_scan(state)
  assert scan['mu']['blocks']['a'].shape == (12, 2)
  np.testing.assert_allclose(
    scan['mu']['blocks']['a'][11], params['blocks_11']['a'], rtol=1e-6
  )
  back = stack.to_loop(scan)
  assert jax.tree.structure(back) == jax.tree.structure(state)
  for (path, a), (_, b) in zip(
    tree.items(back), tree.items(state), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-6, err_msg=path)


@pytest.mark.parametrize(
  ('platform', 'kind'), [('cpu', 'loop'), ('gpu', 'scan'), ('tpu', 'scan')]
)
def test_auto_is_a_loop_on_cpu_and_a_scan_elsewhere(
  platform, kind, monkeypatch
):
  monkeypatch.setattr(jax, 'default_backend', lambda: platform)
  assert stack.resolve('auto') == kind
  assert stack.resolve('loop') == 'loop'
  assert stack.resolve('scan') == 'scan'
