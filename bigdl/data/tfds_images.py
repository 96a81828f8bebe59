"""Labelled images of TensorFlow Datasets, read without TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
import tempfile
from typing import Any
import warnings

import grain.python as grain
import numpy as np

from bigdl.data import tfds
from bigdl.data.base import Source


@dataclasses.dataclass(frozen=True)
class TFDSImages(Source):
  """An image and its label a row: `image` uint8 `[H, W, C]`, `label` int32.

  Images must be of one size. Training rows come in an order drawn afresh each
  epoch, validation rows in one fixed order.
  """

  name: str = ''  # As tfds names it.
  split: str = 'train'  # Or validation.
  data_dir: str = ''  # '' is TFDS_DATA_DIR, or ~/tensorflow_datasets.
  image: str = 'image'  # The features.
  label: str = 'label'
  subset: str = 'train'  # Its split to train on.
  validation_subset: str = 'test'  # Its split for validation.
  seed: int = 0  # Of the order of rows.

  def __post_init__(self):
    if self.split not in ('train', 'validation'):
      raise ValueError(f'split={self.split} must be train or validation')

  @property
  def _own(self) -> str:
    held_out = self.split == 'validation'
    return self.validation_subset if held_out else self.subset

  @functools.cached_property
  def _builder(self) -> Any:
    made = tfds.builder(self.name, self.data_dir, self.image)
    if self.label not in made.info.features:
      names = ', '.join(made.info.features)
      raise ValueError(
        f'label={self.label!r} is not in {self.name}; it has {names}'
      )
    return made

  @functools.cached_property
  def _examples(self) -> Any:
    return tfds.source(self._builder, self._own)

  @functools.cached_property
  def _shape(self) -> tuple[int, ...]:
    return np.asarray(self._examples[0][self.image]).shape

  def __len__(self) -> int:
    return len(self._examples)

  def dataset(self) -> grain.MapDataset:
    return grain.MapDataset.source(range(len(self))).map(
      lambda i: {k: v[0] for k, v in self.rows(i, i + 1).items()}
    )

  def rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
    images, labels = [], []
    for i in range(start, stop):
      epoch, place = divmod(i, len(self))
      row = int(self._order(epoch if self.split == 'train' else 0)[place])
      example = self._examples[row]
      image = np.asarray(example[self.image])
      if image.shape != self._shape or image.dtype != np.uint8:
        raise ValueError(
          f'image={self.image!r} of row {row} of {self.name} is'
          f' {image.dtype}{list(image.shape)}, the first uint8'
          f'{list(self._shape)}: images must be of one size'
        )
      images.append(image)
      labels.append(self._checked(int(example[self.label]), row))
    return {'image': np.stack(images), 'label': np.array(labels, np.int32)}

  def _checked(self, label: int, row: int) -> int:
    classes = self._classes
    if label < 0 or (classes and label >= classes):
      wanted = f'be in 0..{classes - 1}' if classes else 'not be negative'
      raise ValueError(
        f'{self.label}={label} of row {row} of {self.name} split={self._own}'
        f' must {wanted}'
      )
    return label

  @functools.lru_cache(maxsize=4)  # noqa: B019 - sources live as long as runs.
  def _order(self, epoch: int) -> np.ndarray:
    return np.random.default_rng([self.seed, epoch]).permutation(len(self))

  @functools.cached_property
  def _classes(self) -> int:
    """How many there are, 0 where the dataset does not say."""
    feature = self._builder.info.features[self.label]
    return int(getattr(feature, 'num_classes', None) or 0)

  def facts(self) -> dict:
    return {'classes': self._classes} if self._classes else {}

  def fingerprint(self) -> str:
    told = [self._builder.info.full_name, self._own, len(self)]
    told += [self.image, self.label]
    return hashlib.sha256(f'images-1 {told}'.encode()).hexdigest()[:24]


@functools.cache
def small_images() -> str:
  """Returns a data_dir with the dataset `small_images`, made for the occasion."""
  import tensorflow_datasets as library

  folder = pathlib.Path(tempfile.mkdtemp(prefix='bigdl-tfds-'))
  rng = np.random.default_rng(0)
  rows = [
    {'image': rng.integers(0, 256, (8, 8, 1), np.uint8), 'label': i % 3}
    for i in range(48)
  ]
  features = {
    'image': library.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
    'label': library.features.ClassLabel(num_classes=3),
  }
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    tfds.prepare(folder, 'small_images', features, rows)
  return str(folder)


def tiny() -> TFDSImages:
  """Returns the rows of a dataset that is made for the occasion."""
  return TFDSImages(
    name='small_images',
    data_dir=small_images(),
    subset='train[:75%]',
    validation_subset='train[75%:]',
  )
