"""Whether a run fits a machine, and how fast it is there: the verdict, its text."""

from __future__ import annotations

import dataclasses
from typing import Any

from bigdl.commands import _compilation
from bigdl.commands._compilation import Compiled, size
from bigdl.compiling import hlo, operations, roofline, traffic
from bigdl.experiment import Experiment
from bigdl.parallel import pipeline
from bigdl.parallel import topology as slices
from bigdl.parallel.layout import Layout
from bigdl.parallel.topology import Topology
from bigdl.scaling import count, lawfile, summary

CONVENTION = 'matmul_full'  # That an MFU is of, as PaLM's is.
# More work than was asked for: above this the compiler computes things again.
_MORE = 1.02
# What JAX takes of a GPU's memory, unless it is told otherwise.
_SHARE = 0.75


@dataclasses.dataclass(frozen=True)
class Case:
  """An experiment and the machine that it is compiled for."""

  experiment: Experiment
  topology: Topology
  spec: dict[str, Any]  # Of one row.
  config: dict[str, Any]
  flops_per_unit: dict[str, float]  # By convention.

  @property
  def rows(self) -> dict[str, Any]:
    return _compilation.rows_of(self.spec)

  @property
  def units(self) -> int:
    """Units of data in one step."""
    e = self.experiment
    return e.batch * e.objective.units(self.spec)

  @property
  def flops(self) -> dict[str, float]:
    """FLOPs of one step of all devices, by convention."""
    return {k: n * self.units for k, n in self.flops_per_unit.items()}

  def on(self, experiment: Experiment, topology: Topology | None = None):
    """Returns another experiment of the same model and data."""
    where = topology or self.topology
    return dataclasses.replace(
      self,
      experiment=experiment,
      topology=where,
      config=_config(_sliced(experiment, where)),
    )


@dataclasses.dataclass(frozen=True)
class Verdict:
  """What is known of one case once it is compiled."""

  case: Case
  compiled: Compiled
  collectives: tuple[traffic.Collective, ...]
  recomputed: float | None  # FLOPs of the program, by those that were traced.
  estimate: roofline.Estimate | None
  unresolved: tuple[str, ...] = ()  # Loops whose rounds are not known.

  def to_json(self) -> dict[str, Any]:
    wire: dict[str, int] = {}
    for key, sent in traffic.totals(list(self.collectives)).items():
      axis = key.rpartition(':')[0]
      wire[axis] = wire.get(axis, 0) + sent
    c, e = self.compiled, self.estimate
    return {
      'topology': c.topology.name,
      'devices': c.topology.devices,
      'fits': c.fits,
      'hbm_bytes': c.topology.chip.memory,
      'peak_bytes': c.peak_bytes,
      'argument_bytes': c.argument_bytes,
      'temp_bytes': c.temporary_bytes,
      'flops': self.case.flops,
      'collectives': wire,
      'step_seconds_estimate': e.seconds if e else None,
      'mfu_estimate': e.mfu if e else None,
      'compile_seconds': round(c.seconds, 3),
    }


def case(experiment: Experiment, topology: Topology) -> Case:
  """Returns the case, checked as far as it can be before it is compiled."""
  experiment = _sliced(experiment, topology)
  experiment.check()
  spec = experiment.data.spec()
  found = count.flops_per_unit(
    experiment.model, experiment.objective, spec, xla=False
  )
  known = {k: float(v) for k, v in found.items() if v is not None}
  return Case(experiment, topology, spec, _config(experiment), known)


def verdict(case: Case, compiled: Compiled) -> Verdict:
  """Reads the program that was compiled."""
  if not compiled.text:
    return Verdict(case, compiled, (), None, None)
  module = hlo.parse(compiled.text)
  place = compiled.placement
  found = tuple(traffic.collectives(module, place))
  done = operations.flops(module) * compiled.topology.devices
  estimate = None
  if compiled.fits and not (module.unresolved and _falls_short(done, compiled)):
    estimate = roofline.estimate(
      module, place, compiled.topology, model_flops=case.flops[CONVENTION]
    )
  ratio = done / compiled.product_flops if compiled.product_flops else None
  return Verdict(case, compiled, found, ratio, estimate, module.unresolved)


def _falls_short(done: float, compiled: Compiled) -> bool:
  return done * _MORE < compiled.product_flops


def text(verdict: Verdict) -> str:
  """Returns the verdict for a person."""
  c = verdict.compiled
  where, e = c.topology, verdict.case.experiment
  sizes = ' '.join(f'{k}={n}' for k, n in c.axes.items() if n > 1)
  unit = e.objective.unit
  lines = [
    f'{where.name}: {_many(where.devices, "device")} on'
    f' {_many(where.hosts, "host")}, layout {sizes or "data=1"},'
    f' {verdict.case.units:,} {unit}s a step',
    *_stages(e.layout, c.axes),
    '',
    *_memory(c),
  ]
  lines += ['', *_work(verdict)]
  if verdict.collectives:
    lines += ['', *_traffic(verdict)]
  if verdict.estimate:
    lines += ['', *_time(verdict.estimate, verdict.case, unit)]
  what = (
    'compiled whole' if c.whole else 'compiled as far as memory is laid out'
  )
  return '\n'.join([*lines, '', f'{what} in {c.seconds:.1f} s'])


def _stages(layout: Layout, axes: dict[str, int]) -> list[str]:
  """Returns how a pipeline is filled, where there is one."""
  if axes.get('pipeline', 1) == 1:
    return []
  plan = pipeline.schedule(layout, axes['pipeline'])
  return [
    f'{plan.stages} stages, {plan.microbatches} microbatches,'
    f' {_many(plan.repeats, "repeat")}: a bubble of {plan.bubble:.1%}'
  ]


def _many(count: int, what: str) -> str:
  return f'{count:,} {what}{"s" * (count != 1)}'


def _memory(c: Compiled) -> list[str]:
  limit = c.topology.chip.memory
  room = limit - c.peak_bytes
  says = 'fits, {} to spare' if c.fits else 'does not fit, {} too much'
  if c.bounded:
    says = 'fits, as the compiler says; --full tells by how much'
  rows = [
    ['memory of a device', ''],
    ['  arguments', size(c.argument_bytes)],
    ['  temporaries', size(c.temporary_bytes)],
    ['  peak, at most' if c.bounded else '  peak', size(c.peak_bytes)],
    ['  there is', size(limit)],
  ]
  lines = summary.table(rows).split('\n')
  lines[-1] += f': {says.format(size(abs(room)))}'
  if c.topology.chip.platform == 'gpu' and c.fits:
    share = c.peak_bytes / limit
    if share > _SHARE:
      lines.append(
        f'  JAX takes {_SHARE:.0%} of it: set XLA_PYTHON_CLIENT_MEM_FRACTION to'
        f' {min(0.99, share + 0.02):.2f}'
      )
  lines += [f'  {line}' for line in c.undivided]
  if not c.fits:
    lines += [f'  {line}' for line in _largest(c.report)]
  return lines


def _largest(report: str) -> list[str]:
  """Returns the largest buffers that the compiler lists."""
  rows = [line.split(';') for line in report.split('\n') if ';' in line]
  rows = [row for row in rows if len(row) == 5 and 'iB' in row[1]]
  if not rows:
    return []
  shown = [f'{row[1].strip():>10}  {row[4].strip()}' for row in rows[:5]]
  return ['largest buffers', *(f'{line[:96]}' for line in shown)]


def _work(verdict: Verdict) -> list[str]:
  devices = verdict.compiled.topology.devices
  rows = [['FLOPs of a step', 'a device', 'all']]
  for name, flops in verdict.case.flops.items():
    rows.append([f'  {name}', f'{flops / devices:.3e}', f'{flops:.3e}'])
  own = verdict.compiled.product_flops
  rows.append(['  products as traced', f'{own / devices:.3e}', f'{own:.3e}'])
  lines = summary.table(rows).split('\n')
  ratio = verdict.recomputed
  if ratio is None:
    return lines
  means = 'no more than was asked for'
  if ratio > _MORE:
    means = (
      'the compiler computes things again to save memory, or several devices do'
      ' the same work'
    )
  elif ratio < 1 / _MORE and verdict.unresolved:
    means = (
      f'it is not known how often {len(verdict.unresolved)} of its loops run, so'
      ' that no time is estimated'
    )
  elif ratio < 1 / _MORE:
    means = (
      'the compiler found products that are not needed, or kernels do them'
    )
  lines.append(f'  the compiled program does {ratio:.3f} of these: {means}')
  return lines


def _traffic(verdict: Verdict) -> list[str]:
  found = list(verdict.collectives)
  counts = traffic.counts(found)
  rows = [['sent by a device in a step', 'link', 'GB', 'of']]
  for key, sent in traffic.totals(found).items():
    axes, _, link = key.rpartition(':')
    kinds = [
      f'{n:,} {kind}'
      for kind, n in (
        (k.partition(':')[0], n)
        for k, n in counts.items()
        if k.partition(':')[2] == axes
      )
    ]
    rows.append([f'  {axes}', link, f'{sent / 1e9:.3g}', ', '.join(kinds)])
  widths = [max(len(row[i]) for row in rows) for i in range(3)]
  return [
    f'{row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:>{widths[2]}}'
    f'  {row[3]}'.rstrip()
    for row in rows
  ]


def _time(estimate: roofline.Estimate, case: Case, unit: str) -> list[str]:
  seconds = estimate.seconds
  parts = ', '.join(
    f'{name} {part:.3g} s' for name, part in estimate.parts.items() if part
  )
  speed = case.units / seconds
  lines = [
    f'estimate  {seconds:.3g} s a step, {speed:,.0f} {unit}s/s, MFU'
    f' {estimate.mfu:.1%} ({estimate.convention})',
    f'  of this: {parts}',
  ]
  steps = case.experiment.steps
  lines.append(f'  {steps:,} steps: {_clock(steps * seconds)}')
  lines.append('assuming')
  return lines + [f'  {line}' for line in estimate.assumptions]


def _clock(seconds: float) -> str:
  for name, length in (('days', 86400), ('hours', 3600), ('minutes', 60)):
    if seconds >= 2 * length:
      return f'{seconds / length:.1f} {name}'
  return f'{seconds:.1f} seconds'


def write(verdict: Verdict, path: str) -> None:
  """Writes the verdict as JSON, whole or not at all."""
  lawfile.save(verdict.to_json(), path)


def hopeless(error: _compilation.TooLarge, where: Topology) -> str:
  """Returns why no layout helps, and the smallest topology that could."""
  for other in slices.larger(where):
    if error.state_bytes <= other.devices * other.chip.memory:
      return f'{error}; the smallest that could hold it is {other.name}'
  return f'{error}, nor does any larger {where.chip.name}'


def _sliced(experiment: Experiment, topology: Topology) -> Experiment:
  """Returns the experiment on as many slices as there are."""
  layout = experiment.layout
  if topology.chip.platform != 'tpu' or layout.slices == topology.slices:
    return experiment
  if layout.slices != 1:
    raise ValueError(
      f'layout.slices={layout.slices} must be {topology.slices}, the slices of'
      f' {topology.name}'
    )
  layout = dataclasses.replace(layout, slices=topology.slices)
  return dataclasses.replace(experiment, layout=layout)


def _config(experiment: Experiment) -> dict[str, Any]:
  from bigdl import config

  return config.to_json(experiment)
