"""Resampling: noise levels, counts of runs, and intervals from samples.

Two designs are in use. Many runs for each parameter: runs are drawn with
replacement (`case_counts`). Few runs: losses are redrawn around the fit with
Gaussian noise, for drawing five sizes out of five with replacement loses the
parabola in half of the draws, and residuals of so few runs are shrunk by the
fit. The noise level is drawn too, from its scaled inverse chi-square
distribution (Gelman et al., Bayesian Data Analysis, 3rd ed., section 14.2), so
that intervals are as wide as Student's t asks for at those degrees of freedom.
"""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Noise:
  """What the residuals say about the noise of one run's log loss."""

  sigma: float = 0.0
  freedom: int = 0  # Residual degrees of freedom that sigma rests on.

  def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
    """Returns `count` noise levels that the residuals allow."""
    if not self.freedom:
      return np.full(count, self.sigma)
    chi = rng.chisquare(self.freedom, count)
    return self.sigma * np.sqrt(self.freedom / chi)


def case_counts(rng: np.random.Generator, rows: int, count: int) -> np.ndarray:
  """Returns how often each run is drawn in each resample, `[count, rows]`."""
  share = np.full(rows, 1 / rows)
  return rng.multinomial(rows, share, size=count).astype(float)


def interval(
  samples: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the ends of the central interval over the first axis.

  A degenerate resample (nan) counts as an outcome beyond both ends, the worst
  that it can be: with more than (1 - level) / 2 of them, an end is infinite.
  """
  samples = np.asarray(samples, float)
  missing = np.isnan(samples)
  low = np.sort(np.where(missing, -np.inf, samples), axis=0)
  high = np.sort(np.where(missing, np.inf, samples), axis=0)
  count = len(samples)
  # The order statistic one farther out: with few resamples, a wider interval.
  skip = max(int((1 - level) / 2 * (count + 1) + 1e-9) - 1, 0)
  return low[skip], high[count - 1 - skip]
