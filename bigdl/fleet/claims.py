"""Claims on the cells of a sweep, by workers that see one folder and die.

Whoever creates `claims/CELL.3.claim` has the cell, for its third attempt; `link`
or a conditional put lets one succeed. It then rewrites `CELL.beat` every few
seconds, with its attempt and how far it is.

A holder is dead once its beat has not changed for `silence` seconds of the
observer's own clock, so that clocks need not agree; on the holder's machine a
file lock tells at once. Its cell is then claimed as the next attempt. The number
is a fencing token (Kleppmann, 2017, Designing Data-Intensive Applications, ch.
8): a holder that was only paused sees the higher number, or that it has not
written a beat for half of `silence`, before it writes anything else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
import contextlib
import json
import os
import threading
import time
from typing import Any

from bigdl.fleet import attempts as told
from bigdl.fleet.attempts import ATTEMPTS, FOLDER, Attempts
from bigdl.fleet.manifest import Cell
from bigdl.fleet.store import Held, Store, host

SILENCE = 60.0  # Seconds.
_BEATS = 6  # In the time of one silence.


class Lost(Exception):
  """The cell is another worker's now: nothing more may be written to it."""


class Claim:
  """A cell that this process holds; a thread says so while it does."""

  def __init__(
    self,
    store: Store,
    cell: Cell,
    number: int,
    held: Held,
    silence: float,
    clock: Callable[[], float],
  ):
    self.cell, self.number = cell, number
    self._store, self._held = store, held
    self._silence, self._clock = silence, clock
    self._began = self._told = clock()
    self._news: dict[str, Any] = {}
    self._count = 0
    self._lost = False
    self._guard = threading.Lock()
    self._over = threading.Event()
    self._tell()
    self._thread = threading.Thread(target=self._keep, daemon=True)
    self._thread.start()

  @property
  def seconds(self) -> float:
    """Since the cell was claimed."""
    return self._clock() - self._began

  def take(self, news: Mapping[str, Any]) -> None:
    """Takes a progress report, for the next sign of life."""
    names = ('step', 'steps', 'loss', 'tokens_per_second')
    self._news = {k: news[k] for k in names if k in news}

  def check(self) -> None:
    """Raises Lost where the cell is another's, or may be by now."""
    if not self._lost and self._clock() - self._told > self._silence / 2:
      self._tell()
    silent = self._clock() - self._told
    if self._lost or silent > self._silence:
      raise Lost(
        f'another worker has taken it (attempt {self.number} was silent for'
        f' {silent:.0f} s)'
        if not self._lost
        else f'another worker has taken it from attempt {self.number}'
      )

  def end(self, how: str, **facts: Any) -> None:
    """Notes how the attempt ended and lets the cell go."""
    self._over.set()
    self._thread.join()
    facts = {'seconds': self.seconds, **self._news, **facts}
    # On a full disk, silence says that it has ended.
    with contextlib.suppress(OSError):
      told.ended(self._store, self.cell.name, self.number, how, facts)
    self._held.release()

  def _keep(self) -> None:
    while not self._over.wait(self._silence / _BEATS):
      self._tell()

  def _tell(self) -> None:
    """Writes a sign of life, unless the cell is another's."""
    name = self.cell.name
    with self._guard:
      now = self._clock()
      try:
        self._count += 1
        body = {
          'attempt': self.number,
          'beat': self._count,
          'seconds': round(self.seconds, 3),
          **self._news,
        }
        last = told.beat(self._store, name).get('attempt', 0)
        self._lost = self._lost or last > self.number
        if not self._lost:
          mark = json.dumps(body).encode()
          self._store.mark(f'{FOLDER}/{name}.beat', mark)
        # Whoever claims it from here on has seen that the beat changed.
        following = f'{FOLDER}/{name}.{self.number + 1}.claim'
        self._lost = self._lost or self._store.read(following) is not None
        self._told = now
      except Exception:  # Each kind of store has its own.
        return  # The folder is out of reach: `check` counts the seconds.


class Claims:
  """What one worker has seen of a sweep, and how it takes the next cell."""

  def __init__(
    self,
    store: Store,
    cells: Iterable[Cell],
    worker: Mapping[str, Any],
    *,
    silence: float = SILENCE,
    attempts: int = ATTEMPTS,
    machine: str = '',
    clock: Callable[[], float] = time.monotonic,
  ):
    """Looks at nothing yet.

    Args:
      store: The sweep's folder.
      cells: In the order to train them.
      worker: What each claim says of its holder: device, devices, code, …
      silence: Seconds without a beat after which this worker is dead.
      attempts: Tries without progress, after which a cell has failed.
      machine: Whose file locks are seen; '' for this one.
      clock: Seconds, of this worker's own.
    """
    self.settled: dict[str, str] = {}  # Cell: finished, diverged or failed.
    self.living = False  # Whether all cells left are in hands seen alive.
    self._store, self._cells = store, list(cells)
    self._worker, self._machine = dict(worker), machine or host()
    self._silence, self._attempts = silence, attempts
    self._clock = clock
    self._seen: dict[str, tuple[tuple, float]] = {}
    self._alive: set[tuple[str, int]] = set()
    self._claims: dict[tuple[str, int], dict[str, Any]] = {}

  def next(self) -> Claim | None:
    """Claims the first cell that can be had, None where none can now."""
    known = told.listed(self._store)
    held = []
    for cell in self._cells:
      if cell.name in self.settled:
        continue
      attempts = known.get(cell.name, Attempts())
      if attempts.held and not self._dead(cell.name, attempts.last):
        held.append((cell.name, attempts.last))
        continue
      if self._settle(cell, attempts):
        continue
      claim = self._claim(cell, attempts)
      if claim:
        return claim
      held.append((cell.name, attempts.last + 1))
    self.living = all(key in self._alive for key in held)
    return None

  @property
  def left(self) -> int:
    """How many cells are not settled, as of the last look."""
    return sum(cell.name not in self.settled for cell in self._cells)

  def _settle(self, cell: Cell, attempts: Attempts) -> bool:
    """Returns whether a cell needs no further attempt, and remembers it."""
    name = cell.name
    # The record is the run's own word; a claim's end may be missing.
    outcome = told.outcome(self._store, cell)
    if outcome:
      self.settled[name] = outcome
    elif attempts.last >= self._attempts:
      if told.tries(self._store, name, attempts) >= self._attempts:
        self.settled[name] = 'failed'
        if attempts.held:
          self._bury(name, attempts.last)
    return name in self.settled

  def _claim(self, cell: Cell, attempts: Attempts) -> Claim | None:
    number = attempts.last + 1
    body = {
      **self._worker,
      'host': self._machine.partition(' ')[0],
      'machine': self._machine,
      'pid': os.getpid(),
      'step': told.saved(self._store, cell.name),
      'silence': self._silence,
      'attempts': self._attempts,
      'time': time.time(),
    }
    name = f'{FOLDER}/{cell.name}.{number}.claim'
    texts = [
      (json.dumps({**body, 'locked': locked}) + '\n').encode()
      for locked in (True, False)
    ]
    held = self._store.create(name, *texts)
    if held is None:
      return None
    if attempts.held:
      self._bury(cell.name, attempts.last)
    # It may have been finished between the look and the claim.
    if self._settle(cell, Attempts()):
      told.ended(self._store, cell.name, number, 'returned', {})
      held.release()
      return None
    return Claim(self._store, cell, number, held, self._silence, _since_boot)

  def _bury(self, cell: str, number: int) -> None:
    """Notes that an attempt has ended with its worker."""
    last = told.beat(self._store, cell)
    if last.get('attempt') != number:
      last = {}
    owner = self._claims.get((cell, number), {})
    where = f'process {owner.get("pid", "?")} of {owner.get("host", "?")}'
    message = f'its worker died or fell silent: {where}'
    facts: dict[str, Any] = {'message': message}
    facts |= {k: last[k] for k in ('seconds', 'step', 'loss') if k in last}
    told.ended(self._store, cell, number, 'lost', facts)
    if owner.get('machine') != self._machine or self._held(cell, number):
      # A server may keep the lock of a client that is paused or gone. Whoever
      # made it is fenced off by the number; a new file has a new lock.
      self._store.remove(f'cells/{cell}/lock')

  def _held(self, cell: str, number: int) -> bool | None:
    return self._store.held(f'{FOLDER}/{cell}.{number}.claim')

  def _dead(self, cell: str, number: int) -> bool:
    """Returns whether the holder of a cell has given no sign for too long."""
    key = cell, number
    owner = self._claims.get(key)
    if not owner:
      owner = self._claims[key] = told.read(self._store, cell, number, 'claim')
    if owner.get('machine') == self._machine:
      held = self._held(cell, number)
      if held is False and owner.get('locked', True):
        return True
      if held and cell not in self._seen:
        self._alive.add(key)
    sign = number, self._store.read(f'{FOLDER}/{cell}.beat')
    before, since = self._seen.get(cell, (None, 0.0))
    if sign != before:
      if before and before[0] == number:
        self._alive.add(key)
      self._seen[cell] = sign, self._clock()
      return False
    silent = self._clock() - since
    # Its own promise, should workers differ in theirs.
    if silent > owner.get('silence', self._silence):
      self._alive.discard(key)
      return True
    return False


def _since_boot() -> float:
  """Returns seconds that go on while the machine sleeps."""
  if hasattr(time, 'CLOCK_BOOTTIME'):
    return time.clock_gettime(time.CLOCK_BOOTTIME)
  return time.monotonic()
