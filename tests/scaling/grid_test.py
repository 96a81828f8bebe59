"""The planner: budgets met, cadences scaled, the same plan every time."""

from __future__ import annotations

import dataclasses
import json
import time

from flax import linen as nn
import grain.python as grain
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl.data.base import Source
from bigdl.experiment import Checkpoints, Evaluation, Experiment, Logs
from bigdl.objectives.base import Objective
from bigdl.optim.base import Optimizer
from bigdl.scaling import count, grid


@dataclasses.dataclass(frozen=True)
class Rows(Source):
  """Some number of empty rows."""

  rows: int = 1000

  def dataset(self):
    row = {'x': np.zeros((8, 4), np.float32)}
    return grain.MapDataset.range(self.rows).map(lambda _: row)


@dataclasses.dataclass(frozen=True)
class Mean(Objective):
  """The mean square of what the model returns; eight units a row."""

  def units(self, spec):
    return spec['x'].shape[0]

  def init(self, model, key, batch):
    return model.init(key, batch['x'])['params'], {}

  def loss(self, model, params, extra, batch, key):
    y = model.apply({'params': params}, batch['x'])
    return jnp.square(y).mean(), (extra, {'weight': jnp.float32(y.size)})


class Net(nn.Module):
  """Two matrices: 9 x width parameters, as many multiply-adds a unit."""

  width: int = 10
  tag: str = ''

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(self.width, use_bias=False)(x)
    return nn.Dense(5, use_bias=False)(jnp.tanh(x))

  def scale(self, factor):
    return self.clone(width=max(1, round(self.width * factor)))


BASE = Experiment(
  model=Net(),
  objective=Mean(),
  data=Rows(),
  optimizer=Optimizer(lr=0.5),
  steps=1000,
  batch=4,
  evaluation=Evaluation(every=100),
  checkpoints=Checkpoints(every=50, keep_every=500),
  logs=Logs(every=10),
)
MODELS = [Net(width) for width in (5, 10, 20, 40)]
BUDGETS = (1e7, 1e8)


def isoflop(base=BASE, **changes):
  options = {
    'budgets': BUDGETS,
    'models': MODELS,
    'batch': 4,
    'lr': 0.01,
    'max_epochs': 1e9,
    'min_steps': 1,
  }
  return grid.isoflop(base, **{**options, **changes})


@pytest.mark.parametrize('convention', ['6N', 'matmul_causal', 'xla'])
def test_every_cell_meets_its_budget_to_within_half_a_step(convention):
  plan = isoflop(convention=convention)
  assert len(plan) == 8
  for cell in plan:
    run = cell.experiment
    flops = cell.flops_per_unit[convention] * run.units
    step = cell.flops_per_unit[convention] * run.batch * 8
    assert cell.d == run.units
    assert abs(flops - cell.budget) <= step / 2
    assert cell.mismatch == pytest.approx(flops / cell.budget - 1, abs=1e-12)
    assert cell.flops[convention] == flops


def test_cells_carry_n_and_flops_of_their_own_model():
  for cell in isoflop():
    width = cell.experiment.model.width
    assert cell.n == cell.params['total'] == 9 * width
    assert cell.flops_per_unit['matmul_causal'] == 54 * width
    assert cell.params['nonembedding'] == 4 * width
    assert set(cell.flops) == set(count.CONVENTIONS)
  plan = isoflop(params='nonembedding')
  assert {c.n for c in plan} == {20, 40, 80, 160}


def test_cells_are_ordered_by_budget_then_size_whatever_the_input():
  plan = isoflop(budgets=BUDGETS[::-1], models=MODELS[::-1])
  assert [(c.budget, c.n) for c in plan] == [
    (b, 9 * m.width) for b in BUDGETS for m in MODELS
  ]
  assert grid.to_plan(plan) == grid.to_plan(isoflop())
  assert plan[0].name == 'c1e07_n45'


def test_the_rest_of_the_experiment_is_untouched():
  for cell in isoflop():
    run = cell.experiment
    assert run.data == BASE.data
    assert run.objective == BASE.objective
    assert run.seed == BASE.seed
    assert run.optimizer == Optimizer(lr=0.01)


def test_cadences_keep_their_share_of_the_run():
  for cell in isoflop():
    run = cell.experiment
    assert abs(run.evaluation.every - run.steps / 10) <= 0.5
    assert abs(run.checkpoints.every - run.steps / 20) <= 0.5
    assert abs(run.checkpoints.keep_every - run.steps / 2) <= 0.5
    assert abs(run.logs.every - run.steps / 100) <= 0.5
  still = dataclasses.replace(
    BASE, evaluation=Evaluation(), checkpoints=Checkpoints(every=0)
  )
  for cell in isoflop(still):
    assert cell.experiment.evaluation.every == 0
    assert cell.experiment.checkpoints.every == 0


def test_a_cadence_never_falls_to_never():
  rare = dataclasses.replace(BASE, steps=10**9)
  for cell in isoflop(rare):
    assert cell.experiment.evaluation.every == 1


def test_short_cells_are_dropped_with_a_sentence():
  plan = isoflop(min_steps=300)
  short = {c.name for c in isoflop() if c.experiment.steps < 300}
  assert short == {'c1e07_n180', 'c1e07_n360'}
  assert {c.name for c in isoflop()} - {c.name for c in plan} == short
  assert len(plan.dropped) == 2
  for line in plan.dropped:
    assert line.split(':')[0] in short
    assert 'min_steps=300' in line
    assert line.endswith('.')


def test_cells_with_too_many_epochs_are_dropped_with_a_sentence():
  everything = isoflop()
  plan = isoflop(max_epochs=10.0)
  for cell in everything:
    epochs = cell.experiment.steps * 4 / 1000
    assert cell.epochs == epochs
    assert (cell in plan.cells) == (epochs <= 10)
  assert 0 < len(plan) < len(everything)
  assert all('epochs' in line for line in plan.dropped)


def test_cells_outside_the_window_of_d_over_n_are_not_planned():
  everything = isoflop()
  low, high = sorted(c.d / c.n for c in everything)[1:6:4]
  plan = isoflop(units_per_parameter=(low, high))
  assert [c.name for c in plan] == [
    c.name for c in everything if low <= c.d / c.n <= high
  ]
  assert len(plan) == 5
  # That is where the grid was put, not something that went wrong.
  assert plan.dropped == ()


def test_rules_see_n_d_and_the_batch_in_units():
  seen = []

  def batch(n, d):
    return d / 100

  def rate(n, d, units):
    seen.append((n, d, units))
    return 1 / n

  plan = isoflop(batch=batch, lr=rate)
  for cell, (n, d, units) in zip(plan, seen, strict=True):
    run = cell.experiment
    assert (n, d, units) == (cell.n, cell.d, 8 * run.batch)
    assert run.optimizer.lr == pytest.approx(1 / n, rel=1e-3)
    # A power of two of rows, the nearest in the logarithm.
    assert run.batch & (run.batch - 1) == 0
    want = cell.budget / cell.flops_per_unit['matmul_causal'] / 100 / 8
    assert 2**-0.5 <= run.batch / want <= 2**0.5


def test_no_rate_keeps_that_of_the_experiment():
  assert {c.experiment.optimizer.lr for c in isoflop(lr=None)} == {0.5}


def test_rows_are_a_multiple_of_devices_and_microbatches():
  base = dataclasses.replace(BASE, accumulate=3, batch=3)
  plan = isoflop(base, batch=lambda n, d: 100.0, multiple=4)
  for cell in plan:
    assert cell.experiment.batch % 12 == 0
  with pytest.raises(ValueError, match='batch=4 .* multiple of 12'):
    isoflop(base, batch=4, multiple=4)


def test_default_rules_follow_their_papers():
  # Li et al., 2025, table of constants; DeepSeek LLM at its 7 B run's budget,
  # whose batch of 2304 rows of 4096 and rate of 4.2e-4 it derives from them.
  assert grid.step_law_rate(1e9, 1e11, 0) == pytest.approx(
    1.79 * 1e9**-0.713 * 1e11**0.307
  )
  assert grid.step_law_batch(0, 1e11) == pytest.approx(0.58 * 1e11**0.571)
  n, d = 6.9e9, 2e12
  assert grid.compute_batch(n, d) == pytest.approx(2304 * 4096, rel=0.15)
  assert grid.compute_rate(n, d, 0) == pytest.approx(4.2e-4, rel=0.15)
  plan = isoflop(lr=grid.compute_rate, batch=grid.compute_batch)
  rates = {c.budget: c.experiment.optimizer.lr for c in plan}
  assert rates[1e7] > rates[1e8] > 0


def test_models_may_depend_on_the_budget():
  def models(budget):
    return [Net(5)] if budget < 5e7 else [Net(20), Net(40)]

  plan = isoflop(models=models)
  assert [(c.budget, c.n) for c in plan] == [
    (1e7, 45),
    (1e8, 180),
    (1e8, 360),
  ]


def test_a_ladder_scales_and_drops_what_repeats():
  models = grid.ladder(Net(4), [0.01, 0.2, 0.5, 1, 1.01, 4])
  assert models == [Net(1), Net(2), Net(4), Net(16)]
  with pytest.raises(ValueError, match='factor=0 '):
    grid.ladder(Net(4), [0])
  with pytest.raises(ValueError, match='Dense has no scale'):
    grid.ladder(nn.Dense(3), [1])


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'convention': '7N'}, "convention='7N' must be one of 6N, "),
    ({'params': 'most'}, "params='most' must be one of total, "),
    ({'budgets': ()}, 'budgets'),
    ({'budgets': (1e9, -1.0)}, 'budget=-1.0 must be a positive'),
    ({'budgets': (float('nan'),)}, 'budget=nan must be a positive'),
    ({'models': []}, 'models=.* at least one'),
    ({'batch': 0}, 'batch=0 '),
    ({'units_per_parameter': (9, 9)}, r'units_per_parameter=\(9, 9\) must'),
  ],
)
def test_bad_input_is_one_line(changes, message):
  with pytest.raises(ValueError, match=message) as error:
    isoflop(**changes)
  assert '\n' not in str(error.value)


def test_shapes_of_one_size_get_names_of_their_own():
  plan = isoflop(budgets=[1e7], models=[Net(5), Net(5, tag='b'), Net(10)])
  names = [c.name for c in plan]
  assert len(set(names)) == 3
  assert names[2] == 'c1e07_n90'
  assert all(n.startswith('c1e07_n45_') for n in names[:2])
  again = isoflop(budgets=[1e7], models=[Net(5, tag='b'), Net(10), Net(5)])
  assert [c.name for c in again] == names


def test_a_plan_is_the_same_json_every_time():
  first = json.dumps(grid.to_plan(isoflop()), allow_nan=False)
  count._remember.cache_clear()
  assert json.dumps(grid.to_plan(isoflop()), allow_nan=False) == first


def test_the_key_tells_experiments_apart():
  plan, other = isoflop(), isoflop(dataclasses.replace(BASE, seed=1))
  assert len({c.key for c in plan}) == len(plan)
  assert [c.name for c in plan] == [c.name for c in other]
  assert not {c.key for c in plan} & {c.key for c in other}
  assert grid.to_plan(plan)['hash'] != grid.to_plan(other)['hash']


def test_memory_grows_with_parameters_and_with_rows():
  small, large = isoflop(models=[Net(10), Net(1000)], budgets=[1e8])
  assert small.memory >= 16 * 90
  assert large.memory >= 16 * 9000
  per_row = count.activation_bytes(Net(10), Mean(), BASE.data.spec())
  # Of eight positions, the input, the hidden layer and the output are kept.
  assert per_row >= 8 * 4 * (10 + 5)
  (twice,) = isoflop(models=[Net(10)], budgets=[1e8], batch=8)
  assert twice.memory - small.memory == 4 * per_row
  # One of two microbatches is in memory at a time.
  base = dataclasses.replace(BASE, accumulate=2)
  (halves,) = isoflop(base, models=[Net(10)], budgets=[1e8], batch=8)
  assert halves.memory == small.memory


def test_the_table_shows_every_cell_and_why_others_are_not_there():
  plan = isoflop(min_steps=300)
  text = grid.table(plan, peak=1e9, mfu=0.5)
  lines = text.splitlines()
  assert len({len(line) for line in lines[: len(plan) + 1]}) == 1
  for cell in plan:
    (line,) = (line for line in lines if line.startswith(cell.name + ' '))
    assert f'{cell.d:,}' in line
    assert f' {cell.experiment.steps:,} ' in line
    seconds = cell.flops['matmul_causal'] / 5e8
    assert cell.seconds(1e9, 0.5) == pytest.approx(seconds)
    assert line.endswith(f' {seconds:.0f} s')
  for name in count.CONVENTIONS:
    assert name in lines[0]
  for line in plan.dropped:
    assert line in text
  assert grid.table(plan).splitlines()[1].endswith('?')


def test_a_thousand_cells_are_planned_within_a_minute():
  models = [Net(width) for width in range(3, 103)]
  count._remember.cache_clear()
  start = time.perf_counter()
  plan = isoflop(models=models, budgets=np.geomspace(1e8, 1e11, 10).tolist())
  grid.to_plan(plan)
  assert len(plan) == 1000
  assert time.perf_counter() - start < 60
