"""The tables of a report, as HTML.

All text that comes from runs or from the law passes through `escape`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
import html
import math
from typing import Any

import numpy as np

from bigdl.scaling import captions, marks
from bigdl.scaling.findings import (
  APPROACHES,
  CONVENTIONS,
  METHODS,
  TITLES,
  View,
  finite,
  fixed,
  percent,
  power,
  si,
)

_FACTS = {'data': 'training data', 'held_out': 'held-out data'}
_UNNAMED = 'As the table of runs gives it.'


def escape(text: Any) -> str:
  return html.escape(str(text))


def tag(text: str, tone: str = '') -> str:
  """Returns a word in a small frame."""
  kind = f'tag {tone}' if tone else 'tag'
  return f' <span class="{kind}">{escape(text)}</span>'


def _table(heads: Sequence[str], rows: Iterable[str], words: str = '') -> str:
  """Builds a sortable table; the heads named in `words` stand to the left."""
  cells = ''.join(
    f'<th scope="col" data-sort tabindex="0"'
    f'{" class=text" if not i or head in words.split(",") else ""}>'
    f'{escape(head)}</th>'
    for i, head in enumerate(heads)
  )
  return (
    f'<div class="box" tabindex="0"><table><thead><tr>{cells}</tr></thead>\n'
    f'<tbody>{"".join(rows)}</tbody></table></div>'
  )


def _row(name: str, cells: Iterable[str], more: str = '') -> str:
  """Builds a row; `name` is HTML."""
  head = f'<th scope="row" class="text">{name}</th>'
  return f'<tr{more}>{head}{"".join(cells)}</tr>\n'


def _number(value: Any, shown: str, small: str = '') -> str:
  key = repr(float(value)) if finite(value) else ''
  below = f'<small>{escape(small)}</small>' if small else ''
  return f'<td data-value="{key}">{escape(shown)}{below}</td>'


def _plain(value: Any) -> str:
  return _number(value, f'{value:.4g}' if finite(value) else '–')


def _si(value: Any) -> str:
  return _number(value, si(value))


def _prose(text: str) -> str:
  return f'<td class="prose">{escape(text)}</td>'


def _ends(row: Mapping[str, Any], key: str, words: Callable[..., str]) -> str:
  ends = row.get(f'{key}_low'), row.get(f'{key}_high')
  return _number(row[key], words(row[key]), captions.span(*ends, words))


def _ratio(row: Mapping[str, Any]) -> str:
  known = all(finite(row.get(k)) and row[k] > 0 for k in 'nd')
  value = row['d'] / row['n'] if known else math.nan
  return _number(value, si(value))


def _by_primary(view: View) -> list[str]:
  """Returns the approaches that were asked for, the headline's first."""
  asked = [name for name in APPROACHES if view.part(name)]
  return sorted(asked, key=lambda name: name != view.primary)


def _approach(view: View, name: str) -> str:
  headline = tag('headline') if name == view.primary else ''
  return f'{TITLES[name]}{headline}'


def _interval(view: View, name: str, key: str) -> str:
  low, high = view.interval(name, key) or (None, None)
  return captions.span(low, high, fixed)


def allocation(view: View) -> str:
  """What larger budgets should be spent on."""
  rows = [
    _row(
      _approach(view, name),
      [
        _number(row['c'], power(row['c'])),
        _ends(row, 'n', si),
        _ends(row, 'd', si),
        _ratio(row),
        _ends(row, 'loss', fixed),
      ],
    )
    for name in _by_primary(view)
    for row in view.part(name).get('allocation') or ()
  ]
  if not rows:
    return ''
  heads = ['approach', 'C', 'N', 'D', 'D / N', 'loss']
  return (
    '<h2>Beyond the sweep</h2><p class="quiet">The best size and amount of data'
    f' for larger budgets, and the loss to expect, with {escape(view.level)}'
    f' intervals.</p>{_table(heads, rows)}'
  )


def exponents(view: View) -> str:
  """The three approaches side by side, those refused among them."""
  rows = []
  for name in _by_primary(view):
    part = view.part(name)
    if not view.stands(name):
      cells = [_number(None, '–')] * 2 + [_plain(part.get('rows'))]
      said = f'Refused: {part.get("refused")}.'
      rows.append(_row(_approach(view, name), [*cells, _prose(said)]))
      continue
    cells = [
      _number(
        part['exponents'][key],
        fixed(part['exponents'][key]),
        _interval(view, name, key),
      )
      for key in 'ab'
    ]
    said = METHODS[name]
    rows.append(
      _row(
        _approach(view, name), [*cells, _plain(part.get('rows')), _prose(said)]
      )
    )
  if not rows:
    return ''
  heads = ['approach', 'a of N ∝ Cᵃ', 'b of D ∝ Cᵇ', 'runs', 'how']
  return (
    f'<h2>Approaches</h2><p class="quiet">{escape(captions.headline(view))}</p>'
    f'{_table(heads, rows, "how")}'
  )


def conventions(view: View) -> str:
  """What is counted as compute, and the exponents under each count."""
  found = view.law.get('by_convention') or {}
  known = CONVENTIONS if view.flops in CONVENTIONS else {}
  rows = []
  for name in [*known, *(k for k in [view.flops, *found] if k not in known)]:
    entry = found.get(name) or {}
    ends = captions.span(entry.get('low'), entry.get('high'), fixed)
    mark = tag('this report') if name == view.flops else ''
    cells = [
      _prose(CONVENTIONS.get(name, _UNNAMED)),
      f'<td class="text">{escape(entry.get("params") or "–")}</td>',
      _number(entry.get('a'), fixed(entry.get('a')), ends),
      _number(entry.get('b'), fixed(entry.get('b'))),
    ]
    rows.append(_row(f'<code>{escape(name)}</code>{mark}', cells))
  rows = list(dict.fromkeys(rows))
  heads = ['FLOPs', 'what is counted', 'N', 'a', 'b']
  return (
    '<h2>How FLOPs are counted</h2>'
    f'<p class="quiet">{escape(captions.conventions(view))}</p>'
    f'{_table(heads, rows, "what is counted,N")}'
  )


def minima(view: View) -> str:
  """The best size at every budget, and why some show none."""
  found = view.part('isoflop').get('minima') or ()
  rows = []
  for m in found:
    small = captions.span(m.get('n_low'), m.get('n_high'))
    rows.append(
      _row(
        escape(power(m['budget'])),
        [
          _number(m.get('n'), si(m.get('n')), small),
          _si(m.get('d')),
          _ratio(m),
          _number(m.get('loss'), fixed(m.get('loss'), 4)),
          _plain(m.get('cells')),
          _prose(m.get('refused') or 'inside its sizes'),
        ],
      )
    )
  if not rows:
    return ''
  heads = ['budget', 'best N', 'D', 'D / N', 'lowest loss', 'runs', 'minimum']
  return (
    '<h2>The best size at each budget</h2><p class="quiet">Vertices of the'
    f' parabolas through the fitted budgets, with {escape(view.level)}'
    f' intervals.</p>{_table(heads, rows, "minimum")}'
  )


def runs(view: View) -> str:
  """Every run, those held out and set aside among them."""
  compared = view.stands('parametric')
  heads = ['run', 'curve', 'C', 'N', 'D', 'D / N', 'loss']
  heads += ['law'] if compared else []
  heads += ['steps', 'batch', 'learning rate', 'time']
  places = {b: i for i, b in enumerate(view.budgets)}
  rows = [_run(view, cell, places, compared) for cell in view.cells]
  law = '; law: what the parametric law says of it' if compared else ''
  return (
    f'<h2>Runs</h2><p class="quiet">C in FLOPs ({escape(view.flops)}), N in'
    f' parameters ({escape(view.params)}), D in {escape(view.units)}, loss in'
    f' {escape(view.loss_unit)} on held-out data ± its standard error{law}.'
    f' A click on a head sorts.</p>{_table(heads, rows, "curve")}'
  )


def _run(view: View, cell: dict, places: dict[Any, int], compared: bool) -> str:
  place = places.get(cell['group'])
  color = 'var(--muted)' if place is None else f'var(--c{place})'
  held = ' held' if cell['held'] else ''
  name = f'<span class="dot{held}" style="--c: {color}"></span>'
  name += escape(cell['name'])
  name += tag('held out') if cell['held'] else ''
  status = cell.get('status')
  if cell['aside'] or status not in (None, 'finished'):
    word = 'set aside' if status in (None, 'finished') else str(status)
    name += tag(word, 'bad')
  loss, error = cell.get('loss'), cell.get('loss_se')
  seconds = cell.get('seconds')
  curve = view.curves.get(cell['name']) or {}
  cells = [
    f'<td class="text">{_spark(curve, color)}</td>',
    _number(cell.get('flops'), power(cell.get('flops'))),
    _si(cell.get('n')),
    _si(cell.get('d')),
    _ratio(cell),
    _number(loss, fixed(loss, 4), f'± {error:.2g}' if finite(error) else ''),
  ]
  if compared:
    predicted = view.predicted(cell)
    off = ''
    if predicted is not None and finite(loss):
      off = f'{100 * (loss / predicted - 1):+.2f} %'.replace('-', '−')
    cells.append(_number(predicted, fixed(predicted, 4), off))
  cells += [_plain(cell.get(k)) for k in ('steps', 'batch', 'lr')]
  cells.append(_number(seconds, _time(seconds)))
  return _row(name, cells, f' data-cell="{escape(cell["name"])}"')


def _time(seconds: Any) -> str:
  if not finite(seconds):
    return '–'
  if seconds < 120:
    return f'{seconds:.1f} s'
  if seconds < 7200:
    return f'{seconds / 60:.1f} min'
  return f'{seconds / 3600:.1f} h'


def _spark(curve: Mapping[str, Any], color: str) -> str:
  """Draws a training curve as a small line, log loss against log data."""
  units, losses = marks.smoothed(
    curve.get('units') or (), curve.get('loss') or ()
  )
  if len(units) < 2:
    return ''
  x, y = ((v - v.min()) / (np.ptp(v) or 1) for v in np.log([units, losses]))
  points = ' '.join(
    f'{80 * a + 2:.0f},{18 - 16 * b:.1f}' for a, b in zip(x, y, strict=True)
  )
  return (
    f'<svg class="spark" viewBox="0 0 84 20" style="--c: {color}"'
    f' aria-hidden="true"><polyline points="{points}"/></svg>'
  )


def terms(facts: Iterable[tuple[str, Any]]) -> str:
  """Returns names beside what they stand for."""
  items = ''.join(
    f'<dt>{escape(name)}</dt><dd>{escape(value)}</dd>\n'
    for name, value in facts
  )
  return f'<dl>{items}</dl>'


def provenance(view: View, facts: Mapping[str, Any]) -> str:
  """How the law was fitted, and what made the runs."""
  law, noise = view.law, (view.main.get('noise') or {}).get('sigma')
  said = [
    ('intervals', f'{view.level}, {law.get("bootstrap")} resamples'),
    ('seed of the fit', law.get('seed')),
    ('noise of a run', percent(noise) if finite(noise) else None),
    ('resampling', view.main.get('resampling')),
    *(
      (_FACTS.get(k, k.replace('_', ' ')), _words(v)) for k, v in facts.items()
    ),
  ]
  known = [(k, v) for k, v in said if v not in (None, '')]
  return f'<h2>Where the numbers come from</h2>{terms(known)}'


def _words(value: Any) -> Any:
  if isinstance(value, Mapping):
    return ', '.join(f'{k} {v}' for k, v in value.items() if v is not None)
  if isinstance(value, (list, tuple)):
    return '; '.join(str(_words(v)) for v in value)
  return value
