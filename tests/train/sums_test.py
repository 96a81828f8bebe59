"""Checksums: whose they are, who reads what, what they notice."""

import json
import os

import pytest

from bigdl.train import sums

SIZES = {'a': 5, 'b': 900, 'c': 700, 'd': 650, 'e': 0}


@pytest.fixture
def folder(tmp_path):
  """Files of two hosts and of both, of which the second has noted its own."""
  item = tmp_path / 'default'
  for host in (0, 1, 10):
    place = item / f'ocdbt.process_{host}' / 'd'
    place.mkdir(parents=True)
    for name, size in SIZES.items():
      (place / name).write_bytes(os.urandom(size))
  (item / '_METADATA').write_text('{}')
  (tmp_path / '_CHECKPOINT_METADATA').write_text('{}')
  return tmp_path


def listed(folder):
  return json.loads((folder / sums.FILE).read_text())['files']


def test_each_host_notes_its_own_files_and_the_first_the_rest(
  folder, monkeypatch
):
  read = []
  measure = sums._sum

  def watched(path):
    read.append(path.relative_to(folder).parts[1])
    return measure(path)

  monkeypatch.setattr(sums, '_sum', watched)
  for host in (1, 10):
    sums.write_piece(folder / 'default', host)
    assert set(read) == {f'ocdbt.process_{host}'}
    read.clear()
  monkeypatch.setattr(sums, '_sum', measure)
  sums.write(folder, folder)
  assert len(listed(folder)) == 3 * len(SIZES) + 2
  assert not list(folder.rglob('sums.*.json'))
  assert sums.damage(folder) is None


def test_what_a_host_has_written_is_not_read_by_the_first(folder, monkeypatch):
  sums.write_piece(folder / 'default', 1)
  damaged = folder / 'default' / 'ocdbt.process_1' / 'd' / 'b'
  # Between the piece and the whole list: the host's own word counts.
  damaged.write_bytes(bytes(SIZES['b']))
  sums.write(folder, folder)
  assert 'ocdbt.process_1/d/b is not what was saved' in (
    sums.damage(folder) or ''
  )


@pytest.mark.parametrize('hosts', [1, 2, 3, 40])
def test_hosts_share_the_reading_and_miss_nothing(folder, hosts):
  sums.write(folder, folder)
  files = listed(folder)
  names = [k for k, v in files.items() if v['tag']]
  shares = [sums._share(names, files, host, hosts) for host in range(hosts)]
  assert sorted(sum(shares, [])) == sorted(names)
  loads = [sum(files[name]['size'] for name in share) for share in shares]
  assert max(loads) - min(loads) <= max(SIZES.values())
  path = folder / 'default' / 'ocdbt.process_10' / 'd' / 'c'
  path.write_bytes(path.read_bytes()[:-1] + b'\0')
  problems = [sums.damage(folder, host, hosts) for host in range(hosts)]
  found = [p for p in problems if p]
  assert len(found) == 1 and 'process_10/d/c is not what' in found[0]


def test_missing_files_and_lists_are_named(folder):
  assert sums.damage(folder) == 'sums.json is missing'
  sums.write(folder, folder)
  (folder / 'default' / '_METADATA').unlink()
  assert sums.damage(folder) == 'default/_METADATA has no of 2 bytes'


def test_only_the_file_that_orbax_still_writes_may_grow(folder):
  sums.write(folder, folder)
  with open(folder / '_CHECKPOINT_METADATA', 'a') as file:
    file.write('more')
  assert sums.damage(folder) is None
  with open(folder / 'default' / '_METADATA', 'a') as file:
    file.write('more')
  assert sums.damage(folder) == 'default/_METADATA has 6 of 2 bytes'
