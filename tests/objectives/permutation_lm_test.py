"""The loss of an order against its definition, and what is no such data."""

# Shapes: B rows, P predicted positions, V vocabulary.
from __future__ import annotations

import dataclasses
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl.objectives import permutation_lm
from bigdl.objectives.permutation_lm import PermutationLM

FACTS = {'vocab': 11}


def spec_of(batch):
  return {
    k: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for k, x in batch.items()
  }


def test_loss_is_the_mean_over_targets_and_scores_are_their_sums():
  objective, model, batch = permutation_lm.tiny()
  params, extra = objective.init(model, jax.random.key(0), batch)
  logits_BPV: Any = model.apply(
    {'params': params},
    batch['tokens'],
    order=batch['order'],
    targets_at=batch['targets_at'],
  )
  logs = np.asarray(jax.nn.log_softmax(logits_BPV))
  own = np.take_along_axis(logs, np.asarray(batch['targets'])[..., None], -1)
  counts = np.ones((4, 3))
  counts[0, 0] = 0  # Its weight is 0; the other one stands in the padding.
  counts[3, 2] = 0
  losses = -own[..., 0] * counts
  loss, (_, metrics) = objective.loss(
    model, params, extra, batch, jax.random.key(1)
  )
  assert metrics['weight'] == counts.sum()
  np.testing.assert_allclose(loss, losses.sum() / counts.sum(), rtol=1e-5)
  sums, weights = objective.score(model, params, extra, batch)
  np.testing.assert_allclose(sums, losses.sum(1), rtol=1e-5)
  np.testing.assert_array_equal(weights, counts.sum(1))
  whole = dataclasses.replace(objective, chunk=0)
  np.testing.assert_allclose(
    whole.loss(model, params, extra, batch, jax.random.key(1))[0],
    loss,
    rtol=1e-5,
  )
  assert 0 < loss < 2 * math.log(11)


def test_a_unit_is_a_token_that_is_read():
  objective, _, batch = permutation_lm.tiny()
  assert objective.units(spec_of(batch)) == 6


@pytest.mark.parametrize(
  ('name', 'row', 'message'),
  [
    ('order', None, 'expected tokens, order, .* data.permuted.Permuted'),
    (
      'weight',
      jnp.zeros(3, int),
      r'^data weight=int32\[3\] must be floats \[3',
    ),
    (
      'targets',
      jnp.zeros(2, int),
      r'^data targets=.*\[2\] must be integers \[3',
    ),
    ('segments', jnp.zeros(6), r'^data segments=float32\[6\] must be integers'),
    ('order', jnp.zeros((6, 6), int), r'^data order=int32\[6, 6\] must be int'),
  ],
)
def test_rows_that_are_not_permuted_text_are_refused(name, row, message):
  objective, model, batch = permutation_lm.tiny()
  spec = spec_of(batch)
  del spec[name]
  if row is not None:
    spec[name] = jax.ShapeDtypeStruct(row.shape, row.dtype)
  with pytest.raises(ValueError, match=message):
    objective.check(model, spec, FACTS)


def test_models_that_do_not_fit_are_refused():
  objective, model, batch = permutation_lm.tiny()
  spec = spec_of(batch)

  class Plain(nn.Module):
    def hidden(self, tokens_BT):
      return tokens_BT

  with pytest.raises(
    ValueError, match=r'^model=Plain has no hidden\(tokens, o'
  ):
    objective.check(Plain(), spec, FACTS)
  with pytest.raises(ValueError, match='^data vocab=12 is larger than model'):
    objective.check(model, spec, {'vocab': 12})
  with pytest.raises(ValueError, match='^data length=6 is larger than model'):
    objective.check(model.clone(length=5), spec, FACTS)
  with pytest.raises(ValueError, match='^chunk=-1 must not be negative'):
    PermutationLM(chunk=-1)
