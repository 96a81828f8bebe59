"""Augmentation: each change by hand; rows pure in seed and number; labels kept."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bigdl.data import augment
from bigdl.data.augment import OPERATIONS, Augmented, operated
from bigdl.data.base import Source

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (6, 8, 3), np.uint8)
OTHER = RNG.integers(0, 256, (6, 8, 3), np.uint8)


@dataclasses.dataclass(frozen=True)
class Grey(Source):
  """Image i is all of grey i, with label i."""

  size: int = 40

  def __len__(self):
    return self.size

  def fingerprint(self):
    return 'grey'

  def rows(self, start, stop):
    index = np.arange(start, stop) % self.size
    image = np.broadcast_to(
      index[:, None, None, None] * 6, (len(index), 4, 4, 1)
    )
    return {'image': image.astype(np.uint8), 'label': index.astype(np.int32)}


PLAIN = Augmented(Grey(), crop=0, flip=False)


def test_nothing_asked_for_changes_nothing():
  rows, want = PLAIN.rows(0, 60), Grey().rows(0, 60)
  assert rows.keys() == want.keys()
  assert all(np.array_equal(rows[k], want[k]) for k in rows)


def test_a_flip_twice_is_no_flip():
  once = augment.flipped(IMAGE)
  assert np.array_equal(once[:, 0], IMAGE[:, -1])
  assert np.array_equal(augment.flipped(once), IMAGE)


def test_about_every_other_image_is_flipped():
  class Ramp(Grey):
    def rows(self, start, stop):
      rows = super().rows(start, stop)
      rows['image'] = rows['image'] + np.arange(4, dtype=np.uint8)[:, None]
      return rows

  image = Augmented(Ramp(), crop=0).rows(0, 400)['image'][..., 0]
  flipped = image[:, 0, 0] > image[:, 0, 1]
  assert 150 < flipped.sum() < 250


def test_a_crop_is_a_window_of_the_padded_image():
  assert np.array_equal(augment.cropped(IMAGE, 2, 2, 2), IMAGE)
  moved = augment.cropped(IMAGE, 2, 0, 3)
  assert np.array_equal(moved[2:, :-1], IMAGE[:-2, 1:])
  assert not moved[:2].any() and not moved[:, -1].any()


def test_crops_reach_every_offset():
  image = Augmented(Grey(), crop=1, flip=False).rows(6, 400)['image'][..., 0]
  image = image[image.max((1, 2)) > 0]
  black = {
    (not x[0].any(), not x[-1].any(), not x[:, 0].any(), not x[:, -1].any())
    for x in image
  }
  assert len(black) == 9


def test_a_blend_is_the_weighted_mean():
  got = augment.blended(IMAGE, OTHER, 0.25)
  want = 0.25 * IMAGE.astype(float) + 0.75 * OTHER
  assert abs(got - want).max() <= 0.5 + 1e-4
  assert np.array_equal(augment.blended(IMAGE, OTHER, 1.0), IMAGE)


@pytest.mark.parametrize('place', [(0.5, 0.5), (0.0, 0.2), (1.0, 1.0)])
@pytest.mark.parametrize('share', [0.0, 0.3, 0.75, 1.0])
def test_a_paste_keeps_the_share_that_it_says(share, place):
  image, kept = augment.pasted(IMAGE, OTHER, share, *place)
  own, theirs = (image == IMAGE).all(-1), (image == OTHER).all(-1)
  assert (own | theirs).all()
  assert kept == own.mean()
  if place == (0.5, 0.5):
    # Whole pixels, at most one off on each side.
    assert abs(kept - share) < 0.25
  inside = np.argwhere(~own)
  if len(inside):
    low, high = inside.min(0), inside.max(0) + 1
    assert len(inside) == np.prod(high - low)  # One box.


@pytest.mark.parametrize('kind', ['mixup', 'cutmix', 'both'])
def test_mixed_rows_hold_both_labels_and_their_share(kind):
  names = ('mixup', 'cutmix') if kind == 'both' else (kind,)
  source = dataclasses.replace(PLAIN, **dict.fromkeys(names, 0.8))
  rows = source.rows(0, 80)
  first, second = rows['label'] * 6, rows['label_2'] * 6
  assert np.array_equal(rows['label'], Grey().rows(0, 80)['label'])
  assert rows['mix'].dtype == np.float32
  assert (0 <= rows['mix']).all() and (rows['mix'] <= 1).all()
  # Boxes of whole pixels have few areas.
  assert len(np.unique(rows['mix'])) > 4 and len(np.unique(second)) > 15
  mean = rows['image'].mean((1, 2, 3))
  want = rows['mix'] * first + (1 - rows['mix']) * second
  assert abs(mean - want).max() <= 0.51
  images = rows['image'].reshape(80, -1)
  blends = [
    len(set(x.tolist()) - {a, b}) > 0
    for x, a, b in zip(images, first, second, strict=True)
  ]
  assert any(blends) == ('mixup' in names)
  boxes = [
    set(x.tolist()) == {a, b} and a != b
    for x, a, b in zip(images, first, second, strict=True)
  ]
  assert any(boxes) == ('cutmix' in names)


def test_small_beta_leaves_most_rows_nearly_pure():
  mix = dataclasses.replace(PLAIN, mixup=0.1).rows(0, 200)['mix']
  assert ((mix < 0.1) | (mix > 0.9)).mean() > 0.7
  mix = dataclasses.replace(PLAIN, mixup=1.0).rows(0, 200)['mix']
  assert 0.1 < ((mix < 0.1) | (mix > 0.9)).mean() < 0.3


def test_an_image_is_changed_anew_each_time_it_is_seen():
  source = Augmented(Grey(), crop=2)
  one, two = source.rows(0, 40), source.rows(40, 80)
  assert np.array_equal(one['label'], two['label'])
  assert not np.array_equal(one['image'], two['image'])


def test_operations_at_no_magnitude_change_nothing():
  for name, most in OPERATIONS.items():
    if most or name == 'identity':
      assert np.array_equal(operated(IMAGE, name, 0.0), IMAGE), name


@pytest.mark.parametrize('name', [n for n in OPERATIONS if n != 'identity'])
@pytest.mark.parametrize('channels', [1, 3])
def test_operations_change_an_image_and_keep_its_form(name, channels):
  image = RNG.integers(40, 168, (24, 20, channels), np.uint8)
  for level in (-0.6, 0.6):
    got = operated(image, name, level)
    assert got.shape == image.shape and got.dtype == np.uint8
    # Grey has no colour to change.
    same = name == 'color' and channels == 1
    assert np.array_equal(got, image) == same, level


def test_geometric_operations_move_pixels_by_the_amount():
  wide = np.zeros((20, 20, 1), np.uint8)
  wide[8:12, 8:12] = 250
  # 0.45 of 20 pixels, at two thirds of the range: 6.
  for name, axis in (('translate_x', 1), ('translate_y', 0)):
    moved = operated(wide, name, 2 / 3)
    found = np.argwhere(moved[..., 0] == 250)[:, axis]
    assert sorted(set(found.tolist())) == [2, 3, 4, 5]
    back = operated(wide, name, -2 / 3)
    found = np.argwhere(back[..., 0] == 250)[:, axis]
    assert sorted(set(found.tolist())) == [14, 15, 16, 17]
  turned = operated(wide, 'rotate', 1.0)  # 30 degrees about the middle.
  assert abs(turned[10, 10, 0].astype(int) - 250) < 3
  assert turned[0, 0, 0] == 128
  leaning = operated(wide, 'shear_x', 1.0)[..., 0].astype(float)
  rows = [np.average(np.arange(20), weights=leaning[y] == 250) for y in (8, 11)]
  assert abs((rows[0] - rows[1]) - 0.3 * 3) < 0.6


def test_greys_follow_their_formulas():
  image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
  got = operated(image, 'solarize', 0.5)
  want = np.where(image < 128, image, 255 - image)
  assert np.array_equal(got, want)
  got = operated(image, 'posterize', 0.5)
  assert np.array_equal(got, image & 0b11111100)
  got = operated(image, 'brightness', 0.5).astype(int)
  assert abs(got - np.minimum(255, 1.45 * image)).max() <= 1


def test_rand_augment_takes_so_many_operations(monkeypatch):
  taken = []
  real = augment.operated

  def spy(image, name, level):
    taken.append((name, level))
    return real(image, name, level)

  monkeypatch.setattr(augment, 'operated', spy)
  source = Augmented(Grey(), rand_augment=(3, 7))
  source.rows(0, 100)
  assert len(taken) == 300
  assert {name for name, _ in taken} == set(OPERATIONS)
  assert {level for _, level in taken} == {0.7, -0.7}


@pytest.mark.parametrize(
  ('fields', 'told'),
  [
    ({'crop': -1}, 'crop=-1 must not be negative'),
    ({'mixup': -0.1}, 'mixup=-0.1 must not be negative'),
    ({'rand_augment': (2, 11)}, 'magnitude from 0 to 10'),
  ],
)
def test_bad_fields_are_one_line(fields, told):
  with pytest.raises(ValueError, match=told):
    Augmented(Grey(), **fields)


def test_images_must_be_bytes():
  class Floats(Grey):
    def rows(self, start, stop):
      rows = super().rows(start, stop)
      return {**rows, 'image': rows['image'].astype(np.float32)}

  with pytest.raises(ValueError, match='image=float32 must be uint8'):
    Augmented(Floats()).rows(0, 1)
