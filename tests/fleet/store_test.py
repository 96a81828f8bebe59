"""Stores: one creator a name, whole files, locks that end with their process."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
import errno
import os
import subprocess
import sys

import pytest

from bigdl import storage
from bigdl.fleet import store
from bigdl.fleet.store import Local


@pytest.fixture(params=['local', 'bucket'])
def place(request, tmp_path, monkeypatch):
  """A folder on a disk, and one in an object store that lives in memory."""
  if request.param == 'local':
    return Local(tmp_path / 'sweep')
  monkeypatch.setitem(storage.PACKAGES, 'memory', 'fsspec')
  return store.Bucket(f'memory://sweep-{os.getpid()}-{tmp_path.name}')


def test_of_all_that_create_a_name_at_once_one_succeeds(place):
  with ThreadPoolExecutor(8) as pool:
    for name in ('x/1', 'x/2', 'x/3'):
      made = list(pool.map(lambda i: place.create(name, b'%d' % i), range(8)))  # noqa: B023
      (first,) = [i for i, held in enumerate(made) if held]
      assert place.read(name) == b'%d' % first
  assert sorted(place.names('x')) == ['1', '2', '3']


def test_files_are_read_listed_rewritten_marked_and_removed(place):
  assert place.read('x/a') is None and place.names('x') == []
  assert place.age('x/a') is None
  place.write('x/a', b'one')
  place.write('x/a', b'two')
  assert place.read('x/a') == b'two' and place.names('x') == ['a']
  place.mark('x/b', b'{"beat": 10}')
  place.mark('x/b', b'{"beat": 9}')
  assert place.read('x/b').strip() == b'{"beat": 9}'
  assert 0 <= place.age('x/b') < 60
  place.remove('x/a')
  place.remove('x/a')
  assert place.names('x') == ['b']


def test_a_file_is_held_as_long_as_its_creator_lives(tmp_path):
  place = Local(tmp_path)
  held = place.create('claim', b'{}')
  assert place.held('claim') is True
  held.release()
  held.release()
  assert place.held('claim') is False
  assert place.held('nothing') is None
  code = (
    'import pathlib, sys, time\n'
    'from bigdl.fleet.store import Local\n'
    f'held = Local(pathlib.Path({str(tmp_path)!r})).create("other", b"")\n'
    'print(flush=True)\n'
    'time.sleep(100)\n'
  )
  with subprocess.Popen(
    [sys.executable, '-c', code], stdout=subprocess.PIPE
  ) as process:
    process.stdout.readline()
    assert place.held('other') is True
    process.kill()
    process.wait()
  assert place.held('other') is False


def test_a_file_system_without_links_creates_a_name_once(tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(errno.EPERM, 'no links')

  monkeypatch.setattr(os, 'link', refuse)
  place = Local(tmp_path)
  assert place.create('a', b'one')
  assert place.create('a', b'two') is None
  assert place.read('a') == b'one' and place.names('') == ['a']


def test_a_link_whose_answer_was_lost_is_a_success(tmp_path, monkeypatch):
  link = os.link

  def lose(*names):
    link(*names)
    raise FileExistsError

  monkeypatch.setattr(os, 'link', lose)
  assert Local(tmp_path).create('a', b'one')


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path, monkeypatch):
  place = Local(tmp_path)
  place.write('a', b'old')

  def fail(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(os, 'fsync', fail)
  with pytest.raises(OSError, match='No space'):
    place.write('a', b'new')
  assert place.read('a') == b'old' and place.names('') == ['a']


def test_a_mark_that_would_be_cut_short_is_refused(tmp_path):
  with pytest.raises(ValueError, match='at most'):
    Local(tmp_path).mark('a', b'x' * 2000)


def test_a_bucket_without_its_package_is_refused_in_one_line(monkeypatch):
  monkeypatch.setitem(storage.PACKAGES, 's3', 'no_such_package')
  storage._filesystem.cache_clear()
  with pytest.raises(ValueError, match='no_such_package'):
    store.open_folder('s3://bucket/sweep')
  storage._filesystem.cache_clear()


def test_over_nfs_a_file_is_held_too(tmp_path, nfs):
  place = Local(tmp_path)
  held = place.create('claim', b'{}', b'unlocked')
  assert place.held('claim') is True and place.read('claim') == b'{}'
  held.release()
  assert place.held('claim') is False


def test_a_file_that_cannot_be_held_says_so(tmp_path, unlockable):
  place = Local(tmp_path)
  assert place.create('claim', b'locked', b'free')
  assert place.read('claim') == b'free'


def test_a_file_system_without_links_holds_no_file(tmp_path, monkeypatch):
  def refuse(*_):
    raise OSError(errno.EPERM, 'no links')

  monkeypatch.setattr(os, 'link', refuse)
  place = Local(tmp_path)
  assert place.create('claim', b'locked', b'free')
  assert place.read('claim') == b'free'
