"""Heads: what they pool, on which bodies they stand, what they leave alone."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl import tree
from bigdl.models.bert import BERT
from bigdl.models.gpt import GPT
from bigdl.models.head import Classifier, Regressor, pool
from bigdl.models.transformer import Transformer
from bigdl.models.vit import ViT
from bigdl.models.xlnet import XLNet

SMALL = {'depth': 1, 'width': 8, 'heads': 2, 'vocab': 11}
TOKENS = jnp.asarray([[3, 1, 4, 1, 5, 9], [2, 6, 5, 0, 0, 0]], jnp.int32)
SEGMENTS = jnp.asarray([[1] * 6, [1] * 3 + [0] * 3], jnp.int32)
BERT_, GPT_ = BERT(**SMALL, length=8), GPT(**SMALL, length=8)
CLOSE = 1e-5


def test_each_kind_pools_what_is_no_padding():
  x = jnp.arange(24.0).reshape(2, 6, 2)
  np.testing.assert_array_equal(pool(x, SEGMENTS, 'first'), x[:, 0])
  last = pool(x, SEGMENTS, 'last')
  np.testing.assert_array_equal(last, [x[0, 5], x[1, 2]])
  mean = pool(x, SEGMENTS, 'mean')
  np.testing.assert_allclose(mean, [x[0].mean(0), x[1, :3].mean(0)])
  np.testing.assert_array_equal(pool(x, None, 'last'), x[:, -1])
  np.testing.assert_allclose(pool(x, None, 'mean'), x.mean(1), rtol=1e-6)


@pytest.mark.parametrize(
  ('body', 'kind'),
  [
    (BERT_, 'first'),
    (BERT_, 'mean'),
    (GPT_, 'last'),
    (XLNet(**SMALL), 'last'),
  ],
  ids=lambda value: getattr(type(value), '__name__', value),
)
def test_a_head_reads_the_body_and_no_padding(body, kind):
  model = Classifier(body, classes=3, pool=kind)
  params = model.init(jax.random.key(0), TOKENS, SEGMENTS)['params']
  assert {k.split('/')[0] for k in tree.paths(params)} == {'body', 'head'}
  # Drawn small, and what a token says would hardly show.
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: x + jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), params
  )
  apply = jax.jit(model.apply)
  found = apply({'params': params}, TOKENS, SEGMENTS)
  x = body.apply(
    {'params': params['body']}, TOKENS, segments=SEGMENTS, method='hidden'
  )
  head = params['head']
  want = pool(x, SEGMENTS, kind) @ head['kernel'] + head['bias']
  np.testing.assert_allclose(found, want, atol=CLOSE)
  assert found.shape == (2, 3) and found.dtype == jnp.float32
  other = TOKENS.at[1, 3:].set(7)
  same = apply({'params': params}, other, SEGMENTS)
  np.testing.assert_allclose(same, found, atol=CLOSE)
  moved = apply({'params': params}, TOKENS.at[1, 1].set(7), SEGMENTS)
  assert np.abs(moved[1] - found[1]).max() > 1e-4


def test_a_head_stands_on_images_too():
  body = ViT(
    depth=1, width=8, heads=2, patch=2, image_size=4, channels=1, classes=0
  )
  image = jnp.arange(32, dtype=jnp.uint8).reshape(2, 4, 4, 1)
  model = Regressor(body, outputs=2, pool='mean')
  params = model.init(jax.random.key(0), image)['params']
  x = body.apply({'params': params['body']}, image, method='hidden')
  want = x.mean(1) @ params['head']['kernel']
  found = model.apply({'params': params}, image)
  np.testing.assert_allclose(found, want, atol=CLOSE)


def test_kinds_of_tokens_reach_a_body_that_knows_them_and_no_other():
  model = Classifier(BERT_)
  types = jnp.asarray([[0, 0, 0, 1, 1, 1]] * 2, jnp.int32)
  params = model.init(jax.random.key(0), TOKENS)['params']
  plain = model.apply({'params': params}, TOKENS)
  typed = model.apply({'params': params}, TOKENS, types=types)
  assert np.abs(plain - typed).max() > 1e-4
  with pytest.raises(ValueError, match='types are given, and GPT has none'):
    Classifier(GPT_, pool='last').init(jax.random.key(0), TOKENS, types=types)


def test_fields_of_the_body_are_fields_of_the_whole():
  model = Classifier(BERT_, classes=5, hidden_width=4)
  assert (model.vocab, model.length, model.stack) == (11, 8, 'auto')
  assert model.classes == 5 and not hasattr(model, 'decode')
  other = model.clone(stack='scan', width=16, classes=7)
  assert other.body == BERT_.clone(stack='scan', width=16)
  assert other.classes == 7 and other.hidden_width == 4
  assert model.scale(4.0).body == BERT_.scale(4.0)
  params = model.init(jax.random.key(0), TOKENS)['params']
  assert params['head_hidden']['kernel'].shape == (8, 4)
  with pytest.raises(AttributeError, match='nothing'):
    _ = model.nothing


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: Classifier(BERT_, pool='max'), 'pool=max must be first, .*'),
    (lambda: Classifier(BERT_, classes=0), 'classes=0 must be at least 1'),
    (
      lambda: Classifier(GPT(depth=1, width=8, heads=2, vocab=11)),
      'pool=first must be mean or last for GPT, whose first token .*',
    ),
    (
      lambda: Classifier(Transformer(depth=1, width=8, heads=2, vocab=11)),
      'body=Transformer must read one sequence, not two',
    ),
    (lambda: Regressor(BERT_, outputs=0), 'outputs=0 must be at least 1'),
    (
      lambda: Classifier(BERT_, head_dropout=1.0),
      r'head_dropout=1.0 must be in \[0, 1\)',
    ),
    (
      lambda: Classifier(BERT_, hidden_width=-1),
      'hidden_width=-1 must not be negative',
    ),
  ],
)
def test_a_bad_field_is_refused_by_name_and_value(make, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    make()
