"""Approach 2: a parabola of loss against log N for each compute budget.

Hoffmann et al. (2022; arXiv:2203.15556), Section 3.2: the vertices give N and D
of the optimum at each budget; lines through them in log-log give N ~ C^a and
D ~ C^b.

See `parabola` for budgets whose cells differ in compute.

Differs from the paper: vertices outside the grid and parabolas that open
downward are refused, not used. Intervals redraw each parabola's coefficients
from their distribution under Gaussian noise of a level that is pooled over the
budgets and itself drawn (see `bootstrap`); for a linear model that is the
parametric bootstrap in closed form. A draw that the fit would refuse is
counted and drawn again: the minimum is taken to lie inside the sizes.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from bigdl.scaling import base, bootstrap, parabola, path, synthetic
from bigdl.scaling.cost import Cost


@dataclasses.dataclass(frozen=True, eq=False)
class IsoflopLaw(path.PathLaw):
  """The optima that parabolas found, and power laws through them."""

  approach: ClassVar[int] = 2
  form: ClassVar[str] = 'isoflop_parabola'


@dataclasses.dataclass(frozen=True)
class Isoflop(base.Estimator):
  """Fits an `IsoflopLaw`; the table needs the column budget."""

  def fit(self, records: pd.DataFrame) -> IsoflopLaw:
    if reason := base.no_budget(records):
      return IsoflopLaw(level=self.level, refused=reason)
    records = records[records['budget'].notna()]
    rows = parabola.fit_all(records)
    good = [r for r in rows if not r.refused]
    law = self._path(records, rows, good)
    if len(good) < 3:
      reasons = '; '.join(r.refused for r in rows if r.refused)
      needed = f'{len(good)} of {len(rows)} budgets have a minimum inside'
      return dataclasses.replace(
        law,
        refused=f'{needed} their sizes, and a law needs three; '
        + (reasons or 'add budgets a factor of two or more apart'),
      )
    return self._law(records, rows, good, law)

  def _path(self, records, rows, good) -> IsoflopLaw:
    n, d, c = (records[k].to_numpy(float) for k in ('n', 'd', 'flops'))
    cost = Cost.fit(n, d, c)
    low = min((r.c for r in good), default=float(c.min()))
    high = max((r.c for r in good), default=float(c.max()))
    return IsoflopLaw(
      cost=cost,
      level=self.level,
      span=(low, high),
      rows=len(records),
      facts={
        'objective': 'raw_mse',
        'delta': None,
        'minima': [_found(r, cost) for r in rows],
      },
      warnings=tuple(r.refused for r in rows if r.refused),
    )

  def _law(self, records, rows, good, law) -> IsoflopLaw:
    sigma_K, freedom_K, warnings = _noise(good, records)
    mean_loss = float(records['loss'].mean())
    noise = bootstrap.Noise(
      float(np.sqrt(np.mean(sigma_K**2))) / mean_loss, int(freedom_K.min())
    )
    rng = self.rng(2)
    # Budgets that pool their noise draw its level together.
    keys = list(zip(sigma_K.tolist(), freedom_K.tolist(), strict=True))
    levels = {
      k: bootstrap.Noise(*k).draw(rng, self.bootstrap)
      for k in dict.fromkeys(keys)
    }
    redrawn = [
      parabola.redraw(r, levels[k], rng)
      for r, k in zip(good, keys, strict=True)
    ]
    draws = np.stack([d for d, _ in redrawn], 1)
    bad = sum(count for _, count in redrawn)
    share = bad / (bad + draws[..., 0].size)
    if share > 0.02:
      warnings.append(
        f'{share:.0%} of resampled parabolas had no minimum inside their sizes'
        ' and were drawn again: add sizes, farther from the minimum'
      )
    hidden = np.isnan(draws[..., 0]).any(1).mean() > (1 - self.level) / 2
    if share > 0.5 or hidden:
      warnings.append(
        'the exponents are not identified: noise hides the minima'
      )
    point = np.stack([r.coefficients for r in good])[None]
    parameters = _lines(good, point, law.cost)
    sigma_S = np.mean([levels[k] for k in keys], 0) / mean_loss
    return dataclasses.replace(
      law,
      parameters={k: float(v[0]) for k, v in parameters.items()},
      draws={**_lines(good, draws, law.cost), 'sigma': sigma_S},
      noise=noise,
      warnings=law.warnings + tuple(warnings),
      facts={
        **law.facts,
        'minima': self._minima(rows, law.cost, good, draws),
        'objective_value': float(sum(np.sum(r.residuals**2) for r in good)),
        'converged': True,
        'degenerate': bad,
        'resampling': f'{self.bootstrap} redrawn parabolas a budget, Gaussian'
        f' noise of a level that {noise.freedom} degrees of freedom allow',
        'flagged': parabola.flagged(rows),
        'unidentified': ['a', 'b'] if share > 0.5 or hidden else [],
      },
    )

  def _minima(self, rows, cost, good, draws_SK3):
    places = parabola.vertex(draws_SK3)
    ends = {
      r.budget: bootstrap.interval(10 ** (places[:, i] + r.middle), self.level)
      for i, r in enumerate(good)
    }
    return [_found(r, cost, ends.get(r.budget)) for r in rows]


def _noise(good, records) -> tuple[np.ndarray, np.ndarray, list[str]]:
  """Returns each budget's noise and its freedom, and warnings."""
  sigma_K, freedom_K = parabola.noises(good)
  if freedom_K.any():
    return sigma_K, freedom_K, []
  floor = _floor(records)
  said = (
    f'the noise is taken from loss_se ({floor:.2g})'
    if floor
    else 'intervals know no noise; add sizes until there are five'
  )
  said = f'each budget has three sizes, which a parabola meets exactly: {said}'
  return np.full(len(good), floor), freedom_K, [said]


def _lines(rows, coefficients_SK3, cost) -> dict[str, np.ndarray]:
  """Returns the parameters of a path through the minima of K parabolas."""
  middle = np.array([r.middle for r in rows])
  log_n = (parabola.vertex(coefficients_SK3) + middle) * np.log(10)
  log_c = np.log([r.c for r in rows])
  lines = path.through(log_c, log_n, parabola.depth(coefficients_SK3), cost)
  return {**lines, 'curvature': coefficients_SK3[..., 2].mean(1)}


def _found(row: parabola.Row, cost: Cost, ends=None) -> dict[str, Any]:
  """Returns a row of `minima` in law.json."""
  k0, k1, k2 = row.coefficients
  m = row.middle
  body: dict[str, Any] = {
    'budget': row.budget,
    'c': row.c,
    'cells': len(row.n),
    'n': None,
    'd': None,
    'loss': None,
    'n_low': None,
    'n_high': None,
    'coefficients': [k0 - k1 * m + k2 * m**2, k1 - 2 * k2 * m, k2],
    'interior': not row.refused,
    'refused': row.refused or None,
  }
  if not row.refused:
    n = 10**row.vertex
    body |= {'n': n, 'd': float(cost.units(n, row.c)), 'loss': row.minimum}
    if ends is not None:
      body |= {'n_low': ends[0], 'n_high': ends[1]}
  return body


def _floor(records) -> float:
  """The evaluation's own error, where residuals say nothing of the noise."""
  if 'loss_se' not in records:
    return 0.0
  errors = records['loss_se'].to_numpy(float)
  errors = errors[np.isfinite(errors)]
  return float(np.sqrt(np.mean(errors**2))) if len(errors) else 0.0


def tiny() -> tuple[Isoflop, pd.DataFrame, synthetic.Surface]:
  """Returns an estimator, runs it can fit, and the surface they lie on."""
  surface = synthetic.Surface(alpha=0.3, beta=0.3)
  runs = synthetic.isoflop(surface, budgets=(1e18, 4e18, 1.6e19, 6.4e19))
  return Isoflop(bootstrap=200), runs, surface
