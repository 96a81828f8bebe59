"""SIGINT and SIGTERM as a flag that the loop reads between two steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import signal

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def interrupts() -> Iterator[Callable[[], int]]:
  """Yields `stop()`, the signal that asked the run to save and leave, or 0.

  The second SIGINT raises KeyboardInterrupt at once. Enter it on the main
  thread, where Python delivers signals.
  """
  asked = 0

  def handle(number, frame):
    del frame
    nonlocal asked
    asked = number
    signal.signal(signal.SIGINT, signal.default_int_handler)

  before = {number: signal.signal(number, handle) for number in SIGNALS}
  try:
    yield lambda: asked
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
