"""Seconds spent training, without compiling, evaluating or saving."""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import time


class Clock:
  """A stopwatch that goes on from `seconds` when `start` is called."""

  def __init__(self, seconds: float = 0.0):
    self._before = seconds
    self._since: float | None = None

  @property
  def seconds(self) -> float:
    running = (
      time.perf_counter() - self._since if self._since is not None else 0.0
    )
    return self._before + running

  def start(self) -> None:
    """Starts to count."""
    self._since = time.perf_counter()

  def stop(self) -> None:
    """Counts no further."""
    self._before, self._since = self.seconds, None

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Does not count what happens inside."""
    self.stop()
    try:
      yield
    finally:
      self.start()
