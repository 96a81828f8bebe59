"""Held-out loss: the right mean and error; padding counts nothing."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest
import toy_experiment as toy

from bigdl.experiment import Evaluation
from bigdl.objectives.base import State
from bigdl.parallel.layout import Layout
from bigdl.train import evaluate, program

LOSSES = np.array([3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.0])
WEIGHTS = np.array([2.0, 1.0, 3.0, 1.0, 4.0, 2.0, 2.0])
ONE = Layout(1)
CLOSE = 1e-6  # Relative, float32 scores summed in float64.


def test_mean_is_a_ratio_of_sums():
  loss, _ = evaluate.ratio(LOSSES, WEIGHTS, np.arange(7))
  assert loss == LOSSES.sum() / WEIGHTS.sum()


def test_error_of_equal_rows_is_that_of_a_mean():
  _, se = evaluate.ratio(LOSSES, np.ones(7), np.arange(7))
  assert se == pytest.approx(LOSSES.std(ddof=1) / math.sqrt(7))


def test_clusters_count_as_one_observation_each():
  clusters = np.array([5, 5, 2, 2, 9, 9, 9])
  sums = [
    [x[clusters == g].sum() for g in (2, 5, 9)] for x in (LOSSES, WEIGHTS)
  ]
  assert evaluate.ratio(LOSSES, WEIGHTS, clusters) == pytest.approx(
    evaluate.ratio(*map(np.array, sums), np.arange(3))
  )


def test_error_covers_the_truth_when_rows_of_a_cluster_agree():
  # 12 rows a cluster share their noise; the true mean is zero.
  draw = np.random.default_rng(0)
  inside = {'cluster': 0, 'row': 0}
  for _ in range(400):
    losses = np.repeat(draw.normal(size=30), 12)
    clusters = np.repeat(np.arange(30), 12)
    for name, groups in (('cluster', clusters), ('row', np.arange(360))):
      loss, se = evaluate.ratio(losses, np.ones(360), groups)
      inside[name] += abs(loss) < 1.96 * se
  assert 0.92 < inside['cluster'] / 400 < 0.97
  assert inside['row'] / 400 < 0.6


def test_one_cluster_has_no_error():
  assert evaluate.ratio(LOSSES, WEIGHTS, np.zeros(7, int))[1] is None


def test_clusters_without_targets_do_not_add_observations():
  some = evaluate.ratio(LOSSES[:3], WEIGHTS[:3], np.arange(3))
  more = evaluate.ratio(
    np.append(LOSSES[:3], 0), np.append(WEIGHTS[:3], 0), np.arange(4)
  )
  assert some == more


def test_no_targets_at_all_is_an_error():
  with pytest.raises(ValueError, match='no target'):
    evaluate.ratio(np.zeros(2), np.zeros(2), np.arange(2))


@dataclasses.dataclass(frozen=True)
class Count(toy.Points):
  """Row i says i; reading past the end is an error."""

  def rows(self, start, stop):
    assert 0 <= start < stop <= self.length
    return super().rows(start, stop)

  def row(self, i):
    row = {'x': np.float32(i)}
    if self.clusters:
      row['cluster'] = np.int32(i // self.clusters)
    return row


def scored(data, *, rows, batch, layout=ONE, score=None):
  def value(state, batch):
    # A row that repeats to fill the batch would show up in both sums.
    return {'loss': batch['x'] * state.params}, 1 + batch['x']

  sharding = NamedSharding(layout.mesh(), PartitionSpec(('data', 'fsdp')))
  evaluator = evaluate.Evaluator(
    score or value, data, rows=rows, batch=batch, sharding=sharding
  )
  state = State(jnp.int32(0), jnp.float32(2), (), {})
  return evaluator(state), evaluator


@pytest.mark.parametrize('rows', [1, 3, 8, 9, 15, 16])
@pytest.mark.parametrize('layout', [Layout(1), Layout(4, 2)], ids=str)
def test_every_row_counts_once_whatever_the_batch(rows, layout):
  got, _ = scored(Count(length=40), rows=rows, batch=8, layout=layout)
  x = np.arange(rows)
  assert got.count == (1 + x).sum()
  assert got.loss == pytest.approx((2 * x).sum() / (1 + x).sum(), rel=CLOSE)
  if rows > 1:
    want = evaluate.ratio(2.0 * x, 1.0 + x, x)[1]
    assert got.se == pytest.approx(want, rel=CLOSE)


def test_rows_zero_and_more_than_there_are_take_one_epoch():
  few = Count(length=11)
  assert scored(few, rows=0, batch=4)[0] == scored(few, rows=99, batch=4)[0]
  assert scored(few, rows=0, batch=4)[0].count == (1 + np.arange(11)).sum()


def test_clusters_named_by_the_data_are_used():
  got, _ = scored(Count(length=12, clusters=3), rows=12, batch=8)
  x = np.arange(12.0)
  assert got.se == pytest.approx(evaluate.ratio(2 * x, 1 + x, x // 3)[1])


def test_rows_that_fill_the_batch_may_be_nan():
  def poisoned(state, batch):
    bad = batch['_row'] >= 5
    ones = jnp.where(bad, jnp.nan, 1.0)
    return {'loss': ones}, ones

  got, _ = scored(Count(length=40), rows=5, batch=4, score=poisoned)
  assert (got.loss, got.count) == (1.0, 5.0)


def test_every_measure_has_its_mean_and_error_beside_the_loss():
  def two(state, batch):
    x = batch['x']
    return {'loss': 2 * x, 'error': (x % 3 == 0) * (1 + x)}, 1 + x

  got, _ = scored(Count(length=40), rows=11, batch=4, score=two)
  x = np.arange(11.0)
  want = evaluate.ratio((x % 3 == 0) * (1 + x), 1 + x, x)
  assert got.more == {'error': pytest.approx(want, rel=CLOSE)}
  assert got.loss == pytest.approx((2 * x).sum() / (1 + x).sum(), rel=CLOSE)


def test_all_batches_use_one_program():
  _, evaluator = scored(Count(length=40), rows=19, batch=4)
  assert evaluator._step._cache_size() == 1


def test_bits_per_byte_follows_from_bytes_per_token():
  got, _ = scored(Count(length=8), rows=8, batch=4)
  assert got.bits_per_byte == pytest.approx(got.loss / math.log(2) / 2)


def test_data_that_does_not_know_its_bytes_has_no_bits_per_byte():
  class Images(Count):
    def facts(self):
      return {}

  assert scored(Images(length=8), rows=8, batch=4)[0].bits_per_byte is None


def test_averaged_weights_are_what_is_scored():
  class Averaged(toy.Adam):
    def averaged(self, opt, params):
      return jax.tree.map(jnp.zeros_like, params)

  e = toy.experiment(
    optimizer=Averaged(),
    layout=Layout(1),
    evaluation=Evaluation(toy.Points(seed=1), rows=16),
  )
  plan = program.Program(e, e.layout.mesh())
  got = plan.evaluator()(plan.init(plan.state_shapes()))
  targets = toy.Points(seed=1).rows(0, 16)['y']
  # A net of zeros predicts zero.
  assert got.loss == pytest.approx((targets**2).mean(), rel=CLOSE)
