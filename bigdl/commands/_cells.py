"""Trains what can be had of a sweep in this process, one cell after the other.

What happens is told as events, JSON values with the keys `event` and `cell`:
start (attempt), progress (step, steps, loss, …), say (line), done (record),
failed (message, input), lost (line, busy), where another worker has taken the
cell or, busy, does not let go of it, and settled (state), of a cell that is over
and was not trained here.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import signal
import time
import traceback
from typing import Any, Protocol

from bigdl import config
from bigdl.commands import _run
from bigdl.fleet import attempts, claims, content
from bigdl.fleet.manifest import Cell, Manifest
from bigdl.train import batches, device, record
from bigdl.train import run as loop

OnEvent = Callable[[dict[str, Any]], None]
Stop = Callable[[], object]
PAUSE = 0.5  # Seconds between two looks for a cell.
PAUSE_BUSY = 10.0  # Seconds for the former holder of a cell to leave it.
FULL = 'no space left'  # How a run that a full disk stopped begins to say so.


@dataclasses.dataclass(frozen=True)
class Terms:
  """When a worker leaves, and whether it is one process."""

  once: bool = False  # After one cell.
  wait: bool = True  # Not before every cell is over, whoever trains it.
  alone: bool = True  # Else what fails ends the job, as hosts must agree.


@dataclasses.dataclass
class Tally:
  """What one worker did."""

  trained: int = 0  # Cells, to their end.
  failed: int = 0  # Attempts.
  interrupted: str = ''  # Why the last cell was left, '' where it was not.
  signal: int = 0  # Which one asked this or another host to leave.


class Held(Protocol):
  """A cell that is this process's to train."""

  cell: Cell
  number: int  # Of the attempt; 0 where another host has claimed it.

  def check(self) -> None:
    """Raises claims.Lost where it is no longer."""

  def take(self, news: dict[str, Any]) -> None:
    """Takes a progress report."""

  def end(self, how: str, **facts: Any) -> None:
    """Lets the cell go."""


class Queue(Protocol):
  """Where cells come from: `claims.Claims`, or what another host says."""

  settled: dict[str, str]
  living: bool

  def next(self) -> Held | None:
    """Returns a cell to train, None where there is none now."""

  @property
  def left(self) -> int:
    """How many cells are not over."""


def devices() -> dict[str, Any]:
  """Returns kind and number of the devices that this process holds."""
  import jax

  from bigdl.commands import _pool

  if jax.default_backend() == 'cpu':
    return {'device': 'CPU core', 'devices': len(_pool.cores())}
  kind = jax.devices()[0].device_kind
  return {'device': kind, 'devices': jax.device_count()}


def compare_code(plan: Manifest, here: dict[str, str], same: bool) -> str:
  """Returns a line where the code is not the plan's, or ''.

  Raises:
    ValueError: It is another, and `same` is demanded.
  """
  changed = content.changes(dict(plan.code), here)
  if changed and same:
    raise ValueError(f'same_code=True, yet the code has changed: {changed}')
  line = 'the code has changed since the sweep was planned'
  return f'{line}: {changed}' if changed else ''


def train(
  folder: str, queue: Queue, terms: Terms, *, on_event: OnEvent, stop: Stop
) -> Tally:
  """Trains cells until none is left, or `stop` is true.

  Args:
    folder: The sweep's.
    queue: Where cells come from.
    terms: When to leave.
    on_event: Takes what happens.
    stop: Once true, the running cell is saved and given back.

  Raises:
    ValueError: A cell met bad input.
    claims.Lost: A cell of several hosts was taken by another worker.
    record.Busy: A cell of several hosts is still in the hands of another.
  """
  tally, known = Tally(), set[str]()
  # All hosts leave, or none does.
  agreed = bool if terms.alone else device.any_host
  while True:
    if agreed(bool(stop())):
      tally.signal = _number(stop()) or signal.SIGTERM
      break
    held = queue.next()
    for name in [n for n in queue.settled if n not in known]:
      known.add(name)
      on_event({'event': 'settled', 'cell': name, 'state': queue.settled[name]})
    if held is None:
      if not queue.left or (queue.living and not terms.wait):
        break
      time.sleep(PAUSE)
      continue
    name = held.cell.name
    event = _train(
      folder, held, alone=terms.alone, on_event=on_event, stop=stop
    )
    if event['event'] == 'failed':
      tally.failed += 1
    elif event['event'] == 'done':
      known.add(name)
      status = event['record']['status']
      over = status in attempts.OVER
      if over:
        queue.settled[name] = status
      tally.trained += over
      if not over:
        tally.interrupted = event['record']['message']
        tally.signal = _signal(event['record'], stop)
    on_event(event)
    if event.get('input'):
      raise ValueError(f'{name}: {event["message"]}')
    if terms.once or tally.interrupted:
      break
    if event.get('busy'):
      _rest(PAUSE_BUSY, stop)
  return tally


def _rest(seconds: float, stop: Stop) -> None:
  end = time.monotonic() + seconds
  while time.monotonic() < end and not stop():
    time.sleep(PAUSE)


def _signal(said: dict[str, Any], stop: Stop) -> int:
  """Returns the signal upon which a run was left, 0 for another reason."""
  name = said.get('stopped_by') or ''
  if name in signal.Signals.__members__:
    return signal.Signals[name]
  return _number(stop())


def _number(asked: object) -> int:
  return int(asked) if isinstance(asked, int) else 0


def _train(
  folder: str, held: Held, *, alone: bool, on_event: OnEvent, stop: Stop
) -> dict[str, Any]:
  """Trains one cell; returns the event that ends it."""
  name = held.cell.name
  on_event({'event': 'start', 'cell': name, 'attempt': held.number})

  def progress(news: dict[str, Any]) -> None:
    held.take(news)
    on_event({'event': 'progress', 'cell': name, **news})

  def stops() -> object:
    held.check()
    return stop()

  try:
    experiment = config.from_json(dict(held.cell.config))
    _check_data(held.cell, experiment)
    said = loop.run(
      experiment,
      f'{folder}/cells/{name}',
      config=dict(held.cell.config),
      facts={**held.cell.facts, **_run.peak_facts(experiment)},
      on_progress=progress,
      stop=stops,
      say=lambda line: on_event({'event': 'say', 'cell': name, 'line': line}),
    )
  except claims.Lost as error:
    held.end('lost', message=str(error))
    if not alone:
      raise
    return {'event': 'lost', 'cell': name, 'line': str(error)}
  except record.Busy as error:
    # Its former holder, silent for a while, is back and has not noticed yet.
    held.end('returned', message=str(error))
    if not alone:
      raise
    line = str(error)
    return {'event': 'lost', 'cell': name, 'line': line, 'busy': True}
  except batches.Hung as error:
    # Of several hosts; of one, it is an end like another.
    held.end('returned', message=str(error))
    raise
  except ValueError as error:
    held.end('failed', message=str(error))
    return _failed(name, str(error), is_input=True)
  except Exception as error:
    if alone:
      traceback.print_exc()
    message = ' '.join(f'{type(error).__name__}: {error}'.split())
    held.end('failed', message=message)
    if not alone:
      raise
    return _failed(name, message, is_input=False)
  except BaseException:
    held.end('returned')
    raise
  over = said['status'] in attempts.OVER
  held.end(
    said['status'] if over else 'returned',
    step=said['step'],
    message=said['message'],
  )
  return {'event': 'done', 'cell': name, 'record': said}


def _failed(name: str, message: str, *, is_input: bool) -> dict[str, Any]:
  return {
    'event': 'failed',
    'cell': name,
    'message': message,
    'input': is_input,
  }


def _check_data(cell: Cell, experiment: Any) -> None:
  """Raises ValueError where the data are not those of the plan."""
  for name, here in fingerprints(experiment).items():
    there = cell.data.get(name)
    if here != there:
      raise ValueError(
        f'the {name.replace("_", "-")} data are not what the sweep was planned'
        f' on: fingerprint {here} here, {there} in the manifest'
      )


def fingerprints(experiment: Any) -> dict[str, str | None]:
  """Returns hashes of the content of training and held-out data."""
  held_out = experiment.evaluation.data
  return {
    'train': experiment.data.fingerprint(),
    'held_out': held_out.fingerprint() if held_out is not None else None,
  }
