"""Pairs of sentences, one pair a line, in two languages or two forms.

Lines are tab-separated, as those of tatoeba's archives (manythings.org/anki).
Both sides share one vocabulary, as in Vaswani et al., 2017, arXiv:1706.03762,
section 5.1: byte pairs are learnt over both.
"""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
import functools
import hashlib
import io
import json
import pathlib
import tempfile

import grain.python as grain
import numpy as np

from bigdl.data import text, tokens
from bigdl.data.base import Source
from bigdl.data.tokenizers import BPE, Bytes, Tokenizer


@dataclasses.dataclass(frozen=True)
class _Sides(text.TextFiles):
  """The sides of each pair as documents: source, target, source, ..."""

  source: int = 0
  target: int = 1

  def documents(self) -> Iterable[tokens.Document]:
    wanted = self.split == 'validation'
    for name, content in self.every():
      # An archive's own note, such as `_about.txt`, holds no pairs.
      if name.rpartition('/')[2].startswith('_'):
        continue
      # Not splitlines, which also ends a line within a text, such as at U+2028.
      lines = io.StringIO(content.removeprefix('\ufeff'), newline=None)
      for number, line in enumerate(lines, 1):
        if not line.strip():
          continue
        place = f'{name}:{number}'
        pair = self._pair(place, line)
        if self._takes(pair[0], wanted):
          yield place, pair[0]
          yield place, pair[1]

  def _pair(self, place: str, line: str) -> tuple[str, str]:
    columns = line.split('\t')
    if len(columns) <= max(self.source, self.target):
      raise ValueError(
        f'{place} has {len(columns)} columns, expected column'
        f' source={self.source} and target={self.target}'
      )
    return columns[self.source].strip(), columns[self.target].strip()

  def inputs(self) -> str:
    return json.dumps(['pairs-2', super().inputs(), self.source, self.target])


@dataclasses.dataclass(frozen=True)
class ParallelText(Source):
  """Rows of one pair, or of as many as fit.

  A row holds `source` [length] and `tokens` [length + 1], the target after a
  `begin`; both sides end in the tokenizer's `eod`. `source_segments` and
  `segments` number the pairs of a row from 1; 0 is padding. `begin`, which pads
  too, is the id above the tokenizer's. Pairs of which a side is longer than
  `length` are left out; `facts` counts them. Lines of one source are of one
  split, by a hash of it, unless `validation_paths` names files of their own.
  """

  paths: tuple[str, ...] = ()  # Files (.gz, .zip, ... too), folders, patterns.
  validation_paths: tuple[str, ...] = ()
  split: str = 'train'  # Or validation: other sources.
  source: int = 0  # Columns of a line, from 0.
  target: int = 1
  length: int = 32  # Most tokens of a side, its end included.
  tokenizer: Tokenizer | BPE = Bytes()
  packed: bool = False  # As many pairs a row as fit; else one.
  seed: int = 0  # Of the order of rows.
  cache: str = ''  # Folder for token files; '' takes one per user.

  def __post_init__(self):
    if self.split not in ('train', 'validation'):
      raise ValueError(f'split={self.split} must be train or validation')
    if self.length < 2:
      raise ValueError(f'length={self.length} must be at least 2')
    for name in ('source', 'target'):
      if getattr(self, name) < 0:
        raise ValueError(f'{name}={getattr(self, name)} must not be negative')

  @functools.cached_property
  def _sides(self) -> _Sides:
    return _Sides(
      paths=self.paths,
      validation_paths=self.validation_paths,
      split=self.split,
      source=self.source,
      target=self.target,
      tokenizer=self.tokenizer,
      cache=self.cache,
    )

  @property
  def coder(self) -> Tokenizer:
    """The tokenizer; one that has to be learnt, learnt from the train split."""
    return self._sides.coder

  @functools.cached_property
  def _spans(self) -> np.ndarray:
    """First and end of source and target, int64 `[pairs, 2, 2]`."""
    ends = self._sides.shard.ends
    return np.stack([np.append(0, ends[:-1]), ends], 1).reshape(-1, 2, 2)

  @functools.cached_property
  def _kept(self) -> np.ndarray:
    """Numbers of the pairs that fit, in the order in which rows take them."""
    sizes = self._spans[..., 1] - self._spans[..., 0]
    kept = np.flatnonzero((sizes <= self.length).all(1))
    if not kept.size:
      raise ValueError(
        f'length={self.length} fits no pair of split={self.split}'
      )
    return np.random.default_rng(0).permutation(kept)

  @functools.cached_property
  def _bounds(self) -> np.ndarray:
    """Row i takes the kept pairs from `_bounds[i]` to `_bounds[i + 1]`."""
    if not self.packed:
      return np.arange(len(self._kept) + 1)
    spans = self._spans[self._kept]
    sizes = (spans[..., 1] - spans[..., 0] + [0, 1]).tolist()
    bounds, used = [0], [0, 0]
    for i, (source, target) in enumerate(sizes):
      used = [used[0] + source, used[1] + target]
      if used[0] > self.length or used[1] > self.length + 1:
        bounds.append(i)
        used = [source, target]
    return np.array([*bounds, len(sizes)])

  def __len__(self) -> int:
    return len(self._bounds) - 1

  def dataset(self) -> grain.MapDataset:
    return grain.MapDataset.source(range(len(self))).map(
      lambda i: {k: v[0] for k, v in self.rows(i, i + 1).items()}
    )

  def facts(self) -> dict:
    pairs, coder = len(self._spans), self.coder
    return {
      'vocab': coder.vocab + 1,
      'pad': coder.vocab,
      'begin': coder.vocab,
      'end': coder.eod,
      'pairs': len(self._kept),
      'left_out': pairs - len(self._kept),
    }

  def fingerprint(self) -> str:
    named = [self._sides.shard.fingerprint, self.length, self.packed]
    digest = hashlib.sha256(f'parallel-1 {named}'.encode()).hexdigest()
    return digest[:24]

  def rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
    places = [self._place(i) for i in range(start, stop)]
    count, begin = len(places), self.coder.vocab
    rows = {
      'source': np.full((count, self.length), begin, np.int32),
      'source_segments': np.zeros((count, self.length), np.int32),
      'tokens': np.full((count, self.length + 1), begin, np.int32),
      'segments': np.zeros((count, self.length + 1), np.int32),
    }
    ids = self._sides.shard.tokens
    for row, place in enumerate(places):
      s = t = 0
      pairs = self._kept[self._bounds[place] : self._bounds[place + 1]]
      for segment, (source, target) in enumerate(self._spans[pairs], 1):
        end = s + source[1] - source[0]
        rows['source'][row, s:end] = ids[source[0] : source[1]]
        rows['source_segments'][row, s:end] = segment
        s, end = end, t + 1 + target[1] - target[0]
        # What stands before a target already is the begin.
        rows['tokens'][row, t + 1 : end] = ids[target[0] : target[1]]
        rows['segments'][row, t:end] = segment
        t = end
    if self.split == 'validation':
      rows['cluster'] = self._clusters[places]
    return rows

  def _place(self, index: int) -> int:
    epoch, row = divmod(index, len(self))
    if self.split != 'train':
      return row
    return int(_permutation(self.seed, epoch, len(self))[row])

  @functools.cached_property
  def _clusters(self) -> np.ndarray:
    """One number for all rows whose (first) source is the same, `[rows]`."""
    ids = self._sides.shard.tokens
    numbers: dict[bytes, int] = {}
    found = []
    for pair in self._kept[self._bounds[:-1]]:
      start, stop = self._spans[pair, 0]
      found.append(numbers.setdefault(ids[start:stop].tobytes(), len(numbers)))
    return np.array(found, np.int32)


@functools.lru_cache(maxsize=8)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
  return np.random.default_rng([seed, epoch]).permutation(size)


@functools.cache
def small_pairs() -> str:
  """Returns a file of pairs, numbers in two languages, made for the occasion."""
  file = pathlib.Path(tempfile.mkdtemp(prefix='bigdl-pairs-')) / 'pairs.txt'
  english, french = ('one', 'two', 'three'), ('un', 'deux', 'trois')
  lines = [
    f'{english[i % 3]} and {i}\t{french[i % 3]} et {i}' for i in range(150)
  ]
  file.write_text('\n'.join(lines), 'utf-8')
  return str(file)


def tiny() -> ParallelText:
  """Returns short pairs that are made for the occasion, several a row."""
  return ParallelText(paths=(small_pairs(),), length=40, packed=True)
