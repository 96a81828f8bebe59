"""The sentences of a report, generated from the law's numbers."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import math
from typing import Any

from bigdl.scaling.findings import (
  APPROACHES,
  CONVENTIONS,
  PARAMS,
  TITLES,
  View,
  decimals_for,
  finite,
  fixed,
  percent,
  plural,
  power,
  raised,
  sentences,
  si,
)


def span(low: Any, high: Any, words: Callable[[Any], str] = si) -> str:
  """Formats an interval, or '' where it is not known."""
  if not (finite(low) and finite(high)):
    return ''
  # A space that breaks no line keeps both ends together.
  return f'[{words(low)},\u00a0{words(high)}]'


def exponent(view: View, key: str, name: str = '') -> str:
  """Formats an exponent with its interval: `0.49 [0.45, 0.53]`."""
  name = name or view.primary
  ends = view.interval(name, key)
  value = view.part(name)['exponents'][key]
  decimals = decimals_for(ends)
  text = fixed(value, decimals)
  if ends is None:
    return text
  return f'{text} {span(*ends, lambda x: fixed(x, decimals))}'


def predicted_loss(view: View) -> str:
  best = view.optimum
  ends = (best.get('low'), best.get('high'))
  text = fixed(best['predicted'], 3)
  return f'{text} {span(*ends, lambda x: fixed(x, 3))}'.strip()


def held_out_loss(view: View) -> str:
  best = view.optimum
  return (
    f'held out: lowest loss {fixed(best["loss"], 4)} at N {si(best["n"])};'
    f' predicted {predicted_loss(view)} at N {si(best["n_predicted"])}'
  )


def held_out_error(view: View) -> float | None:
  """Returns predicted over found, less one, of the held-out optimum."""
  best = view.optimum
  if not best or not finite(best.get('loss')):
    return None
  return best['predicted'] / best['loss'] - 1


def allocation_tip(view: View, row: dict) -> str:
  return (
    f'C {power(row["c"])}: N {si(row["n"])}'
    f' {span(row.get("n_low"), row.get("n_high"))},'
    f' D {si(row["d"])} {span(row.get("d_low"), row.get("d_high"))},'
    f' loss {fixed(row["loss"], 3)}'
  )


def no_cells(view: View) -> str:
  if not [c for c in view.drawn() if not c['aside']]:
    return 'No run has finished with a size, data, compute and a loss.'
  return ''


def no_law(view: View) -> str:
  return '' if view.primary else 'No law was fitted: the notes say what to add.'


def no_holdout(view: View) -> str:
  if not view.primary:
    return no_law(view)
  cells = [c for c in view.drawn() if c['held'] and not c['aside']]
  if not cells or not view.holdout:
    return 'No run was left out of the fit, so that nothing tests the law.'
  return ''


def no_curves(view: View) -> str:
  if any(len(c.get('units') or ()) > 1 for c in view.curves.values()):
    return ''
  return 'No training curves are at hand for these runs.'


def no_parametric(view: View) -> str:
  if view.stands('parametric'):
    return no_cells(view)
  refused = view.part('parametric').get('refused') or 'it was not asked for'
  return f'There is no parametric law to measure runs against: {refused}.'


def no_exponents(view: View) -> str:
  return '' if any(finite(r.a) for r in exponent_rows(view)) else no_law(view)


@dataclasses.dataclass(frozen=True)
class ExponentRow:
  """One line of the exponents' figure; a heading where `a` is nan."""

  name: str
  a: float = math.nan
  low: float = math.nan
  high: float = math.nan
  main: bool = False
  note: str = ''

  @property
  def text(self) -> str:
    return f'{fixed(self.a)} {span(self.low, self.high, fixed)}'


def exponent_rows(view: View) -> list[ExponentRow]:
  rows = [ExponentRow('By approach')]
  for name in APPROACHES:
    if view.stands(name):
      a = view.part(name)['exponents']['a']
      low, high = view.interval(name, 'a') or (a, a)
      main = name == view.primary
      rows.append(ExponentRow(f'  {TITLES[name]}', a, low, high, main))
    elif view.part(name):
      rows.append(ExponentRow(f'  {TITLES[name]}', note='refused'))
  found = view.law.get('by_convention') or {}
  if found:
    rows.append(ExponentRow('By FLOPs'))
  for name in [*CONVENTIONS, *sorted(set(found) - set(CONVENTIONS))]:
    entry = found.get(name)
    if entry and finite(entry.get('a')):
      a = entry['a']
      low, high = (x if finite(x) else a for x in (entry['low'], entry['high']))
      main = name == view.flops
      rows.append(ExponentRow(f'  {name}', a, low, high, main))
  return rows


def isoflop(view: View) -> str:
  rows = view.minima
  total = len(view.part('isoflop').get('minima') or ())
  if not rows:
    drawn = [c for c in view.drawn() if not c['aside']]
    runs = plural(len(drawn), 'run')
    return (
      f'Loss of {runs} against size, a colour a budget. No budget shows a'
      ' minimum inside its sizes.'
    )
  first, last = rows[0], rows[-1]
  ratio = last['budget'] / first['budget']
  text = (
    f'At a fixed budget one size is best: N = {si(first["n"])} at C ='
    f' {power(first["budget"])}'
  )
  if len(rows) > 1:
    text += (
      f', and {si(last["n"])} at {power(last["budget"])},'
      f' {si(last["n"] / first["n"], 2)} times the size for {si(ratio, 2)}'
      ' times the compute'
    )
  text += '.'
  if len(rows) < total:
    missing = plural(total - len(rows), 'budget')
    text += (
      f' {missing} {"shows" if total - len(rows) == 1 else "show"} no minimum.'
    )
  if view.held:
    text += ' Ink: the optimum that the law sees. ' + (
      'Hollow: runs that were predicted, and then fitted too.'
      if view.refitted
      else 'Dashed: what the law predicted for the held-out runs (hollow)'
      ' before it saw them.'
    )
  return text


def holdout(view: View) -> str:
  rows = view.holdout.get('rows') or []
  error = held_out_error(view)
  best = view.optimum
  parts = []
  if error is not None:
    side = 'above' if error > 0 else 'below'
    where = 'inside' if best.get('inside') else 'outside'
    parts.append(
      f'The lowest loss was predicted {percent(abs(error))} {side} the one'
      f' found ({fixed(best["predicted"])} against {fixed(best["loss"])}),'
      f' {where} its {view.level} interval (bar).'
    )
  elif reason := (view.holdout.get('optimum') or {}).get('refused'):
    parts.append(f'The lowest loss is not known: {reason}.')
  if rows:
    inside = sum(bool(r['inside']) for r in rows)
    parts.append(
      f'{inside} of {plural(len(rows), "run")} fell inside their {view.level}'
      f' intervals, {percent(view.holdout["mean_rel_error"])} off on'
      ' average.'
    )
  held = [c for c in view.drawn() if c['held'] and not c['aside']]
  errors = sorted(c['loss_se'] for c in held if finite(c.get('loss_se')))
  if errors:
    parts.append(
      'The standard error of a loss over its held-out data, most of which moves'
      f' all runs alike, is {errors[len(errors) // 2]:.2g} and is not drawn.'
    )
  return ' '.join(parts)


def _growth(view: View, key: str, letter: str, noun: str) -> str:
  text = (
    f'The best {noun} grows as {letter} ∝ C to the power {exponent(view, key)}'
    f' ({TITLES[view.primary]}; band: {view.level} interval).'
  )
  others = [n for n in APPROACHES if view.stands(n) and n != view.primary]
  if others:
    named = [f'{TITLES[n]} {exponent(view, key, n)}' for n in others]
    text += f' By the other approaches: {sentences(named)}.'
  return text


def n_opt(view: View) -> str:
  return _growth(view, 'a', 'N', 'size')


def d_opt(view: View) -> str:
  text = _growth(view, 'b', 'D', 'amount of data')
  rows = view.minima
  if rows:
    first, last = rows[0], rows[-1]
    text += (
      f' That is {si(first["d"] / first["n"], 2)} {view.units} per parameter at'
      f' the smallest budget, {si(last["d"] / last["n"], 2)} at'
      f' {"the largest" if len(rows) > 1 else "that"}.'
    )
  return text


def envelope(view: View) -> str:
  text = ''
  if view.stands('parametric'):
    part = view.part('parametric')
    ends = view.interval('parametric', 'E')
    decimals = decimals_for(ends, extra=1)
    floor = fixed(part['parameters']['E'], decimals)
    given = span(*ends, lambda x: fixed(x, decimals)) if ends else ''
    text = (
      f'{"Loss" if view.primary == "parametric" else "By approach 3 loss"}'
      f' falls toward an irreducible E = {floor} {given} {view.loss_unit}. '
    )
  error = held_out_error(view)
  if error is not None:
    text += (
      f'At {power(view.optimum["c"])} FLOPs the law said'
      f' {predicted_loss(view)}; the sweep found'
      f' {fixed(view.optimum["loss"])}. '
    )
  line = 'Ink: the lowest loss that each C can buy. ' if view.primary else ''
  curves = 'Thin lines: training curves, averaged over a factor of two of data.'
  curves = '' if no_curves(view) else curves
  text = text or 'The loss of each run against its compute. '
  return f'{text}{line}{curves}'.strip()


def training(view: View) -> str:
  done = [c for c in view.cells if c.get('status') == 'finished']
  worse = [c for c in view.cells if c.get('status') == 'diverged']
  text = (
    f'{len(done)} of {plural(len(view.cells), "run")} trained to the end of'
    f' {"its" if len(done) == 1 else "their"} own schedule. Lines: loss in'
    ' training, averaged over a factor of two of data; dots: loss on held-out'
    ' data.'
  )
  if worse:
    names = sentences([c['name'] for c in worse][:4])
    text += f' {plural(len(worse), "run")} diverged: {names}.'
  return text


def exponents(view: View) -> str:
  found = view.law.get('by_convention') or {}
  values = {k: v['a'] for k, v in found.items() if finite(v.get('a'))}
  if len(values) > 1:
    (low, least), *_, (high, most) = sorted(
      values.items(), key=lambda item: item[1]
    )
    return (
      f'How FLOPs are counted moves a by {fixed(most - least)}: from'
      f' {fixed(least)} under {low} to {fixed(most)} under {high}. Bars:'
      f' {view.level} intervals.'
    )
  names = [n for n in APPROACHES if view.stands(n)]
  listed = sentences([f'{TITLES[n]} {exponent(view, "a", n)}' for n in names])
  return f'{listed}. Bars: {view.level} intervals.'


def residuals(view: View) -> str:
  offs = []
  for cell in view.drawn():
    predicted = view.predicted(cell)
    if predicted and not cell['aside'] and not cell['held']:
      offs.append((abs(cell['loss'] / predicted - 1), cell['name']))
  if not offs:
    return ''
  worst, name = max(offs)
  fitted = (
    'predicted before they were fitted' if view.refitted else 'not fitted'
  )
  middle = sorted(o for o, _ in offs)[len(offs) // 2]
  return (
    f'Fitted runs lie {percent(middle)} from the surface in the median and'
    f' {percent(worst)} at most ({name}). Shaded: one standard deviation of a'
    f" run's noise; hollow runs were {fitted}."
  )


def overview_isoflop(view: View) -> str:
  return 'Every budget has a best size'


def overview_law(view: View) -> str:
  part = view.main['exponents']
  return f'N ∝ C{raised(part["a"])}, D ∝ C{raised(part["b"])}'


def overview_holdout(view: View) -> str:
  error = held_out_error(view)
  if error is None:
    share = view.holdout.get('mean_rel_error')
    if not finite(share):
      return 'Held out, then predicted'
    return f'Held-out runs: {percent(share)} off'
  return f'Held-out budget: predicted to {percent(abs(error))}'


def lead(view: View) -> str:
  """Says what was run, and what came of it."""
  done = [c for c in view.cells if c.get('status') in (None, 'finished')]
  text = f'{len(done)} of {plural(len(view.cells), "run")} finished'
  if view.budgets:
    ends = dict.fromkeys([power(view.budgets[0]), power(view.budgets[-1])])
    text += (
      f', at {plural(len(view.budgets), "budget")} of {" to ".join(ends)} FLOPs'
    )
  if not view.primary:
    return f'{text}. {no_law(view)}'
  text += '.'
  if view.held and view.refitted:
    named = sentences([power(b) for b in sorted(view.held)])
    text += f' C = {named} was left out, predicted, and then fitted too.'
  elif view.held:
    named = sentences([power(b) for b in sorted(view.held)])
    text += f' C = {named} was left out of the fit and predicted.'
  return f'{text} {headline(view)}'


def headline(view: View) -> str:
  """Names the approach that the headline numbers come from, and why."""
  if not view.primary:
    return no_law(view)
  reason = view.law.get('primary_reason')
  return (
    f'Headline numbers are those of the {TITLES[view.primary]} approach'
    f'{f": {reason}" if reason else ""}.'
  )


def conventions(view: View) -> str:
  """Says which counts the report uses, and what the table shows."""
  text = (
    f'This report counts C as {view.flops} and N as {view.params}'
    f' ({PARAMS.get(view.params, "as the runs give it")}).'
  )
  found = view.law.get('by_convention') or {}
  if len(found) > 1 and view.primary:
    text += (
      f' The {TITLES[view.primary]} approach was fitted again under each other'
      ' count, with N as named beside it.'
    )
  return text
