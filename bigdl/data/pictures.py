"""Labelled images as they stand in files: pictures in folders, archives, idx.

A picture (JPEG, PNG and whatever else Pillow opens) lies in a folder named by its
class, plain or in an archive (.tar, .tar.gz, .tar.xz, .tar.bz2). An idx file, plain
or .gz, is MNIST's format (LeCun et al., 1998), with its labels beside it.
"""

# Shapes: B rows, H, W, C an image's height, width and channels.
from __future__ import annotations

import bz2
from collections.abc import Iterator
import gzip
import io
import lzma
import math
import os
import pathlib
import re
import struct
import tarfile
from typing import Any, NamedTuple
import zlib

import numpy as np

from bigdl.data import files

# Folders that say which split an image is of; the first one there is held out.
TRAIN = ('train', 'training')
VALIDATION = ('validation', 'valid', 'val', 'test')
_TAR = ('.tar', '.tar.gz', '.tgz', '.tar.xz', '.txz', '.tar.bz2', '.tbz2')
_PICTURES = ('.jpg', '.jpeg', '.png', '.gif', '.bmp', '.webp', '.tif', '.tiff')
_IDX = re.compile(r'(.*)images([-.]idx)3([-.]ubyte(?:\.gz)?)')
_OPEN: dict[str, Any] = {
  **dict.fromkeys(('.gz', '.tgz'), gzip.open),
  **dict.fromkeys(('.xz', '.txz'), lzma.open),
  **dict.fromkeys(('.bz2', '.tbz2'), bz2.open),
}
_DAMAGE = (
  *(EOFError, OSError, SyntaxError),
  *(zlib.error, lzma.LZMAError, tarfile.TarError),
)


class Example(NamedTuple):
  """One image as it is found."""

  place: str  # Its file, and its row where there are several, for messages.
  part: str  # The folder that names its split, '' where there is none.
  name: str  # Of its class.
  image_HWC: np.ndarray  # uint8.
  counted: bool = False  # Whether the name is the class's number, as in idx.


def parts(file: pathlib.Path, pattern: str) -> tuple[str, ...]:
  """Returns the name, after the folders that tell a file's split and class.

  Those below a folder that is named, after its own name where that alone tells
  the split; the last two, where a pattern is.
  """
  root = pathlib.Path(pattern).expanduser()
  if root.is_dir():
    own = file.relative_to(root).parts
    if any(folder.lower() in TRAIN + VALIDATION for folder in own[:-1]):
      return own
    # Not what a link leads to, but the name that the user gave.
    named = os.path.basename(os.path.abspath(root))
    return (named, *own) if named.lower() in TRAIN + VALIDATION else own
  return (file.name,) if file == root else file.parts[-3:]


def find(pattern: str, size: int, channels: int) -> Iterator[Example]:
  """Yields the images of a folder, an archive, a file or a pattern.

  Args:
    pattern: What `files.find` takes.
    size: Pixels on a side that pictures are scaled and cut to; 0: none are.
    channels: 3, or 1 for grey ones; idx files are as they are.

  Raises:
    ValueError: A file is damaged, has no labels, or lies in no class's folder.
  """
  for file in files.find(pattern):
    name = file.name.lower()
    match = _IDX.fullmatch(file.name)
    if match:
      yield from _idx(file, match)
    elif name.endswith(_TAR):
      yield from _archive(file, size, channels)
    elif name.endswith(_PICTURES):
      raw = file.read_bytes()
      yield _picture(str(file), parts(file, pattern), raw, size, channels)


def _archive(file: pathlib.Path, size: int, channels: int) -> Iterator[Example]:
  try:
    # Not left to tarfile, which takes the end of a cut file for its own.
    opened = _OPEN.get(file.suffix.lower(), open)(file, 'rb')
    with opened, tarfile.open(fileobj=opened, mode='r|') as archive:
      for member in archive:
        if not member.name.lower().endswith(_PICTURES):
          continue
        inner = archive.extractfile(member)
        if inner is not None:
          parts = pathlib.PurePosixPath(member.name).parts
          place = f'{file}/{member.name}'
          yield _picture(place, parts, inner.read(), size, channels)
  except _DAMAGE as error:
    raise ValueError(f'{file} is damaged: {error}') from error


def _picture(
  place: str, parts: tuple[str, ...], raw: bytes, size: int, channels: int
) -> Example:
  from PIL import Image, ImageOps

  folders = [p for p in parts[:-1] if p not in ('.', '..', '/')]
  part = next((p for p in folders if p.lower() in TRAIN + VALIDATION), '')
  if not folders or folders[-1] == part:
    raise ValueError(f'{place} must lie in a folder that is named by its class')
  try:
    with Image.open(io.BytesIO(raw)) as opened:
      picture = opened.convert('L' if channels == 1 else 'RGB')
      if size:
        picture = ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)
      pixels = np.asarray(picture)
  except _DAMAGE as error:
    told = ' '.join(str(error).split())
    raise ValueError(f'{place} is damaged: {told}') from error
  image_HWC = pixels.reshape(*pixels.shape[:2], channels)
  return Example(place, part.lower(), folders[-1], image_HWC)


def _idx(file: pathlib.Path, match: re.Match) -> Iterator[Example]:
  """Yields the images of one idx file with the labels of the one beside it."""
  stem, middle, end = match.groups()
  beside = file.with_name(f'{stem}labels{middle}1{end}')
  if not beside.is_file():
    raise ValueError(f'{file}: there is no file of labels {beside}')
  image_BHWC, label_B = _array(file), _array(beside)
  if label_B.ndim != 1 or len(label_B) != len(image_BHWC):
    raise ValueError(
      f'{beside} holds labels {list(label_B.shape)} for the'
      f' {len(image_BHWC)} images of {file}'
    )
  if image_BHWC.ndim == 3:
    image_BHWC = image_BHWC[..., None]
  held_out = any(word in stem.lower() for word in ('t10k', 'test'))
  part = 'test' if held_out else 'train' if 'train' in stem.lower() else ''
  for i, (image_HWC, label) in enumerate(
    zip(image_BHWC, label_B.tolist(), strict=True)
  ):
    yield Example(f'{beside} row {i}', part, str(label), image_HWC, True)


def _array(file: pathlib.Path) -> np.ndarray:
  """Returns the content of an idx file of bytes."""
  try:
    raw = file.read_bytes()
    raw = gzip.decompress(raw) if file.suffix == '.gz' else raw
    zero, kind, dims = struct.unpack('>HBB', raw[:4])
    shape = struct.unpack(f'>{dims}I', raw[4 : 4 + 4 * dims])
  except (*_DAMAGE, struct.error) as error:
    raise ValueError(f'{file} is damaged: {error}') from error
  if zero or kind != 8:
    raise ValueError(f'{file} is not an idx file of bytes')
  values = np.frombuffer(raw, np.uint8, offset=4 + 4 * dims)
  if values.size != math.prod(shape):
    raise ValueError(
      f'{file} is damaged: {values.size} bytes, expected {list(shape)}'
    )
  return values.reshape(shape)
