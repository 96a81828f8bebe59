"""From a law and a compute budget to a run: N, D, batch, rate and hours.

Batch and learning rate follow the rule of the sweep's cells where its plan is
at hand: that of DeepSeek LLM (2024; arXiv:2401.02954, equation 1), or a power
law. Otherwise they follow the Step Law (Li et al., 2025; arXiv:2503.04715,
equation 1), which was fitted for 60 M to 1 B parameters without embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import math
from typing import Any

import numpy as np

from bigdl.scaling import base, fit, summary

RULES = ('auto', 'sweep', 'step_law')
# Beyond this multiple of the largest run, a plan is warned of.
FAR = 100.0
# The Step Law's range of parameters, without embeddings.
_STEP_LAW_RANGE = (6e7, 1e9)

# Takes N and D.
Rule = Callable[[Any, Any], Any]
# Published rules, units per update and peak learning rate: those that a sweep
# follows are known again by their values.
_BATCH: dict[str, Rule] = {
  'Step Law (Li et al., 2025), 0.58 D^0.571': lambda n, d: 0.58 * d**0.571,
  'DeepSeek LLM (2024), 0.292 C^0.3271': lambda n, d: (
    0.292 * (6 * n * d) ** 0.3271
  ),
}
_RATE: dict[str, Rule] = {
  'Step Law (Li et al., 2025), 1.79 N^-0.713 D^0.307': lambda n, d: (
    1.79 * n**-0.713 * d**0.307
  ),
  'DeepSeek LLM (2024), 0.3118 C^-0.125': lambda n, d: (
    0.3118 * (6 * n * d) ** -0.125
  ),
}


def plan(
  body: Mapping[str, Any],
  compute: Sequence[float],
  *,
  peak: float,
  device: str = '',
  devices: int = 1,
  mfu: float = 0.4,
  approach: str = '',
  rule: str = 'auto',
  cells: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
  """Returns a run for each budget, with intervals, as JSON values.

  Args:
    body: The content of law.json.
    compute: FLOPs of each run, under the law's convention.
    peak: FLOP/s of one device.
    device: What the device is called.
    devices: How many devices share a run.
    mfu: The share of their peak that the run reaches.
    approach: Which of the law's approaches; '' takes its headline.
    rule: Of batch and learning rate, one of `RULES`.
    cells: The cells of the sweep's plan.json, for its own rule.
  """
  _check(compute, devices, mfu, rule)
  name = approach or body.get('primary') or ''
  law = fit.law_of(body, name) if name else None
  if law is None or law.refused:
    why = law.refused if law is not None else body.get('primary_reason')
    raise ValueError(f'the law is refused, nothing can be planned: {why}')
  own = _own(cells) if rule != 'step_law' else {}
  if rule == 'sweep' and len(own) < 2:
    raise ValueError(
      'rule=sweep needs a plan.json beside the law whose batch and learning'
      ' rate follow a power law of N and D; use --rule=step_law'
    )
  step_law = {
    'batch': next(iter(_BATCH.items())),
    'lr': next(iter(_RATE.items())),
  }
  rules = {**step_law, **own}
  runs = [
    _run(law, c, {k: r for k, (_, r) in rules.items()}, peak * devices * mfu)
    for c in sorted(compute)
  ]
  warnings = []
  for run in runs:
    run['device_hours'] = run['hours'] * devices
  low, high = _STEP_LAW_RANGE
  outside = [r['n'] for r in runs if not low <= r['n'] <= high]
  if outside and any('Step Law' in said for said, _ in rules.values()):
    sizes = ', '.join(summary.number(n) for n in outside)
    warnings.append(
      f'the Step Law was fitted for 60M to 1B parameters, not for N={sizes}'
    )
  if body.get('unit', 'token') != 'token':
    warnings.append(f'batch rules were fitted for tokens, not {body["unit"]}s')
  warnings += _far(body, runs)
  return fit.plain(
    {
      'schema': 1,
      'approach': name,
      'conventions': body['conventions'],
      'unit': body['unit'],
      'level': law.level,
      'device': device,
      'devices': devices,
      'peak_flops': peak,
      'mfu': mfu,
      'rule': {k: said for k, (said, _) in rules.items()},
      'runs': runs,
      'warnings': warnings,
    }
  )


def _check(compute, devices, mfu, rule):
  if not compute:
    raise ValueError('compute=() must hold at least one number of FLOPs')
  for c in compute:
    if not (math.isfinite(c) and c > 0):
      raise ValueError(f'compute={c} must be a positive number of FLOPs')
  if devices < 1:
    raise ValueError(f'devices={devices} must be at least 1')
  if not 0 < mfu <= 1:
    raise ValueError(f'mfu={mfu} must be above 0 and at most 1')
  if rule not in RULES:
    raise ValueError(f'rule={rule!r} must be one of {", ".join(RULES)}')


def _far(body, runs) -> list[str]:
  largest = body.get('largest')
  if not largest:
    return []
  return [
    f'{base.short(r["c"])} FLOPs are {r["c"] / largest:,.0f} times the largest'
    ' run of the sweep: train one in between before trusting this'
    for r in runs
    if r['c'] > FAR * largest
  ]


def _run(
  law: base.Law, c: float, rules: Mapping[str, Rule], speed: float
) -> dict[str, Any]:
  run = fit.allocation(law, c)

  def steps(n, d):
    return d / rules['batch'](n, d)

  for name, rule in (*rules.items(), ('steps', steps)):
    low, high = law.interval(_after(rule, c))
    run |= {name: rule(run['n'], run['d'])}
    run |= {f'{name}_low': low, f'{name}_high': high}
  # Compute is given, so that hours are as sure as the utilisation is.
  return run | {'hours': c / speed / 3600}


def _after(rule: Rule, c: float) -> Callable[[base.Law], Any]:
  return lambda law: rule(*law.allocate(c))


def _own(cells) -> dict[str, tuple[str, Rule]]:
  """Returns the rules of batch and rate that a sweep's cells follow, if any.

  Batches of a sweep are rounded to powers of two of rows; rates to four digits.
  """
  names = ('n', 'd', 'lr', 'steps')
  try:
    table = np.array([[float(c[k]) for k in names] for c in cells])
  except (KeyError, TypeError, ValueError):
    return {}
  if len(table) < 6 or not (np.isfinite(table) & (table > 0)).all():
    return {}
  n, d, lr, steps = table.T
  half = math.log(2) / 2 + 0.02
  found = {
    'batch': _known(_BATCH, n, d, d / steps, half),
    'lr': _known(_RATE, n, d, lr, 0.001),
  }
  return {k: v for k, v in found.items() if v is not None}


def _known(rules, n, d, values, allowed) -> tuple[str, Rule] | None:
  """Returns the published rule that values follow, or a power law of theirs."""
  for said, rule in rules.items():
    if np.abs(np.log(rule(n, d) / values)).max() <= allowed:
      return f"the sweep's, {said}", rule
  k = _powers(n, d, values, 1.5 * allowed)
  if k is None:
    return None
  said = f"the sweep's, {math.exp(k[0]):.3g}"
  said += f' N^{k[1]:.3g} D^{k[2]:.3g}' if k[1:].any() else ''
  return said, lambda n, d: np.exp(k[0]) * n ** k[1] * d ** k[2]


def _powers(n, d, values, allowed) -> np.ndarray | None:
  """Returns log factor and powers of N and D that give `values`, if any do.

  The fewest powers that meet all values are taken: a constant, a power of N D,
  then one of each, for what is not needed only carries rounding far out.
  """
  x, z, logs = np.log(n), np.log(d), np.log(values)
  one = np.ones_like(x)
  for columns in ([one], [one, x + z], [one, x, z]):
    design = np.column_stack(columns)
    k = np.linalg.lstsq(design, logs, rcond=None)[0]
    limit = 0.01 if len(columns) == 1 else allowed
    if np.abs(design @ k - logs).max() <= limit:
      k = np.array([*k, 0.0, 0.0])
      power_n = k[1]
      power_d = k[1] if len(columns) == 2 else k[2]
      return np.array([k[0], power_n, power_d])
  return None


def text(plan: Mapping[str, Any]) -> str:
  """Returns the plan as a table for a terminal."""
  level = f'{plan["level"]:.0%}'
  unit = plan['unit']
  lines = [
    f'{plan["approach"]} law; C: FLOPs ({plan["conventions"]["flops"]}),'
    f' N: parameters ({plan["conventions"]["params"]}), {level} intervals',
    summary.wrap(f'batch: {plan["rule"]["batch"]}'),
    summary.wrap(f'learning rate: {plan["rule"]["lr"]}'),
    f'{plan["devices"]} x {plan["device"]}, peak'
    f' {base.short(plan["peak_flops"])} FLOP/s each, MFU {plan["mfu"]:.0%}',
  ]
  for run in plan['runs']:
    ends = {
      k: summary.ends((run[f'{k}_low'], run[f'{k}_high']))
      for k in ('n', 'd', 'batch', 'steps')
    }
    lr = summary.ends((run['lr_low'], run['lr_high']), '.2e')
    loss = summary.ends((run['loss_low'], run['loss_high']), '.3f')
    rows = [
      ['N', summary.number(run['n']), ends['n'], 'parameters'],
      ['D', summary.number(run['d']), ends['d'], f'{unit}s'],
      ['loss', f'{run["loss"]:.3f}', loss, f'nats per {unit}'],
      ['batch', summary.number(run['batch']), ends['batch'], f'{unit}s'],
      ['steps', summary.number(run['steps']), ends['steps'], ''],
      ['lr', f'{run["lr"]:.2e}', lr, ''],
      ['time', _hours(run['hours']), '', _device_hours(run, plan)],
    ]
    lines += ['', f'{base.short(run["c"])} FLOPs', summary.table(rows)]
  if plan['warnings']:
    lines.append('')
    lines += [summary.wrap(f'note: {w}') for w in plan['warnings']]
  return '\n'.join(lines) + '\n'


def _hours(hours: float) -> str:
  if hours < 1:
    return f'{hours * 60:.3g} min'
  return f'{hours:.3g} h' if hours < 1000 else f'{hours / 24:,.0f} days'


def _device_hours(run, plan) -> str:
  hours = run['device_hours']
  shown = f'{hours:,.0f}' if hours >= 100 else f'{hours:.3g}'
  return f'{shown} {plan["device"]} hours'
