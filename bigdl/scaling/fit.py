"""From a table of runs to law.json: three approaches, and how they fared.

The runs are those of `records.load`. The largest budget is left out of every
fit, predicted, then compared; allocations are given beyond the largest compute.
The result is a dict of JSON values, the same for the same runs and seed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np
import pandas as pd

from bigdl.scaling import (
  base,
  bias,
  downstream,
  envelope,
  headline,
  isoflop,
  lawfile,
  parametric,
)
from bigdl.scaling import bootstrap as resampling
from bigdl.scaling import holdout as holdout_lib
from bigdl.scaling import records as records_lib
from bigdl.scaling.forms import base as forms

SCHEMA = 1
APPROACHES = ('envelope', 'isoflop', 'parametric')
_LAWS: dict[str, type[base.Law]] = {
  law.form: law
  for law in (
    envelope.EnvelopeLaw,
    isoflop.IsoflopLaw,
    isoflop.AkimaLaw,
    isoflop.WeightedLaw,
  )
}
# One run of so many is left out, the costliest, where runs have no budgets.
_TENTH = 10
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
  form: str = 'hoffmann',
  objective: str = 'huber',
  fixed: Mapping[str, float] | None = None,
  resample: str = 'auto',
  profile: bool = False,
  method: str = 'parabola',
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
    form: The equation of approach 3, one of `forms`.
    objective: What approach 3 minimises, one of `rho.NAMES`.
    fixed: Parameters of the form that are held at values.
    resample: What the bootstrap of approach 3 draws (`parametric.Parametric`).
    method: How approach 2 finds minima: parabola, akima or weighted.
    profile: Whether approach 3 gives profile-likelihood intervals too.
  """
  _check(level, bootstrap, approaches, (*factors, *allocate, delta))
  convention = convention or records.attrs.get('flops', 'as given')
  params = params or records.attrs.get('params', 'as given')
  table = records_lib.under(records, convention, params)
  equation = forms.find(form)
  needs = forms.needs(equation)
  kept, aside = records_lib.split(table, needs)
  if 'parametric' in approaches and len(kept):
    kept = equation.select(kept)
  held, warnings = _held(kept, holdout)
  options = {'level': level, 'bootstrap': bootstrap, 'seed': seed}
  shape = {
    'form': form,
    'objective': objective,
    'delta': delta,
    'fixed': dict(fixed or {}),
    'resample': resample,
  }
  whole = {**shape, 'profile': profile}
  estimators = _estimators(options, curves, whole, method)
  seen = kept[~held].reset_index(drop=True)
  unseen = kept[held].reset_index(drop=True)
  laws, bodies = {}, {}
  again = refit and bool(len(unseen))
  # What is fitted again to all runs needs no profile before.
  brief = {**options, 'bootstrap': min(bootstrap, 1000)}
  first = _estimators(brief, curves, shape, method) if again else estimators
  for name in approaches:
    law = first[name].fit(seen)
    score = None
    if len(unseen) and not law.refused:
      score = holdout_lib.score(law, unseen, kept, seed)
    if again:
      law = estimators[name].fit(kept)
    laws[name] = law
    bodies[name] = {
      **law.to_json(),
      'holdout': score,
      'allocation': _allocation(law, kept, factors, allocate),
      'predictions': _predictions(law, predict, seed),
    }
  # No interval is asked for, so few resamples do.
  few = {'level': 0.9, 'bootstrap': 40, 'seed': 0}
  quick = _estimators(few, shape=shape, method=method)
  if 'isoflop' in bodies:
    runs = kept if refit else seen
    bodies['isoflop']['bias'] = _bias(estimators['isoflop'], runs, laws, few)
  rehearsal = headline.rehearse(laws, seen, quick)
  primary, reason, lack = headline.choose(laws, rehearsal)
  body = {
    **_head(records, kept, aside, held, refit),
    'schema': SCHEMA,
    'tested': _tested(kept, held),
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
  if primary and laws[primary].allocates and kept['flops'].notna().all():
    names = set((kept if refit else seen)['name'])
    body['by_convention'] = _by_convention(
      table, names, convention, params, primary, laws, options, shape
    )
  body['downstream'] = None
  if primary and 'error' in kept and equation.target == 'loss':
    body['downstream'] = downstream.steps(
      laws[primary],
      kept if refit else seen,
      compute=[row['c'] for row in bodies[primary]['allocation']],
      predict=predict,
      seed=seed,
    )
  return lawfile.plain(body)


def _head(records, kept, aside, held, refit) -> dict[str, Any]:
  """Returns what law.json says of the runs."""
  unit = records.attrs.get('unit', 'token')
  fitted = kept if refit else kept[~held]
  return {
    'unit': unit,
    'loss_unit': f'{records.attrs.get("loss", "nats")} per {unit}',
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
    'largest': _largest(kept),
  }


def _largest(kept: pd.DataFrame) -> float | None:
  """Returns the compute of the costliest run, if any says its compute."""
  top = kept['flops'].max() if len(kept) else np.nan
  return float(top) if np.isfinite(top) else None


def _odd(records, kept, aside) -> list[str]:
  """Returns warnings of runs set aside or contradictory."""
  odd = records_lib.contradictory(kept)
  warnings = [f'{o["row"]}: {o["reason"]}' for o in odd]
  warnings += [f'{a["name"]} {a["reason"]}' for a in aside]
  warnings += records.attrs.get('doubts') or []
  if records.attrs.get('grouped'):
    warnings.append(
      'no budget column is named: runs within'
      f' {records_lib.SAME_BUDGET - 1:.0%} of compute were grouped'
    )
  return warnings


def _bias(estimator, runs, laws, few) -> dict[str, Any] | None:
  """Returns what approach 2 gets wrong on approach 3's surface, noise-free."""
  law, surface = laws['isoflop'], laws.get('parametric')
  if law.refused or surface is None or surface.refused:
    return None
  if not isinstance(surface, parametric.ParametricLaw):
    return None
  quick = dataclasses.replace(estimator, bootstrap=few['bootstrap'])
  return bias.of(quick, runs, surface, law=law)


def law_of(body: Mapping[str, Any], name: str = '') -> base.Law:
  """Returns an approach of a law.json (its primary one if '') as a Law."""
  name = name or body.get('primary') or ''
  parts = body.get('approaches') or {}
  if name not in parts:
    known = ', '.join(parts) or 'none'
    raise ValueError(f'approach={name!r} is not in the law; it has {known}')
  data = parts[name]
  if name != 'parametric':
    return _LAWS[data['form']].from_json(data)
  equation = forms.find(data['form'])
  law = type(equation.law()).from_json(data)
  if isinstance(law, forms.FormLaw):
    return dataclasses.replace(law, model=equation)
  return law


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


def _estimators(
  options, curves=None, shape=None, method='parabola'
) -> dict[str, base.Estimator]:
  return {
    'envelope': envelope.Envelope(**options, curves=curves),
    'isoflop': isoflop.Isoflop(**options, method=method),
    'parametric': parametric.Parametric(**options, **(shape or {})),
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
    return _costliest(kept)
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


def _costliest(kept: pd.DataFrame) -> tuple[np.ndarray, list[str]]:
  """Leaves out the tenth of the runs that cost most, where none has a budget."""
  none = np.zeros(len(kept), bool)
  c = kept['flops'].to_numpy(float)
  count = max(len(kept) // _TENTH, 1)
  if len(kept) < 8 or not np.isfinite(c).all() or np.ptp(c) == 0:
    return none, [
      'no run has a budget: nothing is left out; name runs to predict with'
      " --holdout='C >= 1e21' or the like"
    ]
  return c >= np.sort(c)[-count], []


def _tested(kept: pd.DataFrame, held: np.ndarray) -> float | None:
  """Returns the compute of the runs left out over that of the runs fitted."""
  c = kept['flops'].to_numpy(float)
  if not held.any() or held.all() or not np.isfinite(c).all():
    return None
  return float(c[held].max() / c[~held].max())


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
  names = ('n', 'd', law.target, 'low', 'high')
  rows = zip(n, d, loss, low, high, strict=True)
  return [dict(zip(names, row, strict=True)) for row in rows]


def _allocation(law, kept, factors, allocate) -> list[dict[str, Any]]:
  if law.refused or not law.allocates:
    return []
  if allocate:
    return [_row(law, c) for c in sorted(allocate)]
  largest = float(kept['flops'].max())
  budgets = records_lib.budgets(kept)
  # Nominal budgets are rounder numbers than the compute of a cell.
  if budgets and abs(math.log(budgets[-1] / largest)) < 0.25:
    largest = budgets[-1]
  return [_row(law, largest * f) for f in sorted(factors)]


def _row(law: base.Law, c: float) -> dict[str, Any]:
  """Returns an allocation; `low` and `high` are of its loss, as everywhere."""
  row = allocation(law, c)
  return {**row, 'low': row['loss_low'], 'high': row['loss_high']}


def _truth(entropy, laws) -> dict[str, Any] | None:
  """Compares the fitted E with the entropy of data that know theirs."""
  full = laws.get('parametric')
  if entropy is None or full is None or full.refused or full.form != 'hoffmann':
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


def _by_convention(table, names, main, params, primary, laws, options, shape):
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
    law = _estimators(options, shape=shape)[primary].fit(rows)
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
