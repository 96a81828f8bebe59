"""The masked-LM objective: its loss, its sentence part, what it costs."""

# Shapes: B rows, T positions, K places of what is predicted, D width,
# V vocabulary.
from __future__ import annotations

import dataclasses
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigdl.data.masked import Masked, Revealed
from bigdl.data.pairs import Pairs
from bigdl.data.stdlib import StandardLibrary
from bigdl.models.bert import BERT
from bigdl.models.gpt import GPT
from bigdl.objectives.base import State
from bigdl.objectives.causal_lm import CausalLM
from bigdl.objectives.masked_lm import MaskedLM
from bigdl.optim.sgd import SGD
from bigdl.scaling import count

B, T, V, K = 4, 9, 23, 4
MODEL = BERT(
  depth=1, width=8, heads=2, vocab=V, length=T, init_std=0.3, norm_epsilon=1e-6
)
KEY = jax.random.key(0)
RTOL = 1e-5


def rows():
  """Rows with one to three hidden tokens, padding, and labels."""
  rng = np.random.default_rng(0)
  targets = rng.integers(0, V - 1, (B, T), np.int32)
  weight = np.zeros((B, T), np.float32)
  for b in range(B):
    weight[b, rng.choice(T - 2, 1 + b % 3, replace=False)] = 1
  # Of a row's padding nothing is predicted, whatever its weight.
  weight[0, -1] = 1
  order = np.argsort(-weight, axis=1, kind='stable')
  segments = np.ones((B, T), np.int32)
  segments[:2, -2:] = 0
  return {
    'tokens': np.where(weight > 0, V - 1, targets).astype(np.int32),
    'targets': targets,
    'weight': weight,
    'places': order[:, :K].astype(np.int32),
    'segments': segments,
    'types': (np.arange(T) > 4).astype(np.int32) + np.zeros_like(targets),
    'label': np.array([0, 1, 1, 0], np.int32),
  }


BATCH = rows()
PARAMS = jax.jit(lambda key: MaskedLM().init(MODEL, key, BATCH)[0])(
  jax.random.key(1)
)


def spec(batch=BATCH):
  return {
    k: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for k, x in batch.items()
  }


def reference(params, batch, sentence_weight=1.0):
  """The losses over whole logits, as the papers have them."""
  logits_BTV, pair_BS = MODEL.apply(
    {'params': params}, batch['tokens'], batch['segments'], batch['types']
  )
  losses_BT = optax.softmax_cross_entropy_with_integer_labels(
    logits_BTV, batch['targets']
  )
  weight_BT = batch['weight'] * (batch['segments'] != 0)
  masked = (losses_BT * weight_BT).sum() / weight_BT.sum()
  pair_B = optax.softmax_cross_entropy_with_integer_labels(
    pair_BS, batch['label']
  )
  pair = (pair_B * weight_BT.sum(1)).sum() / weight_BT.sum()
  return masked + sentence_weight * pair, (masked, pair)


@functools.partial(jax.jit, static_argnums=0)
def _graded(objective, params, batch):
  grad = jax.value_and_grad(objective.loss, argnums=1, has_aux=True)
  return grad(MODEL, params, {}, batch, KEY)


def graded(objective, batch):
  """Returns loss, metrics, gradient."""
  (total, (_, metrics)), grads = _graded(objective, PARAMS, batch)
  return total, metrics, grads


def close(a, b):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=RTOL, atol=2e-6), a, b
  )


@pytest.fixture(scope='module')
def expected():
  return jax.jit(jax.value_and_grad(reference, has_aux=True))(PARAMS, BATCH)


@pytest.mark.parametrize(
  ('places', 'chunk'), [(True, 0), (True, 3), (False, 0)]
)
def test_loss_and_gradient_are_those_of_whole_logits(expected, places, chunk):
  batch = dict(BATCH)
  if not places:
    del batch['places']
  total, metrics, grads = graded(MaskedLM(chunk=chunk), batch)
  (want, (masked, pair)), want_grads = expected
  close(total, want)
  close(grads, want_grads)
  close((metrics['loss'], metrics['sentence_loss']), (masked, pair))
  close(metrics['weight'], (BATCH['weight'] * (BATCH['segments'] > 0)).sum())


def test_places_of_no_weight_count_nothing():
  other = dict(BATCH)
  order = np.argsort(-BATCH['weight'], axis=1, kind='stable')
  free = order[:, : K + 2].copy()
  assert (np.take_along_axis(BATCH['weight'], free[:, 3:], 1) == 0).all()
  free[:, 3:] = free[:, 3:][:, ::-1]
  other['places'] = free.astype(np.int32)
  close(graded(MaskedLM(), other), graded(MaskedLM(), BATCH))


def test_sentences_weigh_what_they_are_told_to():
  whole = graded(MaskedLM(sentence_weight=2.5), BATCH)
  none = graded(MaskedLM(sentence_weight=0), BATCH)
  pair = whole[1]['sentence_loss']
  close(whole[0], whole[1]['loss'] + 2.5 * pair)
  close(none[0], none[1]['loss'])
  assert 'sentence_loss' not in none[1]
  assert not np.any(none[2]['sentence_head']['kernel'])
  assert np.any(whole[2]['sentence_head']['kernel'])


def test_microbatches_average_exactly():
  optimizer = SGD(lr=0.1).make(1)
  state = State(
    step=jnp.zeros((), jnp.int32),
    params=PARAMS,
    opt=optimizer.init(PARAMS),
    extra={},
  )

  @functools.partial(jax.jit, static_argnums=0)
  def update(accumulate):
    return MaskedLM().update(
      MODEL, optimizer, state, BATCH, KEY, accumulate=accumulate
    )

  once, metrics = update(1)
  parts, sums = update(2)
  close(parts.params, once.params)
  close(sums, metrics)


def test_score_is_of_the_hidden_tokens_alone():
  score = jax.jit(lambda batch: MaskedLM().score(MODEL, PARAMS, {}, batch))
  losses_B, weight_B = score(BATCH)
  _, metrics, _ = graded(MaskedLM(), BATCH)
  close(losses_B.sum() / weight_B.sum(), metrics['loss'])
  other = {**BATCH, 'label': 1 - BATCH['label']}
  close(score(other), (losses_B, weight_B))


def test_accuracies_count_what_ranks_first():
  logits_BTV, pair_BS = jax.jit(MODEL.apply)(
    {'params': PARAMS}, BATCH['tokens'], BATCH['segments'], BATCH['types']
  )
  best = dict(BATCH)
  best['targets'] = np.array(logits_BTV.argmax(-1), np.int32)
  best['label'] = np.array(pair_BS.argmax(-1), np.int32)
  _, metrics, _ = graded(MaskedLM(), best)
  assert metrics['accuracy'] == pytest.approx(1)
  assert metrics['sentence_accuracy'] == pytest.approx(1)
  best['targets'] = np.array(logits_BTV.argmin(-1), np.int32)
  best['label'] = 1 - best['label']
  _, metrics, _ = graded(MaskedLM(), best)
  assert metrics['accuracy'] == metrics['sentence_accuracy'] == 0


@pytest.mark.parametrize('stack', ['loop', 'scan'])
def test_flops_are_counted_by_hand_with_the_head_at_k_places(stack):
  D, L, F = 16, 3, 64
  model = BERT(
    depth=L,
    width=D,
    heads=2,
    vocab=V,
    length=T,
    stack=stack,
    types=0,
    classes=0,
  )
  batch = {k: BATCH[k] for k in ('tokens', 'targets', 'weight', 'places')}
  attention = 4 * 2 * T * D * D + 2 * 2 * T * T * D
  blocks = L * (attention + 2 * 2 * T * D * F)
  head = 2 * K * D * D + 2 * K * D * V
  found = count.flops_per_unit(model, MaskedLM(), spec(batch), xla=False)
  assert found['matmul_full'] == pytest.approx(3 * (blocks + head) / T)
  assert found['matmul_causal'] == found['matmul_full']
  # Without places the head is at all positions.
  del batch['places']
  head = 2 * T * D * D + 2 * T * D * V
  found = count.flops_per_unit(model, MaskedLM(), spec(batch), xla=False)
  assert found['matmul_full'] == pytest.approx(3 * (blocks + head) / T)


@pytest.mark.parametrize('classes', [0, 2])
def test_the_table_is_embedding_and_head_at_once(classes):
  model = MODEL.clone(classes=classes)
  batch = {k: x for k, x in BATCH.items() if classes or k != 'label'}
  found = count.params(model, MaskedLM(), spec(batch))
  shapes = jax.eval_shape(
    lambda: MaskedLM().init(model, KEY, batch)[0],
  )
  total = sum(x.size for x in jax.tree.leaves(shapes))
  tables = 8 * (V + T + 2)
  assert found['total'] == total
  assert found['nonembedding'] == total - tables
  assert found['nonembedding_head'] == total - tables + 8 * V


def test_units_are_tokens_read():
  assert MaskedLM().units(spec()) == T
  assert MaskedLM().unit == 'token'


def checked(model=MODEL, facts=None, **changes):
  own = spec()
  for name, value in changes.items():
    if value is None:
      del own[name]
    else:
      own[name] = jax.ShapeDtypeStruct(*value)
  MaskedLM().check(model, own, facts or {})


class NoHead(nn.Module):
  """An encoder that tells no pairs."""

  @nn.compact
  def __call__(self, tokens_BT, **context):
    return self.hidden(tokens_BT)

  @nn.compact
  def hidden(self, tokens_BT, **context):
    return nn.Embed(V, V)(tokens_BT)

  def logits(self, x):
    return x


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'targets': None}, 'expected tokens, targets, weight'),
    ({'facts': {'vocab': 99}}, 'data vocab=99 is larger than model.vocab=23'),
    (
      {'model': MODEL.clone(length=5)},
      'data length=9 is larger than model.length=5',
    ),
    ({'weight': ((T,), np.int32)}, r'weight=int32\[9\] must be numbers \[9\]'),
    ({'targets': ((T - 1,), np.int32)}, r'targets=int32\[8\] must be integers'),
    ({'places': ((T + 1,), np.int32)}, r'places=int32\[10\] must be integers'),
    ({'model': MODEL.clone(classes=0)}, 'has no head for sentences'),
    ({'model': NoHead()}, 'has no head for sentences'),
    ({'model': nn.Dense(3), 'label': None}, r'Dense has no hidden\(tokens\)'),
  ],
)
def test_what_does_not_fit_is_said_in_one_line(changes, said):
  checked()
  with pytest.raises(ValueError, match=said) as error:
    checked(**changes)
  assert '\n' not in str(error.value)


def test_plain_text_is_told_to_be_wrapped():
  text = StandardLibrary(length=T)
  with pytest.raises(ValueError, match=r'wrap the text in data\.masked'):
    MaskedLM().check(MODEL, text.spec(), text.facts())


def test_labels_are_left_alone_without_a_weight():
  objective = MaskedLM(sentence_weight=0)
  objective.check(MODEL.clone(classes=0), spec(), {})


@pytest.mark.parametrize('name', ['sentence_weight', 'chunk'])
def test_negative_fields_are_refused(name):
  with pytest.raises(ValueError, match=f'{name}=-1 must not be negative'):
    dataclasses.replace(MaskedLM(), **{name: -1})


def test_a_bert_learns_real_pairs():
  source = Masked(Pairs(StandardLibrary(length=16), short=0.0))
  model = BERT(
    depth=1, width=16, heads=2, vocab=260, length=16, block='pre', init_std=0.1
  )
  objective = MaskedLM()
  objective.check(model, source.spec(), source.facts())
  batch = source.batch(0, size=16)
  optimizer = optax.adam(1e-2)
  params, extra = jax.jit(lambda b: objective.init(model, KEY, b))(batch)
  state = State(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt=optimizer.init(params),
    extra=extra,
  )
  update = jax.jit(
    lambda state, batch: objective.update(model, optimizer, state, batch, KEY)
  )
  state, first = update(state, batch)
  for _ in range(60):
    state, last = update(state, batch)
  assert last['loss'] < first['loss'] / 2
  assert last['sentence_loss'] < first['sentence_loss'] / 2


def test_a_causal_model_is_no_encoder_of_pairs():
  model = GPT(depth=1, width=8, heads=2, vocab=V, length=T)
  with pytest.raises(ValueError, match='has no head for sentences'):
    checked(model=model)


def test_a_causal_model_is_scored_at_the_hidden_tokens():
  masked = Masked(StandardLibrary(length=16))
  source = Revealed(masked)
  rows, hidden = source.rows(0, 3), masked.rows(0, 3)
  assert np.array_equal(rows['tokens'], hidden['targets'])
  model = GPT(depth=1, width=8, heads=2, vocab=260, length=15)
  CausalLM().check(model, source.spec(), source.facts())
  params, _ = jax.jit(lambda rows: CausalLM().init(model, KEY, rows))(rows)
  score = jax.jit(lambda rows: CausalLM().score(model, params, {}, rows))
  losses_B, weight_B = score(rows)
  logits_BTV = jax.jit(model.apply)({'params': params}, rows['tokens'][:, :-1])
  want_BT = optax.softmax_cross_entropy_with_integer_labels(
    logits_BTV, rows['tokens'][:, 1:]
  )
  close(losses_B, (want_BT * hidden['weight'][:, 1:]).sum(1))
  assert np.array_equal(weight_B, hidden['weight'].sum(1))
  everywhere = Revealed(masked, everywhere=True).rows(0, 3)
  assert score(everywhere)[1].tolist() == [15] * 3
