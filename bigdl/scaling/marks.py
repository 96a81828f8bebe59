"""Marks that every figure shares: runs, optima, curves, and their keys.

Marks mean the same everywhere: a dot is a run, a diamond a budget's optimum, a
hollow mark was held out of the fit; colour is the budget; ink is the law.
"""

from __future__ import annotations

from collections.abc import Sequence
import math
from typing import Any

import numpy as np

from bigdl.scaling import canvas as canvas_lib
from bigdl.scaling.canvas import MARK, MUTED, PAPER, Canvas
from bigdl.scaling.findings import View, finite, fixed, power, si

# More end labels than this would be a wall of words.
_LABELS = 9
# Points of a smoothed curve, and the factor of data that each averages over.
POINTS = 64
WINDOW = 2.0


class Palette:
  """A budget's colour, as drawn."""

  def __init__(self, view: View):
    places = canvas_lib.positions(view.budgets)
    self.light = canvas_lib.shades(places)
    self.dark = canvas_lib.shades(places, dark=True)
    self._of = dict(zip(view.budgets, self.light, strict=True))

  def of(self, budget: float | None) -> str:
    return self._of.get(budget, MUTED) if budget is not None else MUTED

  def variables(self) -> dict[str, str]:
    """Returns hex colour to CSS variable, for the colours that figures use."""
    series = {c: f'var(--c{i})' for i, c in enumerate(self.light)}
    return {**series, **canvas_lib.ROLES}


def tip_of(cell: dict) -> str:
  """Returns one run in a line."""
  error = f' ± {cell["loss_se"]:.2g}' if finite(cell.get('loss_se')) else ''
  held = ', held out' if cell['held'] else ''
  return (
    f'{cell["name"]}: N {si(cell["n"])}, D {si(cell["d"])},'
    f' loss {fixed(cell["loss"], 4)}{error}{held}'
  )


def dot(
  canvas: Canvas,
  axes: Any,
  palette: Palette,
  cell: dict,
  x: float,
  y: float,
  size: float = MARK,
  text: str = '',
) -> None:
  """Draws one run; a cross is one that was set aside."""
  color = palette.of(cell['group'])
  hollow = cell['held']
  aside = bool(cell['aside'])
  (line,) = axes.plot(
    [x],
    [y],
    marker='X' if aside else 'o',
    markersize=size,
    markerfacecolor=PAPER if hollow or aside else color,
    markeredgecolor=MUTED if aside else color if hollow else PAPER,
    markeredgewidth=1.5 if hollow else 0.8,
    linestyle='none',
    zorder=4,
  )
  canvas.tip(line, text or tip_of(cell), cell['name'])


def diamond(
  axes: Any,
  x: float,
  y: float,
  color: str,
  *,
  hollow: bool = False,
  size: float = 9.0,
) -> Any:
  """Draws an optimum; returns the mark."""
  (line,) = axes.plot(
    [x],
    [y],
    marker='D',
    markersize=size * 0.72,
    markerfacecolor=PAPER if hollow else color,
    markeredgecolor=color if hollow else PAPER,
    markeredgewidth=1.8 if hollow else 1.1,
    linestyle='none',
    zorder=6,
  )
  return line


def whisker(
  axes: Any, x: float, low: Any, high: Any, color: str, *, width: float = 1.3
) -> None:
  """Draws a vertical interval, where it is known."""
  if finite(low) and finite(high):
    axes.plot([x, x], [low, high], color=color, linewidth=width, zorder=5)


def smoothed(units: Any, losses: Any) -> tuple[np.ndarray, np.ndarray]:
  """Returns a training curve with the noise of single batches averaged out.

  At each point a line through the logs of loss and data is fitted, with
  weights that fall to zero a factor `WINDOW` away: a line, because a mean would
  lag at the end of a falling curve.
  """
  pairs = [
    (u, y)
    for u, y in zip(units, losses, strict=True)
    if finite(u) and finite(y) and u > 0 and y > 0
  ]
  if len(pairs) < 2:
    return np.empty(0), np.empty(0)
  x_P, y_P = np.log(np.array(sorted(pairs), float)).T
  # Where nothing was logged there is nothing to draw: only measured points.
  places = np.searchsorted(x_P, np.linspace(x_P[0], x_P[-1], POINTS))
  x_G = x_P[np.unique(np.minimum(places, len(x_P) - 1))]
  off_GP = x_P - x_G[:, None]
  far_GP = np.abs(off_GP) / math.log(WINDOW)
  weight_GP = np.clip(1 - far_GP**3, 0, None) ** 3
  s0, s1, s2 = (weight_GP * off_GP**k for k in range(3))
  s0, s1, s2 = s0.sum(1), s1.sum(1), s2.sum(1)
  t0, t1 = weight_GP @ y_P, (weight_GP * off_GP) @ y_P
  whole = s0 * s2 - s1**2
  # Where one point has all the weight there is no line: its value stands.
  level = np.where(
    whole > 1e-9 * s0**2,
    (s2 * t0 - s1 * t1) / np.where(whole, whole, 1),
    t0 / s0,
  )
  return np.exp(x_G), np.exp(level)


def curve(
  canvas: Canvas,
  axes: Any,
  palette: Palette,
  cell: dict,
  x: np.ndarray,
  y: np.ndarray,
) -> None:
  """Draws one run's training curve."""
  (line,) = axes.plot(
    x,
    y,
    color=palette.of(cell['group']),
    linewidth=0.9,
    alpha=0.55,
    dashes=(3, 1.5) if cell['held'] else (),
    zorder=2,
  )
  canvas.tip(line, tip_of(cell), cell['name'])


def spaced(low: float, high: float, count: int = 49) -> np.ndarray:
  """Returns values between two, even on a logarithmic axis."""
  return np.geomspace(low, high, count)


def head(axes: Any, entries: Sequence[tuple[str, str, float]]) -> None:
  """Writes `(text, color, width in points)` right-aligned above the axes."""
  x = 0.0
  for text, color, width in reversed(entries):
    axes.annotate(
      text,
      (1, 1),
      xycoords='axes fraction',
      xytext=(x - width / 2, 11),
      textcoords='offset points',
      ha='center',
      va='bottom',
      fontsize=canvas_lib.TICK,
      color=color,
    )
    x -= width


def key(axes: Any, view: View, palette: Palette) -> None:
  """Names the least and the largest budget beside a row of their dots."""
  if not view.budgets:
    return
  entries = [('C', MUTED, 13.0)]
  ends = {view.budgets[0], view.budgets[-1]}
  step = min(9.5, 90 / len(view.budgets))
  for budget in view.budgets:
    color = palette.of(budget)
    mark = ('○' if budget in view.held else '●', color, step)
    word = (power(budget), color, 6.1 * len(power(budget)) + 4)
    first = budget == view.budgets[0]
    entries += [word, mark] if first else [mark]
    if budget in ends and not first:
      entries.append(word)
  head(axes, entries)


def legible(budgets: list[float]) -> list[float]:
  """Returns the budgets to name: all, or some that span them."""
  if len(budgets) <= _LABELS:
    return budgets
  step = math.ceil((len(budgets) - 1) / (_LABELS - 1))
  return sorted({*budgets[::-step], budgets[0]})


def ceiling(losses: list[float]) -> float:
  """Returns the top of a loss axis: far outliers may stick out of it."""
  top, low = max(losses), min(losses)
  usual = float(np.quantile(losses, 0.95))
  return (
    top
    if top - low < 2.5 * (usual - low) or top == low
    else (low + 1.3 * (usual - low))
  )
