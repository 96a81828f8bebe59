"""LoRA: what it leaves alone at first, what it adds, what it offers."""

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
from bigdl.models.lora import LoRA
from bigdl.objectives import chunked
from bigdl.objectives.causal_lm import CausalLM
from bigdl.optim.adamw import AdamW
from bigdl.train import generate
from bigdl.train.sampling import Sampling

GPT_ = GPT(depth=2, width=8, heads=2, vocab=11, length=16)
TOKENS = jnp.asarray([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]], jnp.int32)
MODEL = LoRA(GPT_, rank=2, alpha=6.0)
CLOSE = 1e-6


def moved(params, by=0.3):
  leaves, structure = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(9), len(leaves))
  return jax.tree.unflatten(
    structure,
    [
      x + by * jax.random.normal(k, x.shape)
      for x, k in zip(leaves, keys, strict=True)
    ],
  )


@pytest.fixture(scope='module')
def params():
  return MODEL.init(jax.random.key(0), TOKENS)['params']


@pytest.mark.parametrize('kind', ['loop', 'scan'])
def test_at_first_it_is_the_base_model(kind):
  model = MODEL.clone(stack=kind)
  variables = model.init(jax.random.key(0), TOKENS)
  base = {k: v for k, v in variables['params'].items() if k != 'lora'}
  assert tree.paths(base) == tree.paths(
    jax.eval_shape(model.body.init, jax.random.key(0), TOKENS)['params']
  )
  want = model.body.apply({'params': base}, TOKENS)
  np.testing.assert_allclose(model.apply(variables, TOKENS), want, atol=CLOSE)


def test_pairs_are_those_of_the_paths_and_few(params):
  found = {k: x.shape for k, x in tree.items(params['lora'])}
  assert found == {
    f'blocks_{i}/attention/{name}/kernel/{side}': shape
    for i in range(2)
    for name in ('query', 'value')
    for side, shape in (('a', (8, 2)), ('b', (2, 8)))
  }
  assert all(
    not np.any(x) for k, x in tree.items(params['lora']) if k.endswith('b')
  )
  own = AdamW(train='^lora/').trained(params)
  assert own == sum(np.prod(shape) for shape in found.values())


def test_it_adds_the_scaled_product_to_each_weight(params):
  params = moved(params)
  plain = MODEL.merge(params)
  assert 'lora' not in plain
  for path, w in tree.items({k: v for k, v in params.items() if k != 'lora'}):
    want = np.asarray(w, np.float64)
    if path.endswith(('query/kernel', 'value/kernel')):
      pair = dict(tree.items(params['lora']))
      a, b = (np.asarray(pair[f'{path}/{s}'], np.float64) for s in 'ab')
      want = want + 6.0 / 2 * a @ b
    np.testing.assert_allclose(dict(tree.items(plain))[path], want, atol=1e-5)
  np.testing.assert_array_equal(
    MODEL.apply({'params': params}, TOKENS),
    GPT_.apply({'params': plain}, TOKENS),
  )


def test_a_scan_adapts_each_of_its_layers(params):
  params = moved(params)
  loop = MODEL.clone(stack='loop').apply({'params': params}, TOKENS)
  scan = MODEL.clone(stack='scan').apply(
    {'params': stack.to_scan(params)}, TOKENS
  )
  np.testing.assert_allclose(scan, loop, atol=1e-5)


def test_objectives_train_it_and_the_base_stays(params):
  optimizer = AdamW(lr=0.1, train='^lora/')
  tx, objective = optimizer.make(8), CausalLM(chunk=2)
  state, batch = tx.init(params), {'tokens': TOKENS}

  @jax.jit
  def step(params, state, key):
    def loss(params):
      held = optimizer.hold(params)
      return objective.loss(MODEL, held, {}, batch, key)[0]

    value, grads = jax.value_and_grad(loss)(params)
    updates, state = tx.update(grads, state, params)
    return jax.tree.map(jnp.add, params, updates), state, value

  before, losses = params, []
  for i in range(8):
    params, state, loss = step(params, state, jax.random.key(i))
    losses.append(float(loss))
  assert losses[-1] < losses[0] - 0.05
  for path, x in tree.items(params):
    same = np.array_equal(x, dict(tree.items(before))[path])
    assert same != path.startswith('lora/'), path


def test_a_head_reads_only_what_its_logits_need(params):
  _, values, _ = chunked._head(MODEL, params, jnp.ones((2, 6, 8)))
  assert [v.shape for v in values] == [(11, 8)]


def test_text_is_written_as_by_the_merged_model(params):
  params = moved(params)
  assert hasattr(MODEL, 'decode') and not hasattr(MODEL, 'encode')

  def write(model, params):
    stream = generate.generate(
      model, params, [[3, 1]], tokens=5, sampling=Sampling(0.0)
    )
    return np.concatenate(list(stream), axis=1)

  want = write(GPT_, MODEL.merge(params))
  np.testing.assert_array_equal(write(MODEL, params), want)


def test_it_stands_around_a_head_and_takes_other_paths():
  body = BERT(depth=1, width=8, heads=2, vocab=11, length=8)
  model = LoRA(Classifier(body, classes=3), paths=r'mlp/\w+/kernel$|embedding$')
  params = model.init(jax.random.key(0), TOKENS)['params']
  places = {k.rpartition('/')[0] for k in tree.paths(params['lora'])}
  assert 'body/embed/embedding' in places
  assert 'body/blocks_0/mlp/up/kernel' in places
  assert model.apply({'params': params}, TOKENS).shape == (2, 3)
  assert model.classes == 3 and model.vocab == 11
  logits, _ = model.init_with_output(jax.random.key(0), TOKENS)
  assert logits.shape == (2, 3)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: LoRA(GPT_, rank=0), 'rank=0 must be at least 1'),
    (lambda: LoRA(GPT_, alpha=0.0), 'alpha=0.0 must be positive'),
    (lambda: LoRA(GPT_, paths='('), r"paths='\(' must be a regular .*"),
    (
      lambda: LoRA(GPT_, paths='qeury').init(jax.random.key(0), TOKENS),
      "paths='qeury' must match a parameter, such as .*",
    ),
    (
      lambda: LoRA(GPT_, paths='scale').init(jax.random.key(0), TOKENS),
      r"paths='scale' finds .*/scale \[8\], which is no matrix",
    ),
    (
      lambda: LoRA(GPT_.clone(stack='scan'), paths='query/bias').init(
        jax.random.key(0), TOKENS
      ),
      r"paths='query/bias' finds .*/bias \[2, 8\], which is no matrix",
    ),
    (
      lambda: Classifier(LoRA(GPT_), pool='last').init(
        jax.random.key(0), TOKENS
      ),
      r'LoRA must be the outermost model, used by apply\(\)',
    ),
  ],
)
def test_what_cannot_be_is_refused(make, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    make()
