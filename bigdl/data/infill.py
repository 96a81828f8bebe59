"""Text whose missing parts are asked for at its end: causal-masked infilling.

Fried et al., 2022 (InCoder), arXiv:2204.05999, section 2.1; Aghajanyan et al.,
2022 (CM3), arXiv:2201.07520, section 2. Of a document D, spans are cut out; in the
place of span k stands <Mask:k>, and after the document each span follows as
<Mask:k> span <EOM>. A causal model that reads on learns to fill in what lies
between two sides. How many spans there are is Poisson(1), at least one and at
most 256; the length of each is uniform; sets that overlap are drawn anew.
Differs from the papers: a document is a row of text, of which the last tokens
give way to the special ones; a set that overlaps a thousand times loses a span.
"""

# Shapes: N rows, S = T + 1 tokens of a row.
from __future__ import annotations

import dataclasses
import functools
import hashlib

import grain.python as grain
import numpy as np

from bigdl.data.base import Source
from bigdl.data.stdlib import StandardLibrary
from bigdl.data.tokenizers import Tokenizer
from bigdl.data.tokens import TokenSource

# Sets of spans that are drawn before there is one span less.
_DRAWS = 1000


@dataclasses.dataclass(frozen=True)
class Infill(Source):
  """Rows of text with spans moved to their end.

  A row has `tokens` [T + 1] and `weight` [T + 1], 0 for each <Mask:k>, which
  nobody should learn to write, and 1 for all else. T is `text.length`. With V the
  text's vocabulary, <EOM> is V and <Mask:k> is V + 1 + k.
  """

  text: TokenSource
  spans: int = 256  # Most of them in a row.
  seed: int = 0  # Of the spans; the order of rows has the text's.

  def __post_init__(self):
    if self.spans < 1:
      raise ValueError(f'spans={self.spans} must be at least 1')
    if self.text.segments:
      raise ValueError(
        'text.segments=True must be False: spans move past other documents'
      )
    if self.text.length < 3:
      raise ValueError(
        f'text.length={self.text.length} must be at least 3, for a span and'
        ' what marks it'
      )

  @property
  def split(self) -> str:
    return self.text.split

  @property
  def length(self) -> int:
    """T: tokens that a row predicts."""
    return self.text.length

  @property
  def coder(self) -> Tokenizer:
    """The text's tokenizer, which does not know the special ids."""
    return self.text.coder

  @functools.cached_property
  def end(self) -> int:
    """The id of <EOM>; those of <Mask:0>, <Mask:1>, ... follow it."""
    return self.coder.vocab

  def __len__(self) -> int:
    return len(self.text)

  def dataset(self) -> grain.MapDataset:
    return grain.MapDataset.source(range(len(self))).map(
      lambda i: {k: v[0] for k, v in self.rows(i, i + 1).items()}
    )

  def facts(self) -> dict:
    # No bytes a token: some of the targets are <EOM>, which stands for none.
    known = self.text.facts()
    kept = {k: known[k] for k in ('tokens', 'documents') if k in known}
    return {**kept, 'vocab': self.end + 1 + self.spans}

  def fingerprint(self) -> str:
    named = f'infill-1 {self.text.fingerprint()} {self.spans}'
    return hashlib.sha256(named.encode()).hexdigest()[:24]

  def rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
    rows = dict(self.text.rows(start, stop))
    tokens_NS = rows['tokens'].copy()
    for n, row in enumerate(tokens_NS):
      number = start + n
      if self.split != 'train':
        number %= len(self)
      row[:] = self._move(row, np.random.default_rng([self.seed, number]))
    weight_NS = (tokens_NS <= self.end).astype(np.float32)
    return {**rows, 'tokens': tokens_NS, 'weight': weight_NS}

  def _move(self, row_S, rng) -> np.ndarray:
    """Returns the row with spans at its end, as long as it was."""
    S = len(row_S)
    most = min(self.spans, S // 4)
    count = int(np.clip(rng.poisson(1.0), 1, most))
    spans = draw(rng, S, count)
    document = row_S[: S - 3 * len(spans)]
    body, tail, done = [], [], 0
    for k, (first, last) in enumerate(spans):
      mask = [self.end + 1 + k]
      body += [document[done:first], mask]
      tail += [mask, document[first:last], [self.end]]
      done = last
    return np.concatenate([*body, document[done:], *tail])


def draw(
  rng: np.random.Generator, size: int, count: int
) -> list[tuple[int, int]]:
  """Returns first and last (exclusive) of spans, from left to right.

  They lie in the first `size - 3 count` places: with what marks it, a span takes
  up three more than it has tokens.
  """
  while True:
    room = size - 3 * count
    lengths = rng.integers(1, room + 1, (_DRAWS, count))
    firsts = rng.integers(0, room - lengths + 1)
    order = np.argsort(firsts, axis=1, kind='stable')
    firsts = np.take_along_axis(firsts, order, axis=1)
    lasts = firsts + np.take_along_axis(lengths, order, axis=1)
    apart = (firsts[:, 1:] >= lasts[:, :-1]).all(axis=1)
    if apart.any():
      k = int(np.argmax(apart))
      return list(zip(firsts[k].tolist(), lasts[k].tolist(), strict=True))
    # One span alone overlaps nothing.
    count -= 1


def tiny() -> Infill:
  """Returns short rows of the standard library, at most three spans in each."""
  return Infill(StandardLibrary(length=24), spans=3)
