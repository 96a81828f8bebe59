"""Numbers as words, smoothed curves, and sentences that follow the law."""

from __future__ import annotations

import copy
import re

import numpy as np
import pytest

from bigdl.scaling import canvas, captions, findings, fit, marks
from bigdl.scaling.synthetic import Surface, isoflop

SMALL = Surface(E=0.9, A=12.0, B=40.0, alpha=0.35, beta=0.32)


@pytest.fixture(scope='module')
def table():
  return isoflop(SMALL, budgets=(3e11, 1e12, 3e12, 1e13, 3e13), noise=0.004)


@pytest.fixture(scope='module')
def law(table):
  return fit.fit(table, bootstrap=60)


def view_of(law, table):
  return findings.View.of(law, table.to_dict('records'), {})


@pytest.mark.parametrize(
  'value, digits, text',
  [
    (123_953_664, 3, '124M'),
    (999_999, 3, '1M'),
    (960_106, 2, '960k'),
    (0, 3, '0'),
    (12.5, 3, '12.5'),
    (1e14, 3, '100T'),
    (3.2e15, 2, '3.2×10¹⁵'),
    (float('nan'), 3, '–'),
    (None, 3, '–'),
  ],
)
def test_si_rounds_before_it_chooses_a_suffix(value, digits, text):
  assert findings.si(value, digits) == text


@pytest.mark.parametrize(
  'value, text',
  [(1e12, '10¹²'), (9.6e11, '9.6×10¹¹'), (-1.5e-7, '-1.5×10⁻⁷'), (20, '20')],
)
def test_power_drops_the_mantissa_of_a_bare_power(value, text):
  assert findings.power(value) == text


def test_interval_gets_the_decimals_that_show_its_width():
  assert findings.decimals_for((0.40, 0.60)) == 2
  assert findings.decimals_for((0.4912, 0.4987)) == 3
  assert findings.decimals_for((1.0, 1.0)) == 4
  assert findings.decimals_for(None) == 3


def test_budget_is_held_only_where_all_its_runs_are(law, table):
  view = view_of(law, table)
  assert view.held == {3e13}
  assert {c['group'] for c in view.cells if c['held']} == {3e13}
  partly = copy.deepcopy(law)
  partly['budgets']['held_out'] = []
  for part in partly['approaches'].values():
    rows = (part.get('holdout') or {}).get('rows') or []
    part['holdout'] = {'rows': rows[:2]}
  view = view_of(partly, table)
  assert not view.held and sum(c['held'] for c in view.cells) == 2


def test_band_holds_the_law_and_widens_beyond_the_runs(law, table):
  fitted = view_of(law, table).fitted('parametric')
  middle, low, high = findings.band(fitted, np.array([3e12, 3e16]), 'n')
  assert (low < middle).all() and (middle < high).all()
  assert high[1] / low[1] > 1.5 * high[0] / low[0]


def test_band_of_runs_is_wider_than_that_of_the_law(law, table):
  fitted = view_of(law, table).fitted('parametric')
  n = np.array([5e4])
  d = fitted.cost.units(n, 3e12)
  low, high = findings.run_band(fitted, n, d)
  inner = fitted.interval(lambda again: again.loss(n, d))
  assert low < inner[0] and inner[1] < high


def test_captions_follow_the_numbers_of_the_law(law, table):
  view = view_of(law, table)
  best = view.optimum
  assert findings.fixed(best['predicted']) in captions.holdout(view)
  assert ('inside its' in captions.holdout(view)) == best['inside']
  other = copy.deepcopy(law)
  part = other['approaches'][law['primary']]
  part['holdout']['optimum'] |= {
    'predicted': best['loss'] * 1.5,
    'inside': False,
  }
  said = captions.holdout(view_of(other, table)).replace('\xa0', ' ')
  assert '50 % above' in said and 'outside its' in said


def test_refitted_law_does_not_claim_to_have_predicted(law, table):
  again = copy.deepcopy(law)
  again['records']['refitted'] = True
  assert 'Dashed' in captions.isoflop(view_of(law, table))
  assert 'Dashed' not in captions.isoflop(view_of(again, table))
  assert 'then fitted too' in captions.lead(view_of(again, table))


def test_every_exponent_of_the_law_has_a_row(law, table):
  rows = captions.exponent_rows(view_of(law, table))
  shown = {r.name.strip(): r.a for r in rows if findings.finite(r.a)}
  for name, part in law['approaches'].items():
    assert shown[findings.TITLES[name]] == part['exponents']['a']
  for name, entry in law['by_convention'].items():
    assert shown[name] == entry['a']


def test_refused_approach_is_listed_without_a_number(law, table):
  refused = copy.deepcopy(law)
  refused['approaches']['envelope']['refused'] = 'add more'
  (row,) = [
    r for r in captions.exponent_rows(view_of(refused, table)) if r.note
  ]
  assert row.name.strip() == 'Envelope' and not findings.finite(row.a)


def test_smoothing_keeps_a_power_law_to_its_ends():
  units = np.geomspace(1e3, 1e6, 200)
  losses = 5 * units**-0.1
  x, y = marks.smoothed(units, losses)
  assert len(x) <= marks.POINTS and x[[0, -1]] == pytest.approx([1e3, 1e6])
  np.testing.assert_allclose(y, 5 * x**-0.1, rtol=1e-9)


def test_smoothing_takes_out_the_noise_of_batches():
  rng = np.random.default_rng(0)
  units = np.linspace(1e3, 1e6, 400)
  losses = 5 * units**-0.1 * np.exp(0.1 * rng.standard_normal(400))
  x, y = marks.smoothed(units, losses)
  late = x > 1e5
  assert np.abs(np.log(y / (5 * x**-0.1)))[late].mean() < 0.03


def test_smoothing_draws_no_points_where_none_was_measured():
  x, y = marks.smoothed([1, 1e4, 2e4, 3e4], [9.0, 3.0, float('nan'), 2.5])
  np.testing.assert_allclose(x, [1, 1e4, 3e4])
  np.testing.assert_allclose(y, [9.0, 3.0, 2.5])
  assert len(marks.smoothed([1], [2.0])[0]) == 0


def test_spread_keeps_labels_apart_and_in_order():
  placed = canvas.spread([5.0, 5.1, 4.9, 20.0], 2.0, 0.0, 10.0)
  assert np.argsort(placed).tolist() == [2, 0, 1, 3]
  assert np.diff(sorted(placed)).min() >= 2 - 1e-9
  assert min(placed) >= 0 and max(placed) <= 10


@pytest.mark.parametrize(
  'low, high', [(1, 9), (3e3, 4e5), (1.2, 1.4), (1, 1e9)]
)
def test_log_ticks_are_few_and_lie_inside(low, high):
  ticks = canvas.log_ticks(low, high)
  assert 2 <= len(ticks) <= 8
  assert low * 0.999 <= min(ticks) and max(ticks) <= high * 1.001


def test_tips_and_labels_of_inline_figures_are_escaped():
  hostile = '"><script>alert(1)</script>'
  with canvas.style():
    drawn = canvas.Canvas()
    axes = drawn.axes()
    (mark,) = axes.plot([1], [1], 'o')
    axes.set_xlabel(hostile)
    drawn.tip(mark, hostile, hostile)
    svg = drawn.svg()
  element = canvas.inline(
    svg, 'x', label=hostile, colors=canvas.ROLES, tips=drawn.tips
  )
  assert '<script' not in element
  escaped = '&quot;&gt;&lt;script&gt;'
  assert f'data-cell="{escaped}' in element
  assert f'<title>{escaped}' in element and f'aria-label="{escaped}' in element
  assert canvas.INK not in element and 'var(--ink)' in element


def test_ids_of_inline_figures_are_their_own():
  with canvas.style():
    drawn = canvas.Canvas()
    drawn.axes().plot([1, 2], [1, 2], 'o-')
    svg = drawn.svg()
  ids = [
    set(re.findall(r' id="([^"]+)"', element))
    for element in (
      canvas.inline(svg, name, label='', colors={}, tips={}) for name in 'ab'
    )
  ]
  assert ids[0] and not ids[0] & ids[1]
