"""What a run costs: FLOPs per unit of data as a function of size.

C = rate(N) N D. Under 6N the rate is 6. Traced FLOPs differ from it by the
embedding (a share that falls as N^(-2/3) where depth and width grow together)
and by attention (as N^(-1/3)), so that the rate is fitted by
k0 + k1 N^(-1/3) + k2 N^(-2/3).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

_POWERS = np.array([0, -1 / 3, -2 / 3])


@dataclasses.dataclass(frozen=True)
class Cost:
  """FLOPs per parameter and unit of data, by size."""

  terms: tuple[float, float, float] = (6.0, 0.0, 0.0)
  n_low: float = 0.0  # Outside these sizes the rate is held, if `held`.
  n_high: float = np.inf
  held: bool = False

  @classmethod
  def fit(cls, n: np.ndarray, d: np.ndarray, c: np.ndarray) -> Cost:
    """Returns the rate of runs of size `n` on `d` units that cost `c`."""
    rates = c / (n * d)
    middle = float(np.median(rates))
    spread = rates.max() / rates.min() - 1
    low, high = float(n.min()), float(n.max())
    if spread < 1e-5 or high / low < 1.5 or len(np.unique(n)) < 4:
      return cls((middle, 0.0, 0.0), low, high)
    design = (n[:, None] / low) ** _POWERS
    terms = np.linalg.lstsq(
      design / rates[:, None], np.ones_like(rates), rcond=None
    )[0]
    miss = design @ terms / rates - 1
    if np.sqrt(np.mean(miss**2)) > 0.5 * np.std(rates / middle):
      # Rounded or digitised compute: its scatter is no function of size.
      return cls((middle, 0.0, 0.0), low, high)
    terms = tuple(float(t) for t in terms * low**-_POWERS)
    free = cls(terms, low, high)
    far = free.rate(high * 10.0 ** np.arange(1, 13)) / free.rate(high)
    return dataclasses.replace(
      free, held=bool(far.min() < 0.5 or far.max() > 2)
    )

  def rate(self, n: Any) -> Any:
    """Returns C / (N D)."""
    n = np.clip(n, self.n_low, self.n_high) if self.held else n
    k0, k1, k2 = self.terms
    if not (k1 or k2):
      return k0 + 0 * n
    root = np.cbrt(1 / n)
    return k0 + k1 * root + k2 * root**2

  def slope(self, n: Any) -> Any:
    """Returns d log rate / d log N."""
    _, k1, k2 = self.terms
    if not (k1 or k2):
      return 0 * n
    root = np.cbrt(1 / n)
    steep = -(k1 * root + 2 * k2 * root**2) / 3 / self.rate(n)
    inside = (n >= self.n_low) & (n <= self.n_high)
    return np.where(inside, steep, 0.0) if self.held else steep

  def flops(self, n: Any, d: Any) -> Any:
    return self.rate(n) * n * d

  def units(self, n: Any, c: Any) -> Any:
    """Returns the units of data that `c` FLOPs pay for at size `n`."""
    return c / (self.rate(n) * n)

  def to_json(self) -> dict:
    return {
      'terms': list(self.terms),
      'n_low': self.n_low,
      'n_high': self.n_high,
      'held': self.held,
    }

  @classmethod
  def from_json(cls, data: dict) -> Cost:
    return cls(
      tuple(data['terms']),  # type: ignore[arg-type]
      data['n_low'],
      data['n_high'] if data['n_high'] is not None else np.inf,
      data['held'],
    )
