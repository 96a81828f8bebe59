"""Text files of all sorts: plain, compressed, archives, one JSON object a line."""

from __future__ import annotations

import bz2
from collections.abc import Iterable, Iterator
import dataclasses
import functools
import gzip
import json
import lzma
import pathlib
import sysconfig
import tarfile
from typing import IO, Any
import zipfile
import zlib

from bigdl.data import files, tokens

_OPEN: dict[str, Any] = {'.gz': gzip.open, '.xz': lzma.open, '.bz2': bz2.open}
_SHORT = {'.tgz': '.tar.gz', '.txz': '.tar.xz', '.tbz2': '.tar.bz2'}
_LINES = ('.jsonl', '.ndjson')
_DAMAGE = (
  EOFError,
  OSError,
  lzma.LZMAError,
  zlib.error,
  tarfile.TarError,
  zipfile.BadZipFile,
)


@dataclasses.dataclass(frozen=True)
class TextFiles(tokens.TokenSource):
  """Documents from files, told by their names.

  `.gz`, `.xz` and `.bz2` are decompressed; each member of a `.tar` or `.zip` and
  each line of a `.jsonl` or `.ndjson` is a document; any other file is one. Where
  `validation_paths` names none, documents are held out by a hash of their text,
  or of each document its last share `tail`.
  """

  paths: tuple[str, ...] = ()  # Files, folders or patterns such as data/*.gz.
  validation_paths: tuple[str, ...] = ()  # The same, for validation.
  field: str = 'text'  # Of a line's JSON object, what holds the text.
  # Share of each document, its end, that is held out; 0: whole documents are.
  tail: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.tail < 1:
      raise ValueError(f'tail={self.tail} must be in [0, 1), a share of a text')
    if self.tail and self.validation_paths:
      raise ValueError(
        f'tail={self.tail} must be 0 where validation_paths are given'
      )

  def documents(self) -> Iterable[tokens.Document]:
    wanted = self.split == 'validation'
    for name, text in self.every():
      if self.tail:
        cut = round(len(text) * (1 - self.tail))
        text = text[cut:] if wanted else text[:cut]
      if text and (self.tail or self._takes(text, wanted)):
        yield name, text

  def every(self) -> Iterator[tokens.Document]:
    """Yields the documents of the split's files, of whichever split they are."""
    for file in self._files:
      yield from _read(str(file), file.name, file.open('rb'), self.field)

  def _takes(self, text: str, wanted: bool) -> bool:
    return bool(self.validation_paths) or tokens.is_held_out(text) == wanted

  @functools.cached_property
  def _files(self) -> tuple[pathlib.Path, ...]:
    own = self.split == 'validation' and self.validation_paths
    what = 'validation_paths' if own else 'paths'
    patterns = getattr(self, what)
    if not patterns:
      raise ValueError(f'{what}=() must name at least one file')
    found: dict[pathlib.Path, None] = {}
    for pattern in patterns:
      matches = files.find(pattern)
      if not matches:
        raise ValueError(f'{what}={pattern} matches no file')
      found |= dict.fromkeys(matches)
    return tuple(found)

  def inputs(self) -> str:
    # Of the files as they are, not of the documents in them: a checksum that
    # is known for a file's size and time need not be computed again.
    sums = [f'{f.name} {files.checksum(f, self._cache)}' for f in self._files]
    split = self.split if not self.validation_paths else 'all'
    told = ['files', sums, self.field, split]
    return json.dumps([*told, self.tail] if self.tail else told)


def _read(
  place: str, name: str, content: IO[bytes], field: str
) -> Iterator[tokens.Document]:
  """Yields the documents of one file, or of one member of an archive.

  Args:
    place: The file's whole name, for messages.
    name: Its own name, whose endings say what it is.
    content: Its bytes; closed at the end.
    field: Of JSON lines.
  """
  for short, long in _SHORT.items():
    name = name.removesuffix(short) + long if name.endswith(short) else name
  stem, dot, ending = name.rpartition('.')
  ending = dot + ending.lower()
  if ending == '.zst':
    content.close()
    raise ValueError(f'{place}: .zst is not read; .gz, .xz and .bz2 are')
  try:
    with content:
      if ending in _OPEN:
        yield from _read(place, stem, _OPEN[ending](content), field)
      elif ending == '.tar':
        with tarfile.open(fileobj=content, mode='r|') as archive:
          for member in archive:
            inner = archive.extractfile(member) if member.isfile() else None
            if inner is not None:
              own = f'{place}/{member.name}'
              yield from _read(own, member.name, inner, field)
      elif ending == '.zip':
        with zipfile.ZipFile(content) as packed:
          for part in packed.infolist():
            if not part.is_dir():
              own = f'{place}/{part.filename}'
              member_name = part.filename.rpartition('/')[2]
              yield from _read(own, member_name, packed.open(part), field)
      elif ending in _LINES:
        for number, line in enumerate(content, 1):
          if line.strip():
            yield f'{place}:{number}', _field(f'{place}:{number}', line, field)
      else:
        yield place, _text(place, content.read())
  except _DAMAGE as error:
    if isinstance(error, OSError) and error.errno is not None:
      raise
    raise ValueError(f'{place} is damaged: {error}') from error


def _text(place: str, raw: bytes) -> str:
  try:
    return raw.decode('utf-8')
  except UnicodeDecodeError as error:
    raise ValueError(
      f'{place} is not text in UTF-8: byte {error.start} is'
      f' {raw[error.start]:#04x}'
    ) from error


def _field(place: str, line: bytes, field: str) -> str:
  try:
    value = json.loads(_text(place, line))
  except json.JSONDecodeError as error:
    raise ValueError(f'{place} is not JSON: {error}') from error
  if not isinstance(value, dict):
    raise ValueError(f'{place} must be a JSON object, got {line[:40]!r}')
  if field not in value:
    names = ', '.join(value) or 'none'
    raise ValueError(f'{place}: field={field!r} is not there; it has {names}')
  if not isinstance(value[field], str):
    kind = type(value[field]).__name__
    raise ValueError(f'{place}: field={field!r} must be text, got {kind}')
  return value[field]


def tiny() -> TextFiles:
  """Returns short rows of two packages of the standard library."""
  root = pathlib.Path(sysconfig.get_path('stdlib'))
  return TextFiles(
    paths=(str(root / 'json' / '*.py'),),
    validation_paths=(str(root / 'wsgiref' / '*.py'),),
    length=16,
  )
