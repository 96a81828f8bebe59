"""Approach 1: the lowest run at each compute."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bigdl.scaling import envelope, synthetic

BUDGETS = (1e18, 4e18, 1.6e19, 6.4e19)
SURFACE = synthetic.Surface()
TRUTH = SURFACE.beta / (SURFACE.alpha + SURFACE.beta)


def test_lowest_cells_give_the_exponent_where_the_grid_holds_the_optimum():
  runs = synthetic.isoflop(SURFACE, budgets=BUDGETS)
  law = envelope.Envelope(bootstrap=50).fit(runs)
  assert law.exponents()['a'] == pytest.approx(TRUTH, rel=1e-6)
  assert len(law.facts['envelope']) == 4
  for point in law.facts['envelope']:
    n, d = SURFACE.optimum(point['c'])
    assert (point['n'], point['d']) == pytest.approx((n, d), rel=1e-6)


def test_interval_knows_the_step_of_the_size_grid():
  coarse = synthetic.isoflop(SURFACE, budgets=BUDGETS, sizes=5, spread=9)
  fine = synthetic.isoflop(SURFACE, budgets=BUDGETS, sizes=17, spread=9)
  widths = []
  for runs in (coarse, fine):
    low, high = envelope.Envelope(bootstrap=200).fit(runs).interval('a')
    widths.append(high - low)
  # Without noise the grid is all that is unknown; steps differ by four.
  assert widths[0] == pytest.approx(4 * widths[1], rel=0.3)


def test_intervals_cover_the_truth():
  inside = []
  for seed in range(60):
    rng = np.random.default_rng(seed)
    parts = [
      synthetic.isoflop(
        SURFACE,
        budgets=(b,),
        noise=0.004,
        seed=[seed, i],
        shift=np.exp(rng.uniform(-0.35, 0.35)),
      )
      for i, b in enumerate(BUDGETS)
    ]
    runs = pd.concat(parts, ignore_index=True)
    law = envelope.Envelope(bootstrap=200, seed=seed).fit(runs)
    low, high = law.interval('a')
    inside.append(low <= TRUTH <= high)
  assert np.mean(inside) >= 0.88


@pytest.mark.parametrize(
  ('shift', 'side', 'where'),
  [(9, 'smallest', 'below'), (1 / 9, 'largest', 'above')],
)
def test_lowest_cell_at_the_edge_is_refused(shift, side, where):
  runs = synthetic.isoflop(SURFACE, budgets=BUDGETS, shift=shift)
  law = envelope.Envelope(bootstrap=50).fit(runs)
  assert '0 of 4 budgets' in law.refused
  assert (
    f'budget 1e18: the lowest loss is that of the {side} size' in law.refused
  )
  assert f'add sizes {where} it' in law.refused


def test_two_budgets_are_refused():
  runs = synthetic.isoflop(SURFACE, budgets=BUDGETS[:2])
  law = envelope.Envelope(bootstrap=50).fit(runs)
  assert '2 of 2 budgets' in law.refused
  assert 'law needs three' in law.refused


def _curves():
  """Runs whose losses at every moment are those of the surface."""
  sizes = np.geomspace(1e8, 4e9, 12)
  d = np.full(12, 4e10)
  runs = pd.DataFrame(
    {'name': [f'r{i}' for i in range(12)], 'n': sizes, 'd': d}
  )
  runs = runs.assign(loss=SURFACE.loss(sizes, d), flops=6 * sizes * d)
  points = [
    (row.name, share * row.d, SURFACE.loss(row.n, share * row.d))
    for row in runs.itertuples(index=False)
    for share in np.geomspace(0.01, 1, 60)
  ]
  return runs, pd.DataFrame(points, columns=['name', 'd', 'loss'])


def test_envelope_of_training_curves_gives_the_exponent():
  runs, curves = _curves()
  law = envelope.Envelope(bootstrap=60, curves=curves).fit(runs)
  assert not law.refused
  assert law.exponents()['a'] == pytest.approx(TRUTH, abs=0.05)
  low, high = law.interval('a')
  assert low < TRUTH < high
  sizes = {p['n'] for p in law.facts['envelope']}
  # The smallest and the largest may hide a minimum beyond them.
  assert runs['n'].min() not in sizes
  assert runs['n'].max() not in sizes
  compute = [p['c'] for p in law.facts['envelope']]
  losses = [p['loss'] for p in law.facts['envelope']]
  assert compute == sorted(compute)
  assert losses == sorted(losses, reverse=True)


def test_curves_of_too_few_sizes_are_refused():
  runs, curves = _curves()
  law = envelope.Envelope(bootstrap=50, curves=curves).fit(runs[:4])
  assert 'add sizes' in law.refused
