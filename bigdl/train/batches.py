"""Batches on their way to the devices, made by a thread ahead of the loop."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import math
import queue
import threading
import time

import jax
from jax.sharding import NamedSharding
import numpy as np

Batch = dict[str, jax.Array]
# Seconds between two looks at a batch that is waited for.
SHORTEST_PAUSE, LONGEST_PAUSE = 5e-4, 0.05
# Seconds that the end of a run waits for a read that is under way.
SECONDS_TO_LEAVE = 5.0


def own_rows(sharding: NamedSharding, size: int) -> np.ndarray:
  """Returns the numbers of this host's rows in a batch of `size`, in order.

  They need not be one block, as chips of one host may be in several rows of a
  mesh; and other hosts may have the same, where an axis copies rows.
  """
  indices = sharding.addressable_devices_indices_map((size,)).values()
  spans = {index[0].indices(size)[:2] for index in indices if index}
  return np.concatenate([np.arange(*span) for span in sorted(spans)])


def shards(own: np.ndarray, size: int) -> tuple[int, list[int]]:
  """Returns into how many blocks a batch is cut, and which of them are own.

  Args:
    own: Numbers of rows, in order.
    size: Rows of the batch.
  """
  # The largest block that these rows, and all others, are multiples of.
  edges = own[:1].tolist(), (own[1:][np.diff(own) > 1]).tolist()
  ends = (own[:-1][np.diff(own) > 1] + 1).tolist(), [int(own[-1]) + 1]
  block = math.gcd(size, *edges[0], *edges[1], *ends[0], *ends[1])
  return size // block, sorted(set((own // block).tolist()))


class Placer:
  """Puts this host's rows on the devices as parts of the global batch."""

  def __init__(self, sharding: NamedSharding, size: int):
    self._sharding, self._size = sharding, size
    self._own = own_rows(sharding, size)
    # `device_put` says the same and takes five times as long for small rows.
    self._put = jax.jit(
      lambda rows: rows, in_shardings=sharding, out_shardings=sharding
    )

  def __call__(self, rows: dict[str, np.ndarray]) -> Batch:
    if jax.process_count() == 1:
      return self._put(rows)
    return {name: self._global(x) for name, x in rows.items()}

  def _global(self, x: np.ndarray) -> jax.Array:
    def part(index):
      start, stop, _ = index[0].indices(self._size)
      first = np.searchsorted(self._own, start)
      return x[first : first + stop - start]

    shape = self._size, *x.shape[1:]
    return jax.make_array_from_callback(shape, self._sharding, part)


class Hung(ValueError):
  """A batch took longer than the run is to wait for."""


class Interrupted(Exception):
  """The run was asked to stop while it waited for a batch."""


@dataclasses.dataclass(frozen=True)
class Watch:
  """What is said and done about a batch that does not come."""

  say: Callable[[str], None]
  source: str = ''  # Where the batches come from.
  name: str = 'the batch of step {}'
  slow: float = (
    0.0  # Seconds until it is told, then after twice as long; 0: no.
  )
  hung: float = 0.0  # Seconds until `Hung`; 0: never.
  stop: Callable[[], object] = lambda: False  # Once true, `Interrupted`.
  # Whether the devices have work left, so that waiting costs nothing yet.
  busy: Callable[[], bool] = lambda: False


class Prefetch:
  """An iterator over `make(step)`, `depth` steps ahead on its own thread.

  Use it as a context manager, so that the thread ends with the loop. What
  `make` raises is raised by the `next` that asks for that step.
  """

  def __init__(
    self,
    make: Callable[[int], Batch],
    start: int,
    stop: int,
    *,
    depth: int = 2,
    watch: Watch | None = None,
  ):
    # A pair of these costs a tenth of one bounded queue.Queue.
    self._ready: queue.SimpleQueue[tuple[Batch | None, Exception | None]]
    self._ready = queue.SimpleQueue()
    self._room: queue.SimpleQueue[bool] = queue.SimpleQueue()
    for _ in range(depth):
      self._room.put(True)
    self._thread = threading.Thread(
      target=self._work, args=(make, start, stop), daemon=True
    )
    self._watch = watch or Watch(print)
    self._making = start, time.perf_counter()
    self._told = -1, 0.0
    # Seconds that the last `next` kept the devices waiting.
    self.waited = 0.0

  def _work(self, make, start, stop):
    for step in range(start, stop):
      if not self._room.get():
        return
      self._making = step, time.perf_counter()
      try:
        self._ready.put((make(step), None))
      except Exception as error:  # __next__ raises it again.
        self._ready.put((None, error))
        return

  def __enter__(self) -> Prefetch:
    self._thread.start()
    return self

  def __exit__(self, *_) -> None:
    # Tokens left over only let a batch be made that nobody takes.
    self._room.put(False)
    # A read that hangs must not keep the run from leaving.
    self._thread.join(SECONDS_TO_LEAVE)

  def __next__(self) -> Batch:
    self.waited = 0.0
    try:
      batch, error = self._ready.get_nowait()
    except queue.Empty:
      batch, error = self._wait()
    self._room.put(True)
    if error is not None:
      raise error
    assert batch is not None
    return batch

  def _wait(self) -> tuple[Batch | None, Exception | None]:
    """Returns the next batch; looks now and then at what goes on meanwhile."""
    idle, pause = time.perf_counter(), SHORTEST_PAUSE
    while True:
      try:
        item = self._ready.get(timeout=pause)
        break
      except queue.Empty:
        pass
      if self._watch.busy():
        idle = time.perf_counter()
      if self._watch.stop():
        raise Interrupted
      self._look()
      pause = min(2 * pause, LONGEST_PAUSE)
    if not self._watch.busy():
      self.waited = time.perf_counter() - idle
    return item

  def _look(self) -> None:
    """Tells of a slow read, raises `Hung` at one that takes too long."""
    watch, (step, since) = self._watch, self._making
    seconds = time.perf_counter() - since
    told, due = self._told
    due = due if told == step else watch.slow
    host = f'host {jax.process_index()}'
    what = watch.name.format(step + 1)
    source = f' ({watch.source})' if watch.source else ''
    if watch.hung and seconds >= watch.hung:
      raise Hung(
        f'{host}: {what} has not come in {seconds:.3g} s{source};'
        f' guard.hung={watch.hung:g}'
      )
    if due and seconds >= due:
      self._told = step, 2 * seconds
      watch.say(f'{host}: {what} has taken {seconds:.3g} s so far{source}')
