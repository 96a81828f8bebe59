"""A lock where there is none: an object that is put again and again.

The objects are `lock.1`, `lock.2`, …; who has put the one of the highest number
holds the folder, and the number is the fencing token. Each puts its own again
every `BEAT` seconds with another count. Whoever comes next takes the following
number once the count has stood still for `SILENCE` seconds, by its own clock,
so that clocks need not agree; only one can, as a name is created once.
Gray and Cheriton, 1989, "Leases", DOI 10.1145/74850.74870.

Differs from the paper: no clocks are compared, and a holder that was paused
finds out at its next `check`, so that what it has begun to put may still land.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import json
import os
import pathlib
import socket
import threading
import time
from typing import Any
import uuid

from bigdl import storage

BEAT = 10.0  # Seconds between two puts.
SILENCE = 45.0  # Seconds without one, after which the holder is dead.
NAME = 'lock'


class Busy(ValueError):
  """A run folder is another process's, which lives."""


class Lease:
  """One holding of a folder; `check` says whether it still is one."""

  def __init__(self, folder: pathlib.Path, number: int):
    self._folder, self._number = folder, number
    self._identity = uuid.uuid4().hex
    self._beats = 0
    self._seen = time.monotonic()  # When it was last known to be held.
    self._lost = ''
    self._over = threading.Event()
    self._thread = threading.Thread(target=self._beat, daemon=True)

  def take(self) -> bool:
    """Returns whether this process is the first to have the number."""
    if not storage.create(_path(self._folder, self._number), self._text()):
      return False
    # One that was removed as old could be created again by a process that had
    # listed the names long ago.
    if _last(self._folder) > self._number:
      return False
    self._thread.start()
    return True

  def check(self) -> None:
    """Raises Busy where another process has taken the folder over."""
    if not self._lost and time.monotonic() - self._seen > SILENCE:
      self._look()
    if self._lost:
      raise Busy(self._lost)

  def give_back(self) -> None:
    """Lets the next process have the folder at once."""
    self._over.set()
    self._thread.join()
    if not self._lost:
      # Where the store cannot be reached, the next process has to wait.
      with contextlib.suppress(Exception):
        text = self._text(released=True)
        storage.write(_path(self._folder, self._number), text)

  def _text(self, released: bool = False) -> str:
    return json.dumps(
      {
        'holder': self._identity,
        'host': socket.gethostname(),
        'process': os.getpid(),
        'machine': _machine(),
        'born': _born(os.getpid()),
        'beat': self._beats,
        'released': released,
      }
    )

  def _look(self) -> None:
    """Learns whether another process has a higher number."""
    last = _last(self._folder)
    if last > self._number:
      other = _who(_content(self._folder, last) or {})
      self._lost = (
        f'{self._folder} was taken over by {other}, as this process was silent;'
        ' it stops here'
      )
    else:
      self._seen = time.monotonic()

  def _beat(self) -> None:
    while not self._lost and not self._over.wait(BEAT):
      self._beats += 1
      # The store may be out of reach for a while.
      with contextlib.suppress(Exception):
        self._look()
        if not self._lost:
          storage.write(_path(self._folder, self._number), self._text())


@contextlib.contextmanager
def held(folder: pathlib.Path, say: Callable[[str], None]) -> Iterator[Lease]:
  """Holds a remote folder.

  Args:
    folder: A folder in an object store; it need not be there.
    say: Takes one line where there is a wait.

  Raises:
    Busy: A process that lives holds it.
  """
  lease = _acquire(folder, say)
  try:
    yield lease
  finally:
    lease.give_back()


def _acquire(folder: pathlib.Path, say: Callable[[str], None]) -> Lease:
  while True:
    number = _last(folder)
    if number:
      _wait_for_silence(folder, number, say)
    lease = Lease(folder, number + 1)
    if lease.take():
      for old in range(max(1, number - 8), number + 1):
        storage.remove(_path(folder, old))
      return lease


def _wait_for_silence(
  folder: pathlib.Path, number: int, say: Callable[[str], None]
) -> None:
  """Returns once nobody holds that number; raises where somebody does."""
  first = _content(folder, number)
  if first is None or first.get('released') or _is_dead(first):
    return
  say(
    f'{folder} was held by {_who(first)}; waiting {SILENCE:.0f} s to see whether'
    ' it lives'
  )
  until = time.monotonic() + SILENCE
  while time.monotonic() < until:
    time.sleep(min(BEAT, SILENCE) / 4)
    now = _content(folder, number)
    if now is None or now.get('released'):
      return
    if now != first:
      raise Busy(f'{folder} is being trained already by {_who(now)}')


def _is_dead(content: dict[str, Any]) -> bool:
  """Returns whether the holder was of this machine and is no more."""
  machine, born = content.get('machine'), content.get('born')
  if machine is None or machine != _machine():
    return False
  return born is not None and _born(content.get('process', 0)) != born


def _machine() -> str | None:
  """Returns what process ids are of: this boot, this container."""
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
    return f'{boot} {os.readlink("/proc/self/ns/pid")}'
  except OSError:
    return None


def _born(process: int) -> str | None:
  """Returns when a process was started; None where there is none."""
  try:
    stat = pathlib.Path(f'/proc/{process}/stat').read_text()
  except OSError:
    return None
  # The name, in brackets, may have spaces; the 22nd field is the start time. A
  # zombie is as good as gone.
  fields = stat.rpartition(')')[2].split()
  return None if fields[0] == 'Z' else fields[19]


def _who(content: dict[str, Any]) -> str:
  host, process = content.get('host', '?'), content.get('process', '?')
  return f'process {process} on {host}'


def _path(folder: pathlib.Path, number: int) -> pathlib.Path:
  return folder / f'{NAME}.{number}'


def _last(folder: pathlib.Path) -> int:
  """Returns the highest number that was taken, 0 for none."""
  numbers = [
    path.name.removeprefix(f'{NAME}.') for path in folder.glob(f'{NAME}.*')
  ]
  return max((int(n) for n in numbers if n.isdigit()), default=0)


def _content(folder: pathlib.Path, number: int) -> dict[str, Any] | None:
  text = storage.read(_path(folder, number))
  try:
    return json.loads(text) if text is not None else None
  except ValueError:
    return {}
