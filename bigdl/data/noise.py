"""Rows of random numbers, for programs that are only compiled or timed.

Nothing can be learnt from them but how often each number comes. They cost no
tables, however large the vocabulary, and no files.
"""

# Shapes: T tokens of a row, K places of what is predicted, H and W pixels.
from __future__ import annotations

import dataclasses
import hashlib
from typing import Literal, get_args

import grain.python as grain
import numpy as np

from bigdl.data.base import Source

NoiseKind = Literal['causal', 'masked', 'images']

# The channels of an image.
_CHANNELS = 3


@dataclasses.dataclass(frozen=True)
class Noise(Source):
  """Rows as `kind` of objective reads them, each drawn by its number.

  causal: `tokens` [length + 1].
  masked: `tokens`, `targets`, `weight`, `segments`, `types` [length], `places`
    [hidden], `label`, as of pairs of sentences of which tokens are hidden.
  images: `image` [size, size, 3] of bytes, `label`.
  """

  kind: NoiseKind = 'causal'
  split: str = 'train'  # Or validation: other rows.
  vocab: int = 256
  length: int = 128
  hidden: int = 0  # Tokens of a masked row that are to be predicted.
  size: int = 224  # Pixels on a side.
  classes: int = 2  # Of images, or of pairs of sentences.
  count: int = 1 << 30  # Rows in an epoch.
  seed: int = 0

  def __post_init__(self):
    if self.kind not in get_args(NoiseKind):
      allowed = ', '.join(get_args(NoiseKind))
      raise ValueError(f'kind={self.kind} must be one of {allowed}')
    if self.split not in ('train', 'validation'):
      raise ValueError(f'split={self.split} must be train or validation')
    for name in ('vocab', 'length', 'size', 'classes', 'count'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}={getattr(self, name)} must be at least 1')
    least = 1 if self.kind == 'masked' else 0
    if not least <= self.hidden <= self.length:
      raise ValueError(
        f'hidden={self.hidden} must be {least} to length={self.length}'
      )

  def __len__(self) -> int:
    return self.count

  def dataset(self) -> grain.MapDataset:
    return grain.MapDataset.source(range(len(self))).map(self._row)

  def facts(self) -> dict:
    if self.kind == 'images':
      return {'classes': self.classes}
    if self.kind == 'causal':
      return {'vocab': self.vocab}
    return {'vocab': self.vocab, 'classes': self.classes}

  def fingerprint(self) -> str:
    named = [getattr(self, f.name) for f in dataclasses.fields(self)]
    return hashlib.sha256(f'noise-1 {named}'.encode()).hexdigest()[:24]

  def rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
    held_out = self.split == 'validation'
    # One fixed order of held-out rows; training rows never come again.
    numbers = [i % len(self) if held_out else i for i in range(start, stop)]
    rows = [self._row(i) for i in numbers]
    stacked = {k: np.stack([row[k] for row in rows]) for k in rows[0]}
    if held_out:
      stacked['cluster'] = np.asarray(numbers, np.int32)
    return stacked

  def _row(self, number: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng([self.seed, self.split == 'validation', number])

    def draw(top: int, *shape: int, dtype: type = np.int32) -> np.ndarray:
      return rng.integers(top, size=shape, dtype=dtype)

    if self.kind == 'images':
      image = draw(256, self.size, self.size, _CHANNELS, dtype=np.uint8)
      return {'image': image, 'label': np.asarray(draw(self.classes))}
    if self.kind == 'causal':
      return {'tokens': draw(self.vocab, self.length + 1)}
    T = self.length
    places = np.sort(rng.permutation(T)[: self.hidden]).astype(np.int32)
    weight = np.zeros(T, np.float32)
    weight[places] = 1
    return {
      'tokens': draw(self.vocab, T),
      'targets': draw(self.vocab, T),
      'weight': weight,
      'places': places,
      'segments': np.ones(T, np.int32),
      'types': (np.arange(T) >= T // 2).astype(np.int32),
      'label': np.asarray(draw(self.classes)),
    }


def tiny() -> Noise:
  """Returns short rows as a masked language model reads them."""
  return Noise('masked', vocab=16, length=8, hidden=2, count=64)
