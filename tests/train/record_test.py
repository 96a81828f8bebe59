"""What a run folder says of itself."""

import errno
import fcntl
import json
import os

import pytest

from bigdl.train import record

CONFIG = {'model': {'width': 64, 'ladder': [1, 2]}, 'logs': {'every': 1}}


def test_json_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
  path = tmp_path / 'record.json'
  record.write_json(path, {'step': 1})

  def torn(file):
    os.ftruncate(file, 3)
    raise OSError('full')

  with monkeypatch.context() as patch:
    patch.setattr(os, 'fsync', torn)
    with pytest.raises(OSError, match='full'):
      record.write_json(path, {'step': 2})
    assert record.read_json(path) == {'step': 1}
  # The new file takes the place of the old one; the old one is not written.
  with open(path) as old:
    record.write_json(path, {'step': 2})
    assert json.load(old) == {'step': 1}
  assert record.read_json(path) == {'step': 2}
  assert os.listdir(tmp_path) == ['record.json']


def test_missing_json_is_none_and_broken_json_is_one_line(tmp_path):
  assert record.read_json(tmp_path / 'no.json') is None
  (tmp_path / 'half.json').write_text('{"a')
  with pytest.raises(ValueError, match=r'half\.json is not JSON'):
    record.read_json(tmp_path / 'half.json')


@pytest.mark.parametrize('left', [b'', b'\0' * 12, b'\n'])
def test_what_a_loss_of_power_leaves_is_none(tmp_path, left):
  (tmp_path / 'record.json').write_bytes(left)
  assert record.read_json(tmp_path / 'record.json') is None


def test_same_config_passes_also_through_json(tmp_path):
  record.check_config(tmp_path, CONFIG)
  record.write_config(tmp_path, CONFIG)
  record.check_config(tmp_path, {**CONFIG, 'logs': {'every': 5}})
  # A tuple is a list in JSON.
  same = {**CONFIG, 'model': {'width': 64, 'ladder': (1, 2)}}
  record.check_config(tmp_path, same)


@pytest.mark.parametrize(
  'model, line',
  [
    (
      {'width': 32, 'ladder': [1, 2]},
      'model.width: 32 here, 64 in the folder',
    ),
    ({'width': 64, 'ladder': [1]}, 'model.ladder.1: absent here, 2 in'),
    (
      {'width': 64, 'ladder': [1, 2], 'bias': False},
      'model.bias: false here, absent in the folder',
    ),
  ],
)
def test_differing_fields_are_named(tmp_path, model, line):
  record.write_config(tmp_path, CONFIG)
  with pytest.raises(ValueError) as error:
    record.check_config(tmp_path, {**CONFIG, 'model': model})
  assert line in str(error.value)


def test_checkpoints_without_a_config_are_not_touched(tmp_path):
  (tmp_path / 'checkpoints').mkdir()
  with pytest.raises(ValueError, match=r'no config\.json'):
    record.check_config(tmp_path, CONFIG)


def test_lock_is_free_again_after_use(tmp_path):
  with (
    record.locked(tmp_path / 'new'),
    pytest.raises(record.Busy, match='being trained already'),
    record.locked(tmp_path / 'new'),
  ):
    pass
  with record.locked(tmp_path / 'new'):
    pass


def test_a_file_system_without_locks_is_told_and_used(tmp_path, monkeypatch):
  def unknown(file, how):
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

  monkeypatch.setattr(fcntl, 'flock', unknown)
  said = []
  with record.locked(tmp_path, said.append) as held:
    held.check()
  assert len(said) == 1
  assert f'{tmp_path} cannot be locked (Function not implemented)' in said[0]


def test_written_config_is_what_json_makes_of_it(tmp_path):
  record.write_config(tmp_path, CONFIG)
  assert json.loads((tmp_path / 'config.json').read_text()) == CONFIG
