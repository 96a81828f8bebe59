"""Approach 1: the run of lowest loss at each compute, and lines through those.

Hoffmann et al. (2022; arXiv:2203.15556), Section 3.1: of all training curves
the lower envelope is taken over compute, and power laws N ~ C^a, D ~ C^b are
fitted to the sizes and data found there.

Differs from the paper: finished cells are used, each budget's lowest, unless
training curves are given, because a curve whose schedule has not ended lies
too high. Sizes at the edge of what was tried are left out: the optimum may lie
beyond them. The optimum is known to half a step of the size grid only, so that
each resample moves it within its step, and draws the losses (or, with curves,
the runs) again; without this the steps of the grid would pass for certainty.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import pandas as pd

from bigdl.scaling import base, bootstrap, path, synthetic
from bigdl.scaling.cost import Cost

# Bins of log C that a curve's points are gathered in.
_BIN = 0.1


@dataclasses.dataclass(frozen=True, eq=False)
class EnvelopeLaw(path.PathLaw):
  """The optima that single runs showed, and power laws through them."""

  approach: ClassVar[int] = 1
  form: ClassVar[str] = 'envelope'

  def loss(self, n, d):
    """Returns the lowest loss at the compute of such a run."""
    return self.best(self.cost.flops(n, d))


@dataclasses.dataclass(frozen=True)
class Envelope(base.Estimator):
  """Fits an `EnvelopeLaw`.

  With `curves` (columns name, d, loss; a line a measurement) the envelope runs
  over training curves, otherwise over the lowest cell of each budget.
  """

  curves: pd.DataFrame | None = None

  def fit(self, records: pd.DataFrame) -> EnvelopeLaw:
    if self.curves is not None:
      return self._over_curves(records)
    if reason := base.no_budget(records):
      return EnvelopeLaw(level=self.level, refused=reason)
    records = records[records['budget'].notna()]
    groups = [g.sort_values('n') for _, g in records.groupby('budget')]
    reasons = [_edge(g) for g in groups]
    good = [g for g, r in zip(groups, reasons, strict=True) if not r]
    law = _blank(self.level, records, good or groups)
    law = dataclasses.replace(law, warnings=tuple(r for r in reasons if r))
    if len(good) < 3:
      missing = f'{len(good)} of {len(groups)} budgets have their lowest loss'
      why = '; '.join(law.warnings) or base.few_budgets(
        sorted(records['budget'].unique())
      )
      return dataclasses.replace(
        law,
        refused=f'{missing} inside their sizes, and a law needs three; {why}',
      )
    return self._law(law, good, *self._redraw(good))

  def _redraw(self, groups):
    """Draws each budget's optimum again: `log_n_SK`, `loss_SK`, sigmas."""
    rng = self.rng(1)
    noise = _noise(groups)
    sigma_S = noise.draw(rng, self.bootstrap)
    places, lows = [], []
    for cells in groups:
      loss = cells['loss'].to_numpy(float)
      factor = np.exp(
        sigma_S[:, None] * rng.standard_normal((self.bootstrap, len(loss)))
      )
      drawn = loss * factor
      best = np.argmin(drawn, axis=1)
      places.append(_jitter(np.log(cells['n'].to_numpy(float)), best, rng))
      # The noise is laid on noisy losses, so that the drawn minimum is twice
      # too lucky: the found one, moved by the noise of one run, is not.
      lows.append(loss.min() * factor[:, 0])
    return np.stack(places, 1), np.stack(lows, 1), sigma_S, noise

  def _law(self, law, groups, log_n_SK, loss_SK, sigma_S, noise):
    found = pd.DataFrame([g.loc[g['loss'].idxmin()] for g in groups])
    log_c = np.log(found['flops'].to_numpy(float))
    log_n = np.log(found['n'].to_numpy(float))
    loss = found['loss'].to_numpy(float)
    point = path.through(log_c, log_n[None], loss[None], law.cost)
    draws = path.through(log_c, log_n_SK, loss_SK, law.cost)
    return dataclasses.replace(
      law,
      parameters={k: float(v[0]) for k, v in point.items()},
      draws={**draws, 'sigma': sigma_S},
      noise=noise,
      facts={
        **law.facts,
        'envelope': _shown(found),
        'converged': True,
        'objective_value': float(
          np.sum((log_n - _line_at(point, 'n', log_c)) ** 2)
        ),
        'resampling': f'{self.bootstrap} redrawn losses, each minimum moved'
        ' within its step of the size grid',
      },
    )

  def _over_curves(self, records: pd.DataFrame) -> EnvelopeLaw:
    law = _blank(self.level, records, [records])
    points = _points(records, self.curves)
    lower = _lower(points, np.ones(len(records), bool))
    sizes = lower['n'].nunique() if len(lower) else 0
    if sizes < 3:
      return dataclasses.replace(
        law,
        refused=f'the envelope holds {sizes} sizes besides the smallest and the'
        ' largest, and a law needs three; add sizes, or longer runs',
      )
    law = dataclasses.replace(
      law, span=(float(lower['flops'].min()), float(lower['flops'].max()))
    )
    point = _path_of(lower, np.log(lower['n'].to_numpy(float)), law.cost)
    draws, bad = self._resample(records, points, law.cost)
    warnings: tuple[str, ...] = ()
    if bad:
      warnings = (
        f'in {bad} of {self.bootstrap} resamples fewer than three sizes reach'
        ' the envelope; they count as beyond both ends of every interval',
      )
    return dataclasses.replace(
      law,
      parameters={k: float(v[0]) for k, v in point.items()},
      draws={
        **{k: np.array([d.get(k, np.nan) for d in draws]) for k in point},
        'sigma': np.zeros(self.bootstrap),
      },
      warnings=warnings,
      facts={
        **law.facts,
        'envelope': _shown(lower),
        'converged': True,
        'degenerate': bad,
        'resampling': f'{self.bootstrap} resamples of {len(records)} runs, each'
        ' size moved within its step of the grid',
      },
    )

  def _resample(self, records, points, cost):
    """Returns the path of each resample of runs; {} where there is none."""
    rng = self.rng(1)
    counts = bootstrap.case_counts(rng, len(records), self.bootstrap)
    grid = np.log(np.sort(records['n'].unique()))
    draws: list[dict[str, float]] = []
    bad = 0
    for present in counts > 0:
      drawn = _lower(points, present)
      if drawn['n'].nunique() < 3:
        bad += 1
        draws.append({})
        continue
      log_n = np.log(drawn['n'].to_numpy(float))
      # All points of one run share that run's place within its step.
      moved = {
        x: _jitter(grid, [np.argmin(abs(grid - x))], rng)[0]
        for x in np.unique(log_n)
      }
      found = _path_of(drawn, [moved[x] for x in log_n], cost)
      draws.append({k: float(v[0]) for k, v in found.items()})
    return draws, bad


def _blank(level, records, groups) -> EnvelopeLaw:
  c = np.concatenate([g['flops'].to_numpy(float) for g in groups])
  return EnvelopeLaw(
    cost=Cost.fit(*(records[k].to_numpy(float) for k in ('n', 'd', 'flops'))),
    level=level,
    span=(float(c.min()), float(c.max())),
    rows=len(records),
    facts={'objective': 'log_mse', 'delta': None, 'envelope': []},
  )


def _shown(points: pd.DataFrame) -> list[dict]:
  names = {'c': 'flops', 'n': 'n', 'd': 'd', 'loss': 'loss'}
  rows = points.to_dict('records')
  return [
    {'name': str(r['name'])} | {k: float(r[v]) for k, v in names.items()}
    for r in rows
  ]


def _line_at(point, axis, log_c):
  exponent = point['a' if axis == 'n' else 'b'][0]
  return np.log(point[f'{axis}_coefficient'][0]) + exponent * log_c


def _edge(cells: pd.DataFrame) -> str:
  """Says why a budget's lowest cell is no optimum, or ''."""
  budget = base.short(float(cells['budget'].iloc[0]))
  n = cells['n'].to_numpy(float)
  if len(np.unique(n)) < 3:
    return (
      f'budget {budget}: {len(np.unique(n))} sizes cannot show a minimum; add'
      ' sizes until there are at least five'
    )
  best = n[np.argmin(cells['loss'].to_numpy(float))]
  if best == n.min():
    return (
      f'budget {budget}: the lowest loss is that of the smallest size'
      f' (N={best:,.0f}); add sizes below it'
    )
  if best == n.max():
    return (
      f'budget {budget}: the lowest loss is that of the largest size'
      f' (N={best:,.0f}); add sizes above it'
    )
  return ''


def _noise(groups) -> bootstrap.Noise:
  """Returns the noise of log loss that third differences over size show.

  A parabola has none, and on a fine grid no smooth curve has.
  """
  squares = []
  for cells in groups:
    cells = cells.drop_duplicates('n')
    x = np.log(cells['n'].to_numpy(float))
    y = np.log(cells['loss'].to_numpy(float))
    for i in range(len(x) - 3):
      gaps = x[i : i + 4, None] - x[i : i + 4] + np.eye(4)
      weights = 1 / np.prod(gaps, axis=1)
      weights /= np.linalg.norm(weights)
      squares.append(float(weights @ y[i : i + 4]) ** 2)
  sigma = float(np.sqrt(np.mean(squares))) if squares else 0.0
  return bootstrap.Noise(sigma, len(squares))


def _jitter(log_n_R, best_S, rng):
  """Moves each optimum within its step: half-way to the sizes beside it."""
  middles = (log_n_R[1:] + log_n_R[:-1]) / 2
  step = np.diff(log_n_R)
  low = np.concatenate([[log_n_R[0] - step[0] / 2], middles])[best_S]
  high = np.concatenate([middles, [log_n_R[-1] + step[-1] / 2]])[best_S]
  return low + (high - low) * rng.random(len(best_S))


def _points(records, curves) -> pd.DataFrame:
  """Returns measurements of the runs in `records`, with their compute."""
  runs = records[['name', 'n', 'd', 'flops']].reset_index(drop=True)
  runs['run'] = runs.index
  points = curves[['name', 'd', 'loss']].merge(
    runs, on='name', suffixes=('', '_run')
  )
  points['flops'] *= points['d'] / points['d_run']
  finite = np.isfinite(points['loss']) & (points['d'] > 0)
  points = points[finite].assign(bin=lambda p: np.log(p['flops']) // _BIN)
  return points.sort_values('flops', kind='stable')


def _lower(points, present) -> pd.DataFrame:
  """Returns the points of `present` runs that nothing cheaper beats."""
  points = points[present[points['run'].to_numpy()]]
  points = points.loc[points.groupby('bin')['loss'].idxmin()]
  loss = points['loss'].to_numpy(float)
  before = np.minimum.accumulate(np.concatenate([[np.inf], loss[:-1]]))
  n = points['n'].to_numpy(float)
  if not len(n):
    return points
  inside = (n > n.min()) & (n < n.max()) if len(np.unique(n)) > 2 else n < 0
  return points[(loss < before) & inside]


def _path_of(lower, log_n, cost):
  return path.through(
    np.log(lower['flops'].to_numpy(float)),
    np.asarray(log_n, float)[None],
    lower['loss'].to_numpy(float)[None],
    cost,
  )


def tiny() -> tuple[Envelope, pd.DataFrame, synthetic.Surface]:
  """Returns an estimator, runs it can fit, and the surface they lie on."""
  surface = synthetic.Surface()
  budgets = (1e18, 4e18, 1.6e19, 6.4e19)
  return (
    Envelope(bootstrap=200),
    synthetic.isoflop(surface, budgets=budgets),
    surface,
  )
