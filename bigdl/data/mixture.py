"""Several sources in given shares, row by row."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math

import grain.python as grain
import numpy as np

from bigdl.data.base import Source

# Rows after which the pattern of sources repeats: shares are kept to 1 / 4096.
PERIOD = 4096


@dataclasses.dataclass(frozen=True)
class Mixture(Source):
  """Rows of each source in proportion to its weight, evenly spread.

  Among the first n rows, the number from each source is within one of its
  share of n. Every source runs through its own epochs; one epoch of the mixture
  ends where the first of them does.
  """

  sources: tuple[Source, ...] = ()
  weights: tuple[float, ...] = ()  # In any unit; () weighs all alike.

  def __post_init__(self):
    if not self.sources:
      raise ValueError('sources=() must hold at least one source')
    if self.weights and len(self.weights) != len(self.sources):
      raise ValueError(
        f'weights={self.weights} must be one for each of'
        f' {len(self.sources)} sources'
      )
    for weight in self.weights:
      if not (math.isfinite(weight) and weight > 0):
        raise ValueError(f'weights={self.weights} must be positive numbers')

  @property
  def shares(self) -> np.ndarray:
    """The weights, summing to 1."""
    weights = np.array(self.weights or [1.0] * len(self.sources))
    return weights / weights.sum()

  @functools.cached_property
  def _pattern(self) -> tuple[np.ndarray, np.ndarray]:
    """The source of each row of a period, and its rows before that one.

    Each row is of the source whose next one is due first (Tijdeman, 1980,
    "The chairman assignment problem"), which keeps every count within one.
    """
    shares, given = self.shares, np.zeros(len(self.sources), np.int64)
    which = np.zeros(PERIOD, np.int64)
    before = np.zeros(PERIOD, np.int64)
    # Of whole rows a period, so that the next one begins as this one did.
    counts = _apportion(shares, PERIOD)
    exact = counts / PERIOD
    for i in range(PERIOD):
      ready = given < exact * (i + 1)
      due = np.where(ready, (given + 1) / np.maximum(exact, 1e-12), np.inf)
      s = int(np.argmin(due))
      which[i], before[i] = s, given[s]
      given[s] += 1
    return which, before

  def dataset(self) -> grain.MapDataset:
    return grain.MapDataset.source(range(len(self))).map(
      lambda i: {k: v[0] for k, v in self.rows(i, i + 1).items()}
    )

  def __len__(self) -> int:
    shares = _apportion(self.shares, PERIOD) / PERIOD
    ends = [len(s) / w for s, w in zip(self.sources, shares, strict=True) if w]
    return max(1, math.floor(min(ends)))

  def rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
    assert self._agree
    which, before = self._pattern
    counts = np.bincount(which, minlength=len(self.sources))
    index = np.arange(start, stop)
    own, place = which[index % PERIOD], before[index % PERIOD]
    rows: dict[str, np.ndarray] = {}
    for s in np.unique(own):
      mine = own == s
      # Rows of one source that follow each other here do so there.
      at = place[mine] + index[mine] // PERIOD * counts[s]
      part = self.sources[s].rows(int(at[0]), int(at[-1]) + 1)
      for name, x in part.items():
        if name not in rows:
          rows[name] = np.empty((len(index), *x.shape[1:]), x.dtype)
        rows[name][mine] = x
    return rows

  @functools.cached_property
  def _agree(self) -> bool:
    """True; raises where the sources do not go together."""
    first = self.sources[0]
    for other in self.sources[1:]:
      a, b = first.spec(), other.spec()
      for name in sorted({*a, *b}):
        x, y = a.get(name), b.get(name)
        if x is None or y is None or (x.shape, x.dtype) != (y.shape, y.dtype):
          raise ValueError(
            f'sources: rows differ in {name!r}: {_show(x)} in'
            f' {type(first).__name__}, {_show(y)} in {type(other).__name__}'
          )
      vocabs = [s.facts().get('vocab') for s in (first, other)]
      if vocabs[0] != vocabs[1]:
        raise ValueError(
          f'sources: vocab={vocabs[0]} of {type(first).__name__} and'
          f' vocab={vocabs[1]} of {type(other).__name__} must be equal'
        )
    return True

  def facts(self) -> dict:
    assert self._agree
    facts = [s.facts() for s in self.sources]
    known = {k: v for k, v in facts[0].items() if k in ('vocab', 'classes')}
    for name in ('bytes_per_token', 'entropy'):
      if all(name in f for f in facts):
        values = np.array([f[name] for f in facts])
        known[name] = float((self.shares * values).sum())
    return known

  def fingerprint(self) -> str:
    parts = [s.fingerprint() for s in self.sources]
    named = f'mixture-1 {parts} {_apportion(self.shares, PERIOD).tolist()}'
    return hashlib.sha256(named.encode()).hexdigest()[:24]


def _apportion(shares: np.ndarray, total: int) -> np.ndarray:
  """Returns whole numbers that sum to `total`, by largest remainder.

  No share gets none: a source that is named is used.
  """
  counts = np.maximum(np.floor(shares * total).astype(np.int64), 1)
  order = np.argsort(counts - shares * total, kind='stable')
  for i in range(total - int(counts.sum())):
    counts[order[i % len(order)]] += 1
  while counts.sum() > total:
    counts[np.argmax(counts)] -= 1
  return counts


def _show(x) -> str:
  return 'absent' if x is None else f'{x.dtype}{list(x.shape)}'


def tiny() -> Mixture:
  """Returns three parts of one synthetic source to one of another."""
  from bigdl.data.synthetic import Markov

  sources = (Markov(vocab=16, length=8), Markov(vocab=16, length=8, table=1))
  return Mixture(sources=sources, weights=(3.0, 1.0))
