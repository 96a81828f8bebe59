"""Figures of the runs: their losses by size, compute and data, and the law's.

Each function draws one figure on the axes it is given.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from bigdl.scaling import canvas as canvas_lib
from bigdl.scaling import captions, marks
from bigdl.scaling.canvas import INK, MARK, MUTED, PAPER, Canvas
from bigdl.scaling.findings import (
  View,
  band,
  finite,
  fixed,
  power,
  run_band,
  si,
)


def isoflop(view: View, canvas: Canvas, axes: Any) -> None:
  """Loss against N: one valley a budget, its fit and its minimum."""
  palette = marks.Palette(view)
  cells = [c for c in view.drawn() if not c['aside']]
  ends = _valleys(view, axes, palette, cells)
  for cell in cells:
    marks.dot(canvas, axes, palette, cell, cell['n'], cell['loss'])
  _best_path(view, axes)
  for m in view.minima:
    held = view.budget(m['budget']) in view.held
    mark = marks.diamond(axes, m['n'], m['loss'], INK, hollow=held)
    text = f'C {power(m["budget"])}: lowest at N {si(m["n"])}'
    canvas.tip(mark, f'{text}, loss {fixed(m["loss"], 4)}')
  best = view.optimum
  if best and finite(best.get('n')):
    mark = marks.diamond(axes, best['n'], best['loss'], INK, hollow=True)
    canvas.tip(mark, f'held out, found: N {si(best["n"])}')
  sizes = [c['n'] for c in cells]
  losses = [c['loss'] for c in cells]
  x = canvas_lib.log_padded(sizes, 0.05, 0.24)
  canvas_lib.scale_axis(axes, 'x', *x, 'si')
  lowest = min(losses + [end.lowest for end in ends])
  canvas_lib.scale_axis(
    axes, 'y', *canvas_lib.padded([lowest, marks.ceiling(losses)]), 'linear'
  )
  named = marks.legible(view.budgets)
  labels = []
  for end in ends:
    if end.budget in named:
      text = power(end.budget)
      text += '\nheld out' if end.budget in view.held else ''
      labels.append((end.x, end.y, text, palette.of(end.budget)))
  canvas_lib.end_labels(axes, labels)
  canvas_lib.label_axes(axes, view.n_label, view.loss_label)


class _End(NamedTuple):
  """Where a budget's curve ends on the right, and how low it goes."""

  budget: float
  x: float
  y: float
  lowest: float


def _valleys(view, axes, palette, cells) -> list[_End]:
  """Draws a curve through the runs of each budget."""
  rows: dict[float | None, dict] = {
    view.budget(m['budget']): m
    for m in view.part('isoflop').get('minima') or ()
  }
  ends = []
  for budget in view.budgets:
    mine = [c for c in cells if c['group'] == budget]
    if not mine:
      continue
    n = marks.spaced(mine[0]['n'] * 0.93, mine[-1]['n'] * 1.07)
    curve, dashes = _valley(view, budget, rows.get(budget), n)
    if curve is None:
      n = np.array([c['n'] for c in mine])
      curve, dashes = np.array([c['loss'] for c in mine]), (1, 2)
    color = palette.of(budget)
    axes.plot(
      n, curve, color=color, linewidth=1.6, dashes=dashes, zorder=3, alpha=0.9
    )
    ends.append(_End(budget, n[-1], curve[-1], curve.min()))
  return ends


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
  c = marks.spaced(view.budgets[0], view.budgets[-1])
  axes.plot(law.allocate(c)[0], law.best(c), color=INK, linewidth=0.9, zorder=2)


def envelope(view: View, canvas: Canvas, axes: Any) -> None:
  """Loss against C: every training curve, and the law under all of them."""
  palette = marks.Palette(view)
  cells = [c for c in view.drawn() if not c['aside']]
  for cell in cells:
    curve = view.curves.get(cell['name']) or {}
    units, losses = marks.smoothed(
      curve.get('units') or (), curve.get('loss') or ()
    )
    if len(units):
      c = units * cell['flops'] / cell['d']
      marks.curve(canvas, axes, palette, cell, c, losses)
  for cell in cells:
    marks.dot(canvas, axes, palette, cell, cell['flops'], cell['loss'], 4.2)
  low_c, high_c = min(c['flops'] for c in cells), max(c['flops'] for c in cells)
  best = min(c['loss'] for c in cells)
  floor = best
  if view.primary:
    c = marks.spaced(low_c / 2, high_c * 5)
    law = view.fitted(view.primary)
    middle, low, high = band(law, c, 'loss')
    axes.fill_between(
      c, low, high, color=INK, alpha=0.12, linewidth=0, zorder=4
    )
    axes.plot(c, middle, color=INK, linewidth=1.7, zorder=4)
    floor = min(float(middle.min()), best)
  _held_mark(view, canvas, axes)
  top = marks.ceiling([c['loss'] for c in cells])
  canvas_lib.scale_axis(
    axes, 'x', low_c / (20 if view.curves else 3), high_c * 6, 'power'
  )
  canvas_lib.scale_axis(
    axes, 'y', floor * 0.965, max(top * 1.25, floor * 1.2), 'log'
  )
  canvas_lib.label_axes(axes, view.c_label, view.loss_label)
  marks.key(axes, view, palette)


def _held_mark(view, canvas, axes):
  """Draws the held-out optimum, found and predicted, with its numbers."""
  best = view.optimum
  if not best or not finite(best.get('loss')):
    return
  c = best['c']
  marks.whisker(axes, c, best['low'], best['high'], INK, width=2.4)
  mark = marks.diamond(axes, c, best['loss'], INK, hollow=True, size=10)
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
  palette = marks.Palette(view)
  starts, lows, highs = [], [], []
  for cell in view.cells:
    curve = view.curves.get(cell['name']) or {}
    units, losses = marks.smoothed(
      curve.get('units') or (), curve.get('loss') or ()
    )
    if not len(units):
      continue
    marks.curve(canvas, axes, palette, cell, units, losses)
    # The last evaluation is the run's loss, a larger dot.
    between = [p for p in curve.get('eval') or () if p[0] < 0.999 * units[-1]]
    if between:
      color = palette.of(cell['group'])
      axes.plot(*np.transpose(between), '.', color=color, markersize=2.5)
    starts += [units[0], units[-1]]
    lows.append(losses.min())
    highs.append(losses.max())
    final = cell.get('loss')
    if finite(final) and finite(cell.get('d')) and cell['d'] > 0:
      marks.dot(canvas, axes, palette, cell, cell['d'], final, 4.2)
      lows.append(final)
  canvas_lib.scale_axis(axes, 'x', *canvas_lib.log_padded(starts, 0.03), 'si')
  top = float(np.quantile(highs, 0.9))
  canvas_lib.scale_axis(
    axes, 'y', *canvas_lib.log_padded([min(lows), top], 0.04), 'log'
  )
  canvas_lib.label_axes(axes, view.d_label, view.loss_label)
  marks.key(axes, view, palette)


def holdout(view: View, canvas: Canvas, axes: Any) -> None:
  """The held-out runs: what was predicted, and what was found."""
  palette = marks.Palette(view)
  cells = [c for c in view.drawn() if c['held'] and not c['aside']]
  values = [c['loss'] for c in cells]
  # A law that was fitted to these runs since predicts them no longer.
  groups = () if view.refitted else {c['group'] for c in cells if c['group']}
  for budget in sorted(groups):
    mine = [c for c in cells if c['group'] == budget]
    values += _predicted_curve(view, axes, budget, [c['n'] for c in mine])
  by_name = {r['name']: r for r in view.holdout.get('rows') or ()}
  for cell in cells:
    row = by_name.get(cell['name'])
    text = marks.tip_of(cell)
    if row:
      text += f', predicted {fixed(row["predicted"], 4)}'
    if row and cell['group'] not in groups:
      marks.whisker(axes, cell['n'], row['low'], row['high'], MUTED)
      axes.plot(cell['n'], row['predicted'], '_', color=INK, markersize=9)
      values += [row['low'], row['high']]
    marks.dot(canvas, axes, palette, cell, cell['n'], cell['loss'], 7.5, text)
  best = view.optimum
  known = bool(best) and finite(best.get('n'))
  if known:
    at = best['n_predicted']
    marks.whisker(axes, at, best['low'], best['high'], INK, width=2.4)
    values += [best['low'], best['high']]
    mark = marks.diamond(
      axes, best['n'], best['loss'], INK, hollow=True, size=10
    )
    canvas.tip(mark, captions.held_out_loss(view))
  x = canvas_lib.log_padded([c['n'] for c in cells], 0.1)
  canvas_lib.scale_axis(axes, 'x', *x, 'si')
  low, high = canvas_lib.padded([v for v in values if finite(v)], 0.08)
  # Room below for the interval of the best size.
  low -= 0.2 * (high - low) if known else 0
  canvas_lib.scale_axis(axes, 'y', low, high, 'linear')
  _size_interval(view, axes)
  canvas_lib.label_axes(axes, view.n_label, view.loss_label)
  _holdout_key(axes, palette.of(cells[-1]['group']), bool(best))


def _predicted_curve(view, axes, budget, sizes):
  """Draws what the law said of one budget; returns the losses drawn."""
  law = view.fitted(view.primary)
  n = marks.spaced(min(sizes) * 0.9, max(sizes) * 1.1)
  d = law.cost.units(n, budget)
  predicted = law.loss(n, d)
  axes.plot(n, predicted, color=INK, linewidth=1.7, zorder=3)
  if not law.everywhere:
    return list(predicted)
  low, high = run_band(law, n, d)
  axes.fill_between(n, low, high, color=INK, alpha=0.12, linewidth=0)
  return [*predicted, *low, *high]


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
  marks.head(axes, flat)


def residuals(view: View, canvas: Canvas, axes: Any) -> None:
  """How far each run lies from the parametric law, in percent."""
  palette = marks.Palette(view)
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
    text = f'{marks.tip_of(cell)}, {off:+.2f} % from the law'
    marks.dot(canvas, axes, palette, cell, cell['n'], off, MARK, text)
  x = canvas_lib.log_padded([c['n'] for c, _ in points], 0.06)
  canvas_lib.scale_axis(axes, 'x', *x, 'si')
  reach = (
    max(max(abs(off) for _, off in points), 100 * (noise or 0)) * 1.15 or 1
  )
  canvas_lib.scale_axis(axes, 'y', -reach, reach, 'linear')
  canvas_lib.label_axes(axes, view.n_label, 'found over predicted, %')
  marks.key(axes, view, palette)
