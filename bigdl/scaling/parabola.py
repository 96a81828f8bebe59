"""A parabola of loss against log N through the cells of one budget.

Hoffmann et al. (2022; arXiv:2203.15556), Section 3.2 and Figure 3.

Where the cells of one budget differ in compute (budgets matched under another
FLOPs convention, or rounded steps), the row stands at its geometric mean, and
each loss is moved there along the slope of the minima, d L_min / d log C: by
the envelope theorem that is, to first order, the slope of every cell near the
optimum.

Legend: S draws; K coefficients' last axis holds c0, c1, c2.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from bigdl.scaling import base, path

_OWN = 8  # Degrees of freedom from which a row's noise is its own.
_TRIES = 50


@dataclasses.dataclass(frozen=True)
class Row:
  """The parabola of one budget; x = log10 N less `middle`."""

  budget: float
  c: float  # Geometric mean of its cells' compute.
  middle: float
  coefficients: np.ndarray  # c0, c1, c2 in powers of x.
  root: np.ndarray  # coefficients ~ sigma root z, z standard normal.
  residuals: np.ndarray
  n: np.ndarray
  names: tuple[str, ...]
  refused: str = ''

  @property
  def vertex(self) -> float:
    """log10 N of the minimum."""
    return float(vertex(self.coefficients) + self.middle)

  @property
  def minimum(self) -> float:
    return float(depth(self.coefficients))

  @property
  def freedom(self) -> int:
    return max(len(self.n) - 3, 0)


def vertex(k: np.ndarray) -> np.ndarray:
  """The place of a parabola's minimum; nan where it has none."""
  with np.errstate(all='ignore'):
    return np.where(k[..., 2] > 0, -k[..., 1] / (2 * k[..., 2]), np.nan)


def depth(k: np.ndarray) -> np.ndarray:
  """The loss at a parabola's minimum; nan where it has none."""
  with np.errstate(all='ignore'):
    low = k[..., 0] - k[..., 1] ** 2 / (4 * k[..., 2])
  return np.where(k[..., 2] > 0, low, np.nan)


def fit(cells: pd.DataFrame, slope: float = 0.0) -> Row:
  """Fits one budget's cells, moved to their mean compute along `slope`."""
  cells = cells.sort_values('n', kind='stable')
  n = cells['n'].to_numpy(float)
  log_c = np.log(cells['flops'].to_numpy(float))
  loss = cells['loss'].to_numpy(float) - slope * (log_c - log_c.mean())
  budget = float(cells['budget'].iloc[0])
  x = np.log10(n)
  middle = float(x.mean())
  sizes = len(np.unique(n))
  blank = Row(
    budget=budget,
    c=float(np.exp(log_c.mean())),
    middle=middle,
    coefficients=np.array([loss.mean(), 0.0, 0.0]),
    root=np.zeros((3, 3)),
    residuals=np.zeros(len(n)),
    n=n,
    names=tuple(cells['name'].astype(str)),
  )
  if sizes < 3:
    return dataclasses.replace(
      blank,
      refused=f'budget {base.short(budget)}:'
      f' {sizes} size{"s" * (sizes > 1)} cannot show a minimum;'
      ' add sizes until there are at least five',
    )
  design = (x - middle)[:, None] ** np.arange(3)
  basis, triangle = np.linalg.qr(design)
  coefficients = np.linalg.solve(triangle, basis.T @ loss)
  row = dataclasses.replace(
    blank,
    coefficients=coefficients,
    root=np.linalg.inv(triangle),
    residuals=loss - design @ coefficients,
  )
  return dataclasses.replace(row, refused=_refusal(row))


def _refusal(row: Row) -> str:
  low, high = row.n.min(), row.n.max()
  where = f'budget {base.short(row.budget)}: '
  c1, c2 = row.coefficients[1:]
  bend = np.ptp(np.log10(row.n)) ** 2 * abs(c2)
  if c2 <= 0 or bend < 1e-9 * abs(row.coefficients[0]):
    if abs(c1) * np.ptp(np.log10(row.n)) < 1e-9 * abs(row.coefficients[0]):
      return where + (
        'the loss does not change with size; add smaller and larger sizes'
      )
    side = 'above' if c1 < 0 else 'below'
    edge = high if c1 < 0 else low
    return where + (
      f'the parabola opens downward, so it has no minimum; add sizes {side}'
      f' N={edge:,.0f}, where the loss still falls'
    )
  n = 10**row.vertex if abs(row.vertex) < 300 else np.inf
  if n <= low * (1 + 1e-9):
    return where + (
      f'the minimum lies at the smallest size (N={low:,.0f}); add sizes below'
      ' it'
    )
  if n >= high * (1 - 1e-9):
    return where + (
      f'the minimum lies at the largest size (N={high:,.0f}); add sizes above'
      ' it'
    )
  return ''


def fit_all(records: pd.DataFrame) -> list[Row]:
  """Returns the parabola of each budget, lowest budget first."""
  groups = [cells for _, cells in records.groupby('budget', sort=True)]
  rows = [fit(cells) for cells in groups]
  apart = max(
    (float(np.ptp(np.log(g['flops'].to_numpy(float)))) for g in groups),
    default=0.0,
  )
  if apart < 1e-6:
    return rows
  for _ in range(2):
    good = [r for r in rows if not r.refused]
    if len(good) < 2:
      return rows
    log_c = np.log([r.c for r in good])
    law = path.fit(
      np.exp(log_c - log_c.mean()), np.array([[r.minimum for r in good]])
    )
    rows = [
      fit(g, _slope(law, np.log(r.c) - log_c.mean()))
      for g, r in zip(groups, rows, strict=True)
    ]
  return rows


def _slope(law, log_c) -> float:
  """d L_min / d log C."""
  k, gamma = law['loss_coefficient'][0], law['loss_exponent'][0]
  return float(-gamma * k * np.exp(-gamma * log_c))


def noises(rows: list[Row]) -> tuple[np.ndarray, np.ndarray]:
  """Returns the noise of a loss in each row, and the freedom it rests on.

  A row of many cells has its own noise; the others pool theirs.
  """
  freedom = np.array([r.freedom for r in rows])
  square = np.array([float(np.sum(r.residuals**2)) for r in rows])
  square[freedom == 0] = 0.0
  few = freedom < _OWN
  freedom = np.where(few, freedom[few].sum(), freedom)
  square = np.where(few, square[few].sum(), square)
  sigma = np.sqrt(square / np.maximum(freedom, 1))
  known = freedom > 0
  if known.any():
    # Three-cell rows beside rows of many cells: the noise of all of those.
    sigma = np.where(known, sigma, np.sqrt(np.mean(sigma[known] ** 2)))
    freedom = np.where(known, freedom, freedom[known].min())
  return sigma, freedom


def redraw(
  row: Row, sigma_S: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, int]:
  """Returns coefficients that the noise allows, `[S, 3]`, and rejections.

  Draws that the fit itself would refuse (no minimum, or one outside the sizes)
  are drawn again and counted. After many rejections the rest stays nan.
  """
  low, high = np.log10([row.n.min(), row.n.max()]) - row.middle
  drawn = np.full((len(sigma_S), 3), np.nan)
  rejected = 0
  open_ = np.arange(len(sigma_S))
  for _ in range(_TRIES):
    z = rng.standard_normal((len(open_), 3))
    new = row.coefficients + sigma_S[open_, None] * (z @ row.root.T)
    place = vertex(new)
    good = (place >= low) & (place <= high)
    drawn[open_[good]] = new[good]
    open_ = open_[~good]
    rejected += len(open_)
    if not len(open_):
      break
  return drawn, rejected


def flagged(rows: list[Row]) -> list[dict[str, str]]:
  """Names cells that a parabola of the others, in their noise, excludes."""
  found = []
  freedom = sum(r.freedom for r in rows)
  total = sum(float(np.sum(r.residuals**2)) for r in rows if r.freedom)
  for row in rows:
    if row.freedom < 1 or freedom < 3:
      continue
    x = np.log10(row.n) - row.middle
    hat = (x[:, None] ** np.arange(3)) @ row.root
    share = 1 - np.sum(hat**2, 1)
    apart = row.residuals / np.sqrt(np.maximum(share, 1e-9))
    # The cell's own residual is taken out of the noise that judges it.
    rest = np.maximum(total - apart**2, 0) / (freedom - 1)
    scale = np.sqrt(rest) + 1e-6 * abs(row.coefficients[0])
    for i in np.flatnonzero(np.abs(apart) > 8 * scale):
      side = 'above' if apart[i] > 0 else 'below'
      found.append(
        {
          'row': row.names[i],
          'reason': f'its loss lies {abs(row.residuals[i]):.3g} {side} the'
          f' parabola of budget {base.short(row.budget)}, far outside the noise'
          ' of the others; look at its training curve before trusting it',
        }
      )
  return found
