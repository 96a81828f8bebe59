"""Tries layouts, remat and batch sizes on one machine; shows those that fit.

What does not fit does not at a larger batch either, nor if less is recomputed;
what fits is tried with more recomputed only as long as that is faster, as it is
where memory is slower than products. So each layout is climbed like stairs, batch
by batch, and much of the grid is never compiled. Nor is what a lower bound rules
out: the share of the weights that a device must hold, and half of what the
backward pass keeps of a batch.

Verdicts are kept, so that a search that was interrupted goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
import concurrent.futures
import dataclasses
import functools
import hashlib
from importlib import metadata
import json
import pathlib
import threading
import time

import jax

import bigdl
from bigdl import flags, values
from bigdl.commands import _compilation, _fit, _lower, _waiting
from bigdl.commands._fit import Case
from bigdl.experiment import Experiment
from bigdl.parallel.layout import AXES, Layout
from bigdl.scaling import count, lawfile, summary

CACHE = pathlib.Path('~/.cache/bigdl/compile')
CHILDREN = 2
BATCHES = (0.5, 1, 2, 4)
TENSOR = (1, 2, 4, 8, 16)
# Sequences from this length on are split among devices as well.
LONG = 8192
REMAT = ('none', 'dots', 'full')


@dataclasses.dataclass(frozen=True)
class Row:
  """One way to run the experiment, and what became of it."""

  layout: dict[str, int]
  remat: str
  batch: int
  fits: bool
  peak_bytes: int
  seconds: float | None = None  # A step.
  units_per_second: float | None = None
  mfu: float | None = None


class _Stopped(Exception):
  """The search was interrupted."""


def main(case: Case, *, timeout: float, path: str = '') -> int:
  """Searches, prints the table and returns the exit code."""
  started = time.monotonic()
  rows, skipped, refused = search(case, timeout=timeout)
  fitting = sorted(
    (row for row in rows if row.fits), key=lambda row: -(row.mfu or 0)
  )
  print(table(case, fitting))
  if fitting:
    print(f'\nbest  {" ".join(changed(case, fitting[0]))}')
  print(
    f'\n{len(fitting)} of {len(rows)} that were compiled fit'
    f' {case.topology.name}; {skipped} were ruled out before, in'
    f' {time.monotonic() - started:.0f} s'
  )
  if refused:
    print(f'{len(refused)} were refused, the first: {refused[0]}')
  if path:
    body = {
      'topology': case.topology.name,
      'rows': [dataclasses.asdict(row) for row in fitting],
    }
    lawfile.save(body, path)
    print(f'written to {path}')
  return 0 if fitting else 3


def table(case: Case, rows: list[Row]) -> str:
  """Returns the ways that fit, best estimated MFU first."""
  if not rows:
    return f'nothing that was tried fits {case.topology.name}'
  unit = case.experiment.objective.unit
  shown = [
    ['layout', 'remat', 'batch', 'peak', 'of', 's/step', f'{unit}s/s', 'MFU']
  ]
  limit = case.topology.chip.memory
  for row in rows:
    sizes = ' '.join(f'{k}={n}' for k, n in row.layout.items() if n > 1)
    shown.append(
      [
        sizes or 'data=1',
        row.remat,
        f'{row.batch:,}',
        _compilation.size(row.peak_bytes),
        f'{row.peak_bytes / limit:.0%}',
        '-' if row.seconds is None else f'{row.seconds:.3g}',
        '-' if row.units_per_second is None else f'{row.units_per_second:,.0f}',
        '-' if row.mfu is None else f'{row.mfu:.1%}',
      ]
    )
  return summary.table(shown)


def changed(case: Case, row: Row) -> list[str]:
  """Returns the flags that make the experiment that of a row."""
  e = case.experiment
  found = [
    f'--layout.{axis}={size}'
    for axis, size in row.layout.items()
    if size != getattr(e.layout, axis)
  ]
  found += [
    f'--{path}={row.remat}' for path, value in _remat(e) if value != row.remat
  ]
  return found + [f'--batch={row.batch}'] * (row.batch != e.batch)


def search(case: Case, *, timeout: float) -> tuple[list[Row], int, list[str]]:
  """Returns what was compiled, how many were ruled out before, and refusals."""
  stop = threading.Event()
  bounds = _bounds(case)
  candidates = list(layouts(case))
  rows: list[Row] = []
  refused: list[str] = []
  skipped = 0
  started = time.monotonic()

  def tried(case: Case, policy: str) -> Row | None:
    try:
      rows.append(_row(case, policy, timeout, stop))
    except ValueError as error:
      refused.append(str(error))
      return None
    return rows[-1]

  def climb(layout: Layout) -> int:
    return _climb(case, layout, bounds, tried)

  with (
    _waiting.shown('searching') as tick,
    concurrent.futures.ThreadPoolExecutor(CHILDREN) as pool,
  ):
    waiting = {pool.submit(climb, layout) for layout in candidates}
    try:
      while waiting:
        done, waiting = concurrent.futures.wait(waiting, 0.2)
        skipped += sum(future.result() for future in done)
        tick(time.monotonic() - started)
    except BaseException:
      stop.set()
      for future in waiting:
        future.cancel()
      raise
  if refused and not rows:
    raise ValueError(refused[0])
  return rows, skipped, refused


def layouts(case: Case) -> Iterator[Layout]:
  """Yields the layouts to try; pipelines stay as they are in the experiment.

  Tensor from 1 to 16 where it divides the heads, context where sequences are
  long, and of the rest all in fsdp, all in data, or a part of it.
  """
  model, where = case.experiment.model, case.topology
  base = case.experiment.layout
  heads = getattr(model, 'heads', 1)
  length = max((max(v.shape, default=0) for v in case.spec.values()), default=0)
  stages = max(1, base.pipeline)
  for context in (1, 2, 4) if length > LONG else (1,):
    for tensor in TENSOR:
      parts = tensor * context * stages
      if heads % tensor or where.devices % (parts * where.slices):
        continue
      rest = where.devices // parts
      for data in sorted({where.slices, where.slices * 8, rest}):
        if rest % data == 0 and data % where.slices == 0:
          yield dataclasses.replace(
            base,
            data=data,
            fsdp=rest // data,
            tensor=tensor,
            context=context,
            slices=where.slices,
          )


def _climb(case, layout, bounds, tried) -> int:
  """Tries larger and larger batches; returns how many were ruled out."""
  policies = _policies(case)
  weakest, skipped = 0, 0
  for times in BATCHES:
    batch = int(case.experiment.batch * times)
    if batch < 1 or batch % (layout.data * layout.fsdp):
      continue
    best = None
    for index in range(weakest, len(policies)):
      other = _changed(case, layout, policies[index], batch)
      if other is None:
        continue
      if bounds(layout, policies[index], batch) > case.topology.chip.memory:
        skipped, weakest = skipped + 1, index + 1
        continue
      row = tried(other, policies[index])
      if row is None:
        continue
      if not row.fits:
        weakest = index + 1
      elif best is None or (row.mfu or 0) > best:
        best = row.mfu or 0
      else:
        break
    if weakest == len(policies):
      return skipped
  return skipped


def _policies(case: Case) -> tuple[str, ...]:
  return REMAT if _remat(case.experiment) else ('',)


def _remat(experiment: Experiment) -> list[tuple[str, str]]:
  """Returns path and value of each field that says what is recomputed."""
  return [
    (path, value)
    for path, value, _ in values.walk(experiment)
    if path.startswith('model.') and path.rpartition('.')[2] == 'remat'
  ]


def _changed(case: Case, layout: Layout, policy: str, batch: int):
  change = [f'--{path}={policy}' for path, _ in _remat(case.experiment)]
  try:
    experiment = flags.override(
      dataclasses.replace(case.experiment, layout=layout, batch=batch), change
    )
  except ValueError:
    return None
  return case.on(experiment)


def _bounds(case: Case):
  """Returns a function to the fewest bytes that a device must hold."""
  e = case.experiment
  total = count.params(e.model, e.objective, case.spec)['total']
  # In float32; what the optimizer keeps of them is not known here.
  weights = 4 * total
  kept = {}
  for policy in _policies(case):
    other = _changed(case, e.layout, policy, e.batch)
    model = (other or case).experiment.model
    kept[policy] = count.activation_bytes(model, e.objective, case.spec)

  def least(layout: Layout, policy: str, batch: int) -> float:
    parts = layout.fsdp * layout.tensor * layout.pipeline
    share = case.topology.devices
    rows = batch / e.accumulate
    return weights / parts + 0.5 * kept[policy] * rows / share

  return least


def _row(case: Case, policy: str, timeout, stop) -> Row:
  """Returns what became of one case; ValueError where it cannot be laid out."""
  layout = case.experiment.layout
  sizes = {k: n for k, n in dataclasses.asdict(layout).items() if k in AXES}
  kept = _kept(case)
  if kept is not None:
    return kept

  def tick(seconds: float) -> None:
    if stop.is_set():
      raise _Stopped

  found = _compilation.run(
    case.config, case.rows, case.topology, timeout=timeout, tick=tick
  )
  verdict = _fit.verdict(case, found)
  row = Row(sizes, policy, case.experiment.batch, found.fits, found.peak_bytes)
  if verdict.estimate:
    seconds = verdict.estimate.seconds
    row = dataclasses.replace(
      row,
      seconds=seconds,
      units_per_second=case.units / seconds,
      mfu=verdict.estimate.mfu,
    )
  _keep(case, row)
  return row


def _kept(case: Case) -> Row | None:
  path = _place(case)
  try:
    return Row(**json.loads(path.read_text()))
  except (OSError, ValueError, TypeError):
    return None


def _keep(case: Case, row: Row) -> None:
  path = _place(case)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    _lower.write(path, dataclasses.asdict(row))
  except OSError:
    # It is only there to save time.
    return


def _place(case: Case) -> pathlib.Path:
  """Returns the file of a verdict: named by all that it depends on."""
  told = [case.config, case.rows, case.topology.name, _code(), jax.__version__]
  digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
  return CACHE.expanduser() / f'{digest.hexdigest()[:32]}.json'


@functools.cache
def _code() -> str:
  """Returns a hash of this package and of the compiler that is installed."""
  digest = hashlib.sha256(_compiler().encode())
  for path in sorted(pathlib.Path(bigdl.__file__).parent.rglob('*.py')):
    digest.update(path.read_bytes())
  return digest.hexdigest()


def _compiler() -> str:
  found = []
  for name in ('libtpu', 'jax-cuda12-plugin', 'jax-cuda13-plugin'):
    try:
      found.append(f'{name} {metadata.version(name)}')
    except metadata.PackageNotFoundError:
      continue
  return ' '.join(found)
