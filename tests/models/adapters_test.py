"""Adapters in whole models, in a loop and in a scan."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl import tree
from bigdl.layers import stack
from bigdl.models.bert import BERT
from bigdl.models.gpt import GPT
from bigdl.models.vit import ViT
from bigdl.optim.adamw import AdamW

SMALL = {'depth': 2, 'width': 8, 'heads': 2, 'adapter': 3}
TOKENS = jnp.asarray([[3, 1, 4, 1, 5], [2, 6, 5, 3, 5]], jnp.int32)
IMAGE = jnp.arange(32, dtype=jnp.uint8).reshape(2, 4, 4, 1)
MODELS = [
  (GPT(**SMALL, vocab=11, length=8), TOKENS),
  (BERT(**SMALL, vocab=11, length=8, classes=0), TOKENS),
  (ViT(**SMALL, patch=2, image_size=4, channels=1, classes=0), IMAGE),
]
CLOSE = 1e-6


@pytest.mark.parametrize('kind', ['loop', 'scan'])
@pytest.mark.parametrize(
  ('model', 'inputs'), MODELS, ids=lambda x: type(x).__name__
)
def test_at_first_a_model_with_adapters_is_the_model_without(
  model, inputs, kind
):
  model = model.clone(stack=kind)
  plain = model.clone(adapter=0)
  params = model.init(jax.random.key(0), inputs)['params']
  old = jax.eval_shape(plain.init, jax.random.key(0), inputs)['params']
  own = dict(tree.items(params))
  base = jax.tree.map(
    lambda path: own[path], tree.map_with_path(lambda p, _: p, old)
  )
  found = jax.jit(model.apply)({'params': params}, inputs)
  want = jax.jit(plain.apply)({'params': base}, inputs)
  np.testing.assert_allclose(found, want, atol=CLOSE)
  # Two a block, each of 2 F D + F + D.
  added = tree.size(params) - tree.size(old)
  assert added == 2 * 2 * (2 * 3 * 8 + 3 + 8)
  assert AdamW(train='adapter').trained(params) == added
  moved = tree.map_with_path(
    lambda p, x: (
      x + 0.5 * jnp.cos(jnp.arange(x.size).reshape(x.shape))
      if 'adapter' in p
      else x
    ),
    params,
  )
  changed = jax.jit(model.apply)({'params': moved}, inputs)
  assert np.abs(changed - want).max() > 1e-3
  if kind == 'loop':
    scan = model.clone(stack='scan')
    again = jax.jit(scan.apply)({'params': stack.to_scan(moved)}, inputs)
    np.testing.assert_allclose(again, changed, atol=1e-5)


def test_a_width_below_zero_is_refused():
  for model, _ in MODELS:
    with pytest.raises(ValueError, match='adapter=-1 must'):
      model.clone(adapter=-1)
