"""Text with tokens hidden, to be predicted from both sides.

Masked language models: Devlin et al., 2018, arXiv:1810.04805, section 3.1; new
masks in every epoch and rows packed with whole text: Liu et al., 2019 (RoBERTa),
arXiv:1907.11692, sections 4.1 and 4.2.
Differs from the papers: see `masking`, `pairs`.
"""

# Shapes: N rows, T tokens of a row, K places of what is predicted.
from __future__ import annotations

import dataclasses
import functools
import hashlib

import grain.python as grain
import numpy as np

from bigdl.data.base import Source
from bigdl.data.masking import WALL, Masking, Tokens
from bigdl.data.pairs import Pairs
from bigdl.data.tokenizers import Specials, Tokenizer, specials, spell
from bigdl.data.tokens import TokenSource


@dataclasses.dataclass(frozen=True)
class Masked(Source):
  """Rows of text, or of pairs of it, of which a part is hidden.

  A row has `tokens` [T] as the model reads them, `targets` [T] as they were,
  `weight` [T], 1 where a token is to be predicted, and `places` [K], where that
  is: the K of a row is fixed, and places beyond those of weight 1 have weight
  0. `segments`, `types`, `label` are those of the text. T is `text.length`.

  Special ids lie above the vocabulary of the text unless it has them.
  """

  text: TokenSource | Pairs
  masking: Masking = Tokens()
  framed: bool = True  # Text: [CLS] opens a row and [SEP] ends it.
  # Ways in which one example is masked, in turn; 0: a new one every epoch, 1:
  # the same in every epoch. Validation rows have one.
  maskings: int = 0
  seed: int = 0

  def __post_init__(self):
    if self.maskings < 0:
      raise ValueError(f'maskings={self.maskings} must not be negative')
    if self.text.length < 3:
      raise ValueError(f'text.length={self.text.length} must be at least 3')

  @property
  def split(self) -> str:
    return self.text.split

  @property
  def length(self) -> int:
    """T: tokens of a row."""
    return self.text.length

  @property
  def coder(self) -> Tokenizer:
    return self.text.coder

  @functools.cached_property
  def specials(self) -> Specials:
    """The special ids."""
    return specials(self.coder)

  @functools.cached_property
  def _inner(self) -> TokenSource | Pairs:
    """The text in rows that leave room for the special tokens."""
    if isinstance(self.text, Pairs) or not self.framed:
      return self.text
    return dataclasses.replace(self.text, length=self.length - 2)

  @functools.cached_property
  def _pieces(self) -> np.ndarray:
    """The text of each id, `WALL` for those that are never hidden."""
    own = self.specials
    pieces = [*spell(self.coder), *[WALL] * own.vocab][: own.vocab]
    for i in (own.first, own.between, own.mask, own.pad, self.coder.eod):
      pieces[i] = WALL
    return np.array(pieces, object)

  @functools.cached_property
  def _ordinary(self) -> np.ndarray:
    """The ids that may stand in for another: not special, and in use."""
    return np.array(
      [i for i, p in enumerate(self._pieces) if p not in ('', WALL)]
    )

  def __len__(self) -> int:
    return len(self._inner)

  def dataset(self) -> grain.MapDataset:
    return grain.MapDataset.source(range(len(self))).map(
      lambda i: {k: v[0] for k, v in self.rows(i, i + 1).items()}
    )

  def facts(self) -> dict:
    # Bits per byte would be of all text, and the loss is of hidden tokens.
    known = self._inner.facts()
    names = ('tokens', 'documents', 'classes')
    kept = {k: known[k] for k in names if k in known}
    return {**kept, 'vocab': self.specials.vocab, 'mask': self.specials.mask}

  def fingerprint(self) -> str:
    named = (
      f'masked-1 {self.text.fingerprint()} {self.masking.fingerprint()}'
      f' {self.framed} {self.maskings}'
    )
    return hashlib.sha256(named.encode()).hexdigest()[:24]

  def rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
    rows = self.plain_rows(start, stop)
    rows['targets'] = rows['tokens']
    rows['tokens'] = rows['tokens'].copy()
    rows['weight'] = np.zeros(rows['tokens'].shape, np.float32)
    for n in range(stop - start):
      real = rows['segments'][n] if 'segments' in rows else None
      self._hide(rows['tokens'][n], rows['weight'][n], real, start + n)
    count = self.masking.count(self.length)
    assert rows['weight'].sum(1).max() <= count
    # Those of weight 1 come first, each part from left to right.
    places = np.argsort(-rows['weight'], axis=1, kind='stable')
    rows['places'] = places[:, :count].astype(np.int32)
    return rows

  def plain_rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
    """Returns the rows before anything is hidden, without what is to be."""
    rows = dict(self._inner.rows(start, stop))
    if isinstance(self._inner, Pairs):
      return rows
    # The last token of a row is the first of the next one.
    names = [name for name in ('tokens', 'segments') if name in rows]
    for name in names:
      rows[name] = rows[name][:, :-1]
      if self.framed:
        rows[name] = np.pad(rows[name], ((0, 0), (1, 1)), 'edge')
    if self.framed:
      rows['tokens'][:, 0] = self.specials.first
      rows['tokens'][:, -1] = self.specials.between
    return rows

  def _hide(self, ids_T, weight_T, real_T, number: int) -> None:
    """Hides tokens of one row in place, and weighs them."""
    pieces = self._pieces[ids_T]
    if real_T is not None:
      pieces[real_T == 0] = WALL
    rng = np.random.default_rng(self._key(number))
    # Held-out rows come before training: what is hidden in them is the same
    # whatever their place.
    start = -1 if self.split == 'validation' else number
    units = self.masking.choose(pieces, rng, start)
    sizes = units[:, 1] - units[:, 0]
    unit = np.repeat(np.arange(len(units)), sizes)
    first = np.cumsum(sizes) - sizes
    at = units[unit, 0] + np.arange(len(unit)) - first[unit]
    draws = rng.random(len(units) if self.masking.together else len(at))
    draws = draws[unit] if self.masking.together else draws
    other = self._ordinary[rng.integers(len(self._ordinary), size=len(at))]
    kept = draws >= self.masking.mask + self.masking.random
    hidden = np.where(draws < self.masking.mask, self.specials.mask, other)
    weight_T[at] = 1
    ids_T[at] = np.where(kept, ids_T[at], hidden)

  def _key(self, number: int) -> list[int]:
    """Returns what seeds the masks of a row."""
    if self.split == 'validation':
      return [self.seed, 1, number % len(self)]
    if not self.maskings:
      return [self.seed, 0, number]
    epoch, at = divmod(number, len(self))
    return [self.seed, 2, self._place(epoch, at), epoch % self.maskings]

  def _place(self, epoch: int, at: int) -> int:
    """Returns which example is row `at` of an epoch."""
    if isinstance(self._inner, Pairs):
      return self._inner.place(epoch * len(self) + at)
    return int(self._inner.order(epoch)[at])


@dataclasses.dataclass(frozen=True)
class Revealed(Source):
  """The same rows with nothing hidden, for a causal model to compare with.

  `tokens` are as they were, and `weight` is 1 where they are hidden in `masked`
  (`everywhere`: 1), so that `objectives.causal_lm` scores the same positions.
  """

  masked: Masked
  everywhere: bool = False

  @property
  def split(self) -> str:
    return self.masked.split

  def __len__(self) -> int:
    return len(self.masked)

  def dataset(self) -> grain.MapDataset:
    return self.masked.dataset().map(self._reveal)

  def facts(self) -> dict:
    known = self.masked.facts()
    return {k: known[k] for k in known if k not in ('mask', 'classes')}

  def fingerprint(self) -> str:
    named = f'revealed-1 {self.masked.fingerprint()} {self.everywhere}'
    return hashlib.sha256(named.encode()).hexdigest()[:24]

  def rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
    return self._reveal(self.masked.rows(start, stop))

  def _reveal(self, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = ('targets', 'weight', 'segments', 'cluster')
    kept = {name: rows[name] for name in names if name in rows}
    kept['tokens'] = kept.pop('targets')
    if self.everywhere:
      kept['weight'] = np.ones_like(kept['weight'])
    return kept


def tiny() -> Masked:
  """Returns short rows of the standard library, pairs with words hidden."""
  from bigdl.data.masking import Words
  from bigdl.data.stdlib import StandardLibrary

  pairs = Pairs(StandardLibrary(length=32))
  return Masked(pairs, masking=Words(longest=4))
