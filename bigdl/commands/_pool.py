"""Cells of a sweep shared out over workers: processes here, or this one.

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
from typing import Any

import bigdl

# A cell whose worker died (killed for memory, say) is given to another, once.
ATTEMPTS = 2
OnEvent = Callable[[dict[str, Any]], None]
Stop = Callable[[], object]


@dataclasses.dataclass(frozen=True)
class Job:
  """One cell to train."""

  name: str
  folder: str
  config: dict[str, Any]  # The experiment, as `config.to_json` gives it.
  facts: dict[str, Any]  # What the record carries beyond what the loop knows.


@dataclasses.dataclass
class Outcome:
  """How the cells ended: a record each, or why there is none."""

  records: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
  failed: dict[str, str] = dataclasses.field(default_factory=dict)


def cores() -> list[int]:
  """Returns the cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):
    return sorted(os.sched_getaffinity(0))
  return list(range(os.cpu_count() or 1))


def train(
  jobs: Sequence[Job],
  *,
  workers: int,
  logs: pathlib.Path,
  cache: str | None,
  on_event: OnEvent,
  stop: Stop,
) -> Outcome:
  """Trains the jobs in their order on `workers` processes.

  Args:
    jobs: Longest first, or the last to start makes the others wait.
    workers: How many processes; the cores are dealt out among them.
    logs: Folder for what each prints.
    cache: Folder of compiled programs; None takes the usual one.
    on_event: Takes each event of `_worker`, beside `start` and `again`.
    stop: Once true, the workers save what they have and leave.

  Raises:
    ValueError: A worker met bad input; the others have saved and left.
  """
  waiting, outcome = list(jobs), Outcome()
  attempts = dict.fromkeys((job.name for job in jobs), 0)
  refusal = ''
  inbox: queue.SimpleQueue = queue.SimpleQueue()
  with _started(min(workers, len(jobs)), logs, cache, inbox) as pool:
    stopping = False
    while pool and (waiting or any(w.job for w in pool)):
      if (stop() or refusal) and not stopping:
        stopping = True
        waiting.clear()
        for worker in pool:
          worker.interrupt()
      try:
        worker, event = inbox.get(timeout=0.1)
      except queue.Empty:
        continue
      job = worker.job
      if event['event'] == 'gone':
        pool.remove(worker)
        worker.end()
        if job and not stopping:
          if attempts[job.name] < ATTEMPTS:
            waiting.insert(0, job)
            on_event({**event, 'event': 'again', 'cell': job.name})
          else:
            outcome.failed[job.name] = event['message']
            on_event({**event, 'event': 'failed', 'cell': job.name})
          pool.append(_Worker(worker.setup, worker.log, inbox))
        elif job:
          outcome.failed[job.name] = 'stopped before its first step'
        elif waiting and not pool:
          raise RuntimeError(f'no worker could start: {event["message"]}')
        continue
      if event['event'] == 'failed' and event['input']:
        refusal = refusal or f'{job.name}: {event["message"]}'
      if event['event'] == 'failed':
        outcome.failed[job.name] = event['message']
      elif event['event'] == 'done':
        outcome.records[job.name] = event['record']
      on_event(event)
      if event['event'] in ('ready', 'done', 'failed'):
        worker.job = None
        if waiting:
          job = waiting.pop(0)
          attempts[job.name] += 1
          worker.send(job)
          on_event({'event': 'start', 'cell': job.name})
  if refusal:
    raise ValueError(refusal)
  return outcome


class _Worker:
  """A process and the job it has."""

  def __init__(self, setup: dict, log: pathlib.Path, inbox: queue.SimpleQueue):
    self.setup, self.log = setup, log
    self.job: Job | None = None
    root = str(pathlib.Path(bigdl.__file__).parents[1])
    paths = [root, os.environ.get('PYTHONPATH', '')]
    with open(log, 'a') as errors:
      self.process = subprocess.Popen(
        [sys.executable, '-m', 'bigdl.commands._worker', json.dumps(setup)],
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
    inbox.put((self, {'event': 'gone', 'message': message}))

  def send(self, job: Job) -> None:
    assert self.process.stdin
    self.job = job
    # A worker that has just died says so by its end.
    with contextlib.suppress(BrokenPipeError):
      self.process.stdin.write(json.dumps(dataclasses.asdict(job)) + '\n')
      self.process.stdin.flush()

  def interrupt(self) -> None:
    if self.job:
      self.process.terminate()

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
  workers: int, logs: pathlib.Path, cache: str | None, inbox: queue.SimpleQueue
) -> Iterator[list[_Worker]]:
  logs.mkdir(parents=True, exist_ok=True)
  dealt: list[list[int]] = [cores()[i::workers] for i in range(workers)]
  pool: list[_Worker] = []
  try:
    for number, own in enumerate(dealt):
      setup = {'cores': own, 'cache': cache}
      pool.append(_Worker(setup, logs / f'worker-{number}.log', inbox))
    yield pool
  finally:
    for worker in pool:
      worker.end()


def train_here(
  jobs: Sequence[Job], *, on_event: OnEvent, stop: Stop
) -> Outcome:
  """Trains the jobs one after the other in this process, on its devices."""
  from bigdl import config
  from bigdl.commands import _run
  from bigdl.train import run as loop

  outcome = Outcome()
  for job in jobs:
    if stop():
      break
    on_event({'event': 'start', 'cell': job.name})
    experiment = config.from_json(job.config)

    def tell(news: dict[str, Any], *, cell: str = job.name) -> None:
      on_event({'event': 'progress', 'cell': cell, **news})

    def say(line: str, *, cell: str = job.name) -> None:
      on_event({'event': 'say', 'cell': cell, 'line': line})

    record = loop.run(
      experiment,
      job.folder,
      config=job.config,
      facts={**job.facts, **_run.peak_facts(experiment)},
      on_progress=tell,
      stop=stop,
      say=say,
    )
    outcome.records[job.name] = record
    on_event({'event': 'done', 'cell': job.name, 'record': record})
    if record['status'] == 'interrupted':
      break
  return outcome
