"""Plans from a law: numbers by hand, rules named, warnings given."""

from __future__ import annotations

import numpy as np
import pytest

from bigdl.scaling import budget, fit, synthetic

SURFACE = synthetic.Surface()
BUDGETS = (1e18, 4e18, 1.6e19, 6.4e19)


@pytest.fixture(scope='module')
def body():
  runs = synthetic.isoflop(SURFACE, budgets=BUDGETS, noise=0.002)
  runs.attrs['flops'] = '6N'
  return fit.fit(runs, bootstrap=100)


def _plan(body, compute=(1e21,), **options):
  return budget.plan(body, compute, peak=1e15, **options)


def test_plan_holds_the_optimum_and_its_hours(body):
  plan = _plan(body, mfu=0.5, devices=8)
  (run,) = plan['runs']
  n, d = SURFACE.optimum(1e21)
  assert run['n_low'] < n < run['n_high']
  assert run['d_low'] < d < run['d_high']
  assert run['hours'] == pytest.approx(1e21 / (8 * 1e15 * 0.5) / 3600)
  assert run['device_hours'] == pytest.approx(8 * run['hours'])


def test_step_law_is_named_and_followed(body):
  (run,) = _plan(body)['runs']
  assert run['batch'] == pytest.approx(0.58 * run['d'] ** 0.571)
  rate = 1.79 * run['n'] ** -0.713 * run['d'] ** 0.307
  assert run['lr'] == pytest.approx(rate)
  assert run['steps'] == pytest.approx(run['d'] / run['batch'])
  for name in ('batch', 'lr', 'steps', 'loss'):
    assert run[f'{name}_low'] < run[name] < run[f'{name}_high']
  for said in _plan(body)['rule'].values():
    assert said.startswith('Step Law (Li et al., 2025)')
  assert any('60M to 1B' in w for w in _plan(body)['warnings'])


def _cells(rate, batch):
  cells = []
  for c in (1e12, 4e12, 1.6e13):
    for n in np.geomspace(1e5, 1e6, 4):
      d = c / (6 * n)
      size = 128 * 2 ** round(np.log2(batch(n, d) / 128))
      steps = round(d / size)
      cells.append(
        {'n': n, 'd': steps * size, 'lr': rate(n, d), 'steps': steps}
      )
  return cells


def test_the_sweeps_own_rule_is_found_in_its_plan(body):
  cells = _cells(
    lambda n, d: 0.3118 * (6 * n * d) ** -0.125,
    lambda n, d: 0.292 * (6 * n * d) ** 0.3271,
  )
  plan = _plan(body, cells=cells)
  assert plan['rule']['lr'].startswith("the sweep's, DeepSeek")
  (run,) = plan['runs']
  assert run['lr'] == pytest.approx(0.3118 * 1e21**-0.125, rel=0.01)
  assert run['batch'] == pytest.approx(0.292 * 1e21**0.3271, rel=0.01)


def test_a_constant_batch_and_rate_stay_constant(body):
  cells = _cells(lambda n, d: 3e-3, lambda n, d: 4096)
  (run,) = _plan(body, cells=cells)['runs']
  assert run['lr'] == pytest.approx(3e-3)
  assert run['batch'] == pytest.approx(4096)


def test_an_unpublished_power_law_is_followed(body):
  cells = _cells(lambda n, d: 0.5 * n**-0.4 * d**0.1, lambda n, d: 4096)
  (run,) = _plan(body, cells=cells)['runs']
  # The cells' rates follow the data that was asked for, before rounding.
  expected = 0.5 * run['n'] ** -0.4 * run['d'] ** 0.1
  assert run['lr'] == pytest.approx(expected, rel=0.01)


def test_rates_without_a_rule_fall_back_to_the_step_law(body):
  rng = np.random.default_rng(0)
  cells = _cells(lambda n, d: rng.uniform(1e-3, 1e-2), lambda n, d: 4096)
  rules = _plan(body, cells=cells)['rule']
  assert rules['lr'].startswith('Step Law')
  assert rules['batch'] == "the sweep's, 4.1e+03"
  with pytest.raises(ValueError, match='rule=sweep needs a plan.json'):
    _plan(body, cells=cells, rule='sweep')


def test_far_extrapolation_is_warned_of(body):
  assert not any('times the largest' in w for w in _plan(body)['warnings'])
  warnings = _plan(body, (1e21, 1e23))['warnings']
  assert any(
    '1e23 FLOPs are 1,562 times the largest run' in w for w in warnings
  )


@pytest.mark.parametrize(
  ('options', 'said'),
  [
    ({'mfu': 0}, 'mfu=0 must be'),
    ({'devices': 0}, 'devices=0 must be'),
    ({'rule': 'x'}, "rule='x' must be one of"),
    ({'approach': 'x'}, "approach='x' is not in the law"),
    ({'compute': ()}, 'compute=.. must hold'),
    ({'compute': (-1.0,)}, 'compute=-1.0 must be'),
  ],
)
def test_bad_options_are_one_line(body, options, said):
  with pytest.raises(ValueError, match=said):
    _plan(body, **options)


def test_a_refused_law_plans_nothing():
  runs = synthetic.isoflop(SURFACE, budgets=BUDGETS[:2])
  body = fit.fit(runs, bootstrap=100)
  with pytest.raises(ValueError, match='refused, nothing can be planned'):
    _plan(body)


def test_text_shows_every_number_with_its_interval(body):
  text = budget.text(_plan(body, (1e21, 1e23)))
  assert max(map(len, text.splitlines())) <= 100
  for word in ('N ', 'D ', 'batch', 'lr', 'steps', 'hours', 'Step Law', '['):
    assert word in text
