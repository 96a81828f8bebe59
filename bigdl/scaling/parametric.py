"""Approach 3: L(N, D) = E + A/N^alpha + B/D^beta, fitted to all runs at once.

Hoffmann et al. (2022; arXiv:2203.15556), Section 3.3 and equation 10: the sum
of Huber(1e-3) over residuals of log L. The optimum at compute C follows from
alpha A/N^alpha = (1 + s) beta B/D^beta, where s = d log rate / d log N says how
C = rate(N) N D departs from a constant number of FLOPs per parameter (s = 0
under 6N: their equation 4).

Differs from the paper: another minimiser (see `huber`), intervals for a small
design (see `bootstrap`), and a certificate: how many starts agree, the
gradient left, and the condition number at the optimum.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import pandas as pd

from bigdl.scaling import base, bootstrap, huber, synthetic
from bigdl.scaling.cost import Cost

NAMES = ('E', 'A', 'B', 'alpha', 'beta')
# From so many runs on, runs are resampled instead of noise.
CASES = 50
# alpha and beta of the starts: all pairs.
_EXPONENTS = np.geomspace(0.03, 1.5, 10)


@dataclasses.dataclass(frozen=True, eq=False)
class ParametricLaw(base.Law):
  """L = E + A/N^alpha + B/D^beta."""

  approach: ClassVar[int] = 3
  form: ClassVar[str] = 'hoffmann'

  def loss(self, n, d):
    p = self.parameters
    return p['E'] + p['A'] / n ** p['alpha'] + p['B'] / d ** p['beta']

  def allocate(self, c):
    p = self.parameters
    log_c = np.log(c)
    lead = np.log(p['alpha'] * p['A'] / (p['beta'] * p['B']))
    total = p['alpha'] + p['beta']
    log_n = (lead + p['beta'] * (log_c - np.log(self.cost.rate(1e9)))) / total
    # A contraction by |s| beta / (alpha + beta); exact at once under 6N.
    for _ in range(1 if not any(self.cost.terms[1:]) else 60):
      n = np.exp(np.clip(log_n, 0, 200))
      rate, bend = (
        self.cost.rate(n),
        np.log1p(np.maximum(self.cost.slope(n), -0.9)),
      )
      log_n = (lead - bend + p['beta'] * (log_c - np.log(rate))) / total
    n = np.exp(log_n)
    return n, self.cost.units(n, c)


@dataclasses.dataclass(frozen=True)
class Parametric(base.Estimator):
  """Fits a `ParametricLaw`."""

  delta: float = 1e-3

  def fit(self, records: pd.DataFrame) -> ParametricLaw:
    n, d, c = (records[k].to_numpy(float) for k in ('n', 'd', 'flops'))
    law = ParametricLaw(
      cost=Cost.fit(n, d, c) if len(records) else Cost(),
      level=self.level,
      span=(float(c.min()), float(c.max())) if len(records) else (1.0, 1.0),
      rows=len(records),
      facts={'objective': 'huber', 'delta': self.delta},
    )
    refused = refusal(records)
    if refused:
      return dataclasses.replace(law, refused=refused)
    x, z = np.log(n), np.log(d)
    problem = huber.Problem(
      x - x.mean(),
      z - z.mean(),
      np.log(records['loss'].to_numpy(float)),
      self.delta,
    )
    found = huber.minimise(problem, huber.starts(problem, _EXPONENTS))
    best = int(np.argmin(found.objective_S))
    theta = found.theta_SP[best]
    residual = problem.y_R - problem.log_loss(theta[None])[0]
    freedom = max(len(n) - len(NAMES), 1)
    sigma = float(np.sqrt(np.sum(residual**2) / freedom))
    law = dataclasses.replace(
      law,
      parameters=_natural(theta, x.mean(), z.mean()),
      noise=bootstrap.Noise(sigma, freedom),
    )
    facts = _certificate(problem, found, best)
    facts['flagged'] = _flagged(records, residual)
    draws, design = self._resample(problem, found, best, law.noise)
    kept = _natural(draws['theta'].T, x.mean(), z.mean())
    law = dataclasses.replace(
      law,
      draws={**kept, 'sigma': draws['sigma']},
      facts={**law.facts, **facts, 'resampling': design},
    )
    return _judged(law, problem)

  def _resample(self, problem, found, best, noise):
    """Refits resamples, each from the optimum and from a start off it."""
    rng = self.rng(3)
    runs = len(problem.x_R)
    theta = found.theta_SP[best]
    if runs >= CASES:
      design = f'{self.bootstrap} resamples of {runs} runs'
      sigma = np.full(self.bootstrap, noise.sigma)
      y = None
      w = bootstrap.case_counts(rng, runs, self.bootstrap)
    else:
      design = (
        f'{self.bootstrap} redrawn losses, Gaussian noise of a level that'
        f' {noise.freedom} degrees of freedom allow'
      )
      sigma = noise.draw(rng, self.bootstrap)
      y = problem.log_loss(theta[None]) + sigma[:, None] * rng.standard_normal(
        (self.bootstrap, runs)
      )
      w = None
    result = None
    for start in _restarts(problem, theta, self.bootstrap, rng):
      other = huber.minimise(problem, start, y_SR=y, w_SR=w, tolerance=1e-7)
      if result is None:
        result, value = other.theta_SP, other.objective_S
      else:
        lower = other.objective_S < value * (1 - 1e-9)
        result = np.where(lower[:, None], other.theta_SP, result)
        value = np.minimum(value, other.objective_S)
    return {'theta': result, 'sigma': sigma}, design


def _restarts(problem, theta, count, rng):
  """Yields starts for `count` resamples: the optimum, then a place off it."""
  yield np.repeat(theta[None], count, 0)
  moved = np.repeat(theta[None], count, 0)
  moved[:, 3:] *= np.exp(0.3 * rng.standard_normal((count, 2)))
  yield moved


def refusal(records: pd.DataFrame) -> str:
  """Returns why runs cannot determine five parameters, or ''."""
  if len(records) < 7:
    return (
      f'{len(records)} runs cannot determine five parameters and their noise;'
      ' add runs until there are at least 7'
    )
  for column, noun in (('n', 'size'), ('d', 'amount of data')):
    kinds = records[column].round(6).nunique()
    if kinds < 3:
      return (
        f'the runs have {kinds} {noun}{"s" * (kinds > 1)}'
        f' ({column.upper()}); add runs of at least {3 - kinds} more'
      )
  if 'budget' in records and records['budget'].notna().any():
    budgets = sorted(records['budget'].dropna().unique())
    if len(budgets) < 3:
      return base.few_budgets(budgets)
  return ''


def _natural(theta, x_mean, z_mean):
  """Undoes the centring: the five parameters by name."""
  e, a, b, alpha, beta = theta
  values = np.exp(e), np.exp(a + alpha * x_mean), np.exp(b + beta * z_mean)
  pairs = zip(NAMES, (*values, alpha, beta), strict=True)
  return {k: v if np.ndim(v) else float(v) for k, v in pairs}


def _certificate(problem, found, best):
  objective = float(found.objective_S[best])
  # An objective below the second term is zero in float64.
  zero = 1e-20 * len(problem.x_R)
  agree = found.objective_S <= objective * (1 + 1e-6) + zero
  gradient = float(found.gradient_S[best])
  limit = 1e-6 * problem.delta * len(problem.x_R)
  return {
    'objective_value': objective,
    'converged': bool(gradient <= limit and agree.sum() >= 3),
    'certificate': {
      'starts': len(agree),
      'agreeing': int(agree.sum()),
      'gradient': gradient,
      'condition': huber.condition(problem, found.theta_SP[best]),
    },
  }


def _flagged(records, residual):
  """Names runs whose residual no noise of the others explains."""
  # Huber's fit passes through about as many runs as there are parameters, so
  # that those say nothing of the noise.
  size = np.sort(np.abs(residual))[len(NAMES) :]
  scale = max(1.4826 * float(np.median(size)), 1e-4)
  flagged = []
  for row in np.flatnonzero(np.abs(residual) > 6 * scale):
    side = 'above' if residual[row] > 0 else 'below'
    flagged.append(
      {
        'row': str(records['name'].iloc[row]),
        'reason': f'its loss lies {abs(np.expm1(residual[row])):.2%} {side} the'
        f' fitted surface, {abs(residual[row]) / scale:.0f} times the typical'
        ' residual; look at its training curve before trusting it',
      }
    )
  return flagged


def _judged(law: ParametricLaw, problem: huber.Problem) -> ParametricLaw:
  """Adds what the data do not determine, and warnings."""
  unidentified, warnings = [], []
  low, _ = law.interval('E')
  floor = float(np.exp(problem.y_R.min()))
  if not low > 0.02 * floor:
    unidentified.append('E')
    warnings.append(
      f'E is not identified: the {law.level:.0%} interval reaches down to'
      f' {max(float(low), 0):.2g}; add larger budgets'
    )
  for name, axis in (('alpha', 'sizes'), ('beta', 'amounts of data')):
    low, high = law.interval(name)
    if low < 10 * huber.EXPONENT_LOW or high > 0.9 * huber.EXPONENT_HIGH:
      unidentified.append(name)
      warnings.append(
        f'{name} is not identified: its {law.level:.0%} interval is'
        f' {low:.2g} to {high:.2g}; add runs over a wider range of {axis}'
      )
  if {'alpha', 'beta'} <= set(unidentified):
    return dataclasses.replace(
      law,
      refused='neither alpha nor beta is identified: noise of'
      f' {law.noise.sigma:.2g} a run in log loss hides the surface; add runs'
      ' over wider ranges of size and data, or train them with less noise',
    )
  if law.facts['certificate']['condition'] > 1e10:
    unidentified = list(NAMES)
    warnings.append('the runs do not tell the five parameters apart')
  if not law.facts['converged']:
    warnings.append('the fit did not converge: do not use its numbers')
  facts = {**law.facts, 'unidentified': unidentified}
  return dataclasses.replace(law, facts=facts, warnings=tuple(warnings))


def tiny() -> tuple[Parametric, pd.DataFrame, synthetic.Surface]:
  """Returns an estimator, runs it can fit, and the surface they lie on."""
  surface = synthetic.Surface()
  runs = synthetic.isoflop(surface, budgets=(1e18, 4e18, 1.6e19, 6.4e19))
  return Parametric(bootstrap=200), runs, surface
