"""Text with holes: the source is what is left of it, the target what was there.

Span corruption: Raffel et al., 2020, arXiv:1910.10683, section 3.1.4 and figure
2. Spans of random lengths, as many in every row, each leave one mark in the
source; the target names each mark and then what it stands for.
Differs from the paper: the target ends in the tokenizer's end alone, without a
last mark before it.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import grain.python as grain
import numpy as np

from bigdl.data.base import Source
from bigdl.data.stdlib import StandardLibrary
from bigdl.data.tokens import TokenSource


@dataclasses.dataclass(frozen=True)
class Corrupted(Source):
  """Rows of a text source, a share of whose tokens move to the target.

  A row holds `source` [text.length - hidden + spans] and `tokens` [hidden + spans
  + 2], the target after a begin and before an end: nothing is padded. The begin
  is the id above the tokenizer's, the marks are those above it. What is hidden
  depends on the seed and the number of the row; in validation it is always the
  same.
  """

  text: TokenSource = dataclasses.field(default_factory=StandardLibrary)
  rate: float = 0.15  # Share of the tokens that are hidden.
  span: float = 3.0  # Mean length of what one mark stands for.
  seed: int = 0  # Of what is hidden; the text has its own.

  def __post_init__(self):
    if not 0 < self.rate < 1:
      raise ValueError(f'rate={self.rate} must be in (0, 1)')
    if not self.span >= 1:
      raise ValueError(f'span={self.span} must be at least 1')
    if min(self.hidden, self.text.length - self.hidden) < self.spans:
      raise ValueError(
        f'rate={self.rate} and span={self.span} must leave a token before each'
        f' of {self.spans} spans of text.length={self.text.length}'
      )

  @property
  def split(self) -> str:
    """The text's."""
    return self.text.split

  @property
  def hidden(self) -> int:
    """Tokens of a row that are hidden."""
    return max(1, round(self.rate * self.text.length))

  @property
  def spans(self) -> int:
    """Spans of a row that are hidden."""
    return max(1, round(self.hidden / self.span))

  def __len__(self) -> int:
    return len(self.text)

  def dataset(self) -> grain.MapDataset:
    return grain.MapDataset.source(range(len(self))).map(
      lambda i: {k: v[0] for k, v in self.rows(i, i + 1).items()}
    )

  @functools.cached_property
  def _begin(self) -> int:
    return self.text.coder.vocab

  def facts(self) -> dict:
    return {
      'vocab': self._begin + 1 + self.spans,
      'pad': self._begin,
      'begin': self._begin,
      'end': self.text.coder.eod,
    }

  def fingerprint(self) -> str:
    named = [self.text.fingerprint(), self.text.length, self.rate, self.span]
    digest = hashlib.sha256(f'corrupted-1 {named}'.encode()).hexdigest()
    return digest[:24]

  def rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
    given = self.text.rows(start, stop)
    T = self.text.length
    texts = given.pop('tokens')[:, :T]
    given.pop('segments', None)
    source = np.empty((len(texts), T - self.hidden + self.spans), np.int32)
    target = np.empty((len(texts), self.hidden + self.spans + 2), np.int32)
    target[:, 0] = self._begin
    target[:, -1] = self.text.coder.eod
    for row, (number, text) in enumerate(
      zip(range(start, stop), texts, strict=True)
    ):
      bounds = self._bounds(number)
      kept, moved = [], []
      for i, mark in enumerate(
        range(self._begin + 1, self._begin + 1 + self.spans)
      ):
        before, first, end = bounds[2 * i : 2 * i + 3]
        kept += [text[before:first], [mark]]
        moved += [[mark], text[first:end]]
      source[row] = np.concatenate(kept)
      target[row, 1:-1] = np.concatenate(moved)
    return {'source': source, 'tokens': target, **given}

  def _bounds(self, number: int) -> np.ndarray:
    """Returns where stretches of kept and of hidden tokens begin, and the end.

    A stretch of kept tokens comes first, one of hidden ones last.
    """
    if self.split == 'validation':
      number %= len(self)
    rng = np.random.default_rng([self.seed, number])
    sizes = np.empty(2 * self.spans, np.int64)
    sizes[0::2] = _parts(rng, self.text.length - self.hidden, self.spans)
    sizes[1::2] = _parts(rng, self.hidden, self.spans)
    return np.append(0, np.cumsum(sizes))


def _parts(rng: np.random.Generator, total: int, count: int) -> np.ndarray:
  """Returns `count` sizes of at least 1 that sum to `total`, any as likely."""
  cuts = np.sort(rng.choice(total - 1, count - 1, replace=False)) + 1
  return np.diff(np.concatenate([[0], cuts, [total]]))


def tiny() -> Corrupted:
  """Returns short rows of the standard library."""
  return Corrupted(StandardLibrary(length=24), rate=0.5, span=4)
