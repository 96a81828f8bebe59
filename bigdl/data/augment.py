"""Images changed at random each time that they are seen.

Crop and flip; RandAugment: Cubuk et al., 2019, arXiv:1909.13719, algorithm 1, with
its fourteen operations; mixup: Zhang et al., 2017, arXiv:1710.09412, eq. 2; CutMix:
Yun et al., 2019, arXiv:1905.04899, eq. 1-2.
Differs from the papers: an image is mixed with a random one of its epoch instead
of its batch, and afterwards rounded to whole greys; contrast, colour, brightness
and sharpness change by as much up as down; magnitude 10 is the end of every range.
"""

# Shapes: H, W, C an image's height, width and channels.
from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import grain.python as grain
import numpy as np

from bigdl.data.base import Source

# What RandAugment chooses from, with its change at magnitude 10: degrees, shares
# of the side, greys, bits or factors; 0 where there is no magnitude.
OPERATIONS: dict[str, float] = {
  'identity': 0,
  'autocontrast': 0,
  'equalize': 0,
  'rotate': 30,
  'solarize': 256,
  'color': 0.9,
  'posterize': 4,
  'contrast': 0.9,
  'brightness': 0.9,
  'sharpness': 0.9,
  'shear_x': 0.3,
  'shear_y': 0.3,
  'translate_x': 0.45,
  'translate_y': 0.45,
}
_SIGNED = frozenset(OPERATIONS) - {'solarize', 'posterize'}
_GREY = (128,)  # Of what comes in from outside the image.


@dataclasses.dataclass(frozen=True)
class Augmented(Source):
  """The rows of another source, each changed by a generator of its own number.

  Rows that are mixed hold `label_2` and `mix`, the share of `label`, too.
  """

  source: Source
  crop: int = 4  # Pixels of black padding, of which a random part is cut off.
  flip: bool = True  # Mirror every other image.
  rand_augment: tuple[int, float] = (0, 0)  # Operations, and their magnitude.
  mixup: float = 0.0  # Parameter of the Beta distribution of shares; 0: off.
  cutmix: float = 0.0  # The same, of areas; with both, half the rows each.
  seed: int = 0

  def __post_init__(self):
    for name in ('crop', 'mixup', 'cutmix'):
      if not getattr(self, name) >= 0:
        raise ValueError(f'{name}={getattr(self, name)} must not be negative')
    count, magnitude = self.rand_augment
    if count < 0 or not 0 <= magnitude <= 10:
      raise ValueError(
        f'rand_augment={self.rand_augment} must be a number of operations and a'
        ' magnitude from 0 to 10'
      )

  @property
  def _mixes(self) -> bool:
    return bool(self.mixup or self.cutmix)

  def __len__(self) -> int:
    return len(self.source)

  def dataset(self) -> grain.MapDataset:
    return grain.MapDataset.source(range(len(self))).map(
      lambda i: {k: v[0] for k, v in self.rows(i, i + 1).items()}
    )

  def facts(self) -> dict:
    return self.source.facts()

  def fingerprint(self) -> str:
    told = [self.source.fingerprint()]
    told += [
      getattr(self, f.name)
      for f in dataclasses.fields(self)
      if f.name != 'source'
    ]
    return hashlib.sha256(f'augmented-1 {told}'.encode()).hexdigest()[:24]

  def rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
    rows = self.source.rows(start, stop)
    if rows['image'].dtype != np.uint8:
      raise ValueError(f'image={rows["image"].dtype} must be uint8')
    made = [
      self._row({k: v[i - start] for k, v in rows.items()}, i)
      for i in range(start, stop)
    ]
    return {k: np.stack([row[k] for row in made]) for k in made[0]}

  def _row(self, row: dict[str, Any], number: int) -> dict[str, Any]:
    rng = np.random.Generator(
      np.random.Philox(key=[self.seed, 1], counter=[0, 0, number, 0])
    )
    row = {**row, 'image': self._change(row['image'], rng)}
    if not self._mixes:
      return row
    # Another row of the same epoch, so that an epoch stays one.
    first = number - number % len(self)
    place = first + int(rng.integers(len(self)))
    other = {k: v[0] for k, v in self.source.rows(place, place + 1).items()}
    image, share = self._mix(
      row['image'], self._change(other['image'], rng), rng
    )
    row |= {'image': image, 'mix': np.float32(share)}
    return {**row, 'label_2': other['label']}

  def _change(
    self, image_HWC: np.ndarray, rng: np.random.Generator
  ) -> np.ndarray:
    if self.crop:
      down, across = rng.integers(0, 2 * self.crop + 1, 2).tolist()
      image_HWC = cropped(image_HWC, self.crop, down, across)
    if self.flip and rng.random() < 0.5:
      image_HWC = flipped(image_HWC)
    count, magnitude = self.rand_augment
    names = list(OPERATIONS)
    for choice in rng.integers(0, len(names), count).tolist():
      sign = rng.choice((-1, 1))
      image_HWC = operated(image_HWC, names[choice], sign * magnitude / 10)
    return image_HWC

  def _mix(self, one, two, rng) -> tuple[np.ndarray, float]:
    cuts = self.cutmix > 0
    if self.mixup and self.cutmix:
      cuts = rng.random() < 0.5
    alpha = self.cutmix if cuts else self.mixup
    share = rng.beta(alpha, alpha)
    if not cuts:
      return blended(one, two, share), share
    middle = rng.random(2)
    return pasted(one, two, share, *middle)


def cropped(
  image_HWC: np.ndarray, pad: int, down: int, across: int
) -> np.ndarray:
  """Returns the window at (`down`, `across`) of the image padded by `pad`."""
  H, W, _ = image_HWC.shape
  padded = np.pad(image_HWC, ((pad, pad), (pad, pad), (0, 0)))
  return padded[down : down + H, across : across + W]


def flipped(image_HWC: np.ndarray) -> np.ndarray:
  """Returns the mirror image, left for right."""
  return image_HWC[:, ::-1]


def blended(one: np.ndarray, two: np.ndarray, share: float) -> np.ndarray:
  """Returns `share` of one image and the rest of another, in whole greys."""
  mean = share * one.astype(np.float32) + (1 - share) * two.astype(np.float32)
  return np.rint(mean).astype(np.uint8)


def pasted(
  one: np.ndarray, two: np.ndarray, share: float, y: float, x: float
) -> tuple[np.ndarray, float]:
  """Returns an image with a box of another, and the share that is its own.

  Args:
    one: The image.
    two: The other, of the same shape.
    share: What one keeps, if the box lies inside; its edges are cut off.
    y: The middle of the box, as a share of the height.
    x: The same, of the width.
  """
  H, W, _ = one.shape
  side = np.sqrt(1 - share) / 2
  top, bottom = (round(np.clip(H * (y + s), 0, H)) for s in (-side, side))
  left, right = (round(np.clip(W * (x + s), 0, W)) for s in (-side, side))
  image = one.copy()
  image[top:bottom, left:right] = two[top:bottom, left:right]
  return image, 1 - (bottom - top) * (right - left) / (H * W)


def operated(image_HWC: np.ndarray, name: str, level: float) -> np.ndarray:
  """Returns the image after one of `OPERATIONS`.

  Args:
    image_HWC: uint8, of one channel or three.
    name: The operation.
    level: -1 to 1, a share of the operation's range; those without a direction
      take it as positive.
  """
  from PIL import Image, ImageEnhance, ImageOps

  H, W, C = image_HWC.shape
  most = OPERATIONS[name]
  amount = (level if name in _SIGNED else abs(level)) * most
  if name == 'identity' or (most and not amount):
    return image_HWC
  picture = Image.fromarray(image_HWC[..., 0] if C == 1 else image_HWC)
  grey = _GREY * C
  if name == 'autocontrast':
    picture = ImageOps.autocontrast(picture)
  elif name == 'equalize':
    picture = ImageOps.equalize(picture)
  elif name == 'solarize':
    picture = ImageOps.solarize(picture, round(256 - amount))
  elif name == 'posterize':
    picture = ImageOps.posterize(picture, 8 - round(amount))
  elif name == 'rotate':
    picture = picture.rotate(
      amount, Image.Resampling.BILINEAR, fillcolor=grey if C > 1 else grey[0]
    )
  elif name in ('color', 'contrast', 'brightness', 'sharpness'):
    enhance = getattr(ImageEnhance, name.capitalize())
    picture = enhance(picture).enhance(1 + amount)
  else:
    picture = picture.transform(
      picture.size,
      Image.Transform.AFFINE,
      _moves(name, amount, H, W),
      Image.Resampling.BILINEAR,
      fillcolor=grey if C > 1 else grey[0],
    )
  return np.asarray(picture).reshape(H, W, C)


def _moves(name: str, amount: float, H: int, W: int) -> tuple[float, ...]:
  """Returns where a pixel (x, y) comes from: (a x + b y + c, d x + e y + f)."""
  return {
    # A shear leaves the middle where it is.
    'shear_x': (1, amount, -amount * H / 2, 0, 1, 0),
    'shear_y': (1, 0, 0, amount, 1, -amount * W / 2),
    'translate_x': (1, 0, amount * W, 0, 1, 0),
    'translate_y': (1, 0, 0, 0, 1, amount * H),
  }[name]


@dataclasses.dataclass(frozen=True)
class _Ramps(Source):
  """Image i is a ramp of grey that begins at i."""

  size: int = 24

  def __len__(self) -> int:
    return self.size

  def facts(self) -> dict:
    return {'classes': 3}

  def fingerprint(self) -> str:
    return f'ramps-{self.size}'

  def rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
    index = np.arange(start, stop) % self.size
    ramp = 3 * np.arange(48).reshape(4, 4, 3)
    image_BHWC = (index[:, None, None, None] * 4 + ramp).astype(np.uint8)
    return {'image': image_BHWC, 'label': (index % 3).astype(np.int32)}


def tiny() -> Augmented:
  """Returns small images under every change that there is."""
  return Augmented(_Ramps(), crop=1, rand_augment=(2, 5), mixup=0.5, cutmix=0.5)
