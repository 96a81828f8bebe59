"""A language whose entropy rate is known, so that a law's E can be checked.

A Markov chain over V tokens. After each token the next one has probabilities
q_r ~ (r + 1)^-s for ranks r = 0 ... V - 1 (Zipf, 1949), ranks being dealt to
tokens by a permutation of that token's own. Each row of the transition matrix
holds the same numbers in another order, so that the entropy rate is

  H = -sum_r q_r log q_r  nats per token,

whatever the stationary distribution: no model does better, and a model that
knows the permutations does no worse. The permutations lean towards a common
order, hence some tokens are common and others rare, and a model learns the
contexts one after the other, as it would those of a natural language.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib

import grain.python as grain
import numpy as np

from bigdl.data.base import Source


@dataclasses.dataclass(frozen=True)
class Markov(Source):
  """Rows of a Markov chain, each drawn by its number: nothing is stored."""

  split: str = 'train'  # Or validation: other rows of the same chain.
  vocab: int = 256
  length: int = 128  # Tokens that a row predicts.
  exponent: float = 1.2  # s: how unequal the next tokens' probabilities are.
  lean: float = 0.5  # 0: permutations share nothing; 1: all are one.
  table: int = 0  # Seed of the permutations, that is, of the language.
  seed: int = 0  # Of the rows.
  size: int = 1 << 20  # Rows in an epoch.

  def __post_init__(self):
    if self.split not in ('train', 'validation'):
      raise ValueError(f'split={self.split} must be train or validation')
    for name, least in (('vocab', 2), ('length', 1), ('size', 1)):
      if getattr(self, name) < least:
        raise ValueError(
          f'{name}={getattr(self, name)} must be at least {least}'
        )
    if not self.exponent > 0:
      raise ValueError(f'exponent={self.exponent} must be positive')
    if not 0 <= self.lean <= 1:
      raise ValueError(f'lean={self.lean} must be in [0, 1]')

  @functools.cached_property
  def probabilities(self) -> np.ndarray:
    """q: the probability of each rank, `[vocab]`."""
    q = np.arange(1, self.vocab + 1, dtype=np.float64) ** -self.exponent
    return q / q.sum()

  @property
  def entropy(self) -> float:
    """H: the entropy rate in nats per token, in closed form."""
    q = self.probabilities
    return float(-(q * np.log(q)).sum())

  @functools.cached_property
  def order(self) -> np.ndarray:
    """The token of each rank after each token: `[vocab, vocab]`."""
    rng = np.random.default_rng([self.table, self.vocab])
    places = np.arange(self.vocab) / self.vocab
    own = rng.random((self.vocab, self.vocab))
    mixed = self.lean * places + (1 - self.lean) * own
    return np.argsort(mixed, axis=1).astype(np.int32)

  @functools.cached_property
  def stationary(self) -> np.ndarray:
    """The share of each token in an endless text, `[vocab]`."""
    chain = np.zeros((self.vocab, self.vocab))
    np.put_along_axis(chain, self.order, self.probabilities[None], axis=1)
    share = np.full(self.vocab, 1 / self.vocab)
    for _ in range(10_000):
      share, before = share @ chain, share
      if np.abs(share - before).max() < 1e-15:
        break
    return share / share.sum()

  def dataset(self) -> grain.MapDataset:
    return grain.MapDataset.source(range(self.size)).map(
      lambda i: {k: v[0] for k, v in self.rows(i, i + 1).items()}
    )

  def __len__(self) -> int:
    return self.size

  def facts(self) -> dict:
    return {'vocab': self.vocab, 'entropy': self.entropy}

  def fingerprint(self) -> str:
    named = [getattr(self, f.name) for f in dataclasses.fields(self)]
    digest = hashlib.sha256(f'markov-1 {named}'.encode()).hexdigest()
    return digest[:24]

  def rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
    index = np.arange(start, stop)
    held_out = self.split == 'validation'
    if held_out:
      index %= self.size  # One fixed order; training rows never come again.
    u = np.stack([self._draws(int(i), held_out) for i in index])
    tokens = np.empty((len(index), self.length + 1), np.int32)
    ends = np.cumsum(self.probabilities)[:-1]
    # A first token as in the middle of a text, so that each target has the
    # whole of what determines it before it.
    first = np.cumsum(self.stationary)[:-1]
    tokens[:, 0] = np.searchsorted(first, u[:, 0], 'right')
    ranks = np.searchsorted(ends, u[:, 1:], 'right')
    for t in range(self.length):
      tokens[:, t + 1] = self.order[tokens[:, t], ranks[:, t]]
    rows: dict[str, np.ndarray] = {'tokens': tokens}
    if held_out:
      rows['cluster'] = index.astype(np.int32)
    return rows

  def _draws(self, row: int, held_out: bool) -> np.ndarray:
    rng = np.random.Generator(
      np.random.Philox(key=[self.seed, int(held_out)], counter=[0, 0, row, 0])
    )
    return rng.random(self.length + 1)


def tiny() -> Markov:
  """Returns short rows of a small alphabet."""
  return Markov(vocab=16, length=8, size=64)
