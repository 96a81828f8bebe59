"""What a fitted law found: its numbers as words, ready for figures and pages.

`View` joins law.json's dict, the table of runs and the training curves; the
functions below it turn numbers into short text. Nothing here draws.
"""

from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any, TypeGuard

import numpy as np

from bigdl.scaling import base, fit

APPROACHES = fit.APPROACHES
TITLES = {
  'envelope': 'Envelope',
  'isoflop': 'IsoFLOP',
  'parametric': 'Parametric',
}
METHODS = {
  'envelope': 'Approach 1: the best run at each compute, and a power law'
  ' through these.',
  'isoflop': 'Approach 2: a parabola in log N through each budget, and a power'
  ' law through the vertices.',
  'parametric': 'Approach 3: L(N, D) = E + A/N^α + B/D^β fitted to all runs, by'
  ' Huber loss on log L.',
}
CONVENTIONS = {
  '6N': 'Six FLOPs per parameter and token, every parameter counted.',
  '6N_nonembedding': 'Six per parameter and token, embeddings left out.',
  'matmul_causal': 'Every matrix product of a training step, as traced; '
  'attention scores count only the pairs that the causal mask keeps.',
  'matmul_full': 'Every matrix product of a training step, as traced; '
  'attention scores count all pairs.',
  'chinchilla_f': 'The per-layer sum of Appendix F of Hoffmann et al. (2022).',
  'xla': "What XLA's own cost analysis reports for the compiled step.",
}
PARAMS = {
  'total': 'every parameter',
  'nonembedding': 'embeddings and head left out',
  'nonembedding_head': 'embeddings left out, head counted',
}
_SUPERSCRIPTS = str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹')


def finite(value: Any) -> TypeGuard[float]:
  """Says whether `value` is a real number, neither nan nor infinite."""
  try:
    return math.isfinite(value)
  except (TypeError, ValueError):
    return False


def superscript(exponent: int | str) -> str:
  return str(exponent).translate(_SUPERSCRIPTS)


def raised(value: float) -> str:
  """Formats an exponent with two decimals in raised digits."""
  return superscript(f'{value:.2f}').replace('.', '·')


def power(value: Any, digits: int = 2) -> str:
  """Formats as `3.2×10¹²`; a bare power of ten loses its mantissa."""
  if not finite(value):
    return '–'
  if value == 0 or 1e-3 <= abs(value) < 1e4:
    return _plain(value, max(digits, 3))
  mantissa, exponent = f'{value:.{digits - 1}e}'.split('e')
  ten = f'10{superscript(int(exponent))}'
  return ten if float(mantissa) == 1 else f'{mantissa}×{ten}'


def si(value: Any, digits: int = 3) -> str:
  """Formats as `124M` or `1.4T`; beyond a quadrillion as a power of ten."""
  if not finite(value):
    return '–'
  # Rounding first keeps 999,999 from being written 1000k.
  value = float(f'{value:.{digits - 1}e}')
  if abs(value) >= 1e15 or 0 < abs(value) < 1e-3:
    return power(value, digits)
  for scale, suffix in ((1e12, 'T'), (1e9, 'B'), (1e6, 'M'), (1e3, 'k')):
    if abs(value) >= scale:
      return f'{_plain(value / scale, digits)}{suffix}'
  return _plain(value, digits)


def _plain(value: float, digits: int) -> str:
  """Formats with that many digits, and never as 3.2e+02."""
  return f'{float(f"{value:.{digits - 1}e}"):.{max(digits, 4)}g}'


def fixed(value: Any, decimals: int = 3) -> str:
  return f'{value:.{decimals}f}' if finite(value) else '–'


def decimals_for(
  interval: Sequence[float] | None, low: int = 2, high: int = 4, extra: int = 0
) -> int:
  """Returns the decimals that show an interval's width, and no more."""
  if not interval or not all(finite(x) for x in interval):
    return low + 1
  width = abs(interval[1] - interval[0])
  if width <= 0:
    return high
  return min(max(math.ceil(-math.log10(width)) + extra, low), high)


def percent(share: Any, digits: int = 2) -> str:
  return f'{100 * share:.{digits}g}\u00a0%' if finite(share) else '–'


def plural(count: int, noun: str, many: str = '') -> str:
  return f'{count} {noun if count == 1 else many or noun + "s"}'


def sentences(values: Sequence[str]) -> str:
  """Joins words as `a, b and c`."""
  values = list(values)
  if len(values) < 2:
    return ''.join(values)
  return f'{", ".join(values[:-1])} and {values[-1]}'


@dataclasses.dataclass(frozen=True)
class View:
  """One sweep as figures and pages see it.

  law: The dict of law.json.
  cells: One dict a run; adds `group` (its budget or None), `held` (left out
    of the fit) and `aside` (why it was set aside, or '').
  curves: Cell name to `{'step', 'units', 'loss', 'eval'}`.
  budgets: All budgets in ascending order.
  held: Those budgets that the fit did not see.
  """

  law: dict
  cells: list[dict]
  curves: dict[str, dict]
  budgets: list[float]
  held: frozenset[float]

  @classmethod
  def of(cls, law: dict, rows: list[dict], curves: dict[str, dict]) -> View:
    named = law.get('budgets') or {}
    known = sorted(
      {b for k in ('fitted', 'held_out') for b in named.get(k) or ()}
    )
    held_out = list(named.get('held_out') or ())
    held_names = {
      row['name']
      for part in (law.get('approaches') or {}).values()
      for row in (part.get('holdout') or {}).get('rows') or ()
    }
    aside = {
      entry['name']: entry['reason']
      for entry in (law.get('records') or {}).get('set_aside') or ()
    }
    cells = []
    for row in rows:
      group = _group(row, known)
      name = str(row.get('name'))
      held = name in held_names or nearest(group, held_out, 0.02) is not None
      added = {'group': group, 'held': held, 'aside': aside.get(name, '')}
      cells.append({**row, 'name': name, **added})
    cells.sort(key=lambda c: (c['group'] or 0, _key(c.get('n')), c['name']))
    groups = sorted({c['group'] for c in cells if c['group'] is not None})
    held_groups = frozenset(
      g for g in groups if all(c['held'] for c in cells if c['group'] == g)
    )
    return cls(law, cells, curves, groups, held_groups)

  def part(self, name: str) -> dict:
    return (self.law.get('approaches') or {}).get(name) or {}

  def stands(self, name: str) -> bool:
    """Says whether an approach was fitted and not refused."""
    part = self.part(name)
    return bool(part) and not part.get('refused')

  def fitted(self, name: str) -> base.Law:
    """Returns an approach as a law that can be asked."""
    return self._laws[name]

  @functools.cached_property
  def _laws(self) -> dict[str, base.Law]:
    return {k: fit.law_of(self.law, k) for k in APPROACHES if self.stands(k)}

  @property
  def primary(self) -> str:
    """The approach behind the headline; '' where none stands."""
    name = self.law.get('primary') or ''
    return name if self.stands(name) else ''

  @property
  def main(self) -> dict:
    return self.part(self.primary) if self.primary else {}

  @property
  def holdout(self) -> dict:
    return self.main.get('holdout') or {}

  @property
  def optimum(self) -> dict:
    """The held-out budget's optimum, predicted and found; {} if not known."""
    found = self.holdout.get('optimum') or {}
    return {} if found.get('refused') else found

  @property
  def allocation(self) -> list[dict]:
    return list(self.main.get('allocation') or ())

  @property
  def minima(self) -> list[dict]:
    """The budgets' minima that were accepted."""
    rows = self.part('isoflop').get('minima') or ()
    return [r for r in rows if not r.get('refused') and finite(r.get('n'))]

  @property
  def refitted(self) -> bool:
    """Whether the law was fitted to the held-out runs too, once predicted."""
    return bool((self.law.get('records') or {}).get('refitted'))

  @property
  def level(self) -> str:
    return percent(self.law.get('level') or 0.9)

  @property
  def units(self) -> str:
    return f'{self.law.get("unit") or "unit"}s'

  @property
  def flops(self) -> str:
    return (self.law.get('conventions') or {}).get('flops') or 'as given'

  @property
  def params(self) -> str:
    return (self.law.get('conventions') or {}).get('params') or 'as given'

  @property
  def c_label(self) -> str:
    return f'C, FLOPs ({self.flops})'

  @property
  def n_label(self) -> str:
    return f'N, parameters ({self.params})'

  @property
  def d_label(self) -> str:
    return f'D, {self.units}'

  @property
  def loss_unit(self) -> str:
    return self.law.get('loss_unit') or 'nats per unit'

  @property
  def loss_label(self) -> str:
    return f'loss, {self.loss_unit}'

  def budget(self, value: Any) -> float | None:
    """Returns the group that a budget written in the law belongs to."""
    return nearest(value, self.budgets, 0.05)

  def drawn(self) -> list[dict]:
    """Returns the cells whose numbers can be put on logarithmic axes."""
    keys = ('n', 'd', 'loss', 'flops')
    return [
      c for c in self.cells if all(finite(c.get(k)) and c[k] > 0 for k in keys)
    ]

  def predicted(self, cell: dict) -> float | None:
    """Returns the parametric law's loss for a cell, if there is such a law."""
    if not self.stands('parametric'):
      return None
    if not all(finite(cell.get(k)) and cell[k] > 0 for k in 'nd'):
      return None
    return float(self.fitted('parametric').loss(cell['n'], cell['d']))

  def interval(self, name: str, key: str) -> tuple[float, float] | None:
    """Returns the interval of an approach's exponent or parameter."""
    intervals = self.part(name).get('intervals') or {}
    for kind in ('exponents', 'parameters'):
      ends = (intervals.get(kind) or {}).get(key)
      if ends and all(finite(x) for x in ends):
        return ends[0], ends[1]
    return None


def nearest(value: Any, known: Sequence[float], within: float) -> float | None:
  """Returns the member of `known` closest in ratio, if within a share."""
  if not known or not finite(value) or value <= 0:
    return None
  best = min(known, key=lambda k: abs(math.log(k / value)))
  return best if abs(math.log(best / value)) <= within else None


def _key(value: Any) -> float:
  return float(value) if finite(value) else 0.0


def _group(row: dict, known: Sequence[float]) -> float | None:
  budget = row.get('budget')
  if finite(budget) and budget > 0:
    return nearest(budget, known, 0.02) or float(budget)
  return None


def band(law: base.Law, c: np.ndarray, what: str) -> tuple[Any, Any, Any]:
  """Returns N, D or loss ('n', 'd', 'loss') at optima, and interval ends."""

  def value(law):
    if what == 'loss':
      return law.best(c)
    return law.allocate(c)[what == 'd']

  if not law.draws or not len(next(iter(law.draws.values()))):
    middle = value(law)
    return middle, middle, middle
  low, high = law.interval(value)
  return value(law), low, high


def run_band(law: base.Law, n: np.ndarray, d: np.ndarray) -> tuple[Any, Any]:
  """Returns the interval that new runs fall into, smooth over sizes.

  As `Law.outcomes`, but one draw of the noise moves a whole curve.
  """
  noise = np.random.default_rng(7).standard_normal((len(law.draws['sigma']), 1))
  factor = np.exp(law.draws['sigma'][:, None] * noise)
  return law.interval(lambda again: again.loss(n, d) * factor)
