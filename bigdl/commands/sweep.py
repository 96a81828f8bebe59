"""Plans a compute-matched sweep, trains it, fits the law, says how it fared."""

from __future__ import annotations

import dataclasses
import json
import math
import pathlib
import sys
from typing import Any

from bigdl import config, flags, storage

# Of flags; intervals at 0.9 need so many resamples.
_LEAST = {'workers': 0, 'attempts': 1, 'silence': 1, 'bootstrap': 40}


@dataclasses.dataclass(frozen=True)
class Flags:
  """Plans a compute-matched sweep, trains it, fits the law, says how it fared.

  The same command goes on where it was stopped; a sweep that is finished trains
  nothing and gives the same law. Commands that run at once, and `bigdl work` on
  machines that share the folder, share the cells. Exit codes: 0 a law, 1 cells
  that failed, 2 bad input or a full disk, 3 no law (and why), 130 and 143 stopped
  by SIGINT and SIGTERM after saving. `--help` beside `--config=FILE` lists the
  fields that all cells share, each of which can be set.
  """

  config: str  # Experiment file with get_sweep, FILE or FILE:ARG.
  workdir: str = ''  # Sweep folder; made where there is none.
  dry_run: bool = False  # Print the plan and train nothing.
  plan_only: bool = False  # Write the plan for `bigdl work`, and train nothing.
  status: str = ''  # Sweep folder: print how it stands; needs no --config.
  json: bool = False  # With --status: as JSON.
  attempts: int = 3  # Tries without progress, after which a cell has failed.
  silence: float = 60.0  # Seconds, after which a worker's cell is another's.
  same_code: bool = False  # Refuse to go on once the code has changed.
  workers: int = 0  # CPU: cells at a time; 0 takes one a core.
  flops: str = ''  # FLOPs convention of the law; '' is that of the plan.
  bootstrap: int = 1000  # Resamples behind the law's intervals.
  mfu: float = 0.0  # Assumed for the plan's ETA; 0: 0.1 on CPU, else 0.35.


@dataclasses.dataclass(frozen=True)
class Status:
  """Prints how a sweep stands, from any machine that sees its folder.

  Only files are read; nothing is written. Exit codes: 0, 2 bad input.
  """

  status: str  # Sweep folder.
  json: bool = False  # As JSON.


def main(argv: list[str]) -> int:
  """Runs `bigdl sweep` and returns the exit code."""
  if any(word.partition('=')[0] == '--status' for word in argv):
    return _status(flags.parse(Status, argv, verb='sweep --status')[0])
  given, overrides = flags.parse(Flags, argv, verb='sweep', rest=_shown)
  own = [f.name for f in dataclasses.fields(Flags)]
  for name, least in _LEAST.items():
    value = getattr(given, name)
    if not least <= value < math.inf:
      finite = ', and finite' * isinstance(value, float)
      raise ValueError(f'{name}={value} must be {least} or more{finite}')
  if not (given.workdir or given.dry_run):
    raise ValueError('--workdir=DIR is required, unless --dry_run')
  if storage.is_remote(given.workdir) and not (
    given.plan_only or given.dry_run
  ):
    raise ValueError(
      f'workdir={given.workdir}: a sweep in an object store is planned with'
      ' --plan_only, trained by `bigdl work` and fitted by `bigdl law`'
    )
  base = config.load(given.config, overrides, also=own)
  plan = _plan(given.config, base)
  if given.dry_run:
    print(_table(plan, mfu=given.mfu, timed=True))
    return 0
  folder = storage.folder(given.workdir)
  note = _claim(folder, plan, given)
  if given.plan_only:
    _left(folder)
    print(_table(plan))
    return 0
  code = _train(plan, folder, given, note)
  return code or _conclude(folder, given)


def _status(given: Status) -> int:
  # Without JAX, so that a person who looks need not wait.
  from bigdl.fleet import status, store

  found = status.read(store.open_folder(given.status))
  if given.json:
    print(json.dumps(found.to_json(), indent=1))
  else:
    print(status.text(found))
  return 0


def _shown(given: dict[str, Any]) -> Any:
  from bigdl.experiment import Experiment

  return config.load(given['config']) if 'config' in given else Experiment


def _plan(spec: str, base: Any) -> Any:
  """Returns the plan that the experiment file makes of `base`."""
  from bigdl.scaling import grid

  module, arg = config.load_module(spec)
  plan = config.call(module, 'get_sweep', arg, given=[base])
  if not isinstance(plan, grid.Plan):
    raise ValueError(
      f'config={spec}: get_sweep returned {type(plan).__name__}, expected Plan'
    )
  if not plan.cells:
    why = f': {plan.dropped[0]}' if plan.dropped else ''
    raise ValueError(f'config={spec}: the sweep plans no cell{why}')
  return plan


def _table(plan: Any, *, mfu: float = 0.0, timed: bool = False) -> str:
  """Returns the plan as text, with its cost in FLOPs, and in time here."""
  import jax

  from bigdl.commands import _run
  from bigdl.scaling import count, grid

  facts = _run.peak_facts(plan[0].experiment) if timed else {}
  peak = facts.get('peak_flops')
  mfu = mfu or (0.1 if jax.default_backend() == 'cpu' else 0.35)
  lines = [grid.table(plan, peak=peak, mfu=mfu), '']
  unit = plan[0].experiment.objective.unit
  total = sum(c.flops[plan.convention] or 0 for c in plan)
  lines.append(
    f'{len(plan)} cells, {sum(c.d for c in plan):,} {unit}s, {total:.3g} FLOPs'
    f' ({plan.convention}); N counts {plan.n} parameters'
  )
  if peak:
    seconds = sum(c.seconds(peak, mfu) for c in plan)
    lines.append(
      f'ETA {grid.clock(seconds)} at an assumed MFU of {mfu:.0%} of'
      f' {peak:.3g} FLOP/s ({facts["peak_note"]})'
    )
  return '\n'.join([*lines, '', 'FLOPs by convention:', count.describe()])


def _claim(folder: pathlib.Path, plan: Any, given: Flags) -> str:
  """Writes plan and manifest; returns a line where the code has changed, or ''.

  Refuses a folder whose cells are not of this sweep.
  """
  from bigdl.commands import _run
  from bigdl.fleet import manifest, store
  from bigdl.scaling import grid
  from bigdl.train import record

  shared = store.open_folder(folder)
  before = manifest.find(shared)
  cells = {cell.name: cell for cell in plan}
  there = sorted(p.parent.name for p in folder.glob('cells/*/config.json'))
  strangers = [name for name in there if name not in cells]
  # A cell that both have says best what differs, down to the field.
  for name in [n for n in there if n in cells]:
    record.check_config(
      folder / 'cells' / name, config.to_json(cells[name].experiment)
    )
  if strangers:
    names = ', '.join(strangers[:3]) + (', …' if strangers[3:] else '')
    budgets = sorted({c.budget for c in plan})
    raise ValueError(
      f'workdir={folder} holds another sweep: {len(strangers)} of its cells are'
      f' not in this plan ({names}); the plan has {len(plan)} cells at budgets'
      f' {", ".join(f"{b:.4g}" for b in budgets)}'
    )
  first = plan[0]
  _run.check(
    first.experiment,
    str(folder / 'cells' / first.name),
    config.to_json(first.experiment),
  )
  made, note = _manifest(shared, plan, before, given)
  text = json.dumps(grid.to_plan(plan), indent=1) + '\n'
  if shared.read('plan.json') != text.encode():
    shared.write('plan.json', text.encode())
  manifest.write(shared, made)
  return note


def _manifest(
  store: Any, plan: Any, before: Any, given: Flags
) -> tuple[Any, str]:
  """Returns the manifest, and a line where the code has changed, or ''."""
  from bigdl.commands import _cells
  from bigdl.fleet import attempts, content, manifest

  configs = [config.to_json(cell.experiment) for cell in plan]
  code, note = content.code(configs), ''
  if before and attempts.listed(store):
    # What has been trained was trained by that code.
    note = _cells.compare_code(before, code, given.same_code)
    code = dict(before.code)
  known: dict[str, dict[str, str | None]] = {}
  cells = []
  for cell, tree in zip(plan, configs, strict=True):
    data = content.of([tree['data'], tree['evaluation']['data']])
    if data not in known:
      known[data] = _cells.fingerprints(cell.experiment)
    cells.append(
      manifest.cell(
        cell.name,
        config=tree,
        data=known[data],
        code=code,
        flops=cell.flops['matmul_causal'],
        facts={
          'params': cell.params,
          'flops_per_unit': cell.flops_per_unit,
          'budget': cell.budget,
        },
      )
    )
  unit = plan[0].experiment.objective.unit
  return manifest.Manifest(given.config, unit, code, tuple(cells)), note


def _left(folder: pathlib.Path) -> list[str]:
  """Returns the cells that are not over; what failed may be tried again."""
  from bigdl.fleet import attempts, manifest, store

  shared = store.open_folder(folder)
  cells = manifest.read(shared).cells
  left = [c.name for c in cells if not attempts.outcome(shared, c)]
  attempts.forgive(shared, left)
  return left


def _train(plan: Any, folder: pathlib.Path, given: Flags, note: str) -> int:
  """Trains what is not trained yet; returns an exit code, 0 to go on."""
  import jax

  from bigdl.commands import _board, _pool
  from bigdl.fleet import content
  from bigdl.train import signals

  weights = {c.name: float(c.flops['matmul_causal'] or 0) for c in plan}
  left = {name: weights[name] for name in _left(folder)}
  if not left:
    print(f'all {len(weights)} cells are trained already', file=sys.stderr)
    return 0
  if note:
    print(f'bigdl: {note}', file=sys.stderr)
  done = sum(weights.values()) - sum(left.values())
  unit = f'{plan[0].experiment.objective.unit}s/s'
  setup = _pool.Setup(
    folder=str(folder),
    cores=tuple(_pool.cores()),
    cache=jax.config.jax_compilation_cache_dir,  # type: ignore[attr-defined]
    # As the claims of `bigdl work` say it.
    code=content.of(
      content.code([config.to_json(cell.experiment) for cell in plan])
    ),
    silence=given.silence,
    attempts=given.attempts,
  )
  with (
    signals.interrupts() as stop,
    _board.shown(left, done=done, unit=unit) as board,
  ):
    if jax.default_backend() == 'cpu':
      workers = given.workers or len(setup.cores)
      outcome = _pool.train(
        list(left), setup, workers=workers, on_event=board.take, stop=stop
      )
    else:
      outcome = _here(setup, list(left), on_event=board.take, stop=stop)
  return _ended(outcome, folder, stop())


def _here(setup: Any, names: list[str], *, on_event: Any, stop: Any) -> Any:
  """Trains the cells one after the other in this process, on its devices."""
  from bigdl.commands import _cells, _pool, _run
  from bigdl.fleet import claims, manifest, store
  from bigdl.train import device

  if setup.cache is None:
    device.enable_compile_cache()
  _run.silence_writers()
  shared = store.open_folder(setup.folder)
  watch = _pool.Watch(names, setup, on_event)
  # Small budgets first: a law can soon be fitted.
  cells = manifest.read(shared).costliest_first[::-1]
  queue = claims.Claims(
    shared,
    cells,
    {**_cells.devices(), 'code': setup.code},
    silence=setup.silence,
    attempts=setup.attempts,
  )
  here = _pool.Here()
  _cells.train(
    setup.folder,
    queue,
    _cells.Terms(),
    on_event=lambda event: watch.take(here, event),
    stop=stop,
  )
  return watch.outcome


def _ended(outcome: Any, folder: pathlib.Path, signal: int) -> int:
  """Says what did not finish; returns the exit code, 0 where all did."""
  stopped = {
    k: r
    for k, r in outcome.records.items()
    if r['status'] not in ('finished', 'diverged')
  }
  if signal:
    print(
      f'bigdl: {folder}: stopped, {len(stopped)} running cells saved; the same'
      ' command goes on',
      file=sys.stderr,
    )
    return 128 + signal
  for name, message in outcome.failed.items():
    print(f'bigdl: {name} failed: {message}', file=sys.stderr)
  for name, last in stopped.items():
    print(f'bigdl: {name}: {last["message"]}', file=sys.stderr)
  if stopped:
    return 2
  return 1 if outcome.failed else 0


def _conclude(folder: pathlib.Path, given: Flags) -> int:
  """Fits the law to what is trained, writes and prints it."""
  from bigdl.fleet import store
  from bigdl.scaling import fit, lawfile, records, report, summary

  table = records.load(folder)
  law = fit.fit(table, convention=given.flops, bootstrap=given.bootstrap)
  shared = store.Local(folder)
  # Of several commands that shared the cells, one at a time writes.
  with shared.turn('claims/law.lock'):
    shared.write('runs.csv', table.to_csv(index=False).encode())
    lawfile.save(law, folder / 'law.json')
    print(summary.text(law))
    page = report.write(
      folder,
      law,
      table,
      report.read_curves(folder),
      title=pathlib.Path(given.config.partition(':')[0]).stem,
      provenance=report.read_provenance(folder),
    )
  print(f'report  {page}')
  return 0 if law['primary'] else 3
