"""The page of a report: headline, findings, notes, figures, tables.

The page loads nothing: figures are SVG elements that follow its colours, light
and dark, and its policy forbids any other script than its own.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
import functools
import hashlib
from typing import Any

from bigdl.scaling import captions, figures, marks, page_style, summary, tables
from bigdl.scaling.findings import (
  APPROACHES,
  TITLES,
  View,
  decimals_for,
  finite,
  fixed,
  percent,
  plural,
  power,
  si,
)
from bigdl.scaling.tables import escape

# More notes than this are folded away.
_NOTES = 6


def render(
  view: View,
  drawn: Mapping[str, str],
  *,
  title: str,
  provenance: Mapping[str, Any],
) -> str:
  """Returns the whole page.

  Args:
    view: The sweep.
    drawn: Name of a figure to its element.
    title: Names the sweep.
    provenance: What made the runs; values may be text, numbers, dicts or lists.
  """
  body = [
    f'<p class="over">{escape(title)}</p>',
    f'<h1>{_headline(view)}</h1>',
    f'<p class="lead">{escape(captions.lead(view))}</p>',
    _cards(view),
    _equation(view),
    _notes(view),
    _figures(view, drawn),
    tables.allocation(view),
    tables.exponents(view),
    tables.conventions(view),
    tables.minima(view),
    tables.runs(view),
    tables.provenance(view, provenance),
  ]
  script = page_style.JS
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  policy = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:;"
    f" script-src 'sha256-{digest}'"
  )
  return '\n'.join(
    [
      '<!doctype html>',
      '<html lang="en"><head><meta charset="utf-8">',
      f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
      '<meta name="viewport" content="width=device-width, initial-scale=1">',
      f'<title>{escape(title)}: scaling law</title>',
      f'<style>{page_style.CSS}{_colors(view)}</style></head><body><main>',
      *(part for part in body if part),
      '</main><div id="tip" role="tooltip"></div>',
      f'<script>{script}</script></body></html>',
      '',
    ]
  )


def _colors(view: View) -> str:
  """Returns the style of the budgets' colours, light and dark."""
  palette = marks.Palette(view)
  light = ' '.join(f'--c{i}: {c};' for i, c in enumerate(palette.light))
  dark = ' '.join(f'--c{i}: {c};' for i, c in enumerate(palette.dark))
  places = [i for i, b in enumerate(view.budgets) if b in view.held]
  held = f'--held: var(--c{places[-1]});' if places else '--held: var(--ink);'
  return (
    f':root {{ {light} {held} }}\n'
    f'@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n'
  )


def _raised(letter: str, exponent: str) -> str:
  """Returns `N ∝ C` to a power, as HTML that breaks over no line."""
  return f'{letter}\u00a0∝\u00a0C<sup>{escape(exponent)}</sup>'


def _over(value: float, letter: str, exponent: float) -> str:
  """Returns a term of the parametric law, as HTML that breaks over no line."""
  number = power(value, 3)
  return f'{number}\u00a0/\u00a0{letter}<sup>{fixed(exponent)}</sup>'


def _headline(view: View) -> str:
  if not view.primary:
    return 'No law yet'
  found = view.main['exponents']
  growth = [
    _raised(letter, fixed(found[key], 2))
    for letter, key in (('N', 'a'), ('D', 'b'))
  ]
  text = ', '.join(growth)
  error = captions.held_out_error(view)
  if error is None:
    return text
  return f'{text}; held-out loss predicted to {percent(abs(error))}'


def _range(
  ends: tuple[float, float],
  value: float,
  interval: Sequence[float] | None,
  *,
  found: float | None = None,
  mark: tuple[float, str] | None = None,
) -> str:
  """Draws a value and its interval on a line from `ends[0]` to `ends[1]`."""
  start, stop = ends

  def at(x: float) -> str:
    return f'{100 * min(max((x - start) / (stop - start), 0), 1):.2f}%'

  parts = []
  if interval:
    low, high = (min(max(x, start), stop) for x in interval)
    wide = f'{100 * (high - low) / (stop - start):.2f}%'
    parts.append(('bar', f'left:{at(low)};width:{wide}', ''))
  if mark:
    parts.append(('mark', f'left:{at(mark[0])}', ''))
    parts.append(('say', f'left:{at(mark[0])}', mark[1]))
  parts.append(('at', f'left:{at(value)}', ''))
  if found is not None:
    parts.append(('found', f'left:{at(found)}', ''))
  spans = ''.join(
    f'<span class="{kind}" style="{place}">{escape(word)}</span>'
    for kind, place, word in parts
  )
  return f'<div class="range" aria-hidden="true">{spans}</div>'


def _card(title: str, big: str, said: str, more: str = '') -> str:
  """Builds a card; `title` and `said` are text, the others are HTML."""
  return (
    f'<div class="card"><h3>{escape(title)}</h3><div class="big">{big}</div>'
    f'<div>{escape(said)}</div>{more}</div>\n'
  )


def _cards(view: View) -> str:
  if not view.primary:
    return ''
  cards = [
    _exponent(view, 'a', 'N', 'Best size'),
    _exponent(view, 'b', 'D', 'Best amount of data'),
    _held_out(view),
  ]
  if view.allocation:
    row = view.allocation[0]
    n = captions.span(row['n_low'], row['n_high'])
    d = captions.span(row['d_low'], row['d_high'])
    loss = captions.span(row['loss_low'], row['loss_high'], fixed)
    cards.append(
      _card(
        f'Best at {power(row["c"])} FLOPs',
        f'{si(row["n"], 2)} on {si(row["d"], 2)}',
        f'parameters {n} on {view.units} {d}, loss {fixed(row["loss"])} {loss}',
      )
    )
  return f'<div class="cards">{"".join(cards)}</div>'


def _exponent(view: View, key: str, letter: str, title: str) -> str:
  value = view.main['exponents'][key]
  ends = view.interval(view.primary, key)
  decimals = decimals_for(ends)
  said = f'{TITLES[view.primary]}, interval not known'
  if ends:
    shown = captions.span(*ends, lambda x: fixed(x, decimals))
    said = f'{TITLES[view.primary]}, {view.level} interval {shown}'
  reach = [value, *(ends or ())]
  line = (min(0.0, *reach), max(1.0, *reach))
  return _card(
    title,
    _raised(letter, fixed(value, decimals)),
    said,
    _range(line, value, ends, mark=(0.5, '0.5')),
  )


def _held_out(view: View) -> str:
  best = view.optimum
  if not best or not finite(best.get('loss')):
    return ''
  where = 'inside' if best.get('inside') else 'outside'
  interval = [best['low'], best['high']]
  known = interval if all(map(finite, interval)) else None
  values = [best['loss'], best['predicted'], *(known or ())]
  pad = 0.15 * (max(values) - min(values)) or 0.01
  return _card(
    f'Lowest loss at {power(best["c"])} FLOPs',
    fixed(best['loss']),
    f'held out; predicted {captions.predicted_loss(view)}, found {where}'
    f' that {view.level} interval',
    _range(
      (min(values) - pad, max(values) + pad),
      best['predicted'],
      known,
      found=best['loss'],
    ),
  )


def _equation(view: View) -> str:
  """Writes the parametric law with its numbers."""
  if not view.stands('parametric'):
    return ''
  part = view.part('parametric')
  p = part['parameters']
  said = []
  for name, letter in (('E', 'E'), ('alpha', 'α'), ('beta', 'β')):
    ends = view.interval('parametric', name)
    if ends:
      decimals = decimals_for(ends)
      shown = captions.span(*ends, functools.partial(fixed, decimals=decimals))
      said.append(f'{letter} {shown}')
  lost = part.get('unidentified')
  said += [f'not identified: {", ".join(lost)}'] if lost else []
  text = (
    f'L in {view.loss_unit}, N {view.params}, D in {view.units};'
    f' {view.level} intervals: {", ".join(said)}'
  )
  headline = '' if view.primary == 'parametric' else ' (not the headline)'
  return (
    f'<div class="card equation">L(N, D) = {fixed(p["E"])}'
    f' + {_over(p["A"], "N", p["alpha"])} + {_over(p["B"], "D", p["beta"])}'
    f'<small>Parametric law{headline}. {escape(text)}</small></div>'
  )


def notes(view: View) -> list[tuple[str, str, str]]:
  """Returns all that a reader should know: kind, head and text of each.

  Kinds are 'refused', 'warning' and 'aside', in this order.
  """
  law = view.law
  entries = _unfinished(view)
  entries += [
    ('refused', f'{TITLES[name]} refused', view.part(name)['refused'])
    for name in APPROACHES
    if view.part(name).get('refused')
  ]
  for m in view.part('isoflop').get('minima') or ():
    if m.get('refused'):
      entries.append(('refused', f'C {power(m["budget"])}', m['refused']))
  aside = (law.get('records') or {}).get('set_aside') or ()
  # Runs set aside are listed for themselves below.
  known = {f'{a["name"]} {a["reason"]}' for a in aside}
  for text in law.get('warnings') or ():
    if text not in known:
      entries.append(('warning', 'Note', text))
  for name in APPROACHES:
    part = view.part(name)
    said = list(part.get('warnings') or ())
    said += [f'{f["row"]}: {f["reason"]}' for f in part.get('flagged') or ()]
    entries += [('warning', TITLES[name], text) for text in said]
  if view.primary:
    entries += [('warning', 'Note', text) for text in summary.far(law)]
  alike: dict[str, list[str]] = {}
  for a in aside:
    alike.setdefault(a['reason'], []).append(a['name'])
  for reason, names in alike.items():
    head = 'Set aside' if len(names) == 1 else f'{len(names)} set aside'
    entries.append(('aside', head, f'{", ".join(names)}: {reason}'))
  # A refusal often quotes what is said again of its parts.
  return [
    entry
    for i, entry in enumerate(entries)
    if not any(entry[2] in earlier[2] for earlier in entries[:i])
  ]


def _unfinished(view: View) -> list[tuple[str, str, str]]:
  """Returns the first thing to do where no law stands: to end the sweep."""
  over = ('finished', 'diverged', None)
  left = [c for c in view.cells if c.get('status') not in over]
  if view.primary or not left:
    return []
  text = (
    f'{len(left)} of {plural(len(view.cells), "run")} did not finish; run the'
    ' same sweep again, which trains only what is left'
  )
  return [('refused', 'Unfinished', text)]


def _notes(view: View) -> str:
  entries = notes(view)
  if not entries:
    return ''
  items = [
    f'<li class="note {kind}"><b>{escape(head)}</b>{escape(text)}</li>\n'
    for kind, head, text in entries
  ]
  shown, folded = items[:_NOTES], items[_NOTES:]
  more = ''
  if folded:
    more = (
      f'<details><summary>{len(folded)} more</summary>'
      f'<ul class="notes">{"".join(folded)}</ul></details>'
    )
  title = 'Notes' if view.primary else 'What to add'
  return f'<h2>{title}</h2><ul class="notes">{"".join(shown)}</ul>{more}'


def _figures(view: View, drawn: Mapping[str, str]) -> str:
  shown = [f for f in figures.FIGURES if f.name in drawn]
  lacking: dict[str, list[str]] = {}
  for figure in figures.FIGURES:
    if figure.name not in drawn:
      lacking.setdefault(figure.lacks(view), []).append(figure.title)
  parts = ['<h2>Figures</h2>', _key(view) if shown else '']
  if shown:
    cards = ''.join(_figure(f, view, drawn[f.name]) for f in shown)
    parts.append(f'<div class="figures">{cards}</div>')
  for reason, titles in lacking.items():
    named = ', '.join(titles)
    parts.append(
      f'<p class="quiet lacks">Not drawn: {escape(named)}. {escape(reason)}</p>'
    )
  return '\n'.join(p for p in parts if p)


def _key(view: View) -> str:
  items = []
  for i, budget in enumerate(view.budgets):
    held = budget in view.held
    items.append(
      f'<li><span class="dot{" held" if held else ""}"'
      f' style="--c: var(--c{i})"></span>{escape(power(budget))}'
      f'{", held out" if held else ""}</li>'
    )
  if not items:
    return ''
  head = f'<li class="quiet">{escape(view.c_label)}</li>'
  return f'<ul class="key">{head}{"".join(items)}</ul>'


def _figure(figure: figures.Figure, view: View, element: str) -> str:
  files = ', '.join(
    f'<a href="figures/{figure.name}.{kind}">{kind.upper()}</a>'
    for kind in ('png', 'svg')
  )
  return (
    f'<figure id="{figure.name}"><h3>{escape(figure.title)}</h3>{element}'
    f'<figcaption>{escape(figure.caption(view))}</figcaption>'
    f'<p class="files">{files}</p></figure>\n'
  )
