"""Figures of the runs: their losses by size, compute and data, and the law's.

Each function draws one figure on the axes it is given.
"""

from __future__ import annotations

from typing import Any

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
    n = marks.spaced(mine[0]['n'] * 0.93, mine[-1]['n'] * 1.07)
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
    marks.dot(canvas, axes, palette, cell, cell['n'], cell['loss'])
  _best_path(view, axes)
  for m in view.minima:
    budget = view.budget(m['budget'])
    mark = marks.diamond(
      axes, m['n'], m['loss'], INK, hollow=budget in view.held
    )
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
  canvas_lib.scale_axis(
    axes, 'y', *canvas_lib.padded([lowest, marks.ceiling(losses)]), 'linear'
  )
  named = marks.legible(view.budgets)
  canvas_lib.end_labels(
    axes,
    [
      (x, y, power(b) + ('\nheld out' if b in view.held else ''), color)
      for b, x, y, color in ends
      if b in named
    ],
  )
  canvas_lib.label_axes(axes, view.n_label, view.loss_label)


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
  rows = view.holdout.get('rows') or []
  cells = [c for c in view.drawn() if c['held'] and not c['aside']]
  law = view.fitted(view.primary)
  values = [c['loss'] for c in cells]
  for budget in sorted({c['group'] for c in cells if c['group']}):
    mine = [c for c in cells if c['group'] == budget]
    n = marks.spaced(mine[0]['n'] * 0.9, mine[-1]['n'] * 1.1)
    predicted = law.loss(n, law.cost.units(n, budget))
    axes.plot(n, predicted, color=INK, linewidth=1.7, zorder=3)
    values += list(predicted)
    if law.everywhere:
      low, high = run_band(law, n, law.cost.units(n, budget))
      axes.fill_between(n, low, high, color=INK, alpha=0.12, linewidth=0)
      values += [low.min(), high.max()]
  by_name = {r['name']: r for r in rows}
  for cell in cells:
    row = by_name.get(cell['name'])
    text = marks.tip_of(cell)
    if row:
      text += f', predicted {fixed(row["predicted"], 4)}'
      if cell['group'] is None:
        marks.whisker(axes, cell['n'], row['low'], row['high'], MUTED)
    marks.dot(canvas, axes, palette, cell, cell['n'], cell['loss'], 7.5, text)
  best = view.optimum
  if best and finite(best.get('n')):
    at = best['n_predicted']
    marks.whisker(axes, at, best['low'], best['high'], INK, width=2.4)
    values += [best['low'], best['high']]
    mark = marks.diamond(
      axes, best['n'], best['loss'], INK, hollow=True, size=10
    )
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
