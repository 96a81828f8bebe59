"""What a folder holds, to see that nothing of it was lost."""

from __future__ import annotations

import pathlib


def snapshot(folder: pathlib.Path) -> dict[str, bytes]:
  """Returns the content of every file below a folder."""
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in sorted(folder.rglob('*'))
    if p.is_file()
  }
