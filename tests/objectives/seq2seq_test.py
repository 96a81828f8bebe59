"""The loss of targets given a source, against the textbook."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl.models.transformer import Transformer
from bigdl.objectives import seq2seq
from bigdl.objectives.seq2seq import Seq2Seq

MODEL = Transformer(depth=1, width=8, heads=2, mlp_width=8, vocab=13, length=6)
KEY = jax.random.key(0)


@functools.cache
def batch():
  rng = np.random.default_rng(0)
  lengths = np.array([[5, 7], [3, 4], [2, 6]])
  made = {
    'source': rng.integers(3, 13, (3, 5)),
    'source_segments': np.arange(5) < lengths[:, :1],
    'tokens': rng.integers(3, 13, (3, 7)),
    'segments': np.arange(7) < lengths[:, 1:],
  }
  return {k: jnp.asarray(v, jnp.int32) for k, v in made.items()}


@functools.cache
def params():
  start = MODEL.init(KEY, batch()['source'], batch()['tokens'][:, :-1])
  return jax.tree.map(lambda x: 2 * x, start['params'])


def textbook(params, smoothing):
  """Returns the loss, by log-softmax of all logits, and each target's terms."""
  rows = batch()
  logits = MODEL.apply(
    {'params': params},
    rows['source'],
    rows['tokens'][:, :-1],
    rows['source_segments'],
    rows['segments'][:, :-1],
  )
  logs = jax.nn.log_softmax(logits)
  truth = jax.nn.one_hot(rows['tokens'][:, 1:], 13)
  truth = (1 - smoothing) * truth + smoothing / 13
  terms = -(truth * logs).sum(-1)
  counts = rows['segments'][:, 1:]
  return (terms * counts).sum() / counts.sum(), (logits, terms, counts)


@pytest.mark.parametrize(('smoothing', 'chunk'), [(0.0, 4), (0.1, 0), (0.7, 4)])
def test_any_chunk_gives_the_loss_and_gradient_of_the_textbook(
  smoothing, chunk
):
  objective = Seq2Seq(smoothing=smoothing, chunk=chunk)
  step = jax.jit(
    jax.value_and_grad(
      lambda p: objective.loss(MODEL, p, {}, batch(), KEY), has_aux=True
    )
  )
  (loss, (_, metrics)), grads = step(params())
  book = functools.partial(textbook, smoothing=smoothing)
  want, want_grads = jax.jit(jax.value_and_grad(lambda p: book(p)[0]))(params())
  assert loss == pytest.approx(float(want), rel=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, want_grads
  )
  # What is reported has no smoothing.
  plain, _ = textbook(params(), 0.0)
  assert metrics['loss'] == pytest.approx(float(plain), rel=1e-5)
  assert metrics['weight'] == 6 + 3 + 5


def test_scores_are_of_each_row_without_smoothing():
  objective = Seq2Seq(smoothing=0.3, chunk=4)
  sums, weights = objective.measures(MODEL, params(), {}, batch())
  _, (logits, terms, counts) = textbook(params(), 0.0)
  np.testing.assert_allclose(sums['loss'], (terms * counts).sum(1), rtol=1e-5)
  np.testing.assert_array_equal(weights, counts.sum(1))
  wrong = logits.argmax(-1) != batch()['tokens'][:, 1:]
  np.testing.assert_array_equal(sums['error'], (wrong * counts).sum(1))
  assert 0 < sums['error'].sum() < weights.sum()
  losses, again = objective.score(MODEL, params(), {}, batch())
  np.testing.assert_array_equal(losses, sums['loss'])
  np.testing.assert_array_equal(again, weights)


def test_a_begin_is_no_target_of_the_pair_before_it():
  rows = {
    'source': jnp.ones((1, 5), jnp.int32),
    'source_segments': jnp.asarray([[1, 1, 1, 2, 2]]),
    'tokens': jnp.asarray([[1, 5, 2, 1, 6, 7, 2]]),
    'segments': jnp.asarray([[1, 1, 1, 2, 2, 2, 2]]),
  }
  _, weights = Seq2Seq().score(MODEL, params(), {}, rows)
  assert weights.tolist() == [5.0]


def test_dropout_is_on_in_training_alone():
  noisy = MODEL.clone(dropout=0.4)

  def loss(key):
    return Seq2Seq().loss(noisy, params(), {}, batch(), key)[0]

  assert loss(jax.random.key(1)) != loss(jax.random.key(2))
  one, other = (
    Seq2Seq().score(m, params(), {}, batch())[0] for m in (MODEL, noisy)
  )
  np.testing.assert_allclose(one, other, rtol=1e-6)


def spec(**changes):
  rows = {'source': (5,), 'tokens': (7,), **changes}
  return {k: jax.ShapeDtypeStruct(v, jnp.int32) for k, v in rows.items() if v}


@pytest.mark.parametrize(
  ('rows', 'facts', 'message'),
  [
    ({'source': None}, {}, 'data rows hold tokens, expected source'),
    ({'tokens': None}, {}, 'data rows hold source, expected tokens'),
    ({'tokens': (7, 2)}, {}, r'data tokens=int32\[7, 2\] must be integers'),
    ({'tokens': (1,)}, {}, 'data tokens of 1 must have at least 2'),
    ({'tokens': (9,)}, {}, 'data length=8 is larger than model.length=6'),
    ({'source': (7,)}, {}, 'data length=7 is larger than model.length=6'),
    ({}, {'vocab': 14}, 'data vocab=14 is larger than model.vocab=13'),
    ({}, {'begin': 12}, 'data begin=12 must be model.begin=1'),
    ({}, {'end': 0}, 'data end=0 must be model.end=2'),
  ],
)
def test_data_that_does_not_fit_is_refused(rows, facts, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    Seq2Seq().check(MODEL, spec(**rows), facts)
  Seq2Seq().check(MODEL, spec(), {'vocab': 13, 'begin': 1, 'end': 2, 'pad': 0})


def test_units_are_the_places_of_targets():
  assert Seq2Seq().units(spec()) == 6


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'smoothing': 1.0}, r'smoothing=1.0 must be in \[0, 1\)'),
    ({'smoothing': float('nan')}, 'smoothing=nan must be in'),
    ({'chunk': -1}, 'chunk=-1 must not be negative'),
  ],
)
def test_bad_fields_are_refused(fields, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    Seq2Seq(**fields)


def test_its_tiny_model_reads_the_source():
  objective, model, rows = seq2seq.tiny()
  start, _ = objective.init(model, KEY, rows)
  other = {**rows, 'source': rows['source'] * 5 % 11}
  one, two = (objective.score(model, start, {}, x)[0] for x in (rows, other))
  assert np.abs(one - two).min() > 1e-4
