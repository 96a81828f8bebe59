"""The figures of a report: what each draws, and the sentence that it shows.

Marks mean the same everywhere: a dot is a run, a diamond a budget's optimum, a
hollow mark was held out of the fit; colour is the budget; ink is the law.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import numpy as np

from bigdl.scaling import canvas as canvas_lib
from bigdl.scaling import captions
from bigdl.scaling.canvas import INK, MARK, MUTED, PAPER, Canvas
from bigdl.scaling.findings import (
  TITLES,
  View,
  band,
  finite,
  fixed,
  power,
  si,
  superscript,
)

_DASHES = {'envelope': (1.2, 2.2), 'isoflop': (5, 2.2), 'parametric': ()}
# More end labels than this would be a wall of words.
_LABELS = 9


@dataclasses.dataclass(frozen=True)
class Figure:
  """One figure: `draw` it unless `lacks` says what is missing for it."""

  name: str
  title: str
  draw: Callable[[View, Canvas, Any], None]
  caption: Callable[[View], str]
  lacks: Callable[[View], str]


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


def _dot(canvas, axes, palette, cell, x, y, size=MARK, text=''):
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


def _diamond(axes, x, y, color, *, hollow=False, size=9.0, zorder=6):
  (line,) = axes.plot(
    [x],
    [y],
    marker='D',
    markersize=size * 0.72,
    markerfacecolor=PAPER if hollow else color,
    markeredgecolor=color if hollow else PAPER,
    markeredgewidth=1.8 if hollow else 1.1,
    linestyle='none',
    zorder=zorder,
  )
  return line


def _whisker(axes, x, low, high, color, *, width=1.3, zorder=5, alpha=1.0):
  if finite(low) and finite(high):
    axes.plot(
      [x, x],
      [low, high],
      color=color,
      linewidth=width,
      zorder=zorder,
      alpha=alpha,
    )


def _spaced(low: float, high: float, count: int = 49) -> np.ndarray:
  return np.geomspace(low, high, count)


def _head(axes, entries) -> None:
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


def _key(axes, view: View, palette: Palette) -> None:
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
  _head(axes, entries)


def _legible(budgets: list[float]) -> list[float]:
  """Returns the budgets to name: all, or some that span them."""
  if len(budgets) <= _LABELS:
    return budgets
  step = math.ceil((len(budgets) - 1) / (_LABELS - 1))
  return sorted({*budgets[::-step], budgets[0]})


def isoflop(view: View, canvas: Canvas, axes: Any) -> None:
  """Loss against N: one valley a budget, its fit and its minimum."""
  palette = Palette(view)
  cells = [c for c in view.drawn() if not c['aside']]
  rows = {
    view.budget(m['budget']): m
    for m in view.part('isoflop').get('minima') or ()
  }
  ends = []
  lowest = min(c['loss'] for c in cells)
  for budget in view.budgets:
    mine = [c for c in cells if c['group'] == budget]
    if not mine:
      continue
    color = palette.of(budget)
    n = _spaced(mine[0]['n'] * 0.93, mine[-1]['n'] * 1.07)
    curve, dashes = _valley(view, budget, rows.get(budget), n)
    if curve is None:
      n = np.array([c['n'] for c in mine])
      curve, dashes = np.array([c['loss'] for c in mine]), (1, 2)
    axes.plot(
      n, curve, color=color, linewidth=1.6, dashes=dashes, zorder=3, alpha=0.9
    )
    ends.append((budget, max(n[-1], mine[-1]['n']), curve[-1], color))
    lowest = min(lowest, curve.min())
  for cell in cells:
    _dot(canvas, axes, palette, cell, cell['n'], cell['loss'])
  _best_path(view, axes)
  for m in view.minima:
    budget = view.budget(m['budget'])
    mark = _diamond(axes, m['n'], m['loss'], INK, hollow=budget in view.held)
    text = f'C {power(m["budget"])}: lowest at N {si(m["n"])}'
    canvas.tip(mark, f'{text}, loss {fixed(m["loss"], 4)}')
  best = view.optimum
  if best and finite(best.get('n')):
    mark = _diamond(axes, best['n'], best['loss'], INK, hollow=True)
    canvas.tip(mark, f'held out, found: N {si(best["n"])}')
  sizes = [c['n'] for c in cells]
  losses = [c['loss'] for c in cells]
  x = canvas_lib.log_padded(sizes, 0.05, 0.24)
  canvas_lib.scale_axis(axes, 'x', *x, 'si')
  canvas_lib.scale_axis(
    axes, 'y', *canvas_lib.padded([lowest, _ceiling(losses)]), 'linear'
  )
  named = _legible(view.budgets)
  canvas_lib.end_labels(
    axes,
    [
      (x, y, power(b) + ('\nheld out' if b in view.held else ''), color)
      for b, x, y, color in ends
      if b in named
    ],
  )
  canvas_lib.label_axes(axes, view.n_label, view.loss_label)


def _ceiling(losses: list[float]) -> float:
  """Returns the top of a loss axis: far outliers may stick out of it."""
  top, low = max(losses), min(losses)
  usual = float(np.quantile(losses, 0.95))
  return (
    top
    if top - low < 2.5 * (usual - low) or top == low
    else (low + 1.3 * (usual - low))
  )


def _valley(view, budget, row, n):
  """Returns losses over `n` at one budget, and the dashes to draw them in."""
  if row is not None and not row.get('refused') and budget not in view.held:
    c0, c1, c2 = row['coefficients']
    x = np.log10(n)
    return c0 + c1 * x + c2 * x**2, ()
  if budget in view.held and view.primary:
    # What the law said before it saw these runs.
    law = view.fitted(view.primary)
    return law.loss(n, law.cost.units(n, budget)), (4, 2)
  return None, ()


def _best_path(view, axes):
  """Draws the optimum that the law sees at every budget, in the N, L plane."""
  if not view.primary or len(view.budgets) < 2:
    return
  law = view.fitted(view.primary)
  c = _spaced(view.budgets[0], view.budgets[-1] * 1.6)
  axes.plot(law.allocate(c)[0], law.best(c), color=INK, linewidth=0.9, zorder=2)


def n_opt(view: View, canvas: Canvas, axes: Any) -> None:
  """The best N against C by every approach, with intervals."""
  _against_compute(view, canvas, axes, 'n')
  canvas_lib.label_axes(axes, view.c_label, view.n_label)


def d_opt(view: View, canvas: Canvas, axes: Any) -> None:
  """The best D against C by every approach, with intervals."""
  _against_compute(view, canvas, axes, 'd')
  canvas_lib.label_axes(axes, view.c_label, view.d_label)


def _extent(view: View) -> tuple[float, float]:
  known = [c['flops'] for c in view.drawn()] + view.budgets
  known += [row['c'] for row in view.allocation]
  return min(known) / 1.6, max(known) * 1.15


def _against_compute(view, canvas, axes, what):
  names = [n for n in TITLES if view.stands(n)]
  first, last = _extent(view)
  c = _spaced(first, last)
  ends, seen = [], []
  for name in sorted(names, key=lambda n: n == view.primary):
    middle, low, high = band(view.fitted(name), c, what)
    main = name == view.primary
    if main:
      axes.fill_between(c, low, high, color=INK, alpha=0.12, linewidth=0)
    axes.plot(
      c,
      middle,
      color=INK if main else MUTED,
      linewidth=1.7 if main else 1.1,
      dashes=() if main else _DASHES[name],
      zorder=3 if main else 2,
    )
    slope = view.part(name)['exponents']['a' if what == 'n' else 'b']
    text = f'{TITLES[name]}\nC{raised(slope)}'
    ends.append((c[-1], middle[-1], text, INK if main else MUTED))
    seen += [*middle, *((low, high) if main else ())]
  _optima(view, canvas, axes, what)
  for row in view.allocation:
    (mark,) = axes.plot(
      [row['c']],
      [row[what]],
      marker='s',
      markersize=5.5,
      markerfacecolor=PAPER,
      markeredgecolor=INK,
      markeredgewidth=1.3,
      linestyle='none',
      zorder=5,
    )
    canvas.tip(mark, captions.allocation_tip(view, row))
    axes.annotate(
      si(row[what], 2),
      (row['c'], row[what]),
      xytext=(6, -7),
      textcoords='offset points',
      va='top',
      fontsize=canvas_lib.TICK - 0.5,
      color=INK,
    )
  values = np.concatenate([np.ravel(s) for s in seen])
  values = values[np.isfinite(values) & (values > 0)]
  canvas_lib.scale_axis(
    axes, 'x', first, last * (last / first) ** 0.25, 'power'
  )
  canvas_lib.scale_axis(
    axes, 'y', *canvas_lib.log_padded([values.min(), values.max()], 0.04), 'si'
  )
  canvas_lib.end_labels(axes, ends, lines=2)
  _edge_of_data(view, axes)


def _edge_of_data(view, axes):
  """Marks where the largest budget ends and extrapolation begins."""
  if not view.budgets or not view.allocation:
    return
  edge = view.budgets[-1] * 1.25
  axes.axvline(edge, color=MUTED, linewidth=0.8, dashes=(1, 2.5), zorder=1)
  axes.annotate(
    'extrapolated',
    (edge, 0),
    xycoords=('data', 'axes fraction'),
    xytext=(4, 4),
    textcoords='offset points',
    fontsize=canvas_lib.TICK - 0.5,
    color=MUTED,
  )


def _optima(view, canvas, axes, what):
  """Draws the minima of the budgets' parabolas, with intervals."""
  palette = Palette(view)
  cost = view.fitted('isoflop').cost if view.stands('isoflop') else None
  for m in view.minima:
    budget = view.budget(m['budget'])
    color, c = palette.of(budget), m.get('c') or m['budget']
    low, high = m.get('n_low'), m.get('n_high')
    if what == 'd' and finite(low) and finite(high) and cost is not None:
      low, high = cost.units(high, c), cost.units(low, c)
    if what == 'n' or cost is not None:
      _whisker(axes, c, low, high, color)
    mark = _diamond(axes, c, m[what], color, hollow=budget in view.held)
    letter = what.upper()
    text = f'C {power(m["budget"])}: {letter} {si(m[what])}'
    if finite(low) and finite(high):
      text += f' [{si(low)}, {si(high)}]'
    canvas.tip(mark, text)
  best = view.optimum
  if best and finite(best.get('n')) and view.primary:
    law = view.fitted(view.primary)
    found = (
      best['n'] if what == 'n' else float(law.cost.units(best['n'], best['c']))
    )
    color = palette.of(view.budget(best.get('budget') or best['c']))
    mark = _diamond(axes, best['c'], found, color, hollow=True)
    canvas.tip(mark, f'held out, found: {what.upper()} {si(found)}')


def both(view: View, canvas: Canvas, axes: Any) -> None:
  """The best N and the best D against C on one axis, for the overview."""
  first, last = _extent(view)
  c = _spaced(first, last)
  law = view.fitted(view.primary)
  values, ends = [], []
  for what, word in (('n', 'N, parameters'), ('d', view.d_label)):
    middle, low, high = band(law, c, what)
    axes.fill_between(c, low, high, color=INK, alpha=0.12, linewidth=0)
    axes.plot(
      c, middle, color=INK, linewidth=1.7, dashes=(5, 2) if what == 'd' else ()
    )
    values += [low.min(), high.max(), middle.min(), middle.max()]
    slope = view.main['exponents']['a' if what == 'n' else 'b']
    letter, noun = word.split(', ')
    text = f'{letter} = C{raised(slope)}\n{noun}'
    ends.append((c[-1], middle[-1], text.replace('=', '∝'), INK))
    _optima(view, canvas, axes, what)
  canvas_lib.scale_axis(
    axes, 'x', first, last * (last / first) ** 0.26, 'power'
  )
  canvas_lib.scale_axis(axes, 'y', *canvas_lib.log_padded(values, 0.04), 'si')
  canvas_lib.end_labels(axes, ends, lines=2)
  _edge_of_data(view, axes)
  canvas_lib.label_axes(axes, view.c_label, f'N and D, with {view.level} bands')


def envelope(view: View, canvas: Canvas, axes: Any) -> None:
  """Loss against C: every training curve, and the law under all of them."""
  palette = Palette(view)
  cells = [c for c in view.drawn() if not c['aside']]
  for cell in cells:
    curve = view.curves.get(cell['name']) or {}
    units = np.array(curve.get('units') or [], float)
    losses = np.array(curve.get('loss') or [], float)
    if len(units) > 1:
      _curve(
        canvas, axes, palette, cell, units * cell['flops'] / cell['d'], losses
      )
  for cell in cells:
    _dot(canvas, axes, palette, cell, cell['flops'], cell['loss'], 4.2)
  low_c, high_c = min(c['flops'] for c in cells), max(c['flops'] for c in cells)
  best = min(c['loss'] for c in cells)
  floor = best
  if view.primary:
    c = _spaced(low_c / 2, high_c * 5)
    law = view.fitted(view.primary)
    middle, low, high = band(law, c, 'loss')
    axes.fill_between(
      c, low, high, color=INK, alpha=0.12, linewidth=0, zorder=4
    )
    axes.plot(c, middle, color=INK, linewidth=1.7, zorder=4)
    floor = min(float(middle.min()), best)
  _held_mark(view, canvas, axes)
  top = _ceiling([c['loss'] for c in cells])
  canvas_lib.scale_axis(
    axes, 'x', low_c / (20 if view.curves else 3), high_c * 6, 'power'
  )
  canvas_lib.scale_axis(
    axes, 'y', floor * 0.965, max(top * 1.25, floor * 1.2), 'log'
  )
  canvas_lib.label_axes(axes, view.c_label, view.loss_label)
  _key(axes, view, palette)


def _curve(canvas, axes, palette, cell, x, y):
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


def _held_mark(view, canvas, axes):
  """Draws the held-out optimum, found and predicted, with its numbers."""
  best = view.optimum
  if not best or not finite(best.get('loss')):
    return
  c = best['c']
  _whisker(axes, c, best['low'], best['high'], INK, width=2.4, zorder=6)
  mark = _diamond(axes, c, best['loss'], INK, hollow=True, size=10, zorder=7)
  canvas.tip(mark, captions.held_out_loss(view))
  lines = [
    f'held out, C {power(c)}',
    f'found {fixed(best["loss"], 3)}',
    f'predicted {captions.predicted_loss(view)}',
  ]
  axes.annotate(
    '\n'.join(lines),
    (c, best['loss']),
    xycoords='data',
    xytext=(0.03, 0.04),
    textcoords='axes fraction',
    fontsize=canvas_lib.TICK,
    color=INK,
    linespacing=1.35,
    arrowprops={
      'arrowstyle': '-',
      'color': MUTED,
      'linewidth': 0.8,
      'shrinkB': 8,
      'relpos': (1, 0.5),
    },
  )


def training(view: View, canvas: Canvas, axes: Any) -> None:
  """Training loss against data seen, one line a run."""
  palette = Palette(view)
  starts, lows, highs = [], [], []
  for cell in view.cells:
    curve = view.curves.get(cell['name']) or {}
    pairs = [
      (u, y)
      for u, y in zip(
        curve.get('units') or [], curve.get('loss') or [], strict=True
      )
      if finite(u) and finite(y) and u > 0 and y > 0
    ]
    if len(pairs) < 2:
      continue
    units, losses = np.array(pairs).T
    _curve(canvas, axes, palette, cell, units, losses)
    starts += [units[0], units[-1]]
    lows.append(losses.min())
    highs.append(losses.max())
    final = cell.get('loss')
    if finite(final) and finite(cell.get('d')) and cell['d'] > 0:
      _dot(canvas, axes, palette, cell, cell['d'], final, 4.2)
      lows.append(final)
  canvas_lib.scale_axis(axes, 'x', *canvas_lib.log_padded(starts, 0.03), 'si')
  top = float(np.quantile(highs, 0.9))
  canvas_lib.scale_axis(
    axes, 'y', *canvas_lib.log_padded([min(lows), top], 0.04), 'log'
  )
  canvas_lib.label_axes(axes, view.d_label, view.loss_label)
  _key(axes, view, palette)


def holdout(view: View, canvas: Canvas, axes: Any) -> None:
  """The held-out runs: what was predicted, and what was found."""
  palette = Palette(view)
  rows = view.holdout.get('rows') or []
  cells = [c for c in view.drawn() if c['held'] and not c['aside']]
  law = view.fitted(view.primary)
  values = [c['loss'] for c in cells]
  for budget in sorted({c['group'] for c in cells if c['group']}):
    mine = [c for c in cells if c['group'] == budget]
    n = _spaced(mine[0]['n'] * 0.9, mine[-1]['n'] * 1.1)
    predicted = law.loss(n, law.cost.units(n, budget))
    axes.plot(n, predicted, color=INK, linewidth=1.7, zorder=3)
    values += list(predicted)
    names = {c['name'] for c in mine}
    ours = sorted(
      (r['n'], r['low'], r['high']) for r in rows if r['name'] in names
    )
    if len(ours) > 1:
      x, low, high = np.array(ours).T
      axes.fill_between(x, low, high, color=INK, alpha=0.12, linewidth=0)
      values += [low.min(), high.max()]
  by_name = {r['name']: r for r in rows}
  for cell in cells:
    row = by_name.get(cell['name'])
    text = tip_of(cell)
    if row:
      text += f', predicted {fixed(row["predicted"], 4)}'
      if cell['group'] is None:
        _whisker(axes, cell['n'], row['low'], row['high'], INK, alpha=0.3)
    if finite(cell.get('loss_se')):
      error = 1.64 * cell['loss_se']
      color = palette.of(cell['group'])
      ends = (cell['loss'] - error, cell['loss'] + error)
      _whisker(axes, cell['n'], *ends, color, width=1.0)
    _dot(canvas, axes, palette, cell, cell['n'], cell['loss'], 7.5, text)
  best = view.optimum
  if best and finite(best.get('n')):
    mark = _diamond(axes, best['n'], best['loss'], INK, hollow=True, size=10)
    canvas.tip(mark, captions.held_out_loss(view))
  x = canvas_lib.log_padded([c['n'] for c in cells], 0.1)
  canvas_lib.scale_axis(axes, 'x', *x, 'si')
  low, high = canvas_lib.padded(values, 0.08)
  # Room below for the interval of the best size.
  low -= 0.2 * (high - low) if best and finite(best.get('n')) else 0
  canvas_lib.scale_axis(axes, 'y', low, high, 'linear')
  _size_interval(view, axes)
  canvas_lib.label_axes(axes, view.n_label, view.loss_label)
  _holdout_key(axes, palette.of(cells[-1]['group']), bool(best))


def _size_interval(view, axes):
  """Draws where the law said that the best size would be."""
  best = view.optimum
  if not best or not finite(best.get('n_predicted')):
    return
  transform = axes.get_xaxis_transform()
  y = 0.07
  if finite(best.get('n_low')):
    axes.plot(
      [best['n_low'], best['n_high']],
      [y, y],
      color=INK,
      linewidth=5,
      alpha=0.18,
      transform=transform,
      solid_capstyle='butt',
    )
  axes.plot(
    [best['n_predicted']] * 2,
    [y - 0.025, y + 0.025],
    color=INK,
    linewidth=1.8,
    transform=transform,
  )
  if finite(best.get('n')):
    axes.plot(
      [best['n']] * 2,
      [best['loss'], axes.get_ylim()[0]],
      color=MUTED,
      linewidth=0.8,
      dashes=(1, 2.5),
      zorder=2,
    )
  axes.annotate(
    f'best N, predicted {si(best["n_predicted"])}',
    (best['n_predicted'], y),
    xycoords=transform,
    xytext=(0, 7),
    textcoords='offset points',
    ha='center',
    fontsize=canvas_lib.TICK - 0.5,
    color=INK,
    bbox={'facecolor': PAPER, 'edgecolor': 'none', 'pad': 0.6},
  )


def _holdout_key(axes, color, optimum):
  entries = [('━', INK, 'predicted'), ('○', color, 'found')]
  if optimum:
    entries.append(('◇', INK, 'its minimum'))
  flat = []
  for mark, shade, word in entries:
    flat += [(mark, shade, 14.0), (word, INK, 6.0 * len(word) + 4)]
  _head(axes, flat)


def residuals(view: View, canvas: Canvas, axes: Any) -> None:
  """How far each run lies from the parametric law, in percent."""
  palette = Palette(view)
  points = []
  for cell in view.drawn():
    predicted = view.predicted(cell)
    if predicted and not cell['aside']:
      points.append((cell, 100 * (cell['loss'] / predicted - 1)))
  axes.axhline(0, color=INK, linewidth=1.2, zorder=2)
  noise = (view.part('parametric').get('noise') or {}).get('sigma')
  if finite(noise) and noise:
    axes.axhspan(-100 * noise, 100 * noise, color=INK, alpha=0.08, linewidth=0)
  for cell, off in points:
    text = f'{tip_of(cell)}, {off:+.2f} % from the law'
    _dot(canvas, axes, palette, cell, cell['n'], off, MARK, text)
  x = canvas_lib.log_padded([c['n'] for c, _ in points], 0.06)
  canvas_lib.scale_axis(axes, 'x', *x, 'si')
  reach = (
    max(max(abs(off) for _, off in points), 100 * (noise or 0)) * 1.15 or 1
  )
  canvas_lib.scale_axis(axes, 'y', -reach, reach, 'linear')
  canvas_lib.label_axes(axes, view.n_label, 'found over predicted, %')
  _key(axes, view, palette)


def exponents(view: View, canvas: Canvas, axes: Any) -> None:
  """The exponent a by approach and under every FLOPs convention."""
  rows = captions.exponent_rows(view)
  height = len(rows)
  values = [x for r in rows for x in (r.low, r.a, r.high) if finite(x)]
  low, high = min([*values, 0.47]), max([*values, 0.53])
  pad = 0.08 * (high - low)
  axes.grid(False, axis='y')
  axes.axvline(0.5, color=MUTED, linewidth=0.9, dashes=(1, 2.5), zorder=1)
  for i, row in enumerate(rows):
    y = height - 1 - i
    head = not finite(row.a)
    axes.annotate(
      row.name,
      (0, y),
      xycoords=('axes fraction', 'data'),
      xytext=(-112, 0),
      textcoords='offset points',
      va='center',
      fontsize=canvas_lib.TICK,
      color=MUTED if head else INK,
    )
    if head:
      if row.note:
        axes.annotate(
          row.note,
          (0, y),
          xycoords=('axes fraction', 'data'),
          xytext=(4, 0),
          textcoords='offset points',
          va='center',
          fontsize=canvas_lib.TICK,
          color=MUTED,
        )
      continue
    color = INK if row.main else MUTED
    (line,) = axes.plot(
      [row.low, row.high],
      [y, y],
      color=color,
      linewidth=2.6 if row.main else 1.4,
    )
    canvas.tip(line, f'{row.name}: a = {row.text}')
    axes.plot([row.a], [y], 'o', color=color, markersize=6, zorder=4)
    axes.annotate(
      fixed(row.a, 3),
      (1, y),
      xycoords=('axes fraction', 'data'),
      xytext=(0, 0),
      textcoords='offset points',
      ha='right',
      va='center',
      fontsize=canvas_lib.TICK,
      color=color,
    )
  canvas_lib.scale_axis(
    axes, 'x', low - pad, high + pad + 0.2 * (high - low), 'linear'
  )
  axes.set_yticks([])
  axes.set_ylim(-0.7, height - 0.3)
  axes.set_xlabel('a, the exponent of N ∝ Cᵃ', loc='right', labelpad=4)
  axes.annotate(
    'N and D grow alike',
    (0.5, 1),
    xycoords=('data', 'axes fraction'),
    xytext=(0, 4),
    textcoords='offset points',
    ha='center',
    fontsize=canvas_lib.TICK - 0.5,
    color=MUTED,
  )


# Names of rows need room on the left.
RECTS = {'exponents': (0.33, 0.155, 0.65, 0.755)}
FIGURES = (
  Figure(
    'isoflop', 'IsoFLOP curves', isoflop, captions.isoflop, captions.no_cells
  ),
  Figure(
    'holdout',
    'Held-out prediction',
    holdout,
    captions.holdout,
    captions.no_holdout,
  ),
  Figure(
    'n_opt', 'Best size against compute', n_opt, captions.n_opt, captions.no_law
  ),
  Figure(
    'd_opt',
    'Best amount of data against compute',
    d_opt,
    captions.d_opt,
    captions.no_law,
  ),
  Figure(
    'envelope', 'Loss envelope', envelope, captions.envelope, captions.no_cells
  ),
  Figure(
    'exponents',
    'The exponent, by approach and by how FLOPs are counted',
    exponents,
    captions.exponents,
    captions.no_exponents,
  ),
  Figure(
    'training',
    'Training curves',
    training,
    captions.training,
    captions.no_curves,
  ),
  Figure(
    'residuals',
    'What the law leaves unexplained',
    residuals,
    captions.residuals,
    captions.no_parametric,
  ),
)


def overview(view: View) -> Canvas | None:
  """Returns the wide figure of a README: curves, law, prediction."""
  panels = [
    (isoflop, captions.no_cells, captions.overview_isoflop),
    (both, captions.no_law, captions.overview_law),
    (holdout, captions.no_holdout, captions.overview_holdout),
  ]
  drawn = [(d, t) for d, lacks, t in panels if not lacks(view)]
  if not drawn:
    return None
  width = 4.75
  canvas = Canvas((width * len(drawn), 4.1))
  for i, (draw, title) in enumerate(drawn):
    left = (i * width + 0.55) / (width * len(drawn))
    axes = canvas.axes(
      (left, 0.135, (width - 0.7) / (width * len(drawn)), 0.68)
    )
    draw(view, canvas, axes)
    axes.annotate(
      title(view),
      (0, 1),
      xycoords='axes fraction',
      xytext=(-34, 34),
      textcoords='offset points',
      fontsize=12.5,
      fontweight='bold',
      color=INK,
    )
  return canvas
