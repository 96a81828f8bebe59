"""Runs drawn from a known law, to try estimators on."""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses

import numpy as np
import pandas as pd

from bigdl.scaling.cost import Cost


@dataclasses.dataclass(frozen=True)
class Surface:
  """L(N, D) = E + A/N^alpha + B/D^beta, with compute C = rate(N) N D.

  The defaults are those of Hoffmann et al. (2022; arXiv:2203.15556), equation
  10 with the digits of their source (Besiroglu et al., 2024; arXiv:2404.10102).
  """

  E: float = 1.69337368
  A: float = 406.401018
  B: float = 410.722827
  alpha: float = 0.33917084
  beta: float = 0.2849083
  cost: Cost = Cost()

  def loss(self, n, d):
    return self.E + self.A / n**self.alpha + self.B / d**self.beta

  def optimum(self, c, iterations: int = 60):
    """Returns the N and D of the lowest loss at compute `c`."""
    total = self.alpha + self.beta
    log_n = np.log(c) / 2
    for _ in range(iterations):
      n = np.exp(log_n)
      log_n = (
        np.log(self.alpha * self.A / (self.beta * self.B))
        - np.log1p(self.cost.slope(n))
        + self.beta * (np.log(c) - np.log(self.cost.rate(n)))
      ) / total
    n = np.exp(log_n)
    return n, self.cost.units(n, c)


def isoflop(
  surface: Surface,
  *,
  budgets: Sequence[float],
  sizes: int = 5,
  spread: float = 4.0,
  shift: float = 1.0,
  noise: float = 0.0,
  seed: int = 0,
) -> pd.DataFrame:
  """Returns the table of an IsoFLOP sweep over a surface.

  Args:
    surface: The law that losses are drawn from.
    budgets: FLOPs of each row of cells.
    sizes: How many sizes a budget.
    spread: The largest and smallest size are so many times off the middle.
    shift: The middle of each row over its true optimum.
    noise: Standard deviation of the log loss.
    seed: Of the noise.
  """
  rng = np.random.default_rng(seed)
  rows = []
  for budget in budgets:
    middle = surface.optimum(budget)[0] * shift
    for n in middle * np.geomspace(1 / spread, spread, sizes):
      d = surface.cost.units(n, budget)
      loss = surface.loss(n, d) * np.exp(noise * rng.standard_normal())
      name = f'c{budget:.3g}_n{n:.4g}'.replace('e+', 'e')
      rows.append((name, 'finished', n, d, loss, budget, budget))
  names = ['name', 'status', 'n', 'd', 'loss', 'budget', 'flops']
  return pd.DataFrame(rows, columns=names)
