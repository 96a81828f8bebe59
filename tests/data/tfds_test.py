"""Datasets of tfds: prepared ones are read, others get one line."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from bigdl.data import tfds, tfds_images
from bigdl.data.tfds import TFDS
from bigdl.data.tfds_images import TFDSImages


@pytest.fixture(scope='module')
def folder():
  return tfds.small_texts()


def texts(**options):
  return [t for _, t in TFDS(name='small_texts', **options).documents()]


def test_texts_are_those_of_the_dataset(folder):
  train, held = (
    texts(data_dir=folder, split=s) for s in ('train', 'validation')
  )
  assert len(train) + len(held) == 120 and held
  assert not set(train) & set(held)
  assert 'one one and 0' in train + held


def test_slices_are_passed_through(folder):
  own = {'data_dir': folder, 'subset': 'train[:90%]'}
  rest = {**own, 'validation_subset': 'train[90%:]'}
  assert len(texts(**own)) + len(texts(**own, split='validation')) == 108
  assert len(texts(**rest)) == 108
  assert len(texts(**rest, split='validation')) == 12


def test_images_come_with_their_labels():
  source = tfds_images.tiny()
  rows = source.rows(0, 36)
  assert rows['image'].shape == (36, 8, 8, 1)
  assert rows['image'].dtype == np.uint8
  assert len(source) == 36 and source.facts() == {'classes': 3}
  # Each once an epoch.
  assert len(np.unique(rows['image'], axis=0)) == 36
  known = np.random.default_rng(0)
  first = known.integers(0, 256, (8, 8, 1), np.uint8)
  held = dataclasses.replace(source, split='validation').rows(0, 12)
  images = [*rows['image'], *held['image']]
  labels = [*rows['label'], *held['label']]
  (place,) = [i for i, x in enumerate(images) if (x == first).all()]
  assert labels[place] == 0
  assert np.bincount(labels).tolist() == [16, 16, 16]


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({'name': 'imdb_reviews'}, 'name=imdb_reviews is not prepared under'),
    ({'name': 'small_texts:9.9.9'}, 'is not prepared under'),
    ({'field': 'body'}, "field='body' is not in small_texts; it has text"),
    ({'subset': 'tset'}, "subset='tset' of small_texts/1.0.0 cannot be read"),
    ({'data_dir': '/nowhere'}, 'data_dir=/nowhere'),
  ],
)
def test_what_is_not_here_gets_one_line(folder, options, words):
  given = {'name': 'small_texts', 'data_dir': folder, **options}
  with pytest.raises(ValueError) as error:
    TFDS(**given).fingerprint()
  assert words in str(error.value) and '\n' not in str(error.value)


def test_a_missing_label_gets_one_line():
  folder = tfds_images.small_images()
  with pytest.raises(ValueError, match="label='class' is not in small_images"):
    TFDSImages(name='small_images', data_dir=folder, label='class').facts()


@pytest.mark.parametrize(
  ('known', 'words'),
  [
    (True, 'label=-1 of row 2 of odd split=train must be in 0..2'),
    (False, 'label=-1 of row 2 of odd split=train must not be negative'),
  ],
)
def test_a_label_outside_the_classes_is_named(tmp_path, known, words):
  import tensorflow_datasets as library

  features = {
    'image': library.features.Tensor(shape=(2, 2, 1), dtype=np.uint8),
    'label': library.features.ClassLabel(num_classes=3)
    if known
    else library.features.Scalar(np.int64),
  }
  image = np.zeros((2, 2, 1), np.uint8)
  rows = [{'image': image, 'label': i} for i in (0, 2, -1)]
  tfds.prepare(tmp_path, 'odd', features, rows)
  source = TFDSImages(name='odd', data_dir=str(tmp_path))
  with pytest.raises(ValueError) as error:
    source.rows(0, 3)
  assert str(error.value) == words


def test_tensorflow_is_not_imported(folder):
  code = (
    'import sys; from bigdl.data.tfds import TFDS;'
    f' source = TFDS(name="small_texts", data_dir={folder!r});'
    ' assert len(list(source.documents())) > 50;'
    ' assert "tensorflow" not in sys.modules'
  )
  subprocess.run([sys.executable, '-W', 'ignore', '-c', code], check=True)
