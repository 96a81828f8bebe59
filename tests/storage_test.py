"""Files on a disk and in an object store: whole or not there, first or not."""

from __future__ import annotations

from concurrent import futures
import os
import sys

from object_store import bucket  # noqa: F401  A fixture.
import pytest

from bigdl import storage

RACERS = 8


@pytest.fixture(params=['disk', 'store'])
def place(request, tmp_path):
  """A new folder of either kind."""
  if request.param == 'disk':
    return str(tmp_path)
  return f'{request.getfixturevalue("bucket")}/{tmp_path.name}'


def test_what_is_written_is_read_and_replaced_whole(place):
  path = f'{place}/a.json'
  assert storage.read(path) is None
  storage.write(path, 'first')
  storage.write(path, 'second é')
  assert storage.read(path) == 'second é'
  assert list(storage.entries(place)) == ['a.json']
  assert storage.entries(place)['a.json'].size == len('second é'.encode())


def test_a_file_gets_its_name_once_its_content_is_on_the_disk(
  tmp_path, monkeypatch
):
  synced = []

  def sync(file):
    named = [p.name for p in tmp_path.iterdir() if p.name[0] != '.']
    synced.append((os.fstat(file).st_size, sorted(named)))

  monkeypatch.setattr(os, 'fsync', sync)
  storage.write(tmp_path / 'a.json', 'text')
  assert storage.create(tmp_path / 'claim', 'longer')
  assert synced == [(4, []), (6, ['a.json'])]
  assert storage.read(tmp_path / 'claim') == 'longer'


def test_one_of_many_creates_a_file(place):
  path = f'{place}/claim'
  with futures.ThreadPoolExecutor(RACERS) as pool:
    won = list(pool.map(lambda i: storage.create(path, f'{i}'), range(RACERS)))
  assert won.count(True) == 1
  assert storage.read(path) == str(won.index(True))
  assert not storage.create(path, 'late')
  storage.remove(path)
  assert storage.create(path, 'again')
  assert list(storage.entries(place)) == ['claim']


def test_folders_are_removed_and_moved_with_all_in_them(place):
  if not storage.is_remote(place):
    os.makedirs(f'{place}/old/deep')
  for name in ('a', 'deep/b'):
    storage.write(f'{place}/old/{name}', name)
  storage.rename(f'{place}/old', f'{place}/new')
  assert list(storage.entries(place)) == ['new/a', 'new/deep/b']
  assert storage.read(f'{place}/new/deep/b') == 'deep/b'
  storage.remove(f'{place}/new')
  storage.remove(f'{place}/new')
  assert not storage.entries(place)


def test_a_folder_has_the_methods_of_a_path(place):
  folder = storage.folder(place)
  if not storage.is_remote(place):
    os.makedirs(f'{place}/cells/a')
  storage.write(folder / 'cells' / 'a' / 'record.json', '{}')
  (found,) = folder.glob('cells/*/record.json')
  assert (found.name, found.parent.name) == ('record.json', 'a')
  assert found.read_text() == '{}' and found.is_file()
  assert (folder / 'cells').is_dir() and not (folder / 'no').exists()
  assert [p.name for p in (folder / 'cells').iterdir()] == ['a']


def test_an_object_written_again_has_another_tag(bucket):  # noqa: F811
  path = f'{bucket}/tags/a'
  tags = []
  for text in ('one', 'two', 'one'):
    storage.write(path, text)
    tags.append(storage.entries(f'{bucket}/tags')['a'].tag)
  assert None not in tags
  assert tags[0] == tags[2] != tags[1]


def test_what_another_process_writes_is_seen(bucket):  # noqa: F811
  folder = storage.folder(f'{bucket}/seen')
  assert list(folder.glob('*')) == [] and not folder.exists()
  # Past every cache of this one.
  other = type(storage.filesystem(bucket))(skip_instance_cache=True)
  other.pipe_file(f'{bucket}/seen/new', b'1')
  assert [p.name for p in folder.glob('*')] == ['new']
  assert folder.is_dir()
  assert storage.read(folder / 'new') == '1'


@pytest.mark.parametrize(
  'path, line',
  [
    (
      'ftp://host/run',
      'ftp:// must be a path on a disk or one of gs://, s3://',
    ),
    ('s3://', 's3:// must name a bucket'),
  ],
)
def test_bad_paths_are_one_line(path, line):
  with pytest.raises(ValueError) as error:
    storage.folder(path)
  assert line in str(error.value) and '\n' not in str(error.value)


def test_a_missing_package_is_one_line(monkeypatch):
  storage._filesystem.cache_clear()
  monkeypatch.setitem(sys.modules, 'gcsfs', None)
  with pytest.raises(ValueError, match=r"gcsfs: pip install 'bigdl\[gcs\]'"):
    storage.folder('gs://bucket/run')


def test_a_missing_bucket_and_a_silent_store_are_one_line(
  bucket,  # noqa: F811
  monkeypatch,
):
  storage.check(f'{bucket}/nothing/yet')
  with pytest.raises(ValueError, match='there is no bucket nowhere'):
    storage.check('s3://nowhere/run')
  monkeypatch.setenv('AWS_ENDPOINT_URL', 'http://127.0.0.1:9')
  monkeypatch.setenv('AWS_MAX_ATTEMPTS', '1')
  type(storage.filesystem(bucket)).clear_instance_cache()
  storage._filesystem.cache_clear()
  try:
    with pytest.raises(ValueError) as error:
      storage.check(f'{bucket}/run')
    assert 'cannot be reached' in str(error.value)
    assert '\n' not in str(error.value)
  finally:
    type(storage.filesystem(bucket)).clear_instance_cache()
    storage._filesystem.cache_clear()
