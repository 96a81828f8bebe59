"""Which arrays fill a device's memory, by the report that the compiler writes.

The report (`*memory-usage-report.txt` in a dump of XLA) lists, for each memory
space, the bytes in all and buffers in the order of their size. A buffer that
several arrays use one after the other is listed once, with the shapes of all.
The total is an upper bound of the peak: buffers that are never alive together
count each.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_SPACE = re.compile(r'^Memory Space: (.+?) \(color=\d+\)', re.M)
_TOTAL = re.compile(r'^Total bytes: (\d+)', re.M)
_ROW = re.compile(
  r'^\s*[\d.]+\w*\(\s*\d+%\);\s*([\d.]+)(B|KiB|MiB|GiB);\s*\d+;\s*\d+; (.*)$',
  re.M,
)
_UNITS = {'B': 1, 'KiB': 2**10, 'MiB': 2**20, 'GiB': 2**30}


class Buffer(NamedTuple):
  bytes: int  # To the three digits that the report shows.
  shapes: tuple[str, ...]


def spaces(report: str) -> dict[str, int]:
  """Returns the bytes of all buffers in each memory space, by its name.

  'default' is the main memory. Empty where the text is no such report.
  """
  sections = _SPACE.split(report)[1:]
  found = {}
  for name, section in zip(sections[::2], sections[1::2], strict=True):
    total = _TOTAL.search(section)
    if total:
      found[name] = int(total.group(1))
  return found


def largest(report: str, most: int = 5) -> list[Buffer]:
  """Returns the largest buffers of the main memory, the largest first."""
  sections = _SPACE.split(report)[1:]
  named = dict(zip(sections[::2], sections[1::2], strict=True))
  found = [
    Buffer(round(float(size) * _UNITS[unit]), _shapes(shapes))
    for size, unit, shapes in _ROW.findall(named.get('default', ''))
  ]
  return sorted(found, key=lambda buffer: -buffer.bytes)[:most]


def _shapes(text: str) -> tuple[str, ...]:
  found = re.findall(r'\w+\[[\d,]*\]', text)
  return tuple(dict.fromkeys(found))
