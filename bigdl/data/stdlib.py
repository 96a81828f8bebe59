"""The source of the Python standard library: real text on every machine.

About 11 MB of English and code. Its tests are left out, and so is whatever else
was installed beside it.
"""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
import functools
import pathlib
import sysconfig

from bigdl.data import tokens

# Folders, anywhere below the library, that are not its source.
LEFT_OUT = frozenset(
  ('test', 'tests', 'idle_test', 'site-packages', 'dist-packages')
)


@functools.cache
def _files() -> tuple[tokens.Document, ...]:
  """Returns path and text of every file, by path."""
  root = pathlib.Path(sysconfig.get_path('stdlib'))
  found = []
  for path in root.rglob('*.py'):
    name = path.relative_to(root)
    if not LEFT_OUT.intersection(name.parts):
      found.append((name.as_posix(), path))
  if not found:
    raise ValueError(f'the standard library at {root} has no .py sources')
  return tuple((n, p.read_text('utf-8', 'replace')) for n, p in sorted(found))


@dataclasses.dataclass(frozen=True)
class StandardLibrary(tokens.TokenSource):
  """The running interpreter's standard library, split by file."""

  def documents(self) -> Iterable[tokens.Document]:
    wanted = self.split == 'validation'
    return [d for d in _files() if tokens.is_held_out(d[1]) == wanted]


def tiny() -> StandardLibrary:
  """Returns short rows of the library."""
  return StandardLibrary(length=16)
