"""Two pieces of text in a row, and whether the second follows the first.

Next sentence: Devlin et al., 2018, arXiv:1810.04805, section 3.1 and appendix
A.2. Sentence order: Lan et al., 2019 (ALBERT), arXiv:1909.11942, section 3.1.
Differs from the papers: documents are cut into windows of a row's size, and each
window in two where a line or sentence ends; a window that is cut short now and
then loses its end in that epoch.
"""

# Shapes: T tokens of a row.
from __future__ import annotations

import dataclasses
import functools
import hashlib
import re
from typing import Literal, NamedTuple, get_args

import grain.python as grain
import numpy as np

from bigdl.data import tokens
from bigdl.data.base import Source
from bigdl.data.tokenizers import Specials, Tokenizer, specials, spell

PairKind = Literal['next', 'order']
# What ends the last token of a sentence.
SENTENCE_END = re.compile(r'[.!?\n]["\')\]]*\s*$')


@dataclasses.dataclass(frozen=True)
class Pairs(Source):
  """Rows [CLS] A [SEP] B [SEP], filled up to `text.length` with [PAD].

  `types` is 0 for A and 1 for B, `segments` 1 but for padding. `label` is 0
  where B follows A; it is 1, for half of the rows, where B is from another
  document ('next') or A and B are exchanged ('order').
  """

  text: tokens.TokenSource
  kind: PairKind = 'next'
  short: float = 0.1  # Share of rows of a random shorter length.
  seed: int = 0

  def __post_init__(self):
    if self.kind not in get_args(PairKind):
      allowed = ', '.join(get_args(PairKind))
      raise ValueError(f'kind={self.kind} must be one of {allowed}')
    if not 0 <= self.short <= 1:
      raise ValueError(f'short={self.short} must be in [0, 1]')
    if self.text.length < 5:
      raise ValueError(
        f'text.length={self.text.length} must be at least 5: two tokens and'
        ' three special ones'
      )

  @property
  def split(self) -> str:
    return self.text.split

  @property
  def length(self) -> int:
    return self.text.length

  @property
  def coder(self) -> Tokenizer:
    return self.text.coder

  @functools.cached_property
  def specials(self) -> Specials:
    """The special ids, above the vocabulary of the text or of it."""
    return specials(self.coder)

  @functools.cached_property
  def _windows(self) -> _Windows:
    return _Windows.of(self.text.shard.ends, self.length - 3, self.text.split)

  @functools.cached_property
  def _ends(self) -> np.ndarray:
    """Whether a sentence may end after each id, bool `[vocab]`."""
    return np.array([bool(SENTENCE_END.search(s)) for s in spell(self.coder)])

  def __len__(self) -> int:
    return self._windows.total

  def dataset(self) -> grain.MapDataset:
    return grain.MapDataset.source(range(len(self))).map(
      lambda i: {k: v[0] for k, v in self.rows(i, i + 1).items()}
    )

  def facts(self) -> dict:
    known = self.text.facts()
    kept = {k: known[k] for k in ('tokens', 'documents')}
    return {**kept, 'vocab': self.specials.vocab, 'classes': 2}

  def fingerprint(self) -> str:
    named = f'pairs-1 {self.text.fingerprint()} {self.kind} {self.short}'
    return hashlib.sha256(named.encode()).hexdigest()[:24]

  def place(self, number: int) -> int:
    """Returns which example row `number` shows, from 0; each once an epoch."""
    epoch, at = divmod(number, len(self))
    if self.split == 'validation':
      epoch = 0
    return int(_permutation(self.seed, epoch, len(self))[at])

  def rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
    rows = [self._row(i) for i in range(start, stop)]
    return {k: np.stack([row[k] for row in rows]) for k in rows[0]}

  def _row(self, number: int) -> dict[str, np.ndarray]:
    window = self.place(number)
    held_out = self.split == 'validation'
    key = window if held_out else number
    rng = np.random.default_rng([self.seed, held_out, key])
    ids, document = self._read(window)
    if rng.random() < self.short:
      ids = ids[: int(rng.integers(2, len(ids) + 1))]
    cut = self._cut(ids, rng)
    first, second = ids[:cut], ids[cut:]
    label = int(rng.random() < 0.5)
    if label and self.kind == 'order':
      first, second = second, first
    elif label:
      second = self._other(document, len(second), rng)
    row = self._join(first, second)
    row['label'] = np.array(label, np.int32)
    if held_out:
      row['cluster'] = np.array(document, np.int32)
    return row

  def _read(self, window: int) -> tuple[np.ndarray, int]:
    start, stop, document = self._windows.span(window)
    return self.text.shard.tokens[start:stop].astype(np.int32), document

  def _cut(self, ids: np.ndarray, rng: np.random.Generator) -> int:
    """Returns where B begins: after a sentence, or anywhere if none ends."""
    after = np.flatnonzero(self._ends[ids[:-1]]) + 1
    choices = after if after.size else np.arange(1, len(ids))
    return int(rng.choice(choices))

  def _other(
    self, document: int, size: int, rng: np.random.Generator
  ) -> np.ndarray:
    """Returns up to `size` tokens of another document."""
    windows = self._windows
    # Uniform over the windows of all other documents.
    before, after = windows.of_document(document)
    pick = int(rng.integers(windows.total - (after - before)))
    ids, _ = self._read(pick if pick < before else pick + after - before)
    starts = np.flatnonzero(self._ends[ids[:-1]]) + 1
    starts = np.append(starts[starts <= max(0, len(ids) - size)], 0)
    start = int(rng.choice(starts))
    return ids[start : start + size]

  def _join(self, first, second) -> dict[str, np.ndarray]:
    own = self.specials
    ids = np.full(self.length, own.pad, np.int32)
    a, b = len(first) + 2, len(first) + len(second) + 3
    ids[0], ids[a - 1], ids[b - 1] = own.first, own.between, own.between
    ids[1 : a - 1], ids[a : b - 1] = first, second
    at = np.arange(self.length)
    return {
      'tokens': ids,
      'segments': (at < b).astype(np.int32),
      'types': ((at >= a) & (at < b)).astype(np.int32),
    }


class _Windows(NamedTuple):
  """Documents cut into windows of at most `size` tokens and at least two."""

  starts: np.ndarray  # Where each document begins, int64.
  sizes: np.ndarray  # Its tokens, without the one that ends it.
  ends: np.ndarray  # Its windows and all before.
  size: int

  @classmethod
  def of(cls, ends: np.ndarray, size: int, split: str) -> _Windows:
    starts = np.concatenate([[0], ends[:-1]])
    sizes = ends - starts - 1
    # A last window of one token cannot be cut in two.
    counts = sizes // size + (sizes % size > 1)
    if np.count_nonzero(counts) < 2:
      raise ValueError(
        f'split={split} holds {np.count_nonzero(counts)} document of two tokens'
        ' or more; pairs of sentences need two'
      )
    return cls(starts, sizes, np.cumsum(counts), size)

  @property
  def total(self) -> int:
    return int(self.ends[-1])

  def of_document(self, document: int) -> tuple[int, int]:
    """Returns the first window of a document, and one past its last."""
    before = self.ends[document - 1] if document else 0
    return int(before), int(self.ends[document])

  def span(self, window: int) -> tuple[int, int, int]:
    """Returns a window's first token, one past its last, and its document."""
    document = int(np.searchsorted(self.ends, window, 'right'))
    before, _ = self.of_document(document)
    offset = (window - before) * self.size
    start = int(self.starts[document]) + offset
    size = min(self.size, int(self.sizes[document]) - offset)
    return start, start + size, document


@functools.lru_cache(maxsize=8)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
  return np.random.default_rng([seed, epoch]).permutation(size)


def tiny() -> Pairs:
  """Returns short pairs of the standard library."""
  from bigdl.data.stdlib import StandardLibrary

  return Pairs(StandardLibrary(length=24))
