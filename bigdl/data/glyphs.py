"""Labelled images that need no file: characters in many fonts, drawn at random.

Each image is a character of one of the fonts that come with matplotlib, turned,
sheared, stretched, moved, made bolder or lighter, and hidden in noise. What is
kept of a character is its distance to the outline (negative inside), so that one
master gives any thickness, with smooth edges at any size.

Images are drawn in blocks, each from a generator of its own, so that a row is a
pure function of the seed and its number, and a million of them cost no space.
"""

# Shapes: B rows, S pixels on a side, K of a master, F fonts, N characters.
from __future__ import annotations

import dataclasses
import functools
import hashlib
import pathlib
import string

import grain.python as grain
import numpy as np

from bigdl.data.base import Source

FONTS = (
  *('DejaVuSans', 'DejaVuSans-Bold', 'DejaVuSans-Oblique', 'DejaVuSansMono'),
  *('DejaVuSerif', 'DejaVuSerif-Bold', 'DejaVuSerif-Italic'),
  *('STIXGeneral', 'STIXGeneralBol', 'STIXGeneralItalic', 'STIXGeneralBolIta'),
  *('cmr10', 'cmb10', 'cmss10', 'cmtt10'),
)
BLOCK = 128  # Rows of one generator.
MASTER = 48  # K.
# Of a master's side: the height of the tallest character, and what every
# distance is clipped to.
HEIGHT, FAR = 0.6, 0.15


@dataclasses.dataclass(frozen=True)
class Glyphs(Source):
  """A character a row: `image` uint8 `[S, S, 1]`, `label` its place."""

  split: str = 'train'  # Or validation: other draws of the same kind.
  alphabet: str = string.digits  # One class each.
  size: int = 16  # Pixels on a side.
  warp: float = 1.0  # How far shapes differ; 0: characters as their font is.
  noise: float = 0.2  # Most noise, as a share of the range of greys.
  seed: int = 0  # Of the rows.
  rows_per_epoch: int = 1 << 20

  def __post_init__(self):
    if self.split not in ('train', 'validation'):
      raise ValueError(f'split={self.split} must be train or validation')
    if len(set(self.alphabet)) != len(self.alphabet) or len(self.alphabet) < 2:
      raise ValueError(
        f'alphabet={self.alphabet!r} must hold two or more characters, each once'
      )
    if not set(self.alphabet) <= set(string.digits + string.ascii_letters):
      raise ValueError(
        f'alphabet={self.alphabet!r} must be of 0-9, A-Z and a-z'
      )
    for name, least in (('size', 4), ('rows_per_epoch', 1)):
      if getattr(self, name) < least:
        raise ValueError(
          f'{name}={getattr(self, name)} must be at least {least}'
        )
    for name in ('warp', 'noise'):
      if not getattr(self, name) >= 0:
        raise ValueError(f'{name}={getattr(self, name)} must not be negative')

  def __len__(self) -> int:
    return self.rows_per_epoch

  def dataset(self) -> grain.MapDataset:
    return grain.MapDataset.source(range(len(self))).map(
      lambda i: {k: v[0] for k, v in self.rows(i, i + 1).items()}
    )

  def facts(self) -> dict:
    return {'classes': len(self.alphabet)}

  def fingerprint(self) -> str:
    named = [getattr(self, f.name) for f in dataclasses.fields(self)]
    digest = hashlib.sha256(f'glyphs-1 {named}'.encode())
    digest.update(_masters(self.alphabet).tobytes())
    return digest.hexdigest()[:24]

  def rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
    index = np.arange(start, stop)
    if self.split == 'validation':
      index %= len(self)  # One fixed order; training rows never come again.
    images, labels = [], []
    for number in dict.fromkeys((index // BLOCK).tolist()):
      image_BSS, label_B = self._block(number)
      own = index[index // BLOCK == number] % BLOCK
      images.append(image_BSS[own])
      labels.append(label_B[own])
    image_BSSC = np.concatenate(images)[..., None]
    return {'image': image_BSSC, 'label': np.concatenate(labels)}

  @functools.lru_cache(maxsize=64)  # noqa: B019 - sources live as long as runs.
  def _block(self, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns images and labels of that block of rows."""
    held_out = int(self.split == 'validation')
    rng = np.random.Generator(
      np.random.Philox(key=[self.seed, held_out], counter=[0, 0, number, 0])
    )
    label_B = rng.integers(0, len(self.alphabet), BLOCK, np.int32)
    font_B = rng.integers(0, len(FONTS), BLOCK)
    near_BSS, edge_B = _sample(
      _masters(self.alphabet)[font_B, label_B],
      _affine(rng, self.size, self.warp),
    )
    bold_B = self.warp * 0.02 * rng.standard_normal(BLOCK, np.float32)
    # Grey levels turn from paper to ink within the width of one pixel.
    ink_BSS = near_BSS - bold_B[:, None, None]
    ink_BSS = np.clip(0.5 - ink_BSS / edge_B[:, None, None], 0, 1)
    paper_B, contrast_B, noise_B = rng.random((3, BLOCK), np.float32)
    # Paper is dark: what a linear map could not tell would be learnt too late.
    contrast_B = 0.4 + 0.5 * contrast_B
    paper_B *= 1 - contrast_B
    image_BSS = contrast_B[:, None, None] * ink_BSS + paper_B[:, None, None]
    noise_BSS = rng.standard_normal(image_BSS.shape, np.float32)
    image_BSS += self.noise * noise_B[:, None, None] * noise_BSS
    return np.rint(255 * np.clip(image_BSS, 0, 1)).astype(np.uint8), label_B


def _affine(rng: np.random.Generator, size: int, warp: float) -> np.ndarray:
  """Returns where each pixel reads the master, as shares of its side.

  `[B, 2, S, S]`: rows, then columns.
  """
  angle, shear, grow, stretch, down, across = warp * rng.standard_normal(
    (6, BLOCK), np.float32
  )
  angle, shear = 0.25 * angle, 0.2 * shear
  tall = np.exp(0.15 * grow + 0.1 * stretch)
  wide = np.exp(0.15 * grow - 0.1 * stretch)
  cos, sin = np.cos(angle), np.sin(angle)
  matrix_B22 = np.array(
    [
      [cos / tall, -sin / tall],
      [(sin + shear * cos) / wide, (cos - shear * sin) / wide],
    ]
  ).transpose(2, 0, 1)
  side = ((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5) * 0.8
  pixel_2P = np.stack(np.meshgrid(side, side, indexing='ij')).reshape(2, -1)
  moved_B2 = 0.5 + 0.06 * np.stack([down, across], axis=1)
  at_B2P = matrix_B22 @ pixel_2P + moved_B2[:, :, None]
  return at_B2P.reshape(BLOCK, 2, size, size)


def _sample(
  master_BKK: np.ndarray, at_B2SS: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Returns distances at those places, and the width of a pixel, `[B]`."""
  B, K, _ = master_BKK.shape
  at = np.clip(at_B2SS * K - 0.5, 0, K - 1.001)
  first = at.astype(np.int32)
  y, x = np.moveaxis(at - first, 1, 0)
  flat = master_BKK.reshape(-1)
  place = first[:, 0] * K + first[:, 1]
  place += (np.arange(B, dtype=np.int32) * K * K)[:, None, None]
  above = flat[place] * (1 - x) + flat[place + 1] * x
  below = flat[place + K] * (1 - x) + flat[place + K + 1] * x
  edge_B = np.abs(at_B2SS[:, 0, 1, 0] - at_B2SS[:, 0, 0, 0])
  return above * (1 - y) + below * y, np.maximum(edge_B, 1e-3)


@functools.lru_cache(maxsize=8)
def _masters(alphabet: str) -> np.ndarray:
  """Returns distances to the outline, in sides: float32 `[F, N, K, K]`."""
  # These take a while to import, and only drawing needs them.
  import matplotlib
  from PIL import Image, ImageDraw, ImageFont

  folder = pathlib.Path(matplotlib.get_data_path()) / 'fonts' / 'ttf'
  fine = 4 * MASTER  # Drawn larger, for distances within a pixel.
  far = FAR * fine
  masters = np.empty((len(FONTS), len(alphabet), MASTER, MASTER), np.float32)
  for f, name in enumerate(FONTS):
    font = ImageFont.truetype(str(folder / f'{name}.ttf'), fine)
    _, top, _, bottom = font.getbbox(alphabet)
    font = font.font_variant(size=round(HEIGHT * fine * fine / (bottom - top)))
    for n, letter in enumerate(alphabet):
      sheet = Image.new('L', (fine, fine))
      middle = (fine / 2, fine / 2)
      ImageDraw.Draw(sheet).text(middle, letter, 255, font, anchor='mm')
      inside = np.asarray(sheet) > 127
      signed = _distance(~inside) - _distance(inside)
      # From the middle of a pixel to the edge between two, not to the next.
      signed -= np.sign(signed) / 2
      shares = np.clip(signed, -far, far).reshape(MASTER, 4, MASTER, 4)
      masters[f, n] = shares.mean(axis=(1, 3)) / fine
  return masters


def _distance(where: np.ndarray) -> np.ndarray:
  """Returns how far each pixel that is set is from those that are not."""
  from scipy import ndimage

  return np.asarray(ndimage.distance_transform_edt(where))


def tiny() -> Glyphs:
  """Returns small images of three digits."""
  return Glyphs(alphabet='258', size=8, rows_per_epoch=512)
