"""Drawn characters: pure in seed and row, told apart, moved by their fields."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bigdl.data import glyphs
from bigdl.data.glyphs import BLOCK, Glyphs

SMALL = Glyphs(alphabet='258', size=10, rows_per_epoch=1000)


def test_rows_across_blocks_are_those_of_each():
  rows = SMALL.rows(BLOCK - 3, 2 * BLOCK + 2)
  parts = [
    SMALL.rows(i, j)
    for i, j in (
      (BLOCK - 3, BLOCK),
      (BLOCK, 2 * BLOCK),
      (2 * BLOCK, 2 * BLOCK + 2),
    )
  ]
  for name, x in rows.items():
    assert np.array_equal(x, np.concatenate([p[name] for p in parts]))


def test_validation_comes_again_and_training_does_not():
  size = len(SMALL)
  assert not np.array_equal(
    SMALL.rows(0, 9)['image'], SMALL.rows(size, size + 9)['image']
  )
  held = dataclasses.replace(SMALL, split='validation')
  # An epoch that ends within a block.
  again = held.rows(size - 2, size + 2)['image']
  assert np.array_equal(again[2:], held.rows(0, 2)['image'])
  assert np.array_equal(again[:2], held.rows(size - 2, size)['image'])


def test_every_class_is_drawn_about_as_often():
  label = Glyphs(rows_per_epoch=1).rows(0, 4096)['label']
  counts = np.bincount(label, minlength=10)
  assert counts.size == 10 and abs(counts - 409.6).max() < 5 * 20


def mean_images(source):
  rows = source.rows(0, 2048)
  images = rows['image'][..., 0] / 255
  return np.stack([images[rows['label'] == k].mean(0) for k in range(3)])


def test_characters_look_like_their_class():
  # The nearest of three mean images, of other rows, tells most of them.
  means = mean_images(SMALL).reshape(3, -1)
  held = dataclasses.replace(SMALL, split='validation').rows(0, 512)
  x = held['image'].reshape(512, -1) / 255
  x = x - x.mean(1, keepdims=True)
  means = means - means.mean(1, keepdims=True)
  right = (x @ means.T).argmax(1) == held['label']
  assert right.mean() > 0.45


def test_without_warp_and_noise_only_fonts_and_greys_differ():
  plain = dataclasses.replace(SMALL, warp=0.0, noise=0.0)
  rows = plain.rows(0, 1024)
  images = rows['image'][rows['label'] == 1, ..., 0].astype(float)
  low = images.min((1, 2), keepdims=True)
  shapes = (images - low) / (images.max((1, 2), keepdims=True) - low)
  known: list[np.ndarray] = []
  for shape in shapes:
    if not any(abs(shape - other).max() < 0.03 for other in known):
      known.append(shape)
  assert len(images) > 300 and len(known) == len(glyphs.FONTS)


def test_noise_and_warp_each_make_neighbours_differ_more():
  def spread(source):
    rows = source.rows(0, 512)
    x = rows['image'][rows['label'] == 0].astype(float)
    return x.std(0).mean()

  plain = dataclasses.replace(SMALL, warp=0.0, noise=0.0)
  assert spread(dataclasses.replace(plain, noise=1.0)) > spread(plain) + 5
  assert spread(dataclasses.replace(plain, warp=1.0)) > spread(plain) + 5


def test_masters_are_distances_to_the_outline():
  master = glyphs._masters('258')
  assert master.shape == (len(glyphs.FONTS), 3, glyphs.MASTER, glyphs.MASTER)
  assert (master < 0).any((2, 3)).all()  # Some ink in each.
  assert (master[:, :, [0, -1]] > 0).all() and (master[..., [0, -1]] > 0).all()
  # A step of one pixel moves a distance by no more than itself.
  steps = np.abs(np.diff(master, axis=3)).max()
  assert 0.5 / glyphs.MASTER < steps <= 1.05 / glyphs.MASTER


@pytest.mark.parametrize(
  ('fields', 'told'),
  [
    ({'split': 'test'}, 'split=test must be train or validation'),
    ({'alphabet': '0'}, "alphabet='0' must hold two or more"),
    ({'alphabet': '00'}, 'each once'),
    ({'alphabet': '0é'}, 'must be of 0-9, A-Z and a-z'),
    ({'size': 3}, 'size=3 must be at least 4'),
    ({'noise': -0.1}, 'noise=-0.1 must not be negative'),
  ],
)
def test_bad_fields_are_one_line(fields, told):
  with pytest.raises(ValueError, match=told):
    Glyphs(**fields)
