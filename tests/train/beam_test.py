"""Beam search: scores are those of the full pass, and rows do not mix."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl.models.gpt import GPT
from bigdl.train.beam import Beam, search
from bigdl.train.generate import NOTHING

MODEL = GPT(depth=2, width=8, heads=2, vocab=6, length=8, init_std=0.8)
PROMPTS = [[3, 1], [4]]
END = 2


@pytest.fixture(scope='module')
def params():
  made = jax.jit(MODEL.init)(jax.random.key(1), jnp.zeros((1, 4), jnp.int32))
  return made['params']


@pytest.fixture(scope='module')
def log_probability(params):
  """Returns the function from prompt and output to a sum of logs."""
  run = jax.jit(MODEL.apply)

  def total(prompt, output):
    text = np.array([*prompt, *output])
    row = np.pad(text, (0, MODEL.length - len(text)))[None]
    logs = jax.nn.log_softmax(run({'params': params}, row)[0])
    at = np.arange(len(prompt) - 1, len(text) - 1)
    return float(logs[at, text[len(prompt) :]].sum())

  return total


def texts(row) -> list[list[int]]:
  return [[int(t) for t in text if t != NOTHING] for text in row]


@pytest.mark.parametrize('penalty', ['power', 'gnmt'])
@pytest.mark.parametrize('stack', ['loop', 'scan'])
def test_scores_are_log_probabilities_over_the_penalty(
  params, log_probability, penalty, stack
):
  from bigdl.layers import stack as stacks

  model = MODEL.clone(stack=stack)
  own = stacks.to_scan(params) if stack == 'scan' else params
  how = Beam(beams=3, alpha=0.6, penalty=penalty)
  found = search(model, own, PROMPTS, tokens=5, beam=how, ends=(END,))
  lengths = set()
  for prompt, row, scores in zip(PROMPTS, *found, strict=True):
    for text, score in zip(texts(row), scores, strict=True):
      size = len(text)
      weight = size**0.6 if penalty == 'power' else ((5 + size) / 6) ** 0.6
      want = log_probability(prompt, text) / weight
      np.testing.assert_allclose(score, want, rtol=1e-4)
      assert text[-1] == END or size == 5
      lengths.add(size)
    assert (np.diff(scores) <= 0).all()
  assert len(lengths) > 1


def test_without_ends_a_wide_beam_finds_the_likeliest_output_of_all(
  params, log_probability
):
  every = list(itertools.product(range(MODEL.vocab), repeat=2))
  want = max(every, key=lambda text: log_probability([3], text))
  # Three beams of six tokens see half of the first tokens; greedy sees one.
  found = search(MODEL, params, [[3]], tokens=2, beam=Beam(beams=3, alpha=0.0))
  assert texts(found.tokens_BKT[0])[0] == list(want)


def test_rows_do_not_mix(params):
  how = dict(tokens=4, beam=Beam(beams=2), ends=(END,))
  both = search(MODEL, params, PROMPTS, **how)
  for i, prompt in enumerate(PROMPTS):
    alone = search(MODEL, params, [prompt], **how)
    assert texts(alone.tokens_BKT[0]) == texts(both.tokens_BKT[i])


@pytest.mark.parametrize(
  ('options', 'said'),
  [
    ({'beams': 0}, 'beams=0 must be at least 1'),
    ({'penalty': 'log'}, 'penalty=log must be one of power, gnmt'),
    ({'stop': 'soon'}, 'stop=soon must be one of best, full, never'),
    ({'min_tokens': -1}, 'min_tokens=-1 must not be negative'),
    ({'alpha': float('nan')}, 'alpha=nan must be a number'),
  ],
)
def test_senseless_searches_are_refused(options, said):
  with pytest.raises(ValueError, match=said):
    Beam(**options)


def test_what_does_not_fit_is_refused_before_anything_runs(params):
  with pytest.raises(ValueError, match='tokens=7 after a prompt of 2 must fit'):
    search(MODEL, params, PROMPTS, tokens=7, beam=Beam(beams=2))
  with pytest.raises(ValueError, match='beams=4 must be at most half of vocab'):
    search(MODEL, params, PROMPTS, tokens=2, beam=Beam(beams=4))
