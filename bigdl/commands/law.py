"""Fits scaling laws to a sweep's folder or to a CSV of anyone's runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from bigdl import flags, storage
from bigdl.commands import _columns

_APPROACHES = {'1': 'envelope', '2': 'isoflop', '3': 'parametric'}
# Columns that some forms read besides.
_MORE = ('unique', 'experts', 'lr', 'batch', 'error')
# What a sweep's folder in an object store is read for.
_FILES = ('plan.json', 'cells/*/record.json')
# Of one variable, which of n, d and c being left to say.
_STEMS = ('power', 'power_floor', 'saturating', 'broken')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(_columns.Columns):
  """Fits scaling laws to a sweep's folder or to a CSV of anyone's runs.

  Prints exponents, N and D for larger budgets, and how the law predicts the
  largest budget, which is left out of the fit. For a CSV whose holdout is not
  given, the law is fitted to all runs once the largest budget is predicted.
  `bigdl law compare A B` sets one law against another.
  Exit codes: 0 a law, 2 input that cannot be read, 3 no law (and why).
  """

  runs: str  # Sweep folder, or CSV file with a line a run.
  unique: str = ''  # CSV: column of unique tokens (form repeats).
  experts: str = ''  # CSV: column of the second axis (routed, bilinear).
  lr: str = ''  # CSV: column of learning rates (step_law_lr).
  batch: str = ''  # CSV: column of tokens a batch (step_law_batch).
  error: str = ''  # CSV: column of a downstream error (downstream).
  where: str = ''  # Condition on columns: which runs count.
  approach: str = 'all'  # 1 envelope, 2 isoflop, 3 parametric, or all.
  curves: bool = False  # Envelope over training curves, not finished runs.
  flops: str = ''  # FLOPs convention of C; '' is that of the sweep.
  params: str = ''  # N: total, nonembedding or nonembedding_head.
  method: str = 'parabola'  # Of approach 2: parabola, akima or weighted.
  form: str = 'hoffmann'  # Equation of approach 3; a wrong name lists all.
  objective: str = 'huber'  # huber, lad, log_mse, raw_mse or raw_huber.
  delta: float = 1e-3  # Where Huber's loss turns linear (approach 3).
  fix: str = ''  # Parameters held at values, E=1.69,alpha=0.34.
  bootstrap: int = 0  # Resamples; 0 is 1000, or 4000 for a CSV and hoffmann.
  resample: str = 'auto'  # Approach 3: runs, budgets, seeds, noise or auto.
  level: float = 0.9  # Of the intervals.
  seed: int = 0  # Of the resamples.
  holdout: str = ''  # Budgets to leave out from the top, or a condition.
  allocate: tuple[float, ...] = ()  # FLOPs to give N and D for.
  predict: str = ''  # Runs to predict the loss of, N:D,N:D.
  json: str = ''  # File to write the law to, with its primary approach on top.
  out: str = ''  # Folder to write law.json to; '' is the sweep's own.


def main(argv: list[str]) -> int:
  """Runs `bigdl law` and returns the exit code."""
  if argv[:1] == ['compare']:
    from bigdl.commands import _law_compare

    return _law_compare.main(argv[1:])
  given, _ = flags.parse(Flags, argv, verb='law', positional=('runs',))
  files = _FILES + (('cells/*/metrics.jsonl',) if given.curves else ())
  with storage.nearby(given.runs, files) as runs:
    return _law(dataclasses.replace(given, runs=str(runs)), given.runs)


def _law(given: Flags, place: str) -> int:
  """Fits, prints and writes; `place` is where the runs are, `given.runs` near."""
  # pandas takes half a second, which a message on the flags need not wait for.
  from bigdl.scaling import lawfile, summary

  law = _fit(given)
  print(summary.text(law), end='')
  sweep = Path(given.runs).is_dir()
  if given.out or (sweep and not given.json):
    folder = Path(given.out or given.runs)
    folder.mkdir(parents=True, exist_ok=True)
    # Beside the law of the loss, not in its place.
    other = given.loss if sweep and given.loss != 'loss' else ''
    file = folder / (f'law_{other}.json' if other else 'law.json')
    lawfile.save(law, file)
    shown = str(file)
    if storage.is_remote(place) and not given.out:
      shown = f'{place.rstrip("/")}/{file.name}'
      storage.send(file, shown)
    print(f'\nwritten to {shown}')
  if given.json:
    lawfile.save(flat(law), given.json)
    print(f'\nwritten to {given.json}')
  return 0 if law['primary'] else 3


def _fit(given: Flags) -> dict[str, Any]:
  from bigdl.scaling import fit, records
  from bigdl.scaling.forms import base as forms

  columns = given.columns(*_MORE)
  count, condition = _holdout(given.holdout)
  approaches = _approaches(given.approach)
  predict = _predict(given.predict)
  form = forms.find(_form(given))
  if form.name != 'hoffmann':
    if given.approach not in ('all', '3', 'parametric'):
      raise ValueError(
        f'approach={given.approach!r} has no form; leave --form={given.form}'
        ' out, or say --approach=3'
      )
    approaches = ('parametric',)
  sweep = Path(given.runs).is_dir()
  table = records.load(
    given.runs,
    columns=columns,
    where=given.where,
    holdout=condition,
    needs=forms.needs(form),
    units=given.units(),
  )
  if given.curves and not sweep:
    raise ValueError(f'curves=True needs a sweep folder, not {given.runs}')
  return fit.fit(
    table,
    convention=given.flops,
    params=given.params,
    level=given.level,
    bootstrap=given.bootstrap or _resamples(form.name, sweep),
    seed=given.seed,
    holdout=count,
    refit=not sweep and not given.holdout,
    approaches=approaches,
    curves=records.curves(given.runs, table) if given.curves else None,
    allocate=given.allocate,
    predict=predict,
    delta=given.delta,
    form=form.name,
    objective=given.objective,
    fixed=_fixed(given.fix),
    resample=given.resample,
    method=given.method,
    profile=True,
  )


def _form(given: Flags) -> str:
  """Returns the form's whole name; a stem's variable is the only one named."""
  if given.form not in _STEMS:
    return given.form
  named = [k for k in ('n', 'd', 'c') if getattr(given, k)]
  if len(named) != 1:
    raise ValueError(
      f'form={given.form!r} is a law of one variable: say --form={given.form}_n,'
      f' {given.form}_d or {given.form}_c'
    )
  return f'{given.form}_{named[0]}'


def _resamples(form: str, sweep: bool) -> int:
  """Returns how many resamples take seconds, not minutes."""
  return 4000 if not sweep and form.startswith('hoffmann') else 1000


def _fixed(text: str) -> dict[str, float]:
  found = {}
  for part in filter(None, text.split(',')):
    name, _, value = part.partition('=')
    try:
      found[name.strip()] = float(value)
    except ValueError:
      raise ValueError(
        f'fix={text!r} must be pairs NAME=VALUE, such as E=1.69,alpha=0.34'
      ) from None
  return found


def _holdout(text: str) -> tuple[int, str]:
  """Returns how many budgets are left out, or the condition for runs."""
  if not text:
    return 1, ''
  if text.lstrip('-').isdigit():
    if int(text) < 0:
      raise ValueError(f'holdout={text} must be 0 or more budgets')
    return int(text), ''
  return 0, text


def _approaches(text: str) -> tuple[str, ...]:
  names = tuple(_APPROACHES.values())
  if text == 'all':
    return names
  chosen = [_APPROACHES.get(t.strip(), t.strip()) for t in text.split(',')]
  for name in chosen:
    if name not in names:
      raise ValueError(
        f'approach={text!r} must be 1 (envelope), 2 (isoflop), 3 (parametric)'
        ' or all'
      )
  return tuple(chosen)


def _predict(text: str) -> list[tuple[float, float]]:
  runs = []
  for pair in filter(None, text.split(',')):
    try:
      n, d = (float(x) for x in pair.split(':'))
    except ValueError:
      raise ValueError(
        f'predict={text!r} must be pairs N:D, such as 7e9:1.4e11'
      ) from None
    if not (0 < n < float('inf') and 0 < d < float('inf')):
      raise ValueError(f'predict={text!r} must hold positive N and D')
    runs.append((n, d))
  return runs


def flat(law: dict[str, Any]) -> dict[str, Any]:
  """Returns the law with the fields of its headline approach on top."""
  parts = law['approaches']
  name = law['primary'] or list(parts)[-1]
  refusals = [p['refused'] for p in parts.values() if p['refused']]
  warnings = [*law['warnings'], *parts[name]['warnings'], *refusals]
  return {**parts[name], **law, 'warnings': warnings}
