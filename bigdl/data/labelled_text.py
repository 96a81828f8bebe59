"""Texts with a label each: tables, JSON lines, and sentiment treebanks.

Trees in brackets, a label on each phrase, are those of Socher et al., 2013,
"Recursive Deep Models for Semantic Compositionality Over a Sentiment Treebank".
Encoders read [CLS] text [SEP], or [CLS] text [SEP] text [SEP]: Devlin et al., 2018,
arXiv:1810.04805, figure 4. Decoders read a text between ends of documents, after
Radford et al., 2018, "Improving Language Understanding by Generative
Pre-Training", section 3.3.
Differs from the papers: a decoder has no token of its own for where to answer.
"""

# Shapes: N rows, T tokens of a row.
from __future__ import annotations

from collections.abc import Iterator
import csv
import dataclasses
import functools
import glob
import gzip
import hashlib
import io
import itertools
import json
import math
import pathlib
import re
from typing import Any, Literal, NamedTuple

import grain.python as grain
import numpy as np

from bigdl.data import tokenizers, tokens
from bigdl.data.base import Source

# Marks of a treebank that stand for brackets of the text.
_BRACKETS = {'-LRB-': '(', '-RRB-': ')'}


class Example(NamedTuple):
  """A text, or two, with the label as the file spells it."""

  place: str  # File and line, for messages.
  text: str
  label: str
  pair: str = ''


class _Table(NamedTuple):
  """All rows of a split."""

  tokens_NT: np.ndarray
  segments_NT: np.ndarray
  types_NT: np.ndarray
  label_N: np.ndarray
  cut: int  # Rows whose text was too long.


@dataclasses.dataclass(frozen=True)
class LabelledText(Source):
  """Rows of `tokens` [T], `segments` [T] and `label`, or a number `target`.

  Files are told by their content: `.jsonl` holds a JSON object a line; one that
  begins with a bracket holds a tree a line; any other is a table with tabs,
  whose first line names the columns. `.gz` is decompressed. Where
  `validation_paths` names none, texts are held out by their hash, trees with all
  their phrases. Rows of two texts have `types` too.
  """

  paths: tuple[str, ...] = ()  # Files, or patterns such as data/*.tsv.
  validation_paths: tuple[str, ...] = ()  # The same, for validation.
  # Texts and labels beside those of `paths`.
  examples: tuple[tuple[str, str], ...] = ()
  # The labels of each class, such as ('0|1', '3|4'); none: they are numbers.
  classes: tuple[str, ...] = ('0', '1')
  left_out: tuple[str, ...] = ()  # Labels whose rows are left out.
  text: str = 'sentence'  # Columns of a table or fields of JSON.
  pair: str = ''  # Of the second text; '': there is none.
  label: str = 'label'
  phrases: bool = False  # Of trees to train on: each phrase, once, is a row.
  mean: float = 0.0  # Numbers y become targets (y - mean) / std.
  std: float = 1.0
  split: Literal['train', 'validation'] = 'train'
  length: int = 128  # T: tokens of a row; longer texts are cut at their end.
  reader: Literal['encoder', 'decoder'] = 'encoder'
  tokenizer: tokenizers.Tokenizer | Any = tokenizers.Bytes()
  # Data whose tokenizer is taken instead, such as one learnt from its text.
  like: Source | None = None
  seed: int = 0  # Of the order of rows.

  def __post_init__(self):
    if self.split not in ('train', 'validation'):
      raise ValueError(f'split={self.split} must be train or validation')
    if self.reader not in ('encoder', 'decoder'):
      raise ValueError(f'reader={self.reader} must be encoder or decoder')
    if self.length < 4:
      raise ValueError(f'length={self.length} must be at least 4')
    if len(self.classes) == 1:
      raise ValueError(f'classes={self.classes} must be two or more, or none')
    if not self.std > 0:
      raise ValueError(f'std={self.std} must be positive')
    names = [n for group in self.classes for n in group.split('|')]
    for name in (*names, *self.left_out):
      if [*names, *self.left_out].count(name) > 1:
        raise ValueError(f'classes={self.classes}: label {name!r} stands twice')

  @functools.cached_property
  def coder(self) -> tokenizers.Tokenizer:
    """The tokenizer, learnt already."""
    if self.like is not None:
      return getattr(self.like, 'coder', None) or self.like.tokenizer  # type: ignore[attr-defined]
    if hasattr(self.tokenizer, 'train'):
      raise ValueError(
        'tokenizer must be one that is learnt already; like=DATA takes that of'
        ' the data it was learnt from'
      )
    return self.tokenizer

  @functools.cached_property
  def _specials(self) -> tokenizers.Specials:
    if self.reader == 'encoder':
      return tokenizers.specials(self.coder)
    end = self.coder.eod
    return tokenizers.Specials(end, end, end, end, self.coder.vocab)

  def rows_of_files(self) -> Iterator[Example]:
    """Yields this split's examples in the order of the files."""
    wanted = self.split == 'validation'
    separate = bool(self.validation_paths)
    paths = self.validation_paths if separate and wanted else self.paths
    own = () if separate and wanted else self.examples
    if not paths and not own:
      raise ValueError('paths=() must name at least one file')
    found = [Example(f'example {i}', *e) for i, e in enumerate(own)]
    rows = itertools.chain(found, *map(self._read, _find(paths)))
    for row in rows:
      if separate or tokens.is_held_out(row.text + row.pair) == wanted:
        yield row

  def _read(self, file: pathlib.Path) -> list[Example]:
    opened: Any = gzip.open if file.suffix == '.gz' else open
    try:
      with opened(file, 'rt', encoding='utf-8-sig') as content:
        lines = content.read()
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError) as error:
      raise ValueError(f'{file} is not text in UTF-8: {error}') from error
    if not lines.strip():
      raise ValueError(f'{file} is empty')
    if file.name.removesuffix('.gz').endswith(('.jsonl', '.ndjson')):
      found = list(self._objects(file, lines))
    elif lines.lstrip()[0] == '(':
      found = list(self._trees(file, lines))
    else:
      found = list(self._cells(file, lines))
    if not found:
      raise ValueError(f'{file} holds no row')
    return found

  def _objects(self, file, lines):
    # Not splitlines, which also ends a line within a text, such as at U+2028.
    for number, line in enumerate(lines.split('\n'), 1):
      if not line.strip():
        continue
      place = f'{file}:{number}'
      try:
        row = json.loads(line)
      except json.JSONDecodeError as error:
        raise ValueError(f'{place} is not JSON: {error}') from error
      if not isinstance(row, dict):
        raise ValueError(f'{place} must be a JSON object, got {line[:40]!r}')
      yield self._example(place, {k: str(v) for k, v in row.items()})

  def _cells(self, file, lines):
    table = csv.reader(
      io.StringIO(lines), delimiter='\t', quoting=csv.QUOTE_NONE
    )
    names = next(table)
    for number, row in enumerate(table, 2):
      if not row:
        continue
      place = f'{file}:{number}'
      if len(row) != len(names):
        raise ValueError(
          f'{place} has {len(row)} columns, and the first line {len(names)}'
        )
      yield self._example(place, dict(zip(names, row, strict=True)))

  def _example(self, place, row):
    for what in ('text', 'label', 'pair'):
      name = getattr(self, what)
      if name and name not in row:
        raise ValueError(
          f'{place}: {what}={name!r} is not there; it has {", ".join(row)}'
        )
    pair = row[self.pair] if self.pair else ''
    return Example(place, row[self.text], row[self.label], pair)

  def _trees(self, file, lines):
    seen = set()
    every = self.phrases and self.split == 'train'
    for number, line in enumerate(lines.split('\n'), 1):
      if not line.strip():
        continue
      place = f'{file}:{number}'
      found = list(_phrases(place, line))
      whole = found[-1]
      # Of a held-out tree no phrase is to train on. The whole one stays, for
      # `rows_of_files` to tell where it belongs.
      apart = not self.validation_paths and tokens.is_held_out(whole[0])
      for text, label in found if every and not apart else [whole]:
        if every and text in seen:
          continue
        seen.add(text)
        yield Example(place, text, label)

  @functools.cached_property
  def _known(self) -> dict[str, int]:
    return {
      name: number
      for number, group in enumerate(self.classes)
      for name in group.split('|')
    }

  def _value(self, row: Example) -> float:
    if self.classes:
      if row.label not in self._known:
        names = ', '.join([*self._known, *self.left_out])
        raise ValueError(
          f'{row.place}: label={row.label!r} must be one of {names}'
        )
      return self._known[row.label]
    try:
      value = float(row.label)
    except ValueError:
      value = math.nan
    if not math.isfinite(value):
      raise ValueError(
        f'{row.place}: label={row.label!r} must be a finite number'
      )
    return (value - self.mean) / self.std

  def _ids(self, row: Example) -> tuple[list[list[int]], bool]:
    """Returns one or two framed texts that fit, and whether they were cut."""
    own, coder = self._specials, self.coder
    parts = [[int(t) for t in coder.encode(row.text)]]
    if self.pair:
      parts.append([int(t) for t in coder.encode(row.pair)])
    room = self.length - 1 - len(parts)
    cut = sum(map(len, parts)) > room
    while sum(map(len, parts)) > room:
      # The longer of two texts gives way, as in BERT's code.
      max(parts, key=len).pop()
    framed = [[*part, own.between] for part in parts]
    framed[0].insert(0, own.first)
    return framed, cut

  @functools.cached_property
  def _table(self) -> _Table:
    rows = [
      (row, self._value(row))
      for row in self.rows_of_files()
      if row.label not in self.left_out
    ]
    if not rows:
      raise ValueError(f'split={self.split} holds no row')
    shape = len(rows), self.length
    tokens_NT = np.full(shape, self._specials.pad, np.int32)
    segments_NT, types_NT = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    cut = 0
    for n, (row, _) in enumerate(rows):
      parts, shortened = self._ids(row)
      cut += shortened
      size = 0
      for kind, part in enumerate(parts):
        tokens_NT[n, size : size + len(part)] = part
        types_NT[n, size : size + len(part)] = kind
        size += len(part)
      segments_NT[n, :size] = 1
    dtype = np.int32 if self.classes else np.float32
    labels = np.array([value for _, value in rows], dtype)
    return _Table(tokens_NT, segments_NT, types_NT, labels, cut)

  def __len__(self) -> int:
    return len(self._table.label_N)

  def dataset(self) -> grain.MapDataset:
    return grain.MapDataset.source(range(len(self))).map(
      lambda i: {k: v[0] for k, v in self.rows(i, i + 1).items()}
    )

  def rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
    size, table = len(self), self._table
    index = np.arange(start, stop)
    place = np.empty_like(index)
    for epoch in range(start // size, (stop - 1) // size + 1):
      own = index // size == epoch
      again = epoch if self.split == 'train' else 0
      place[own] = _order(self.seed, again, size)[index[own] % size]
    rows = {
      'tokens': table.tokens_NT[place],
      'segments': table.segments_NT[place],
      'label' if self.classes else 'target': table.label_N[place],
    }
    if self.pair:
      rows['types'] = table.types_NT[place]
    return rows

  def facts(self) -> dict:
    classes = {'classes': len(self.classes)} if self.classes else {}
    return {
      'vocab': self._specials.vocab,
      'rows': len(self),
      'cut': self._table.cut,
      **classes,
    }

  def fingerprint(self) -> str:
    digest = hashlib.sha256(self.coder.fingerprint().encode())
    for part in self._table[:4]:
      digest.update(f'{part.shape}'.encode() + part.tobytes())
    return digest.hexdigest()[:24]


@functools.lru_cache(maxsize=8)
def _order(seed: int, epoch: int, size: int) -> np.ndarray:
  return np.random.default_rng([seed, epoch]).permutation(size)


def _find(patterns: tuple[str, ...]) -> list[pathlib.Path]:
  found = []
  for pattern in patterns:
    path = pathlib.Path(pattern).expanduser()
    files = [path] if path.is_file() else sorted(glob.glob(str(path)))
    files = [f for f in map(pathlib.Path, files) if f.is_file()]
    if not files:
      raise ValueError(f'paths={pattern} matches no file')
    found += files
  return found


def _phrases(place: str, line: str) -> Iterator[tuple[str, str]]:
  """Yields text and label of each phrase of a tree, the whole one last."""
  open_phrases: list[list[str]] = []
  whole = False
  for mark in re.findall(r'[()]|[^\s()]+', line):
    if whole:
      raise ValueError(f'{place} goes on after its tree: {mark!r}')
    if mark == '(':
      open_phrases.append([])
    elif not open_phrases:
      raise ValueError(f'{place} is not a tree: {mark!r} stands outside')
    elif mark != ')':
      word = mark.replace('\\/', '/').replace('\\*', '*')
      open_phrases[-1].append(_BRACKETS.get(word, word))
    else:
      label, *words = open_phrases.pop() or ['']
      if not words:
        raise ValueError(f'{place} is not a tree: a phrase has no word')
      yield ' '.join(words), label
      whole = not open_phrases
      if open_phrases:
        open_phrases[-1] += words
  if not whole:
    raise ValueError(f'{place} is not a tree: a bracket is left open')


def tiny() -> LabelledText:
  """Returns short opinions of two sorts, made of a few words."""
  things = (
    'plot',
    'cast',
    'score',
    'joke',
    'scene',
    'ending',
    'hero',
    'villain',
  )
  words = {'0': ('dull', 'flat', 'tired'), '1': ('bright', 'sharp', 'warm')}
  return LabelledText(
    examples=tuple(
      (f'a {word} {thing}', label)
      for label, own in words.items()
      for thing, word in itertools.product(things, own)
    ),
    length=24,
  )
