"""Where the time of a run went, over all of its starts.

Goodput is the share of it that made training progress which was kept ("ML
productivity goodput" of Google Cloud, cloud.google.com/tpu/docs/goodput):

  goodput = train / (sum of all parts)

The parts are seconds of the first host. Time between two starts is in none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import contextlib
import time

PARTS = (
  'train',  # Updates that count.
  'start',  # Until the first update, and what is in no other part.
  'compile',  # The update; what else is compiled is in the part that needs it.
  'restore',
  'save',  # While updates wait for it.
  'evaluate',
  'data',  # Devices had nothing to do but wait for a batch.
  'repeated',  # Updates that were lost, and done again.
)


class Clock:
  """A stopwatch that counts each second to one part."""

  def __init__(self, began: float | None = None):
    """Counts to 'start', from `began` (of `time.perf_counter`) if given."""
    self._parts = dict.fromkeys(PARTS, 0.0)
    self._part = 'start'
    self._since = time.perf_counter() if began is None else began

  @property
  def seconds(self) -> float:
    """Spent on updates that count, with their waiting for data."""
    parts = self.parts()
    return parts['train'] + parts['data']

  def parts(self) -> dict[str, float]:
    """Returns the seconds of each part until now."""
    now = time.perf_counter()
    self._parts[self._part] += now - self._since
    self._since = now
    return dict(self._parts)

  def enter(self, part: str) -> None:
    """Counts to that part from now on."""
    self.parts()
    self._part = part

  @contextlib.contextmanager
  def within(self, part: str) -> Iterator[None]:
    """Counts to that part what happens inside."""
    before = self._part
    self.enter(part)
    try:
      yield
    finally:
      self.enter(before)

  def add(self, parts: Mapping[str, float]) -> None:
    """Adds what earlier starts have counted."""
    for part, seconds in parts.items():
      self._parts[part] = self._parts.get(part, 0.0) + seconds

  def waited(self, seconds: float) -> None:
    """Moves as many of the seconds that just went by from 'train' to 'data'."""
    self._parts['train'] -= seconds
    self._parts['data'] += seconds

  def lose(self, seconds: float) -> None:
    """Moves seconds of updates that are to be done again to 'repeated'."""
    left = max(0.0, min(seconds, self.seconds))
    self._parts['repeated'] += left
    for part in ('train', 'data'):
      taken = min(left, self._parts[part])
      self._parts[part] -= taken
      left -= taken


def goodput(parts: Mapping[str, float]) -> float | None:
  """Returns the share that trained, None before any time went by."""
  total = sum(parts.values())
  return parts.get('train', 0.0) / total if total > 0 else None
