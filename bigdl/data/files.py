"""Files that a user names, and their checksums."""

from __future__ import annotations

import glob
import hashlib
import pathlib


def find(pattern: str) -> list[pathlib.Path]:
  """Returns the files of a file's name, a folder's, or a pattern, sorted.

  Of a folder, all files below it but hidden ones.
  """
  path = pathlib.Path(pattern).expanduser()
  if path.is_file():
    return [path]
  if path.is_dir():
    files = (f for f in path.rglob('*') if f.is_file())
    return sorted(
      f
      for f in files
      if not any(p.startswith('.') for p in f.relative_to(path).parts)
    )
  found = glob.glob(str(path), recursive=True)
  return sorted(f for f in map(pathlib.Path, found) if f.is_file())


def checksum(file: pathlib.Path, cache: pathlib.Path) -> str:
  """Returns the file's SHA-256; one of its size and time is not read again."""
  stat = file.stat()
  told = f'{file.resolve()} {stat.st_size} {stat.st_mtime_ns}'
  memo = cache / 'files' / hashlib.sha256(told.encode()).hexdigest()[:32]
  if memo.is_file():
    known = memo.read_text()
    if len(known) == 64:
      return known
  with file.open('rb') as content:
    found = hashlib.file_digest(content, 'sha256').hexdigest()
  memo.parent.mkdir(parents=True, exist_ok=True)
  memo.write_text(found)
  return found
