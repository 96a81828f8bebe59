"""What would make a run fit: changes that are compiled, one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import dataclasses
import math
from typing import Any

from bigdl import flags, values
from bigdl.commands._compilation import Compiled, size
from bigdl.commands._fit import Case
from bigdl.experiment import Experiment
from bigdl.parallel import topology
from bigdl.parallel.layout import AXES, Layout

MOST_TRIES = 8
# Compiles a case; the text says what is being tried.
Compile = Callable[[Case, str], Compiled]


def remedies(case: Case, found: Compiled, compiled: Compile) -> Iterator[str]:
  """Yields lines on what would make it fit, each compiled as it is read."""
  yield 'what would make it fit, each tried'
  for tried, (change, other) in enumerate(changes(case, found)):
    if tried == MOST_TRIES:
      break
    result = _try(other, ' '.join(change), compiled)
    yield f'  {" ".join(change)}: {_says(result)}'
    if isinstance(result, Compiled) and result.fits:
      break
  else:
    yield '  nothing else on this topology'
  yield from _larger(case, found, compiled)


def changes(case: Case, found: Compiled) -> Iterator[tuple[list[str], Case]]:
  """Yields flags and the case with them: the cheapest change first.

  Less is kept of the forward pass; weights are split among all devices; the
  batch is taken in parts; heads and features are split. Each on top of those
  before, except that the last two are apart.
  """
  e = case.experiment
  base: list[str] = []
  paths = [
    (path, value)
    for path, value, _ in values.walk(e)
    if path.startswith('model.') and path.rpartition('.')[2] == 'remat'
  ]
  order = ('none', 'dots', 'full')
  for policy in order[1:]:
    weaker = [p for p, v in paths if order.index(v) < order.index(policy)]
    if weaker:
      base = [f'--{path}={policy}' for path in weaker]
      yield from _changed(case, base)
  layout, heads = e.layout, getattr(e.model, 'heads', 1)
  if found.axes['data'] > layout.slices:
    base = [*base, f'--layout.data={layout.slices}', '--layout.fsdp=-1']
    yield from _changed(case, base)
  for parts in _parts(e, found):
    yield from _changed(case, [*base, f'--accumulate={parts}'])
  for tensor in (2, 4, 8):
    if tensor > layout.tensor and heads % tensor == 0:
      yield from _changed(case, [*base, f'--layout.tensor={tensor}'])


def _parts(e: Experiment, found: Compiled) -> list[int]:
  """Returns numbers of microbatches: as the excess asks for, and twice that."""
  most = e.batch // (found.axes['data'] * found.axes['fsdp'])
  excess = math.ceil(found.peak_bytes / found.topology.chip.memory)
  fine = [n for n in range(e.accumulate + 1, most + 1) if most % n == 0]
  wanted = (e.accumulate * max(2, excess * k) for k in (1, 2))
  picked = (next((n for n in fine if n >= w), 0) for w in wanted)
  return [n for n in dict.fromkeys(picked) if n]


def _changed(case: Case, change: list[str]) -> Iterator[tuple[list[str], Case]]:
  try:
    other = flags.override(case.experiment, change)
  except ValueError:
    return
  yield change, case.on(other)


def _larger(case: Case, found: Compiled, compiled: Compile) -> Iterator[str]:
  """Yields a line on the smallest topology that does, as things are."""
  tries, refused = 0, ''
  total = found.peak_bytes * found.topology.devices
  for where in topology.larger(case.topology):
    # What a device holds can at best be split among more of them.
    least = max(found.state_bytes, total / 4) / where.devices
    if least > where.chip.memory or tries == MOST_TRIES:
      continue
    try:
      layout = _grown(case.experiment.layout, where.slices)
      other = dataclasses.replace(case.experiment, layout=layout)
      result = _try(case.on(other, where), where.name, compiled)
    except ValueError as error:
      refused = refused or f'{where.name}: {error}'
      continue
    if isinstance(result, str):
      refused = refused or f'{where.name}: {result}'
      continue
    tries += 1
    if result.fits:
      yield f'  as it is, the smallest that would do: {where.name}, {_says(result)}'
      return
  if tries or not refused:
    yield f'  as it is, on none of {tries} larger {case.topology.chip.name} tried'
  else:
    yield f'  as it is, no larger slice could be tried: {refused}'


def _grown(layout: Layout, slices: int) -> Layout:
  """Returns the layout for more devices: the rest of them takes rows."""
  change: dict[str, Any] = {'slices': slices}
  if getattr(layout, layout.across) == layout.slices:
    change[layout.across] = slices
  if -1 not in [getattr(layout, axis) for axis in AXES]:
    change['data'] = -1
  return dataclasses.replace(layout, **change)


def _try(case: Case, what: str, compiled: Compile) -> Compiled | str:
  try:
    return compiled(case, f'trying {what}')
  except ValueError as error:
    return str(error)


def _says(result: Compiled | str) -> str:
  if isinstance(result, str):
    return result
  fits = 'fits' if result.fits else 'does not fit'
  return f'peak {size(result.peak_bytes)}, {fits}'
