"""Rotary positions and scaled weights of BERT, which are the reader's choice."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl.models.bert import BERT

MODEL = BERT(
  depth=1,
  width=8,
  heads=2,
  vocab=23,
  length=12,
  classes=0,
  position='rotary',
  init_std=0.5,
)
TOKENS = jnp.arange(12, dtype=jnp.int32).reshape(1, 12) * 5 % 23


@pytest.fixture(scope='module')
def params():
  return jax.jit(MODEL.init)(jax.random.key(0), TOKENS)['params']


def test_rotary_positions_need_no_table_and_know_only_distances(params):
  assert 'positions' not in params
  hidden = jax.jit(
    lambda tokens, at: MODEL.apply(
      {'params': params}, tokens, positions=at, method='hidden'
    )
  )
  places = jnp.arange(12)[None]
  first = hidden(TOKENS, places)
  np.testing.assert_allclose(hidden(TOKENS, places + 7), first, atol=1e-5)
  # Were order unseen, turning a row would only turn what comes of it.
  turned = hidden(TOKENS[:, ::-1], places)[:, ::-1]
  assert np.abs(turned - first).max() > 1e-4


def test_packed_documents_are_read_as_if_alone(params):
  segments = jnp.asarray([[1] * 5 + [2] * 7])
  hidden = jax.jit(
    lambda tokens, segments: MODEL.apply(
      {'params': params}, tokens, segments, method='hidden'
    )
  )
  both = hidden(TOKENS, segments)
  alone = hidden(TOKENS[:, 5:], segments[:, 5:])
  np.testing.assert_allclose(both[:, 5:], alone, atol=1e-5)


def test_fan_in_weights_have_the_variance_of_their_inputs():
  model = BERT(
    depth=1, width=64, heads=2, vocab=23, length=12, weight_init='fan_in'
  )
  made = jax.jit(model.init)(jax.random.key(0), TOKENS)['params']
  block = made['blocks_0']
  for kernel in (
    block['attention']['query']['kernel'],
    block['mlp']['up']['kernel'],
    block['mlp']['down']['kernel'],
    made['head']['transform']['kernel'],
  ):
    inputs = kernel.shape[0]
    assert abs(float(kernel.std()) * inputs**0.5 - 1) < 0.1
  assert abs(float(made['embed']['embedding'].std()) / 0.02 - 1) < 0.1


@pytest.mark.parametrize(
  ('fields', 'said'),
  [
    ({'position': 'none'}, 'position=none must be one of learned, rotary'),
    ({'weight_init': 'zeros'}, 'weight_init=zeros must be one of normal'),
    ({'position': 'rotary', 'width': 6}, 'width=6 of heads=2 must be even'),
  ],
)
def test_what_cannot_be_is_refused(fields, said):
  with pytest.raises(ValueError, match=said):
    MODEL.clone(**fields)
