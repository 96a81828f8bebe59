"""Figures of the law: the best N and D against compute, and the exponents.

Each function draws one figure on the axes it is given.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from bigdl.scaling import canvas as canvas_lib
from bigdl.scaling import captions, marks
from bigdl.scaling.canvas import INK, MUTED, PAPER, Canvas
from bigdl.scaling.findings import (
  TITLES,
  View,
  band,
  finite,
  fixed,
  power,
  raised,
  si,
)

_DASHES = {'envelope': (1.2, 2.2), 'isoflop': (5, 2.2), 'parametric': ()}


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
  c = marks.spaced(first, last)
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
  _allocated(view, canvas, axes, what)
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


def _allocated(view, canvas, axes, what):
  """Draws and names the optima of budgets beyond the sweep."""
  for row in view.allocation:
    if not finite(row[what]):
      continue
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
      xytext=(-5, 5),
      textcoords='offset points',
      ha='right',
      fontsize=canvas_lib.TICK - 0.5,
      color=INK,
      bbox={'facecolor': PAPER, 'edgecolor': 'none', 'pad': 0.8, 'alpha': 0.8},
    )


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
  palette = marks.Palette(view)
  cost = view.fitted('isoflop').cost if view.stands('isoflop') else None
  for m in view.minima:
    budget = view.budget(m['budget'])
    color, c = palette.of(budget), m.get('c') or m['budget']
    low, high = m.get('n_low'), m.get('n_high')
    if what == 'd' and finite(low) and finite(high) and cost is not None:
      low, high = cost.units(high, c), cost.units(low, c)
    if what == 'n' or cost is not None:
      marks.whisker(axes, c, low, high, color)
    mark = marks.diamond(axes, c, m[what], color, hollow=budget in view.held)
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
    mark = marks.diamond(axes, best['c'], found, color, hollow=True)
    canvas.tip(mark, f'held out, found: {what.upper()} {si(found)}')


def both(view: View, canvas: Canvas, axes: Any) -> None:
  """The best N and the best D against C on one axis, for the overview."""
  first, last = _extent(view)
  c = marks.spaced(first, last)
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


def exponents(view: View, canvas: Canvas, axes: Any) -> None:
  """The exponent a by approach and under every FLOPs convention."""
  rows = captions.exponent_rows(view)
  height = len(rows)
  values = [x for r in rows for x in (r.low, r.a, r.high) if finite(x)]
  low, high = min([*values, 0.47]), max([*values, 0.53])
  pad = 0.08 * (high - low)
  axes.grid(False, axis='y')
  axes.axvline(0.5, color=MUTED, linewidth=0.9, dashes=(1, 2.5), zorder=1)
  for y, row in enumerate(reversed(rows)):
    _exponent(canvas, axes, y, row)
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


def _exponent(canvas, axes, y, row):
  """Draws one line of the exponents, or a heading."""
  head = not finite(row.a)
  color = INK if row.main else MUTED
  words = [(row.name, 0, -112, 'left', MUTED if head else INK)]
  if head:
    words.append((row.note, 0, 4, 'left', MUTED))
  else:
    words.append((fixed(row.a), 1, 0, 'right', color))
    (line,) = axes.plot(
      [row.low, row.high],
      [y, y],
      color=color,
      linewidth=2.6 if row.main else 1.4,
    )
    canvas.tip(line, f'{row.name}: a = {row.text}')
    axes.plot([row.a], [y], 'o', color=color, markersize=6, zorder=4)
  for word, x, offset, side, shade in words:
    axes.annotate(
      word,
      (x, y),
      xycoords=('axes fraction', 'data'),
      xytext=(offset, 0),
      textcoords='offset points',
      ha=side,
      va='center',
      fontsize=canvas_lib.TICK,
      color=shade,
    )
