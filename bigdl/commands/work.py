"""Trains cells of a planned sweep, beside any number of others that do."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
import time
import traceback
from typing import Any, NoReturn

from bigdl import flags


@dataclasses.dataclass(frozen=True)
class Flags:
  """Trains cells of a planned sweep, beside any number of others that do.

  Each worker claims a cell at a time, the costliest first, until none is left;
  start as many as there are machines, each of which sees the folder. The cell
  of one that dies goes on elsewhere from its last checkpoint. Exit codes: 0
  nothing is left to do, 1 a cell failed here or its data did not come, 2 bad
  input or a full disk, 130 and 143 stopped by SIGINT and SIGTERM after saving and
  giving the cell back. After 1 it is worth starting again, after 2 it is not.
  """

  workdir: str  # Sweep folder that `bigdl sweep --plan_only` has planned.
  once: bool = False  # Leave after one cell.
  wait: bool = False  # Stay until every cell is over, whoever trains it.
  distributed: bool = False  # The processes of this job share each cell.
  coordinator: str = ''  # HOST:PORT of process 0, where JAX detects none.
  processes: int = 0  # How many there are.
  process: int = -1  # Which one this is, from 0.
  join_seconds: float = 300.0  # How long to wait for the others.
  attempts: int = 3  # Tries without progress, after which a cell has failed.
  silence: float = 60.0  # Seconds, after which a worker's cell is another's.
  same_code: bool = False  # Refuse to train once the code has changed.
  cores: tuple[int, ...] = ()  # CPU: those to train on; () is all.


def main(argv: list[str]) -> int:
  """Runs `bigdl work` and returns the exit code."""
  given, _ = flags.parse(Flags, argv, verb='work')
  for name in ('attempts', 'silence'):
    value = getattr(given, name)
    if not 1 <= value < math.inf:
      finite = ', and finite' * isinstance(value, float)
      raise ValueError(f'{name}={value} must be 1 or more{finite}')
  if given.cores:
    _bind(given.cores)
  # A folder that is not a sweep's is refused before JAX is imported.
  from bigdl.fleet import manifest, store

  folder = store.open_folder(given.workdir)
  plan = manifest.read(folder)
  several = bool(
    given.distributed
    or given.coordinator
    or given.processes
    or given.process >= 0
  )
  if several:
    from bigdl.commands import _join

    _join.join(
      given.coordinator, given.processes, given.process, given.join_seconds
    )
  return _work(given, folder, plan, alone=not several)


def _bind(cores: tuple[int, ...]) -> None:
  """Keeps this process, which has not started JAX yet, to some cores."""
  if not hasattr(os, 'sched_setaffinity'):
    raise ValueError(f'cores={cores}: this system binds no process to cores')
  try:
    os.sched_setaffinity(0, cores)
  except OSError as error:
    there = sorted(os.sched_getaffinity(0))
    raise ValueError(f'cores={cores} must be among {there}') from error


def _work(given: Flags, folder: Any, plan: Any, *, alone: bool) -> int:
  import jax

  from bigdl.commands import _board, _cells, _hosts, _run
  from bigdl.fleet import attempts, claims, content
  from bigdl.train import device, signals

  device.keep_memory()
  code = content.code([cell.config for cell in plan.cells])
  note = _cells.compare_code(plan, code, given.same_code)
  first = jax.process_index() == 0
  if note and first:
    _say(note)
  if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
    device.enable_compile_cache()
  _run.silence_writers()
  cells = plan.costliest_first
  queue: _cells.Queue = claims.Claims(
    folder,
    cells,
    {**_cells.devices(), 'code': content.of(code)},
    silence=given.silence,
    attempts=given.attempts,
  )
  if not alone:
    queue = _hosts.Together(queue if first else None, cells)
  weights = {cell.name: cell.flops for cell in cells}
  over = [cell.name for cell in cells if attempts.outcome(folder, cell)]
  done = sum(weights.pop(name) for name in over)
  with (
    signals.interrupts() as stop,
    _board.shown(weights, done=done, unit=f'{plan.unit}s/s') as board,
  ):
    try:
      tally = _cells.train(
        given.workdir,
        queue,
        _cells.Terms(given.once, given.wait, alone),
        on_event=board.take if first else lambda event: None,
        stop=stop,
      )
    except Exception as error:
      if alone:
        raise
      _leave(error, given.workdir)
  if first:
    _say(f'{given.workdir}: {_end(tally, queue)}')
  if tally.signal:
    return 128 + tally.signal
  if tally.interrupted:
    return 2 if tally.interrupted.startswith(_cells.FULL) else 1
  return 1 if tally.failed else 0


def _leave(error: Exception, workdir: str) -> NoReturn:
  """Ends this process, one of several, at once.

  The others wait for it in an update: at its end JAX ends them, while it would
  wait for them at an exit.
  """
  import jax

  from bigdl.commands import _join
  from bigdl.fleet import claims
  from bigdl.train import batches, record

  # What another start may not meet again.
  passing = isinstance(error, claims.Lost | batches.Hung | record.Busy)
  bad_input = isinstance(error, ValueError) and not passing
  if not (passing or bad_input):
    traceback.print_exc()
  _say(f'{workdir}: {error}')
  sys.stdout.flush()
  if jax.process_index() == 0:
    # Those that meet the same error say so before JAX ends them.
    time.sleep(_join.SECONDS_FOR_OTHERS)
  os._exit(2 if bad_input else 1)


def _end(tally: Any, queue: Any) -> str:
  """Returns why the worker leaves."""
  trained = f'{tally.trained} cell{"s" * (tally.trained != 1)} trained here'
  if tally.signal:
    saved = '; the running one is saved and given back'
    return f'stopped; {trained}{saved if tally.interrupted else ""}'
  if tally.interrupted:
    return tally.interrupted
  if tally.failed:
    trained += f', {tally.failed} attempts failed'
  if not queue.left:
    return f'{trained}; none is left'
  return f'{trained}; {queue.left} left, or with other workers'


def _say(line: str) -> None:
  print(f'bigdl: {line}', file=sys.stderr, flush=True)
