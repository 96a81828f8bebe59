"""Text to be predicted in an order of its positions that is drawn for each row.

Yang et al., 2019 (XLNet), arXiv:1906.08237: the last 1 / K of an order are
predicted (section 2.3, eq. 5), at will whole spans of 1 to L tokens, each out of
K times as many (section 3.1).
Differs from the paper: rows are cut from running text, without its special
tokens and second segment; each has equally many targets.
"""

# Shapes: T tokens of a row, P of them predicted.
from __future__ import annotations

import dataclasses
import hashlib

import grain.python as grain
import numpy as np

from bigdl.data.base import Source
from bigdl.data.tokens import TokenSource


@dataclasses.dataclass(frozen=True)
class Permuted(Source):
  """Rows of text with an order, and what is last in it to predict.

  A row has `tokens` [T] and `order` [T], the rank of each position; `targets_at`
  [P], where P = T / share, the positions that are last, from left to right;
  `targets` [P], the tokens there; `weight` [P], all 1; `segments`, those of the
  text. T is `text.length`. An order is drawn for each row of each epoch; those
  of validation rows stay.
  """

  text: TokenSource
  share: int = 6  # K: one token in so many is predicted.
  span: int = 0  # Most neighbours predicted together; 0: each by itself.
  # Whether what is not predicted has one rank, so that all of it sees all of it,
  # as in the authors' code; otherwise it has an order too (eq. 3 and 4).
  whole_context: bool = True
  seed: int = 0

  def __post_init__(self):
    if not 1 < self.share <= self.text.length:
      raise ValueError(
        f'share={self.share} must be in [2, text.length={self.text.length}]'
      )
    if not 0 <= self.span <= self.text.length:
      raise ValueError(
        f'span={self.span} must be in [0, text.length={self.text.length}]'
      )

  @property
  def split(self) -> str:
    return self.text.split

  @property
  def length(self) -> int:
    """T: tokens of a row."""
    return self.text.length

  @property
  def targets(self) -> int:
    """P: tokens of a row that are predicted."""
    return self.text.length // self.share

  def __len__(self) -> int:
    return len(self.text)

  def dataset(self) -> grain.MapDataset:
    return grain.MapDataset.source(range(len(self))).map(
      lambda i: {k: v[0] for k, v in self.rows(i, i + 1).items()}
    )

  def facts(self) -> dict:
    # Bits per byte would be of all text, and the loss is of its targets.
    known = self.text.facts()
    return {k: v for k, v in known.items() if k != 'bytes_per_token'}

  def fingerprint(self) -> str:
    named = (
      f'permuted-1 {self.text.fingerprint()} {self.share} {self.span}'
      f' {self.whole_context}'
    )
    return hashlib.sha256(named.encode()).hexdigest()[:24]

  def rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
    rows = dict(self.text.rows(start, stop))
    for name in ('tokens', 'segments'):
      if name in rows:
        # The last token of a row is the first of the next one.
        rows[name] = rows[name][:, :-1]
    orders = [self._order(i) for i in range(start, stop)]
    rows['order'] = np.stack(orders).astype(np.int32)
    context = self.length - self.targets
    _, at = np.nonzero(rows['order'] >= context)
    rows['targets_at'] = at.reshape(-1, self.targets).astype(np.int32)
    rows['targets'] = np.take_along_axis(
      rows['tokens'], rows['targets_at'], axis=1
    )
    rows['weight'] = np.ones(rows['targets'].shape, np.float32)
    if self.whole_context:
      rows['order'] = np.maximum(rows['order'], context - 1)
    return rows

  def _order(self, number: int) -> np.ndarray:
    """Returns the rank [T] of each position of a row, a permutation."""
    held_out = self.split == 'validation'
    if held_out:
      number %= len(self)
    rng = np.random.default_rng([self.seed, held_out, number])
    order = rng.permutation(self.length)
    if not self.span:
      return order
    # What is in spans comes after all else; the draw settles the rest.
    return np.argsort(np.argsort(order + self.length * self._spans(rng)))

  def _spans(self, rng: np.random.Generator) -> np.ndarray:
    """Returns which positions [T] are in spans: P of them."""
    chosen, left, at = np.zeros(self.length, bool), self.targets, 0
    while left and at < self.length:
      size = min(int(rng.integers(1, self.span + 1)), left)
      first = at + int(rng.integers((self.share - 1) * size + 1))
      chosen[first : first + size] = True
      at += self.share * size
      left = self.targets - int(chosen.sum())
    # What the end of the row cut off.
    rest = np.flatnonzero(~chosen)
    chosen[rng.permutation(rest)[:left]] = True
    return chosen


def tiny() -> Permuted:
  """Returns short rows of the standard library."""
  from bigdl.data.stdlib import StandardLibrary

  return Permuted(StandardLibrary(length=16, segments=True), share=4, span=3)
