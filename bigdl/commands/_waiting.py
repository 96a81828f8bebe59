"""One line that says what is being waited for, and for how long already."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import sys

SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def shown(what: str) -> Iterator[Callable[[float], None]]:
  """Yields `tick(seconds)`; on a terminal the line is gone in the end."""
  if sys.stderr.isatty():
    try:
      yield lambda seconds: _rewrite(f'{what} … {seconds:.0f} s')
    finally:
      _rewrite('')
  else:
    yield _Lines(what)


def _rewrite(line: str) -> None:
  print(f'\r\x1b[2K{line}', end='', file=sys.stderr, flush=True)


class _Lines:
  """A plain line every few seconds, for logs."""

  def __init__(self, what: str):
    self._what, self._next = what, SECONDS_BETWEEN_LINES

  def __call__(self, seconds: float) -> None:
    if seconds >= self._next:
      self._next = seconds + SECONDS_BETWEEN_LINES
      print(f'{self._what}: {seconds:.0f} s', file=sys.stderr, flush=True)
