"""Sequences to copy or to reverse: what a source becomes is known, and exact.

Nothing is stored: each row is drawn by its number. A source is held out by a hash
of its symbols, so that no row of validation is ever trained on.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import hashlib
from typing import Literal, get_args

import grain.python as grain
import numpy as np

from bigdl.data import tokens
from bigdl.data.base import Source

Task = Literal['copy', 'reverse']
PAD, BEGIN, END = 0, 1, 2
_FIRST = 3  # The first symbol.
_TRIES = 10_000  # Draws until one is of the split.

_TURNS: dict[Task, Callable[[np.ndarray], np.ndarray]] = {
  'copy': lambda x: x,
  'reverse': lambda x: x[::-1],
}


@dataclasses.dataclass(frozen=True)
class Algorithmic(Source):
  """Random symbols, and the same in the order that the task asks for.

  A row holds `source` [length], `tokens` [length + 2] (the target after a begin
  and before an end) and the segments of both: 1, and 0 where they are padding.
  """

  task: Task = 'copy'
  split: str = 'train'  # Or validation: other sequences.
  vocab: int = 32  # Symbols and the three ids before them.
  length: int = 20  # Most symbols in a sequence.
  shortest: int = 1  # Fewest; lengths between are equally likely.
  seed: int = 0
  size: int = 1 << 20  # Rows in an epoch.

  def __post_init__(self):
    for name, allowed in (
      ('task', get_args(Task)),
      ('split', ('train', 'validation')),
    ):
      if getattr(self, name) not in allowed:
        raise ValueError(
          f'{name}={getattr(self, name)} must be one of {", ".join(allowed)}'
        )
    if self.vocab < _FIRST + 2:
      raise ValueError(f'vocab={self.vocab} must be at least {_FIRST + 2}')
    if not 1 <= self.shortest <= self.length:
      raise ValueError(
        f'shortest={self.shortest} must be in [1, length={self.length}]'
      )
    if self.size < 1:
      raise ValueError(f'size={self.size} must be at least 1')

  def dataset(self) -> grain.MapDataset:
    return grain.MapDataset.source(range(self.size)).map(
      lambda i: {k: v[0] for k, v in self.rows(i, i + 1).items()}
    )

  def __len__(self) -> int:
    return self.size

  def facts(self) -> dict:
    return {'vocab': self.vocab, 'pad': PAD, 'begin': BEGIN, 'end': END}

  def fingerprint(self) -> str:
    named = [getattr(self, f.name) for f in dataclasses.fields(self)]
    digest = hashlib.sha256(f'algorithmic-1 {named}'.encode()).hexdigest()
    return digest[:24]

  def rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
    index = np.arange(start, stop)
    if self.split == 'validation':
      index %= self.size  # One fixed order.
    count = len(index)
    source = np.full((count, self.length), PAD, np.int32)
    target = np.full((count, self.length + 2), PAD, np.int32)
    target[:, 0] = BEGIN
    sizes = np.empty((count, 1), np.int32)
    turn = _TURNS[self.task]
    for row, number in enumerate(index.tolist()):
      symbols = self._symbols(number)
      size = sizes[row] = len(symbols)
      source[row, :size] = symbols
      target[row, 1 : size + 1] = turn(symbols)
      target[row, size + 1] = END
    rows = {
      'source': source,
      'source_segments': np.arange(self.length) < sizes,
      'tokens': target,
      'segments': np.arange(self.length + 2) < sizes + 2,
    }
    return {k: v.astype(np.int32) for k, v in rows.items()}

  def _symbols(self, number: int) -> np.ndarray:
    """Returns the sequence of that row, of the split's side of the hash."""
    held_out = self.split == 'validation'
    rng = np.random.Generator(
      np.random.Philox(
        key=[self.seed, int(held_out)], counter=[0, 0, number, 0]
      )
    )
    for _ in range(_TRIES):
      size = rng.integers(self.shortest, self.length + 1)
      symbols = rng.integers(_FIRST, self.vocab, size, np.int32)
      if tokens.is_held_out(' '.join(map(str, symbols))) == held_out:
        return symbols
    raise ValueError(
      f'vocab={self.vocab} and length={self.length} leave no sequence to'
      f' split={self.split}'
    )


def tiny() -> Algorithmic:
  """Returns short sequences to reverse."""
  return Algorithmic(task='reverse', vocab=8, length=6, size=64)
