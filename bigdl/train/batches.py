"""Batches on their way to the devices, made by a thread ahead of the loop."""

from __future__ import annotations

from collections.abc import Callable
import queue
import threading

import jax
from jax.sharding import NamedSharding
import numpy as np

Batch = dict[str, jax.Array]


def own_rows(sharding: NamedSharding, size: int) -> tuple[int, int]:
  """Returns the first and the end of this host's rows in a batch of `size`."""
  indices = sharding.addressable_devices_indices_map((size,)).values()
  spans = [index[0].indices(size)[:2] for index in indices if index]
  start, stop = min(s for s, _ in spans), max(s for _, s in spans)
  covered = sum(stop - start for start, stop in set(spans))
  if covered != stop - start:
    raise ValueError(f'the rows of this host are not one block: {spans}')
  return start, stop


class Placer:
  """Puts this host's rows on the devices as parts of the global batch."""

  def __init__(self, sharding: NamedSharding, size: int):
    self._sharding, self._size = sharding, size
    # `device_put` says the same and takes five times as long for small rows.
    self._put = jax.jit(
      lambda rows: rows, in_shardings=sharding, out_shardings=sharding
    )

  def __call__(self, rows: dict[str, np.ndarray]) -> Batch:
    if jax.process_count() == 1:
      return self._put(rows)
    return {
      name: jax.make_array_from_process_local_data(
        self._sharding, x, (self._size, *x.shape[1:])
      )
      for name, x in rows.items()
    }


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

  def _work(self, make, start, stop):
    for step in range(start, stop):
      if not self._room.get():
        return
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
    self._thread.join()

  def __next__(self) -> Batch:
    batch, error = self._ready.get()
    self._room.put(True)
    if error is not None:
      raise error
    assert batch is not None
    return batch
