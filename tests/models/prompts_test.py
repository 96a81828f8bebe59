"""Prompts: what changes with them, and that nothing else does."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl import tree
from bigdl.layers import stack
from bigdl.models.bert import BERT
from bigdl.models.gpt import GPT
from bigdl.models.head import Classifier
from bigdl.models.prompts import Prompted
from bigdl.models.transformer import Transformer
from bigdl.models.vit import ViT
from bigdl.optim.adamw import AdamW
from bigdl.train import generate
from bigdl.train.sampling import Sampling

SMALL = {'depth': 2, 'width': 8, 'heads': 2, 'vocab': 11, 'length': 8}
TOKENS = jnp.asarray([[3, 1, 4, 1, 5], [2, 6, 5, 3, 5]], jnp.int32)
SEGMENTS = jnp.asarray([[1, 1, 1, 2, 2], [1, 1, 1, 0, 0]], jnp.int32)
KINDS = ['learned', 'rotary', 'none']
CLOSE = 1e-5


def made(model, *inputs):
  params = model.init(jax.random.key(0), *(inputs or (TOKENS,)))['params']
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda x: x + jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), params
  )


def by_hand(body, params, segments):
  """Returns hidden states of vectors that are put before those of tokens."""
  inner = {k: v for k, v in params.items() if k != 'prompt'}
  table = jnp.concatenate(
    [inner['embed']['embedding'], params['prompt']['embedding']]
  )
  P = len(params['prompt']['embedding'])
  ids = jnp.broadcast_to(11 + jnp.arange(P), (2, P))
  longer = body.clone(vocab=11 + P, length=20)
  values = {**inner, 'embed': {'embedding': table}}
  at = jnp.stack([jnp.arange(5)] * 2)
  if segments is not None:
    at = jnp.asarray([[0, 1, 2, 0, 1]] * 2)
    segments = jnp.concatenate([segments[:, :1]] * P + [segments], axis=1)
  before = jnp.broadcast_to(jnp.arange(-P, 0), (2, P))
  if 'positions' in inner:
    rows = inner['positions']['embedding']
    rows = jnp.concatenate([rows, jnp.zeros((20 - len(rows), 8))])
    values['positions'] = {'embedding': rows}
    before = jnp.full((2, P), 19)
  x = longer.apply(
    {'params': values},
    jnp.concatenate([ids, TOKENS], axis=1),
    segments,
    jnp.concatenate([before, at], axis=1),
    method='hidden',
  )
  return x[:, P:]


@pytest.mark.parametrize('segments', [None, SEGMENTS], ids=['whole', 'packed'])
@pytest.mark.parametrize('kind', KINDS)
def test_a_decoder_reads_vectors_before_its_tokens(kind, segments):
  model = Prompted(GPT(**SMALL, position=kind), prompt=3)
  params = made(model)
  found = model.apply({'params': params}, TOKENS, segments, method='hidden')
  want = by_hand(model.body, params, segments)
  np.testing.assert_allclose(found, want, atol=CLOSE)
  plain = {k: v for k, v in params.items() if k != 'prompt'}
  alone = model.body.apply({'params': plain}, TOKENS, segments, method='hidden')
  changed = np.abs(found - alone).max(-1) > 1e-3
  # It is of the first document, and no other sees it.
  assert changed[:, :3].all()
  assert changed[0, 3:].all() == (segments is None)
  logits = model.apply({'params': params}, TOKENS, segments)
  assert logits.shape == (2, 5, 11)
  np.testing.assert_allclose(
    logits, found @ plain['embed']['embedding'].T, atol=1e-4
  )


def test_a_prompt_that_nothing_attends_to_changes_nothing():
  # Their segment is one that no token has: what is left is the base model.
  body = BERT(**SMALL, classes=2)
  model = Prompted(body, prompt=4)
  params = made(model)
  plain = {k: v for k, v in params.items() if k != 'prompt'}
  segments = jnp.asarray([[9, 1, 1, 1, 1], [9, 1, 1, 0, 0]], jnp.int32)
  # Its first token is the only one of the prompt's document.
  found = model.apply({'params': params}, TOKENS, segments)
  want = body.apply({'params': plain}, TOKENS, segments)
  for x, y in zip(found[0][:, 1:], want[0][:, 1:], strict=True):
    np.testing.assert_allclose(x, y, atol=1e-4)
  assert np.abs(found[0][:, 0] - want[0][:, 0]).max() > 1e-3
  assert np.abs(found[1] - want[1]).max() > 1e-4


def test_a_head_on_an_encoder_still_reads_the_first_token():
  model = Prompted(Classifier(BERT(**SMALL), classes=3), prompt=4)
  params = made(model)
  found = model.apply({'params': params}, TOKENS, segments=SEGMENTS)
  inner = Prompted(BERT(**SMALL), prompt=4)
  own = {**params['body'], 'prompt': params['prompt']}
  x = inner.apply({'params': own}, TOKENS, segments=SEGMENTS, method='hidden')
  head = params['head']
  want = x[:, 0] @ head['kernel'] + head['bias']
  np.testing.assert_allclose(found, want, atol=CLOSE)
  assert AdamW(train='^prompt/').trained(params) == 4 * 8


def test_a_head_on_a_decoder_reads_the_last_token():
  model = Prompted(Classifier(GPT(**SMALL), pool='last'), prompt=2)
  params = made(model)
  found = model.apply({'params': params}, TOKENS)
  own = {**params['body'], 'prompt': params['prompt']}
  x = Prompted(model.body.body, prompt=2).apply(
    {'params': own}, TOKENS, method='hidden'
  )
  head = params['head']
  want = x[:, -1] @ head['kernel'] + head['bias']
  np.testing.assert_allclose(found, want, atol=CLOSE)


def test_a_scan_is_the_loop():
  model = Prompted(GPT(**SMALL), prompt=2)
  params = made(model)
  loop = model.apply({'params': params}, TOKENS)
  scan = model.clone(stack='scan').apply(
    {'params': stack.to_scan(params)}, TOKENS
  )
  np.testing.assert_allclose(scan, loop, atol=CLOSE)


@pytest.mark.parametrize('kind', ['learned', 'rotary'])
def test_text_is_written_by_the_logits_of_the_whole(kind):
  model = Prompted(GPT(**SMALL, position=kind), prompt=3)
  params = made(model)
  stream = generate.generate(
    model, params, [[3, 1]], tokens=5, sampling=Sampling(0.0)
  )
  found = np.concatenate(list(stream), axis=1)[0]
  # What comes after a token does not reach it.
  text = [3, 1, *found.tolist()]
  logits = jax.jit(model.apply)({'params': params}, jnp.asarray([text]))
  np.testing.assert_array_equal(logits[0, 1:-1].argmax(-1), found)


def test_vectors_start_as_those_of_tokens_and_alone_train():
  model = Prompted(GPT(**SMALL), prompt=3)
  params = model.init(jax.random.key(0), TOKENS)['params']
  table = np.asarray(params['embed']['embedding'])
  for vector in np.asarray(params['prompt']['embedding']):
    assert (table == vector).all(axis=1).sum() == 1
  optimizer = AdamW(lr=0.1, train='^prompt/')

  def loss(params):
    logits = model.apply({'params': optimizer.hold(params)}, TOKENS)
    return -jax.nn.log_softmax(logits)[..., 3].mean()

  grads = dict(tree.items(jax.grad(loss)(params)))
  assert [k for k, g in grads.items() if np.any(g)] == ['prompt/embedding']


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: Prompted(GPT(**SMALL), prompt=0), 'prompt=0 must be at least 1'),
    (lambda: Prompted(ViT()), 'body=ViT must be a GPT or a BERT, .*'),
    (lambda: Prompted(Transformer()), 'body=Transformer must be a GPT or .*'),
    (
      lambda: Classifier(Prompted(GPT(**SMALL)), pool='last').init(
        jax.random.key(0), TOKENS
      ),
      r'Prompted must be the outermost model, used by apply\(\)',
    ),
  ],
)
def test_what_cannot_be_is_refused(make, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    make()
