"""Labelled images of one size in one memory-mapped file, from files of all sorts.

What is read: JPEG, PNG and whatever else Pillow opens, in folders named by their
class, plain or in an archive; and pairs of idx files (see `pictures`). They are
decoded once, into a folder named by a hash of the files; one at a time, so that
they may exceed memory.
"""

# Shapes: B rows, H, W, C an image's height, width and channels.
from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
from typing import IO, Any

import grain.python as grain
import numpy as np

from bigdl.data import files, pictures
from bigdl.data.base import Source
from bigdl.data.pictures import TRAIN, VALIDATION, Example

FORMAT = 2
# Bytes of images up to which their checksum is compared at every start.
CHECKED = 2**26
# Where no folder says so, an image is held out if its hash, as a share of all
# hashes, is below.
HELD_OUT = 0.08


@dataclasses.dataclass(frozen=True)
class Shard:
  """Images of one split on disk: `image_BHWC` uint8, memory-mapped."""

  image_BHWC: np.ndarray
  label_B: np.ndarray  # int32.
  classes: tuple[str, ...]
  fingerprint: str


@dataclasses.dataclass(frozen=True)
class ImageFiles(Source):
  """An image and its label a row: `image` uint8 `[H, W, C]`, `label` int32.

  Images under a folder called train are for training, those under validation,
  valid, val or test (the first of these that there is) are held out; idx files
  say it in their names; where nothing does, a hash of the image decides.
  Classes are the folders that hold training images, sorted; where all their
  names are numbers (without zeros before them), by number, and there is no class
  for a number that no folder has. The label in an idx file is its class's number.
  Training rows come in an order drawn afresh each epoch, validation rows in one
  fixed order.
  """

  paths: tuple[str, ...] = ()  # Folders, archives, files or patterns.
  split: str = 'train'  # Or validation.
  classes: tuple[str, ...] = ()  # In their order; () takes those of training.
  size: int = 0  # Pixels on a side, cut from the centre; 0: as they are.
  channels: int = 3  # 1: grey. Those of idx files are as they are.
  keep: int = 0  # Train on so many images, a fair sample; 0: all.
  seed: int = 0  # Of the order of rows.
  cache: str = ''  # Folder for decoded images; '' takes one per user.

  def __post_init__(self):
    if self.split not in ('train', 'validation'):
      raise ValueError(f'split={self.split} must be train or validation')
    if self.channels not in (1, 3):
      raise ValueError(f'channels={self.channels} must be 1 or 3')
    for name in ('size', 'keep'):
      if getattr(self, name) < 0:
        raise ValueError(f'{name}={getattr(self, name)} must not be negative')

  @property
  def _cache(self) -> pathlib.Path:
    if self.cache:
      return pathlib.Path(self.cache).expanduser()
    return pathlib.Path.home() / '.cache' / 'bigdl' / 'images'

  @functools.cached_property
  def shard(self) -> Shard:
    """The images of this split."""
    if not self.paths:
      raise ValueError('paths=() must name at least one folder or file')
    sums = []
    for pattern in self.paths:
      found = files.find(pattern)
      if not found:
        raise ValueError(f'paths={pattern} matches no file')
      # What the folders of a file are called is part of what it says.
      sums += [
        [pictures.parts(f, pattern), files.checksum(f, self._cache)]
        for f in found
      ]
    told = [FORMAT, sums, self.classes, self.size, self.channels]
    key = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]
    folder = self._cache / key
    held_out = self.split == 'validation'
    shard = _open(folder, key, held_out)
    if shard is None:
      _write(self._examples(), folder, self.classes)
      shard = _open(folder, key, held_out)
    if shard is None or not len(shard.label_B):
      raise ValueError(
        f'split={self.split} of {", ".join(self.paths)} holds no image'
      )
    return shard

  def _examples(self) -> Iterator[Example]:
    for pattern in self.paths:
      yield from pictures.find(pattern, self.size, self.channels)

  @functools.cached_property
  def _kept(self) -> np.ndarray:
    """The images that rows are taken from, int64 `[rows]`."""
    rows = len(self.shard.label_B)
    if not self.keep or self.split != 'train':
      return np.arange(rows)
    if self.keep > rows:
      raise ValueError(f'keep={self.keep} must be at most the {rows} images')
    # The same ones whatever the seed, which is of the order alone.
    return np.sort(np.random.default_rng(0).permutation(rows)[: self.keep])

  def __len__(self) -> int:
    return len(self._kept)

  def dataset(self) -> grain.MapDataset:
    return grain.MapDataset.source(range(len(self))).map(
      lambda i: {k: v[0] for k, v in self.rows(i, i + 1).items()}
    )

  def facts(self) -> dict:
    return {'classes': len(self.shard.classes), 'images': len(self)}

  def fingerprint(self) -> str:
    told = [self.shard.fingerprint, self.split, self.keep]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]

  def rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
    size = len(self)
    index = np.arange(start, stop)
    place = np.empty_like(index)
    for epoch in range(start // size, (stop - 1) // size + 1):
      own = index // size == epoch
      order = _permutation(self.seed, epoch if self._shuffles else 0, size)
      place[own] = order[index[own] % size]
    place = self._kept[place]
    shard = self.shard
    return {'image': shard.image_BHWC[place], 'label': shard.label_B[place]}

  @property
  def _shuffles(self) -> bool:
    return self.split == 'train'


@functools.lru_cache(maxsize=8)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
  return np.random.default_rng([seed, epoch]).permutation(size)


def _open(folder: pathlib.Path, key: str, held_out: bool) -> Shard | None:
  """Returns the shard, empty where none is of its split, or None if damaged."""
  try:
    index = json.loads((folder / 'index.json').read_text())
    shape, parts = tuple(index['shape']), index['parts']
    known = [p for p in (VALIDATION if held_out else TRAIN) if p in parts]
    if not known:
      return Shard(
        np.empty((0, *shape), np.uint8), np.empty(0, np.int32), (), ''
      )
    label_B = np.load(folder / f'{known[0]}.npy')
    image_BHWC = np.memmap(
      folder / f'{known[0]}.bin',
      np.uint8,
      mode='r',
      shape=(len(label_B), *shape),
    )
    sha256 = parts[known[0]]
  except (OSError, ValueError, KeyError):
    return None
  whole = (folder / f'{known[0]}.bin').stat().st_size == image_BHWC.size
  # A large file is checked by its size alone, or each start would read it all.
  if whole and image_BHWC.nbytes <= CHECKED:
    whole = hashlib.sha256(image_BHWC.data).hexdigest() == sha256
  if not whole:
    return None
  return Shard(image_BHWC, label_B, tuple(index['classes']), key)


def _write(
  examples: Iterator[Example], folder: pathlib.Path, classes: tuple[str, ...]
) -> None:
  """Writes beside the folder and moves it into place, whole or not at all."""
  folder.parent.mkdir(parents=True, exist_ok=True)
  made = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix='.new-'))
  try:
    _decode(examples, made, classes)
    if folder.exists():  # Damaged, or `shard` would have found it.
      shutil.rmtree(folder, ignore_errors=True)
    try:
      os.rename(made, folder)
    except OSError:
      # Another process was first; its folder holds the same images.
      if not folder.exists():
        raise
  finally:
    shutil.rmtree(made, ignore_errors=True)


def _decode(
  examples: Iterator[Example], made: pathlib.Path, classes: tuple[str, ...]
) -> None:
  """Writes images as they come, and their labels once all names are known."""
  outs: dict[str, IO[bytes]] = {}
  sums: dict[str, Any] = {}
  names: dict[str, list[str]] = {}
  seen: dict[tuple[str, str], str] = {}  # Where a part first has a class.
  shape: tuple[int, ...] = ()
  first, counted = '', True
  try:
    for place, part, name, image_HWC, is_number in examples:
      shape, first = shape or image_HWC.shape, first or place
      if image_HWC.shape != shape:
        raise ValueError(
          f'{place} is {list(image_HWC.shape)}, {first} {list(shape)}:'
          ' images must be of one size, or give --data.size'
        )
      raw = image_HWC.tobytes()
      part = part or _split_by_hash(raw)
      if part not in outs:
        outs[part] = open(made / f'{part}.bin', 'wb')  # noqa: SIM115
        sums[part], names[part] = hashlib.sha256(), []
      outs[part].write(raw)
      sums[part].update(raw)
      names[part].append(name)
      seen.setdefault((part, name), place)
      counted = counted and is_number
  finally:
    for out in outs.values():
      out.close()
  if not seen:
    raise ValueError('paths hold no image that can be read')
  classes = classes or _known(seen, counted)
  for (_, name), place in seen.items():
    if name not in classes:
      raise ValueError(
        f'{place}: label {name} is outside the {len(classes)} classes'
        f' {_listed(classes)}'
      )
  number = {name: i for i, name in enumerate(classes)}
  for part, own in names.items():
    label_B = np.array([number[name] for name in own], np.int32)
    np.save(made / f'{part}.npy', label_B)
  index = {
    'shape': shape,
    'classes': classes,
    'parts': {part: digest.hexdigest() for part, digest in sums.items()},
  }
  (made / 'index.json').write_text(json.dumps(index))


def _listed(classes: tuple[str, ...]) -> str:
  return ', '.join(classes[:12]) + (', …' if classes[12:] else '')


def _known(seen: dict[tuple[str, str], str], counted: bool) -> tuple[str, ...]:
  """Returns the classes of the training images, in order.

  Args:
    seen: The place where a part first has a class.
    counted: Whether names are numbers of classes: all below the largest are
      classes then, whether or not each of them is there.

  Raises:
    ValueError: Training lacks more than half of the classes so counted: one
      label is wrong, or it is for the user to say what the classes are.
  """
  train = {name: at for (part, name), at in seen.items() if part in TRAIN}
  found = train or {name: at for (_, name), at in seen.items()}
  if counted:
    last = max(found, key=int)
    size = int(last) + 1
    if size > 2 * len(found):
      raise ValueError(
        f'{found[last]}: label {last} makes {size} classes, of which only'
        f' {len(found)} have images; name the classes in --data.classes'
      )
    return tuple(map(str, range(size)))
  # Names such as 01 are no numbers: 1 may be there too.
  if all(name.isdecimal() and name == str(int(name)) for name in found):
    return tuple(sorted(found, key=int))
  return tuple(sorted(found))


def _split_by_hash(raw: bytes) -> str:
  share = int.from_bytes(hashlib.sha256(raw).digest()[:8], 'big') / 2**64
  return VALIDATION[0] if share < HELD_OUT else TRAIN[0]


@functools.cache
def small_images() -> str:
  """Returns a folder of small pictures in two classes, made for the occasion."""
  from PIL import Image

  folder = pathlib.Path(tempfile.mkdtemp(prefix='bigdl-images-'))
  rng = np.random.default_rng(0)
  for part, count in (('train', 20), ('test', 8)):
    for name in ('dark', 'light'):
      own = folder / 'pictures' / part / name
      own.mkdir(parents=True)
      for i in range(count):
        low = 128 * (name == 'light')
        pixels = rng.integers(low, low + 128, (6, 6, 3), np.uint8)
        Image.fromarray(pixels).save(own / f'{i:03}.png')
  return str(folder)


def tiny() -> ImageFiles:
  """Returns the rows of a few pictures that are made for the occasion."""
  folder = small_images()
  return ImageFiles(paths=(f'{folder}/pictures',), cache=f'{folder}/cache')
