"""Named arrays in shards, and what happens when files are not whole."""

from __future__ import annotations

import json
import os
import pathlib

import ml_dtypes
import numpy as np
import pytest

from bigdl import tensors
from bigdl.layers.norm import Norm

STATE = {
  'a/kernel': np.arange(6, dtype=np.float32).reshape(2, 3),
  'b': np.float64(2.5) * np.ones(()),
  'c': np.arange(4, dtype=ml_dtypes.bfloat16),
  'd': np.arange(3, dtype=np.int32),
  # Neither contiguous nor in order.
  'e': np.arange(12, dtype=np.float32).reshape(3, 4).T[::2],
}


@pytest.mark.parametrize('limit', [1, 25, 10**9])
def test_arrays_come_back_as_they_went(limit, tmp_path):
  size = tensors.write(tmp_path, STATE, shard_bytes=limit)
  assert size == sum(v.nbytes for v in STATE.values())
  back = tensors.read(tmp_path)
  assert back.keys() == STATE.keys()
  for name, want in STATE.items():
    assert (back[name].shape, back[name].dtype) == (want.shape, want.dtype)
    value = np.asarray(back[name])
    assert value.dtype == want.dtype
    np.testing.assert_array_equal(value, want)


def test_shards_are_named_as_others_do_and_keep_the_limit(tmp_path):
  tensors.write(tmp_path, STATE, shard_bytes=25)
  files = sorted(p.name for p in tmp_path.glob('*.safetensors'))
  assert files == [f'model-{i:05}-of-00004.safetensors' for i in (1, 2, 3, 4)]
  index = json.loads((tmp_path / tensors.INDEX).read_text())
  assert index['weight_map'].keys() == STATE.keys()
  held: dict[str, int] = {}
  for name, file in index['weight_map'].items():
    held[file] = held.get(file, 0) + STATE[name].nbytes
  assert index['metadata']['total_size'] == sum(held.values())
  assert held[files[0]] == 24 and held[files[1]] == 8 + 8


def test_only_floats_change_their_type(tmp_path):
  tensors.write(tmp_path, STATE, dtype='float16')
  kinds = {k: v.dtype.name for k, v in tensors.read(tmp_path).items()}
  assert kinds.pop('d') == 'int32'
  assert set(kinds.values()) == {'float16'}


def test_damage_is_one_line_that_names_the_file(tmp_path):
  tensors.write(tmp_path, STATE, shard_bytes=25)
  shard = tmp_path / 'model-00002-of-00004.safetensors'
  whole = shard.read_bytes()
  shard.write_bytes(whole[:-3])
  with pytest.raises(ValueError, match='00002-of-00004.safetensors is damaged'):
    tensors.read(tmp_path)
  shard.unlink()
  with pytest.raises(ValueError, match='00002-of-00004.safetensors is missing'):
    tensors.read(tmp_path)
  (tmp_path / tensors.INDEX).write_text('{"weight_map": []')
  with pytest.raises(ValueError, match='index.json is not an index'):
    tensors.read(tmp_path)
  (tmp_path / tensors.INDEX).unlink()
  with pytest.raises(ValueError, match='holds neither model.safetensors nor'):
    tensors.read(tmp_path)


def test_an_index_that_names_what_is_not_there_is_refused(tmp_path):
  tensors.write(tmp_path, STATE, shard_bytes=25)
  file = tmp_path / tensors.INDEX
  index = json.loads(file.read_text())
  index['weight_map']['z'] = 'model-00001-of-00004.safetensors'
  file.write_text(json.dumps(index))
  with pytest.raises(ValueError, match='names what no shard holds: z$'):
    tensors.read(tmp_path)


def test_a_model_folder_keeps_the_module_with_its_parameters(tmp_path):
  model = Norm('rmsnorm', epsilon=0.5)
  tensors.write_model(tmp_path, model, {'scale': np.ones(3, np.float32)})
  back, entries = tensors.read_model(tmp_path)
  assert back == model
  assert list(entries) == ['scale'] and entries['scale'][1] == 1
  (tmp_path / tensors.MODEL).write_text('{"_type": "no.such.Thing"}')
  with pytest.raises(ValueError, match='model.json: no.such.Thing is not here'):
    tensors.read_model(tmp_path)


LOOP = {
  'x_0/w': np.array([1.0, 2.0]),
  'x_1/w': np.array([3.0, 4.0]),
  'y': np.array([5.0]),
}
SCAN = {'x/w': np.array([[1.0, 2.0], [3.0, 4.0]]), 'y': np.array([5.0])}


@pytest.mark.parametrize('given', [LOOP, SCAN])
@pytest.mark.parametrize('want', [LOOP, SCAN])
def test_either_stack_is_arranged_as_the_other(given, want):
  flat, left = tensors.arrange({**given, 'old': np.zeros(2)}, want)
  assert left == ['old']
  assert flat.keys() == want.keys()
  for name, value in want.items():
    np.testing.assert_array_equal(flat[name], value)


def test_what_is_not_given_is_absent():
  flat, left = tensors.arrange({'y': SCAN['y']}, SCAN)
  assert list(flat) == ['y'] and not left
  part, left = tensors.arrange({'x_1/w': LOOP['x_1/w']}, LOOP)
  assert list(part) == ['x_1/w'] and not left


@pytest.mark.parametrize(
  ('given', 'want', 'message'),
  [
    ({'y': np.zeros(2)}, SCAN, r'misshapen y \[2\], expected \[1\]'),
    ({'x_0/w': np.zeros(2)}, SCAN, 'x/w has 1 of 2 layers'),
    ({'x_0/w': np.zeros(3)}, SCAN, r'misshapen x_0/w \[3\], expected \[2\]'),
    (
      {'x/w': np.zeros((3, 2))},
      LOOP,
      r'misshapen x/w \[3, 2\], expected \[2, 2\]',
    ),
  ],
)
def test_what_does_not_fit_is_said(given, want, message):
  with pytest.raises(ValueError, match=f'^weights do not fit: {message}'):
    tensors.arrange(given, want)


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
  folder = tmp_path / 'new' / 'folder'
  with pytest.raises(RuntimeError), tensors.whole(folder) as part:
    (part / 'half').write_text('')
    raise RuntimeError
  assert list(folder.parent.iterdir()) == []
  with tensors.whole(folder) as part:
    (part / 'all').write_text('1')
    assert not folder.exists()
  assert (folder / 'all').read_text() == '1'
  assert [p.name for p in folder.parent.iterdir()] == ['folder']


def test_what_is_there_is_replaced_only_by_force(tmp_path):
  folder = tmp_path / 'folder'
  folder.mkdir()
  with tensors.whole(folder) as part:
    (part / 'one').write_text('')
  with pytest.raises(ValueError, match='is not empty; --force replaces it'):
    with tensors.whole(folder):
      pass
  with pytest.raises(RuntimeError), tensors.whole(folder, force=True):
    raise RuntimeError
  assert [p.name for p in folder.iterdir()] == ['one']
  with tensors.whole(folder, force=True) as part:
    (part / 'two').write_text('')
  assert [p.name for p in folder.iterdir()] == ['two']
  assert [p.name for p in tmp_path.iterdir()] == ['folder']


def test_what_a_link_stands_for_is_replaced_and_the_link_stays(tmp_path):
  (tmp_path / 'there').mkdir()
  link = tmp_path / 'link'
  link.symlink_to(tmp_path / 'there')
  with tensors.whole(link) as part:
    (part / 'one').write_text('')
  assert link.is_symlink()
  assert [p.name for p in link.iterdir()] == ['one']
  assert {p.name for p in tmp_path.iterdir()} == {'there', 'link'}


def test_what_was_there_comes_back_where_the_new_one_cannot(
  tmp_path, monkeypatch
):
  folder = tmp_path / 'folder'
  folder.mkdir()
  (folder / 'mine').write_text('')
  rename = os.rename

  def broken(source, target):
    if pathlib.Path(target) == folder and '.old' not in str(source):
      raise OSError('no')
    rename(source, target)

  monkeypatch.setattr(os, 'rename', broken)
  with pytest.raises(OSError, match='no'):
    with tensors.whole(folder, force=True) as part:
      (part / 'one').write_text('')
  assert [p.name for p in folder.iterdir()] == ['mine']
  assert [p.name for p in tmp_path.iterdir()] == ['folder']


def test_what_a_killed_process_left_is_no_obstacle(tmp_path):
  (tmp_path / f'.folder.{os.getpid()}').mkdir()
  with tensors.whole(tmp_path / 'folder') as part:
    (part / 'one').write_text('')
  assert [p.name for p in tmp_path.iterdir()] == ['folder']
