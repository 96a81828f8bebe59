"""From a table of runs to law.json: three approaches, and how they fared.

The runs are those of `records.load`. The largest budget is left out of every
fit, predicted, then compared; allocations are given beyond the largest compute.
The result is a dict of JSON values, the same for the same runs and seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import special

from bigdl.scaling import base, envelope, isoflop, parabola, parametric
from bigdl.scaling import bootstrap as resampling
from bigdl.scaling import holdout as holdout_lib
from bigdl.scaling import records as records_lib

SCHEMA = 1
APPROACHES = ('envelope', 'isoflop', 'parametric')
_LAWS: dict[str, type[base.Law]] = {
  'envelope': envelope.EnvelopeLaw,
  'isoflop': isoflop.IsoflopLaw,
  'parametric': parametric.ParametricLaw,
}
# Exponents under other conventions need no more resamples than this.
_CONVENTION_DRAWS = 400


def fit(
  records: pd.DataFrame,
  *,
  convention: str = '',
  params: str = '',
  level: float = 0.9,
  bootstrap: int = 1000,
  seed: int = 0,
  holdout: int = 1,
  refit: bool = False,
  approaches: Sequence[str] = APPROACHES,
  curves: pd.DataFrame | None = None,
  factors: Sequence[float] = (10.0, 100.0, 1000.0),
  allocate: Sequence[float] = (),
  predict: Sequence[tuple[float, float]] = (),
  delta: float = 1e-3,
) -> dict[str, Any]:
  """Returns the content of law.json.

  Args:
    records: The table of `records.load`. Rows where its column `held_out` is
      true, if it has one, are left out in place of the top budgets.
    convention: Which FLOPs count is C; '' takes that of the table.
    params: Which parameter count is N; '' takes that of the table.
    level: Of all intervals.
    bootstrap: Resamples behind each interval.
    seed: Of the resamples.
    holdout: How many of the largest budgets are left out and predicted.
    refit: Whether, once they are predicted, the law is fitted to them too.
    approaches: Some of envelope, isoflop and parametric.
    curves: Training curves for the envelope (see `envelope.Envelope`).
    factors: Allocations are given at these multiples of the largest compute,
    allocate: or, if there are any, at these numbers of FLOPs.
    predict: N and D of runs whose loss is predicted, noise included.
    delta: Where Huber's loss turns from square to linear.
  """
  _check(level, bootstrap, approaches, (*factors, *allocate, delta))
  convention = convention or records.attrs.get('flops', 'as given')
  params = params or records.attrs.get('params', 'as given')
  table = records_lib.under(records, convention, params)
  kept, aside = records_lib.split(table)
  held, warnings = _held(kept, holdout)
  options = {'level': level, 'bootstrap': bootstrap, 'seed': seed}
  estimators = _estimators(options, curves, delta)
  seen = kept[~held].reset_index(drop=True)
  unseen = kept[held].reset_index(drop=True)
  laws, bodies = {}, {}
  for name in approaches:
    law = estimators[name].fit(seen)
    score = None
    if len(unseen) and not law.refused:
      score = holdout_lib.score(law, unseen, kept, seed)
    if refit and len(unseen):
      law = estimators[name].fit(kept)
    laws[name] = law
    bodies[name] = {
      **law.to_json(),
      'holdout': score,
      'allocation': _allocation(law, kept, factors, allocate),
      'predictions': _predictions(law, predict, seed),
    }
  rehearsal = _rehearse(laws, seen, delta)
  primary, reason, lack = _primary(laws, rehearsal)
  body = {
    **_head(records, kept, aside, held, refit),
    'schema': SCHEMA,
    **options,
    'conventions': {'flops': convention, 'params': params},
    'approaches': bodies,
    'primary': primary,
    'primary_reason': reason,
    'rehearsal': rehearsal,
    'by_convention': {},
    'truth': _truth(records.attrs.get('entropy'), laws),
    'warnings': warnings + _odd(records, kept, aside) + lack,
  }
  if primary:
    names = set((kept if refit else seen)['name'])
    body['by_convention'] = _by_convention(
      table, names, convention, params, primary, laws, options
    )
  return plain(body)


def _head(records, kept, aside, held, refit) -> dict[str, Any]:
  """Returns what law.json says of the runs."""
  unit = records.attrs.get('unit', 'token')
  fitted = kept if refit else kept[~held]
  return {
    'unit': unit,
    'loss_unit': f'nats per {unit}',
    'records': {
      'total': len(records),
      'fitted': len(fitted),
      'held_out': int(held.sum()),
      'refitted': bool(refit and held.any()),
      'set_aside': aside,
    },
    'budgets': {
      'fitted': records_lib.budgets(fitted),
      'held_out': records_lib.budgets(kept[held]),
    },
    'largest': float(kept['flops'].max()) if len(kept) else None,
  }


def _odd(records, kept, aside) -> list[str]:
  """Returns warnings of runs set aside or contradictory."""
  odd = records_lib.contradictory(kept)
  warnings = [f'{o["row"]}: {o["reason"]}' for o in odd]
  warnings += [f'{a["name"]} {a["reason"]}' for a in aside]
  if records.attrs.get('grouped'):
    warnings.append(
      'no budget column is named: runs within'
      f' {records_lib.SAME_BUDGET - 1:.0%} of compute were grouped'
    )
  return warnings


def law_of(body: Mapping[str, Any], name: str = '') -> base.Law:
  """Returns an approach of a law.json (its primary one if '') as a Law."""
  name = name or body.get('primary') or ''
  parts = body.get('approaches') or {}
  if name not in parts:
    known = ', '.join(parts) or 'none'
    raise ValueError(f'approach={name!r} is not in the law; it has {known}')
  return _LAWS[name].from_json(parts[name])


def _check(level, bootstrap, approaches, numbers):
  if not 0.5 <= level < 1:
    raise ValueError(f'level={level} must be between 0.5 and 1')
  least = round(4 / (1 - level))
  if bootstrap < least:
    raise ValueError(
      f'bootstrap={bootstrap} must be at least {least} for intervals at {level}'
    )
  for name in approaches:
    if name not in APPROACHES:
      raise ValueError(
        f'approach={name!r} must be one of {", ".join(APPROACHES)}'
      )
  for value in numbers:
    if not (math.isfinite(value) and value > 0):
      raise ValueError(
        f'{value} among factors, allocate and delta must be a positive number'
      )


def _estimators(options, curves=None, delta=1e-3) -> dict[str, base.Estimator]:
  return {
    'envelope': envelope.Envelope(**options, curves=curves),
    'isoflop': isoflop.Isoflop(**options),
    'parametric': parametric.Parametric(**options, delta=delta),
  }


def _held(kept: pd.DataFrame, holdout: int) -> tuple[np.ndarray, list[str]]:
  """Returns which runs are left out of the fit, and warnings."""
  none = np.zeros(len(kept), bool)
  if 'held_out' in kept:
    held = kept['held_out'].to_numpy(bool)
    if held.all() or not held.any():
      word = 'every' if held.all() else 'no'
      return none, [
        f'the holdout condition holds for {word} run: none is left out'
      ]
    return held, []
  budgets = records_lib.budgets(kept)
  if holdout < 1:
    return none, ['no budget is left out of the fit: nothing tests the law']
  if not budgets:
    return none, [
      'no run has a budget: nothing is left out; name runs to predict with'
      " --holdout='C >= 1e21' or the like"
    ]
  if len(budgets) - holdout < 3:
    if len(budgets) < 3:
      return none, []
    spare = len(budgets) - 3
    if not spare:
      return none, [
        f'all {len(budgets)} budgets are needed for the fit: none is left to'
        ' predict; add a larger one'
      ]
    holdout = spare
  return kept['budget'].isin(budgets[-holdout:]).to_numpy(), []


def allocation(law: base.Law, c: float) -> dict[str, Any]:
  """Returns N, D and loss at the optimum of `c` FLOPs, with intervals."""
  n, d = law.allocate(c)
  body = {'c': c, 'n': n, 'd': d, 'loss': law.best(c)}
  ends = {
    'n': law.interval(lambda law: law.allocate(c)[0]),
    'd': law.interval(lambda law: law.allocate(c)[1]),
    'loss': law.interval(lambda law: law.best(c)),
  }
  for name, (low, high) in ends.items():
    body |= {f'{name}_low': low, f'{name}_high': high}
  return body


def _predictions(law, runs, seed) -> list[dict[str, Any]]:
  if law.refused or not runs:
    return []
  n, d = np.array(runs, float).T
  low, high = resampling.interval(law.outcomes(n, d, seed), law.level)
  loss = law.loss(n, d)
  names = ('n', 'd', 'loss', 'low', 'high')
  rows = zip(n, d, loss, low, high, strict=True)
  return [dict(zip(names, row, strict=True)) for row in rows]


def _allocation(law, kept, factors, allocate) -> list[dict[str, Any]]:
  if law.refused:
    return []
  if allocate:
    return [allocation(law, c) for c in sorted(allocate)]
  largest = float(kept['flops'].max())
  budgets = records_lib.budgets(kept)
  # Nominal budgets are rounder numbers than the compute of a cell.
  if budgets and abs(math.log(budgets[-1] / largest)) < 0.25:
    largest = budgets[-1]
  return [allocation(law, largest * f) for f in sorted(factors)]


def _truth(entropy, laws) -> dict[str, Any] | None:
  """Compares the fitted E with the entropy of data that know theirs."""
  full = laws.get('parametric')
  if entropy is None or full is None or full.refused:
    return None
  body = full.to_json()
  low, high = body['intervals']['parameters']['E']
  return {
    'E': entropy,
    'found': body['parameters']['E'],
    'low': low,
    'high': high,
    'inside': low <= entropy <= high,
  }


def _rehearse(laws, seen, delta) -> dict[str, Any]:
  """Lets approaches 2 and 3 predict the largest budget of the fit.

  Each is fitted to the budgets below it; the error is that of the predicted
  lowest loss over the one that its parabola shows, less 1. Empty where one of
  them does not stand or too few budgets would be left.
  """
  both = [laws[k] for k in ('isoflop', 'parametric') if k in laws]
  if len(both) < 2 or any(law.refused for law in both):
    return {}
  budgets = records_lib.budgets(seen)
  if len(budgets) < 4:
    return {}
  top = parabola.fit_all(seen[seen['budget'] == budgets[-1]])
  if not top or top[0].refused:
    return {}
  below = seen[seen['budget'] < budgets[-1]].reset_index(drop=True)
  # No interval is asked for, so few resamples do.
  options = {'level': 0.9, 'bootstrap': 40, 'seed': 0}
  estimators = _estimators(options, delta=delta)
  errors = {}
  for name in ('isoflop', 'parametric'):
    law = estimators[name].fit(below)
    if law.refused:
      return {}
    errors[name] = float(law.best(top[0].c)) / top[0].minimum - 1
  return {'budget': budgets[-1], 'errors': errors}


def _primary(laws, rehearsal) -> tuple[str | None, str, list[str]]:
  """Chooses the approach behind the headline: name, reason, warnings."""
  stands = {k: v for k, v in laws.items() if not v.refused}
  full, rows = stands.get('parametric'), stands.get('isoflop')
  errors = {k: abs(v) for k, v in rehearsal.get('errors', {}).items()}
  if errors and errors['parametric'] > max(2 * errors['isoflop'], 0.01):
    return (
      'isoflop',
      f'from the smaller budgets it predicts {base.short(rehearsal["budget"])} to'
      f' {errors["isoflop"]:.1%}, the parametric approach to'
      f' {errors["parametric"]:.1%}',
      [],
    )
  if full is not None and rows is not None and rows.noise.freedom:
    ratio = (full.noise.sigma / max(rows.noise.sigma, 1e-9)) ** 2
    chance = special.fdtrc(full.noise.freedom, rows.noise.freedom, ratio)
    if chance < 0.001 and full.noise.sigma > 1e-4:
      return (
        'isoflop',
        'the parametric form does not hold here',
        [
          'the parametric form does not hold here: it misses the runs by'
          f' {full.noise.sigma:.2%}, parabolas by {rows.noise.sigma:.2%}'
        ],
      )
  if full is not None:
    weak = set(full.facts['unidentified']) & {'alpha', 'beta'}
    if full.facts['converged'] and not weak:
      return 'parametric', 'it uses every run and predicts any N and D', []
    why = (
      f'the parametric fit does not identify {" and ".join(sorted(weak))}'
      if weak
      else 'the parametric fit did not converge'
    )
    for name in ('isoflop', 'envelope'):
      if name in stands and not stands[name].facts.get('unidentified'):
        return name, why, []
    return 'parametric', f'no approach is better, though {why}', []
  for name in ('isoflop', 'envelope'):
    if name in stands:
      given = 'is refused' if 'parametric' in laws else 'was not asked for'
      return name, f'the parametric approach {given}', []
  return None, 'every approach is refused', []


def _by_convention(table, names, main, params, primary, laws, options):
  """Refits the primary approach under each FLOPs convention."""
  options = {
    **options,
    'bootstrap': min(options['bootstrap'], _CONVENTION_DRAWS),
  }
  out = {main: _exponents(laws[primary], params, primary)}
  for name in records_lib.conventions(table):
    if name == main:
      continue
    counted = params
    if name == '6N_nonembedding' and 'params_nonembedding' in table:
      # Kaplan's C and Kaplan's N go together.
      counted = 'nonembedding'
    other = records_lib.under(table, name, counted)
    rows = records_lib.split(other)[0]
    rows = rows[rows['name'].isin(names)].reset_index(drop=True)
    law = _estimators(options)[primary].fit(rows)
    if not law.refused:
      out[name] = _exponents(law, counted, primary)
  return out


def _exponents(law, params, approach) -> dict[str, Any]:
  low, high = law.interval(lambda law: law.exponents()['a'])
  found = law.exponents()
  return {
    'a': found['a'],
    'b': found['b'],
    'low': low,
    'high': high,
    'params': params,
    'approach': approach,
  }


def plain(value: Any) -> Any:
  """Returns JSON values: 12 digits, which rounding errors do not reach."""
  if isinstance(value, Mapping):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(v) for v in value]
  if isinstance(value, np.ndarray):
    return plain(value.tolist())
  if isinstance(value, (bool, np.bool_)):
    return bool(value)
  if isinstance(value, (int, np.integer)):
    return int(value)
  if isinstance(value, (float, np.floating)):
    value = float(value)
    return float(f'{value:.12g}') if math.isfinite(value) else None
  return value


def dumps(body: Mapping[str, Any]) -> str:
  """Returns law.json's text: sorted keys, rows of numbers on one line."""
  return f'{_text(body, 0)}\n'


def save(body: Mapping[str, Any], path: str | Path) -> None:
  """Writes law.json whole or not at all."""
  path = Path(path)
  part = path.with_name(f'.{path.name}.part')
  part.write_text(dumps(body))
  part.replace(path)


def _text(value: Any, depth: int) -> str:
  pad = ' ' * (depth + 1)
  if isinstance(value, Mapping) and value:
    items = [
      f'{pad}{json.dumps(k)}: {_text(value[k], depth + 1)}'
      for k in sorted(value)
    ]
    return '{\n' + ',\n'.join(items) + f'\n{" " * depth}}}'
  if isinstance(value, list) and any(
    isinstance(v, (Mapping, list)) for v in value
  ):
    items = [f'{pad}{_text(v, depth + 1)}' for v in value]
    return '[\n' + ',\n'.join(items) + f'\n{" " * depth}]'
  return json.dumps(value)
