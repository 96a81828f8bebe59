"""Gradient accumulation: microbatches add up to the batch they are part of."""

from __future__ import annotations

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigdl.objectives.base import Objective, State
from bigdl.objectives.causal_lm import CausalLM, tiny

RTOL, ATOL = 1e-6, 1e-7
KEY = jax.random.key(3)


def uneven(rows=8):
  """Rows of 0 to 6 targets each, so no two microbatches weigh the same."""
  tokens = jax.random.randint(jax.random.key(0), (rows, 7), 0, 11)
  lengths = jnp.arange(rows)[:, None] % 7
  segments = (jnp.arange(7) <= lengths).astype(jnp.int32)
  return {'tokens': tokens, 'segments': segments}


def update(objective, model, batch, accumulate, extra=None):
  params, _ = objective.init(model, jax.random.key(1), batch)
  tx = optax.sgd(1.0)
  state = State(jnp.int32(0), params, tx.init(params), extra or {})
  step = jax.jit(
    lambda s, b: objective.update(model, tx, s, b, KEY, accumulate=accumulate)
  )
  return step(state, batch)


@pytest.mark.parametrize('accumulate', [2, 4, 8])
@pytest.mark.parametrize('z_loss', [0.0, 0.1])
def test_uneven_microbatches_make_the_update_of_the_whole_batch(
  accumulate, z_loss
):
  _, model, _ = tiny()
  batch = uneven()
  whole, metrics = update(CausalLM(z_loss=z_loss), model, batch, 1)
  parts, averaged = update(CausalLM(z_loss=z_loss), model, batch, accumulate)
  weights = batch['segments'][:, 1:].sum(1).reshape(-1, accumulate).sum(0)
  # Of eight rows with 0 to 6 targets, two have none.
  assert len(set(weights.tolist())) == min(accumulate, 7)
  assert metrics.keys() == averaged.keys()
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=RTOL, atol=ATOL),
    (parts, averaged),
    (whole, metrics),
  )
  assert metrics['weight'] == batch['segments'][:, 1:].sum()


@dataclasses.dataclass(frozen=True)
class Counting(Objective):
  """Keeps what each call of its loss was given."""

  def init(self, model, key, batch):
    return {'w': jnp.ones(())}, {}

  def loss(self, model, params, extra, batch, key):
    noise = jax.random.normal(key)
    seen = extra['seen'].at[extra['calls']].set(batch['x'].mean())
    drawn = extra['drawn'].at[extra['calls']].set(noise)
    extra = {'calls': extra['calls'] + 1, 'seen': seen, 'drawn': drawn}
    loss = params['w'] * batch['x'].mean()
    return loss, (extra, {'loss': loss, 'weight': jnp.float32(1)})


def test_extra_passes_from_one_microbatch_to_the_next_and_keys_differ():
  extra = {'calls': jnp.int32(0), 'seen': jnp.zeros(4), 'drawn': jnp.zeros(4)}
  batch = {'x': jnp.arange(8.0)}
  state, _ = update(Counting(), nn.Dense(1), batch, 4, extra)
  assert state.extra['calls'] == 4
  # Row r belongs to microbatch r % 4.
  np.testing.assert_array_equal(state.extra['seen'], [2, 3, 4, 5])
  assert len(set(state.extra['drawn'].tolist())) == 4


def test_microbatches_stay_spread_over_the_devices():
  from bigdl.parallel.layout import Layout
  from bigdl.parallel.rules import batch_sharding

  objective, model, _ = tiny()
  batch, mesh = uneven(rows=16), Layout().mesh()
  placed = jax.device_put(batch, batch_sharding(mesh))
  params, _ = objective.init(model, jax.random.key(1), batch)
  tx = optax.sgd(1.0)
  state = State(jnp.int32(0), params, tx.init(params), {})
  step = jax.jit(
    lambda s, b: objective.update(model, tx, s, b, KEY, accumulate=2)
  )
  compiled = step.lower(state, placed).compile().as_text()
  assert 'all-gather' not in compiled
  assert 'all-to-all' not in compiled
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    step(state, placed),
    step(state, batch),
  )
