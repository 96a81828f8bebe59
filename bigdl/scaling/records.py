"""Finished runs as one table: from a sweep's folder, or anyone's CSV.

Columns: name, status, n, d, loss, loss_se, budget, flops, then what records
carry besides (params_*, flops_*, steps, batch, lr, seed, train_loss,
bits_per_byte, seconds, device, message). n and flops are under one convention;
`under` gives the table under another.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
import csv
import difflib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bigdl.scaling import csv_units
from bigdl.scaling.cost import Cost

PARAMS = ('total', 'nonembedding', 'nonembedding_head')
FLOPS = (
  '6N',
  '6N_nonembedding',
  'matmul_causal',
  'matmul_full',
  'chinchilla_f',
  'xla',
)
# C over N D of one run over that of the others, above which it is flagged.
RUN_OFF = 3.0
# Runs within this factor of compute make a budget, where none is named.
SAME_BUDGET = 1.1

_COLUMNS = ('name', 'status', 'n', 'd', 'loss', 'loss_se', 'budget', 'flops')
_NUMBERS = ('n', 'd', 'loss', 'flops', 'budget', 'loss_se')
# What a CSV may call the column of its runs' names, where nothing is said.
_NAMES = ('run_id', 'run', 'id')
# Columns that some forms read besides.
EXTRA = ('unique', 'experts', 'lr', 'batch', 'error')
_NOUNS = {
  'n': 'parameters',
  'd': 'tokens',
  'flops': 'FLOPs',
  'unique': 'unique tokens',
  'lr': 'learning rate',
  'batch': 'batch (in tokens)',
}
_PLAIN = (
  'step',
  'steps',
  'batch',
  'lr',
  'seed',
  'train_loss',
  'bits_per_byte',
  'seconds',
  'device',
  'message',
)


def load(
  path: str | Path | pd.DataFrame,
  *,
  columns: Mapping[str, str] | None = None,
  where: str = '',
  holdout: str = '',
  needs: Sequence[str] = ('n', 'd', 'loss'),
  units: csv_units.Units = csv_units.Units(),
) -> pd.DataFrame:
  """Returns the runs of a sweep folder or of a CSV file, one row a run.

  Args:
    path: A folder that holds `cells/*/record.json`, a CSV file, or its table.
    columns: For a CSV, which of its columns is our n, d, loss, flops, budget,
      name, status or loss_se. Those not named keep our names. For a folder,
      `loss` alone: what else its runs measure, such as `error`.
    where: Keeps the rows of a CSV for which this holds, such as `C < 1e21`, in
      the file's own column names.
    holdout: Rows for which this holds are left out of the fit.
    needs: The columns, of those we know by name, that the CSV must give.
    units: What the numbers of the CSV are counted in.
  """
  if isinstance(path, pd.DataFrame):
    frame = _table(
      Path('table'), path, dict(columns or {}), where, needs, units
    )
    return _held(frame, holdout)
  path = Path(path)
  if path.is_dir():
    frame = _folder(path)
    if others := [k for k in columns or () if k != 'loss']:
      raise ValueError(
        f'{path} is a sweep folder: its columns have names, only a CSV needs'
        f' --{others[0]}'
      )
    if columns:
      frame = _measured(path, frame, columns['loss'])
  elif path.is_file():
    frame = _csv(path, dict(columns or {}), where, tuple(needs), units)
  else:
    raise ValueError(f'{path} must be a sweep folder or a CSV file of runs')
  if where and path.is_dir():
    source = frame.attrs
    frame = frame[_choose(frame, where, 'where')].reset_index(drop=True)
    frame.attrs = source
  if not len(frame):
    raise ValueError(f'{path}: no run is left (where={where!r})')
  return _held(frame, holdout)


def _measured(path: Path, frame: pd.DataFrame, name: str) -> pd.DataFrame:
  """Puts another of the measures of a sweep's runs in the place of the loss."""
  if name == 'loss':
    return frame
  known = [str(k).removesuffix('_se') for k in frame if f'{k}'.endswith('_se')]
  known = [k for k in known if k in frame]
  if name not in known:
    raise ValueError(
      f'loss={name!r} is not measured by the runs of {path}; they have'
      f' {", ".join(known)}'
    )
  frame['loss'], frame['loss_se'] = frame.pop(name), frame.pop(f'{name}_se')
  frame.attrs['loss'] = name
  return frame


def _held(frame: pd.DataFrame, holdout: str) -> pd.DataFrame:
  """Marks the runs for which a condition holds."""
  if holdout:
    attrs = frame.attrs
    frame['held_out'] = _choose(frame, holdout, 'holdout')
    frame.attrs = attrs
  return frame


def _folder(path: Path) -> pd.DataFrame:
  plan = _plan(path)
  entries = {}
  for file in sorted(path.glob('cells/*/record.json')):
    entries[file.parent.name] = _record(file)
  for cell in plan.get('cells', ()):
    name = cell.get('name')
    if name and name not in entries:
      entries[name] = {'status': 'missing', **_planned(cell)}
    elif name and entries[name].get('budget') is None:
      entries[name]['budget'] = cell.get('budget')
  if not entries:
    raise ValueError(f'{path} holds no cells/*/record.json: is it a sweep?')
  frame = pd.DataFrame([{'name': k, **v} for k, v in sorted(entries.items())])
  frame = _whole(frame)
  for key in ('n', 'flops'):
    frame[key] = np.nan
  frame.attrs['flops'] = plan.get('convention') or 'matmul_causal'
  frame.attrs['params'] = plan.get('params') or 'total'
  frame.attrs['unit'] = plan.get('unit') or 'token'
  frame.attrs['entropy'] = plan.get('entropy')
  frame = under(frame, frame.attrs['flops'], frame.attrs['params'])
  order = ['budget', 'n', 'name']
  return frame.sort_values(order, kind='stable').reset_index(drop=True)


def _plan(path: Path) -> dict[str, Any]:
  file = path / 'plan.json'
  return _json(file) if file.is_file() else {}


def _json(file: Path) -> dict[str, Any]:
  try:
    value = json.loads(file.read_text())
  except (OSError, ValueError) as error:
    raise ValueError(f'{file} cannot be read as JSON: {error}') from None
  if not isinstance(value, dict):
    raise ValueError(f'{file} must hold a JSON object')
  return value


def _planned(cell: dict[str, Any]) -> dict[str, Any]:
  body = {k: cell.get(k) for k in ('budget', 'steps', 'batch', 'lr')}
  return {**body, 'd': cell.get('d'), **_ledger(cell)}


def _ledger(record: dict[str, Any]) -> dict[str, Any]:
  return {
    f'{group}_{key}': value
    for group in ('params', 'flops')
    for key, value in (record.get(group) or {}).items()
  }


def _record(file: Path) -> dict[str, Any]:
  record = _json(file)
  body = {k: record.get(k) for k in ('status', 'loss', 'loss_se', 'budget')}
  units = record.get('units')
  body |= {k: record.get(k) for k in _PLAIN}
  more = record.get('measures') or {}
  return {**body, **more, 'd': units, **_ledger(record)}


def _csv(path, columns, where, needs, units) -> pd.DataFrame:
  _check_columns(path, _heads(path), columns, needs)
  try:
    # The first line names columns, so that data row 0 stands on line 2.
    raw = pd.read_csv(path, skip_blank_lines=False, skipinitialspace=True)
  except (ValueError, OSError) as error:
    text = ' '.join(str(error).split())
    raise ValueError(f'{path} cannot be read as CSV: {text}') from None
  return _table(path, raw, columns, where, needs, units)


def _table(path, raw, columns, where, needs, units) -> pd.DataFrame:
  """Makes runs of a CSV's table; `path` is what errors call it."""
  raw = raw.reset_index(drop=True)
  frame = raw.rename(columns=lambda name: str(name).strip())
  _check_columns(path, list(frame), columns, needs)
  frame['csv_line'] = np.arange(2, len(raw) + 2)
  frame = frame[raw.notna().any(axis=1)].reset_index(drop=True)
  if where:
    # In the file's own columns and units, before anything is made of them.
    frame = frame[_choose(frame, where, 'where')].reset_index(drop=True)
    if not len(frame):
      raise ValueError(f'{path}: no run is left (where={where!r})')
  taken = {ours: frame[theirs].copy() for ours, theirs in columns.items()}
  for ours, values in taken.items():
    frame[ours] = values
  if 'c' in frame and 'flops' not in frame and 'flops' not in columns:
    frame['flops'] = frame['c']
  if 'name' not in frame:
    own = [k for k in _NAMES if k in frame and frame[k].is_unique]
    lines = [f'line {i}' for i in frame['csv_line']]
    frame['name'] = frame[own[0]] if own else lines
  frame['name'] = frame['name'].astype(str)
  frame = _whole(frame)
  checked = tuple(dict.fromkeys((*needs, *_NUMBERS)))
  _check_numbers(path, frame, columns, checked, needs)
  frame = frame.drop(columns=[c for c in frame if str(c).endswith('_text')])
  frame = csv_units.convert(path, frame, columns, units)
  frame.attrs['params'] = 'as given'
  frame.attrs['unit'] = 'token'
  known = frame[['n', 'd']].notna().all().all()
  if frame['flops'].notna().any():
    frame.attrs['flops'] = 'as given'
  elif known:
    frame['flops'] = 6.0 * frame['n'] * frame['d']
    frame.attrs['flops'] = '6N'
  csv_units.check(path, frame, columns, units)
  frame.attrs['doubts'] = csv_units.doubts(frame, units)
  if not frame['budget'].notna().any() and frame['flops'].notna().all():
    frame = _group(frame)
  return frame


def _check_columns(path, heads, columns, needs) -> None:
  for ours, theirs in columns.items():
    if theirs not in heads:
      plain = {h.lower(): h for h in heads}
      near = difflib.get_close_matches(theirs.lower(), plain, 1)
      hint = f'did you mean {plain[near[0]]!r}? ' if near else ''
      raise ValueError(
        f'{path}: --{_flag(ours)}={theirs} names no column; {hint}it has'
        f' {", ".join(heads)}'
      )
  for ours in needs:
    if ours in columns or ours in heads or (ours == 'flops' and 'c' in heads):
      continue
    flags = ' '.join(f'--{_flag(k)}=COL' for k in needs)
    nouns = [_NOUNS.get(k, k) for k in needs]
    named = ', '.join(nouns[:-1]) + f' and {nouns[-1]}'
    raise ValueError(
      f'{path}: no column is called {_flag(ours)!r}; it has'
      f' {", ".join(heads)}: name the columns of {named} with {flags}'
    )


def _heads(path: Path) -> list[str]:
  try:
    with path.open(newline='') as file:
      heads = [h.strip() for h in next(csv.reader(file), [])]
  except (OSError, UnicodeDecodeError, csv.Error) as error:
    raise ValueError(f'{path} cannot be read as CSV: {error}') from None
  if len(heads) < 2:
    raise ValueError(
      f'{path} must be a CSV file whose first line names columns'
    )
  twice = sorted({h for h in heads if heads.count(h) > 1})
  if twice:
    raise ValueError(f'{path}: column {twice[0]!r} appears more than once')
  return heads


def _flag(ours: str) -> str:
  return {'flops': 'c'}.get(ours, ours)


def _whole(frame: pd.DataFrame) -> pd.DataFrame:
  """Adds the columns that are missing, and makes numbers of numbers."""
  if 'status' not in frame:
    frame['status'] = 'finished'
  for name in ('n', 'd', 'loss', 'loss_se', 'budget', 'flops', *EXTRA):
    if name not in frame:
      if name not in EXTRA:
        frame[name] = np.nan
    elif pd.api.types.is_numeric_dtype(frame[name]):
      frame[name] = frame[name].astype(float)
    else:
      kept = frame[name].where(frame[name].notna(), np.nan)
      frame[f'{name}_text'] = kept.map(str)
      frame[name] = pd.to_numeric(kept, errors='coerce').astype(float)
  for name in map(str, frame):
    if name.startswith(('params_', 'flops_')):
      frame[name] = pd.to_numeric(frame[name], errors='coerce').astype(float)
  known = (*_COLUMNS, *EXTRA)
  texts = [f'{c}_text' for c in known if f'{c}_text' in frame]
  rest = [c for c in frame if c not in _COLUMNS and c not in texts]
  whole = frame[[*_COLUMNS, *rest, *texts]].copy()
  whole.attrs = frame.attrs
  return whole


def _check_numbers(path, frame, columns, checked, needs) -> None:
  finished = frame['status'] == 'finished'
  for ours in checked:
    if ours not in frame:
      continue
    values = frame[ours].to_numpy(float)
    optional = ours not in needs
    if optional and f'{ours}_text' not in frame and np.isnan(values).all():
      continue
    with np.errstate(invalid='ignore'):
      wrong = ~(np.isfinite(values) & (values > 0)) & finished.to_numpy()
    if ours in ('budget', 'loss_se'):
      # A run may stand outside every budget, and an error may be unknown.
      wrong &= ~np.isnan(values)
    if wrong.any():
      text = frame.get(f'{ours}_text', frame[ours])
      shown = [
        f'{text.iloc[i]} on line {frame["csv_line"].iloc[i]}'
        for i in np.flatnonzero(wrong)[:5]
      ]
      more = f' and {wrong.sum() - 5} more' if wrong.sum() > 5 else ''
      raise ValueError(
        f'{path}: column {columns.get(ours, ours)!r} must be positive and'
        f' finite, but is {", ".join(shown)}{more}'
      )


def _group(frame: pd.DataFrame) -> pd.DataFrame:
  """Groups runs of equal compute into budgets; all or nothing."""
  order = np.argsort(frame['flops'].to_numpy(float), kind='stable')
  logs = np.log(frame['flops'].to_numpy(float)[order])
  step = np.log(SAME_BUDGET)
  groups = np.concatenate([[0], np.cumsum(np.diff(logs) > step)])
  counts = np.bincount(groups)
  spans = [np.ptp(logs[groups == g]) for g in range(len(counts))]
  if counts.min() < 3 or max(spans) > step:
    return frame
  means = np.exp([logs[groups == g].mean() for g in range(len(counts))])
  budget = np.empty(len(frame))
  budget[order] = means[groups]
  frame['budget'] = budget
  frame.attrs['grouped'] = True
  return frame


def _choose(frame: pd.DataFrame, text: str, field: str) -> np.ndarray:
  try:
    chosen = frame.eval(text, engine='python')
  except Exception as error:  # Whatever pandas makes of a user's text.
    said = ' '.join(str(error).split())
    raise ValueError(f'{field}={text!r} cannot be evaluated: {said}') from None
  chosen = np.asarray(chosen)
  if chosen.dtype != bool or chosen.shape != (len(frame),):
    raise ValueError(
      f'{field}={text!r} must be a condition on columns, such as C < 1e21'
    )
  return chosen


def conventions(frame: pd.DataFrame) -> list[str]:
  """Returns the FLOPs conventions that every finished run carries."""
  done = frame[frame['status'] == 'finished']
  return [
    k
    for k in FLOPS
    if f'flops_{k}' in done and len(done) and (done[f'flops_{k}'] > 0).all()
  ]


def under(frame: pd.DataFrame, flops: str, params: str) -> pd.DataFrame:
  """Returns the table with N and C under the conventions named."""
  frame = frame.copy()
  known = conventions(frame)
  if f'params_{params}' in frame:
    frame['n'] = frame[f'params_{params}']
  elif counted := [k for k in PARAMS if f'params_{k}' in frame]:
    raise ValueError(
      f'params={params!r} is not recorded by these runs; they have'
      f' {", ".join(counted)}'
    )
  if flops in known:
    frame['flops'] = frame[f'flops_{flops}']
  elif known:
    raise ValueError(
      f'flops={flops!r} is not recorded by all runs; they have'
      f' {", ".join(known)}'
    )
  return frame


def budgets(frame: pd.DataFrame) -> list[float]:
  """Returns the nominal budgets of a table, the lowest first."""
  return sorted(float(b) for b in frame['budget'].dropna().unique())


def split(
  frame: pd.DataFrame, needs: Sequence[str] = ('n', 'd', 'loss')
) -> tuple[pd.DataFrame, list[dict[str, str]]]:
  """Returns the runs that can be fitted, and why others were set aside."""
  reasons = [_aside(row, needs) for row in frame.to_dict('records')]
  aside = [
    {'name': str(name), 'reason': reason}
    for name, reason in zip(frame['name'], reasons, strict=True)
    if reason
  ]
  kept = frame[[not r for r in reasons]].reset_index(drop=True)
  return kept, aside


def _aside(row: Mapping[Hashable, Any], needs: Sequence[str]) -> str:
  status = row['status']
  step, steps = row.get('step'), row.get('steps')
  known = step is not None and steps is not None and step == step
  at = f' at step {step:.0f} of {steps:.0f}' if known and steps == steps else ''
  if status == 'diverged' or (
    status == 'finished' and not np.isfinite(row['loss'])
  ):
    return (
      f'diverged{at}: train it again with a lower learning rate, or leave its'
      ' size out of the sweep'
    )
  if status == 'missing':
    return 'was not started: run the sweep again to train it'
  if status != 'finished':
    return f'{status}{at}, not finished: run the sweep again to finish it'
  if any(row[k] <= 0 for k in ('n', 'd', 'loss')) or (
    needs and any(not row[k] > 0 for k in needs)
  ):
    return (
      f'records N={row["n"]}, D={row["d"]}, loss={row["loss"]}, which must be'
      ' positive: delete its folder and train it again'
    )
  if needs and not row['flops'] > 0:
    return 'records no FLOPs under this convention: choose another with --flops'
  return ''


def contradictory(frame: pd.DataFrame) -> list[dict[str, str]]:
  """Names runs whose C does not fit their N and D as the others' does."""
  if len(frame) < 3 or frame[['n', 'd', 'flops']].isna().any().any():
    return []
  n, d, c = (frame[k].to_numpy(float) for k in ('n', 'd', 'flops'))
  ratio = c / (n * d)
  off = ratio / Cost.fit(n, d, c).rate(n)
  return [
    {
      'row': str(frame['name'].iloc[i]),
      'reason': f'C = {ratio[i]:.3g} N D, {max(off[i], 1 / off[i]):.3g} times'
      f' {"more" if off[i] > 1 else "less"} than runs of its size; check its'
      ' N, D and C',
    }
    for i in np.flatnonzero((off > RUN_OFF) | (off < 1 / RUN_OFF))
  ]


def curves(path: str | Path, frame: pd.DataFrame) -> pd.DataFrame:
  """Returns held-out losses during training: name, d, loss, step.

  Of what the table has for its loss, where that is another measure.

  Of a sweep folder's `metrics.jsonl` files; runs without held-out lines but the
  last give only that.
  """
  rows = []
  key = f'eval_{frame.attrs.get("loss", "loss")}'
  for row in frame.to_dict('records'):
    file = Path(path) / 'cells' / str(row['name']) / 'metrics.jsonl'
    if not file.is_file() or not row.get('steps'):
      continue
    for line in file.read_text().splitlines():
      try:
        entry = json.loads(line)
      except ValueError:
        continue  # A line that a kill cut short.
      if entry.get(key) is not None and entry.get('step'):
        d = row['d'] * entry['step'] / row['steps']
        rows.append((row['name'], d, entry[key], entry['step']))
  return pd.DataFrame(rows, columns=['name', 'd', 'loss', 'step'])
