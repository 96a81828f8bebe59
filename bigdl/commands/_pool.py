"""Workers of a sweep on the cores of this machine: processes that claim cells.

A worker has cores of its own, so that what a cell computes does not depend on
what runs beside it, nor on how many workers there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import json
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import bigdl
from bigdl.fleet import attempts as told
from bigdl.fleet import store as stores

OnEvent = Callable[[dict[str, Any]], None]
Stop = Callable[[], object]
# Workers that end before they are ready, one after the other, before that is an
# error: by themselves, and by a signal, which may be of someone's whim.
_CRASHES, _KILLS = 3, 30


@dataclasses.dataclass(frozen=True)
class Setup:
  """What a worker is told."""

  folder: str  # The sweep's.
  cores: tuple[int, ...]
  cache: str | None  # Folder of compiled programs; None takes the usual one.
  code: str  # Hash of the code, which its claims carry.
  silence: float
  attempts: int


@dataclasses.dataclass
class Outcome:
  """How the cells ended: a record each, or why there is none."""

  records: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  failed: dict[str, str] = dataclasses.field(default_factory=dict)

  def __contains__(self, name: str) -> bool:
    return name in self.records or name in self.failed


def cores() -> list[int]:
  """Returns the cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def train(
  names: Sequence[str],
  setup: Setup,
  *,
  workers: int,
  on_event: OnEvent,
  stop: Stop,
) -> Outcome:
  """Has cells trained by `workers` processes, and by whoever else claims them.

  Args:
    names: The cells that are not over.
    setup: Of all workers; its cores are dealt out among them.
    workers: How many processes.
    on_event: Takes the events of `_cells`, beside `again`.
    stop: Once true, the workers save what they have and leave.

  Returns:
    The outcome of every cell, unless it was stopped.

  Raises:
    ValueError: A worker met bad input; the others have saved and left.
  """
  watch = Watch(names, setup, on_event)
  with _started(min(workers, len(names)), setup, watch.inbox) as pool:
    stopping = False
    while any(not w.left for w in pool) and not (
      watch.settled and not stopping
    ):
      if (stop() or watch.refusal) and not stopping:
        stopping = True
        for worker in pool:
          worker.process.terminate()
      try:
        worker, event = watch.inbox.get(timeout=0.1)
      except queue.Empty:
        continue
      if event['event'] == 'gone':
        pool.remove(worker)
        worker.end()
        again = watch.bury(
          worker, event['message'], killed=event['killed'], stopping=stopping
        )
        if again:
          pool.append(_Worker(worker.setup, worker.log, watch.inbox))
      else:
        watch.take(worker, event)
  if watch.refusal:
    raise ValueError(watch.refusal)
  return watch.outcome


class Watch:
  """What the workers have said so far."""

  def __init__(self, names: Sequence[str], setup: Setup, on_event: OnEvent):
    self.outcome = Outcome()
    self.refusal = ''
    self.inbox: queue.SimpleQueue = queue.SimpleQueue()
    self._names, self._most = set(names), setup.attempts
    self._store = stores.open_folder(setup.folder)
    self._on_event = on_event
    self._running: dict[str, Here] = {}
    self._crashes = self._kills = 0

  @property
  def settled(self) -> bool:
    """Whether every cell has an outcome, and no worker is still at one."""
    return not self._running and all(n in self.outcome for n in self._names)

  def take(self, worker: Here, event: dict[str, Any]) -> None:
    """Takes an event of a worker that lives."""
    kind, cell = event['event'], event.get('cell', '')
    if kind == 'left':
      worker.left = True
    elif kind == 'ready':
      self._crashes = self._kills = 0
    elif kind == 'refused':
      self.refusal = self.refusal or event['message']
    elif kind == 'start':
      worker.cell, worker.attempt = cell, event['attempt']
      worker.began = time.monotonic()
      self._running[cell] = worker
      self._on_event(event)
    elif kind == 'settled':
      self._settle(cell, event['state'])
    elif kind == 'failed':
      self._rest(worker)
      self._fail(cell, event['message'], final=event['input'])
    elif kind == 'done':
      self._rest(worker)
      self.outcome.records[cell] = event['record']
      self._on_event(event)
    elif kind == 'lost':
      self._rest(worker)
      self._on_event({**event, 'event': 'say'})
    elif kind in ('progress', 'say'):
      self._on_event(event)

  def bury(
    self, worker: Here, message: str, *, killed: bool, stopping: bool
  ) -> bool:
    """Takes a worker's end; returns whether another should take its place."""
    cell = worker.cell
    if not cell:
      if worker.left or stopping:
        return False
      self._kills += killed
      self._crashes += not killed
      if self._crashes > _CRASHES or self._kills > _KILLS:
        raise RuntimeError(f'no worker could start: {message}')
      return True
    self._rest(worker)
    facts = {'message': message, 'seconds': time.monotonic() - worker.began}
    told.ended(self._store, cell, worker.attempt, 'lost', facts)
    if stopping:
      self.outcome.failed[cell] = 'stopped before its first step'
      return False
    self._fail(cell, message)
    return True

  def _rest(self, worker: Here) -> None:
    if self._running.get(worker.cell) is worker:
      del self._running[worker.cell]
    worker.cell = ''

  def _fail(self, cell: str, message: str, final: bool = False) -> None:
    """Says whether a cell is tried again, or has failed for good."""
    known = told.listed(self._store).get(cell, told.Attempts())
    if not final and told.tries(self._store, cell, known) < self._most:
      self._on_event({'event': 'again', 'cell': cell, 'message': message})
    else:
      self.outcome.failed[cell] = message
      self._on_event({'event': 'failed', 'cell': cell, 'message': message})

  def _settle(self, cell: str, state: str) -> None:
    """Takes a cell that is over and was not trained by one of the workers."""
    if cell in self.outcome or cell in self._running:
      return
    if cell not in self._names:
      return
    if state == 'failed':
      self._fail(cell, told.last_words(self._store, cell))
    else:
      record = told.record(self._store, cell)
      self.outcome.records[cell] = record
      self._on_event({'event': 'done', 'cell': cell, 'record': record})


class Here:
  """A worker that is this process: the cell that it has."""

  def __init__(self):
    self.cell, self.attempt, self.left = '', 0, False
    self.began = 0.0  # Of the attempt, by this process's clock.


class _Worker(Here):
  """A process, and the cell that it has."""

  def __init__(self, setup: Setup, log: pathlib.Path, inbox: queue.SimpleQueue):
    super().__init__()
    self.setup, self.log = setup, log
    root = str(pathlib.Path(bigdl.__file__).parents[1])
    paths = [root, os.environ.get('PYTHONPATH', '')]
    words = json.dumps(dataclasses.asdict(setup))
    with open(log, 'a') as errors:
      self.process = subprocess.Popen(
        [sys.executable, '-m', 'bigdl.commands._worker', words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        # The terminal's Ctrl-C is for the parent, which passes it on.
        start_new_session=True,
        env={
          **os.environ,
          'JAX_PLATFORMS': 'cpu',
          'PYTHONPATH': os.pathsep.join(filter(None, paths)),
        },
      )
    self._reader = threading.Thread(
      target=self._read, args=(inbox,), daemon=True
    )
    self._reader.start()

  def _read(self, inbox: queue.SimpleQueue) -> None:
    assert self.process.stdout
    with self.process.stdout as lines:
      for line in lines:
        try:
          event = json.loads(line)
        except ValueError:
          break  # Killed in the middle of a line.
        inbox.put((self, event))
    code = self.process.wait()
    how = f'exit code {code}'
    if code < 0:
      how = signal.Signals(-code).name
    message = f'its worker ended ({how}); {self.log} has what it printed'
    gone = {'event': 'gone', 'message': message, 'killed': code < 0}
    inbox.put((self, gone))

  def end(self) -> None:
    """Closes stdin, upon which the worker leaves; else it is killed."""
    assert self.process.stdin
    with contextlib.suppress(BrokenPipeError):
      self.process.stdin.close()
    try:
      self.process.wait(5)
    except subprocess.TimeoutExpired:
      self.process.kill()
      self.process.wait()
    self._reader.join()


@contextlib.contextmanager
def _started(
  workers: int, setup: Setup, inbox: queue.SimpleQueue
) -> Iterator[list[_Worker]]:
  logs = pathlib.Path(setup.folder) / 'workers'
  logs.mkdir(parents=True, exist_ok=True)
  pool: list[_Worker] = []
  try:
    for number in range(workers):
      own = dataclasses.replace(setup, cores=setup.cores[number::workers])
      pool.append(_Worker(own, logs / f'worker-{number}.log', inbox))
    yield pool
  finally:
    for worker in pool:
      worker.end()
