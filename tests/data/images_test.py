"""Images from folders, archives and idx files; what is wrong with them."""

from __future__ import annotations

import gzip
import struct
import tarfile

import numpy as np
from PIL import Image
import pytest

from bigdl.data.images import ImageFiles

RNG = np.random.default_rng(0)


def picture(path, size=(6, 6), channels=3, value=None):
  path.parent.mkdir(parents=True, exist_ok=True)
  shape = (size[1], size[0], channels)[: 2 + (channels > 1)]
  pixels = RNG.integers(0, 256, shape, np.uint8)
  if value is not None:
    pixels[:] = value
  Image.fromarray(pixels).save(path)
  return pixels


@pytest.fixture
def folder(tmp_path):
  """Two classes: ten pictures of each to train on, two to test."""
  root = tmp_path / 'data'
  for name, value in (('ant', 10), ('bee', 200)):
    for part, count in (('train', 10), ('test', 2)):
      for i in range(count):
        picture(root / part / name / f'{i}.png', value=value + i)
  return root


def source(path, tmp_path, **fields):
  return ImageFiles(paths=(str(path),), cache=str(tmp_path / 'cache'), **fields)


def test_folders_name_split_and_class(folder, tmp_path):
  train = source(folder, tmp_path)
  held = source(folder, tmp_path, split='validation')
  assert (len(train), len(held)) == (20, 4)
  assert train.facts() == {'classes': 2, 'images': 20}
  assert train.shard.classes == ('ant', 'bee')
  for data, count in ((train, 20), (held, 4)):
    rows = data.rows(0, count)
    assert rows['image'].shape == (count, 6, 6, 3)
    values = rows['image'][:, 0, 0, 0].astype(int)
    # Every picture once, under its own label.
    assert len(set(values.tolist())) == count
    assert np.array_equal(values >= 200, rows['label'] == 1)


def test_an_archive_holds_what_its_folder_holds(folder, tmp_path):
  file = tmp_path / 'pictures.tar.gz'
  with tarfile.open(file, 'w:gz') as archive:
    archive.add(folder, 'anything')
  one, two = (source(p, tmp_path).rows(0, 20) for p in (folder, file))
  order = [np.argsort(x['image'][:, 0, 0, 0]) for x in (one, two)]
  for k in one:
    assert np.array_equal(one[k][order[0]], two[k][order[1]])


def test_pictures_are_decoded_once(folder, tmp_path):
  first = source(folder, tmp_path).rows(0, 20)
  made = {p: p.stat().st_mtime_ns for p in (tmp_path / 'cache').glob('*/*.bin')}
  assert len(made) == 2
  again = source(folder, tmp_path).rows(0, 20)
  assert np.array_equal(first['image'], again['image'])
  assert made == {p: p.stat().st_mtime_ns for p in made}
  assert isinstance(source(folder, tmp_path).shard.image_BHWC, np.memmap)


def test_a_damaged_cache_is_made_again(folder, tmp_path):
  first = source(folder, tmp_path).rows(0, 20)
  (file,) = (tmp_path / 'cache').glob('*/train.bin')
  raw = bytearray(file.read_bytes())
  raw[5] ^= 255
  file.write_bytes(raw)
  again = source(folder, tmp_path).rows(0, 20)
  assert np.array_equal(first['image'], again['image'])


def test_a_pattern_takes_the_files_that_it_matches(folder, tmp_path):
  every = source(folder / '*' / '*' / '*.png', tmp_path)
  assert len(every) == 20 and every.shard.classes == ('ant', 'bee')
  some = source(folder / 'train' / '*' / '[0-4].png', tmp_path)
  assert len(some) == 10


def test_a_file_that_moves_to_another_class_is_other_data(folder, tmp_path):
  before = source(folder, tmp_path).fingerprint()
  file = folder / 'train' / 'ant' / '3.png'
  file.rename(folder / 'train' / 'bee' / 'x.png')
  after = source(folder, tmp_path)
  assert after.fingerprint() != before
  assert (after.rows(0, 20)['label'] == 1).sum() == 11


def test_other_files_are_other_data(folder, tmp_path):
  before = source(folder, tmp_path).fingerprint()
  picture(folder / 'train' / 'bee' / 'new.png')
  after = source(folder, tmp_path)
  assert after.fingerprint() != before and len(after) == 21


def test_where_no_folder_says_so_a_hash_splits(tmp_path):
  for i in range(60):
    picture(tmp_path / 'flat' / 'ab'[i % 2] / f'{i}.png')
  train, held = (
    source(tmp_path / 'flat', tmp_path, split=s)
    for s in ('train', 'validation')
  )
  assert len(train) + len(held) == 60 and 1 <= len(held) <= 15
  seen = [
    {x.tobytes() for x in d.rows(0, len(d))['image']} for d in (train, held)
  ]
  assert not seen[0] & seen[1]


def test_folders_named_one_by_one_keep_their_splits(folder, tmp_path):
  paths = (str(folder / 'train'), str(folder / 'test'))
  train = ImageFiles(paths=paths, cache=str(tmp_path / 'cache'))
  held = ImageFiles(
    paths=paths, cache=str(tmp_path / 'cache'), split='validation'
  )
  assert (len(train), len(held)) == (20, 4)
  whole = source(folder, tmp_path, split='validation')
  assert np.array_equal(whole.rows(0, 4)['image'], held.rows(0, 4)['image'])


def test_a_folder_called_test_may_hold_both_splits(folder, tmp_path):
  folder.rename(tmp_path / 'test')
  train, held = (
    source(tmp_path / 'test', tmp_path, split=s)
    for s in ('train', 'validation')
  )
  assert (len(train), len(held)) == (20, 4)


@pytest.mark.parametrize(
  ('names', 'classes'),
  [
    (('00', '01'), ('00', '01')),
    (('2', '10', '0', '1'), ('0', '1', '2', '10')),
    (('2015', '2012'), ('2012', '2015')),
    (('1', '01'), ('01', '1')),
    (('1', '²'), ('1', '²')),
  ],
)
def test_folders_called_numbers_are_classes(names, classes, tmp_path):
  for i, name in enumerate(names):
    picture(tmp_path / 'x' / 'train' / name / '0.png', value=i)
  data = source(tmp_path / 'x', tmp_path)
  assert data.shard.classes == classes
  rows = data.rows(0, len(names))
  said = [classes[i] for i in rows['label']]
  assert said == [names[i] for i in rows['image'][:, 0, 0, 0]]


def test_keep_takes_so_many_and_the_same_ones_for_any_seed(folder, tmp_path):
  def values(**fields):
    data = source(folder, tmp_path, keep=6, **fields)
    assert len(data) == 6
    return set(data.rows(0, 6)['image'][:, 0, 0, 0].tolist())

  assert len(values()) == 6 and values() == values(seed=7)
  # Not the first ones, which are all of one class.
  assert min(values()) < 200 <= max(values())
  with pytest.raises(ValueError, match='keep=21 must be at most the 20 images'):
    len(source(folder, tmp_path, keep=21))
  held = source(folder, tmp_path, keep=3, split='validation')
  assert len(held) == 4


def test_pictures_of_all_sizes_are_scaled_and_cut_where_asked(tmp_path):
  picture(tmp_path / 'x' / 'train' / 'a' / '0.png', size=(9, 5))
  picture(tmp_path / 'x' / 'train' / 'b' / '0.jpg', size=(5, 9), value=77)
  with pytest.raises(ValueError, match='images must be of one size') as error:
    len(source(tmp_path / 'x', tmp_path))
  assert 'b/0.jpg is [9, 5, 3]' in str(error.value)
  data = source(tmp_path / 'x', tmp_path, size=4, channels=1)
  rows = data.rows(0, 2)
  assert rows['image'].shape == (2, 4, 4, 1)
  assert abs(rows['image'][rows['label'] == 1].astype(int) - 77).max() <= 2


def idx(path, values):
  head = struct.pack('>HBB', 0, 8, values.ndim)
  raw = head + struct.pack(f'>{values.ndim}I', *values.shape) + values.tobytes()
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(gzip.compress(raw) if path.suffix == '.gz' else raw)


@pytest.fixture
def mnist(tmp_path):
  root = tmp_path / 'mnist'
  for name, rows in (('train', 12), ('t10k', 5)):
    images = RNG.integers(0, 256, (rows, 4, 4), np.uint8)
    images[:, 0, 0] = np.arange(rows) % 3
    end = '.gz' if name == 'train' else ''
    idx(root / f'{name}-images-idx3-ubyte{end}', images)
    idx(root / f'{name}-labels-idx1-ubyte{end}', images[:, 0, 0])
  return root


def test_idx_files_are_read_with_their_labels(mnist, tmp_path):
  train = source(mnist, tmp_path)
  held = source(mnist, tmp_path, split='validation')
  assert (len(train), len(held)) == (12, 5)
  for data in (train, held):
    rows = data.rows(0, len(data))
    assert rows['image'].shape[1:] == (4, 4, 1)
    assert np.array_equal(rows['image'][:, 0, 0, 0], rows['label'])
  assert train.shard.classes == ('0', '1', '2')


def test_a_label_outside_the_classes_names_its_row_and_file(mnist, tmp_path):
  labels = np.array([0, 1, 9, 1, 9], np.uint8)
  idx(mnist / 't10k-labels-idx1-ubyte', labels)
  told = (
    r't10k-labels-idx1-ubyte row 2: label 9 is outside the 3 classes 0, 1, 2'
  )
  with pytest.raises(ValueError, match=told):
    len(source(mnist, tmp_path))


def test_a_stray_label_of_training_names_its_row_and_file(mnist, tmp_path):
  labels = np.arange(12, dtype=np.uint8) % 3
  file = mnist / 'train-labels-idx1-ubyte.gz'
  # A class without images is one all the same.
  idx(file, np.where(labels == 1, np.uint8(3), labels))
  idx(mnist / 't10k-labels-idx1-ubyte', np.array([0, 3, 2, 0, 3], np.uint8))
  assert source(mnist, tmp_path).shard.classes == ('0', '1', '2', '3')
  labels[7] = 37
  idx(file, labels)
  told = (
    'train-labels-idx1-ubyte.gz row 7: label 37 makes 38 classes, of which only'
    ' 4 have images; name the classes in --data.classes'
  )
  with pytest.raises(ValueError, match=told):
    len(source(mnist, tmp_path))
  given = source(mnist, tmp_path, classes=('0', '1', '2', '3', '37'))
  assert (given.rows(0, 12)['label'] == 4).sum() == 1


def test_a_class_that_training_lacks_names_its_file(folder, tmp_path):
  picture(folder / 'test' / 'cat' / '0.png')
  told = 'test/cat/0.png: label cat is outside the 2 classes ant, bee'
  with pytest.raises(ValueError, match=told):
    len(source(folder, tmp_path))
  # Named, it is one; and the order is the one that is given.
  data = source(folder, tmp_path, classes=('cat', 'bee', 'ant'))
  rows = data.rows(0, 20)
  assert np.array_equal(rows['image'][:, 0, 0, 0] >= 200, rows['label'] == 1)
  assert data.facts()['classes'] == 3


@pytest.mark.parametrize('name', ['train/ant/3.png', 'whole.tar.gz', 'idx'])
def test_a_damaged_file_is_one_line_that_names_it(
  name, folder, mnist, tmp_path
):
  if name == 'idx':
    file = mnist / 'train-images-idx3-ubyte.gz'
    root = mnist
  elif name == 'whole.tar.gz':
    root = file = tmp_path / name
    with tarfile.open(file, 'w:gz') as archive:
      archive.add(folder, 'x')
  else:
    root, file = folder, folder / name
  raw = file.read_bytes()
  file.write_bytes(raw[: len(raw) // 2])
  with pytest.raises(ValueError, match=f'{file.name}.* is damaged') as error:
    len(source(root, tmp_path))
  assert '\n' not in str(error.value)
  # Nothing half-written is left behind.
  assert not list((tmp_path / 'cache').glob('*/*.bin'))


@pytest.mark.parametrize(
  ('make', 'told'),
  [
    (lambda p: None, 'matches no file'),
    (lambda p: picture(p / 'train' / '0.png'), 'named by its class'),
    (lambda p: (p / 'train').mkdir(parents=True), 'matches no file'),
    (
      lambda p: idx(p / 'train-images-idx3-ubyte', np.zeros((2, 4, 4), 'u1')),
      'there is no file of labels',
    ),
    (lambda p: picture(p / 'test' / 'a' / '0.png'), 'holds no image'),
  ],
)
def test_what_cannot_be_read_is_one_line(make, told, tmp_path):
  make(tmp_path / 'x')
  with pytest.raises(ValueError, match=told):
    len(source(tmp_path / 'x', tmp_path))


def test_labels_and_images_must_be_as_many(mnist, tmp_path):
  idx(mnist / 't10k-labels-idx1-ubyte', np.zeros(4, np.uint8))
  with pytest.raises(ValueError, match=r'labels \[4\] for the 5 images of'):
    len(source(mnist, tmp_path))


@pytest.mark.parametrize(
  ('fields', 'told'),
  [
    ({'split': 'test'}, 'split=test must be train or validation'),
    ({'channels': 4}, 'channels=4 must be 1 or 3'),
    ({'keep': -1}, 'keep=-1 must not be negative'),
  ],
)
def test_bad_fields_are_one_line(fields, told):
  with pytest.raises(ValueError, match=told):
    ImageFiles(**fields)
