"""The manifest: read as it was written; nonsense is named, field by field."""

from __future__ import annotations

import json

from fake_sweeps import cell, plan
import pytest

from bigdl.fleet import content, manifest


def test_a_manifest_is_read_as_it_was_written(folder):
  read = manifest.read(folder)
  assert [c.name for c in read.costliest_first] == ['b', 'c', 'a']
  assert read['c'] == cell('c', 2e9)
  assert read == plan(cell('a', 1e9), cell('b', 4e9), cell('c', 2e9))


def test_the_same_manifest_is_not_written_again(folder):
  path = folder.root / manifest.FILE
  before = path.stat().st_mtime_ns, path.stat().st_ino
  manifest.write(folder, manifest.read(folder))
  assert (path.stat().st_mtime_ns, path.stat().st_ino) == before


def test_config_data_code_and_facts_each_change_their_hash_alone():
  one = cell('a', 1e9)
  other = manifest.cell(
    'a',
    config={**one.config, 'steps': 11},
    data={'train': 'rows-2', 'held_out': None},
    code={'bigdl': 'f'},
    flops=1e9,
    facts={},
  )
  for field in ('config', 'data', 'code', 'facts'):
    assert getattr(one.hash, field) != getattr(other.hash, field)
  again = cell('b', 1e9)
  assert again.hash == one.hash


def test_devices_are_the_product_of_the_layout_or_all():
  shape = {'data': 2, 'fsdp': 4, 'tensor': 2}
  assert cell('a', 1.0, layout=shape).devices == 16
  assert cell('a', 1.0, layout={'data': -1, 'fsdp': 4}).devices == 0


EDITS = {
  'schema': (lambda t: t.update(schema=9), r'schema=9: expected 2'),
  'spec': (lambda t: t.update(spec=3), r'spec=3: expected text'),
  'no cell': (lambda t: t.update(cells=[]), r'cells=\[\]: expected a list of'),
  'missing': (
    lambda t: t['cells'][1].pop('facts'),
    r'cells\[1\].facts is miss',
  ),
  'more': (
    lambda t: t['cells'][0].update(stpes=3),
    r'cells\[0\].stpes=3: expected one of name, ',
  ),
  'name': (
    lambda t: t['cells'][2].update(name='../c'),
    r'cells\[2\].name="../c": expected the name of a folder',
  ),
  'twice': (
    lambda t: t['cells'][2].update(name='a'),
    r'cells\[2\].name="a": expected not the name of cells\[0\]',
  ),
  'steps': (
    lambda t: t['cells'][0].update(steps=20),
    r'cells\[0\].steps=20: expected 10, as in its config',
  ),
  'flops': (
    lambda t: t['cells'][0].update(flops='many'),
    r'cells\[0\].flops="many": expected a number from 0',
  ),
  'config': (
    lambda t: t['cells'][0]['config'].update(batch=3),
    r'cells\[0\].hash.config="\w+": expected \w+, which its config has',
  ),
  'data': (
    lambda t: t['cells'][0]['data'].update(train='x'),
    r'cells\[0\].hash.data="\w+": expected \w+, which its data has',
  ),
  'code': (
    lambda t: t['code'].update(bigdl='x'),
    r'cells\[0\].hash.code="\w+": expected \w+, which its code has',
  ),
  'facts': (
    lambda t: t['cells'][0]['facts'].update(budget=3.0),
    r'cells\[0\].hash.facts="\w+": expected \w+, which its facts has',
  ),
  'work': (
    lambda t: t['cells'][0].update(flops=3.0),
    r'cells\[0\].hash.facts="\w+": expected \w+, which its facts has',
  ),
  'params': (
    lambda t: t['cells'][0]['facts'].update(params=7),
    r'cells\[0\].facts.params=7: expected an object of numbers',
  ),
  'rate': (
    lambda t: t['cells'][0]['facts'].update(flops_per_unit={'palm': 'x'}),
    r'cells\[0\].facts.flops_per_unit.palm="x": expected a number or null',
  ),
  'budget': (
    lambda t: t['cells'][0]['facts'].update(budget=[]),
    r'cells\[0\].facts.budget=\[\]: expected a number or null',
  ),
  'data kind': (
    lambda t: t['cells'][0].update(data=[]),
    r'cells\[0\].data=\[\]: expected an object of texts',
  ),
}


@pytest.mark.parametrize('name', EDITS)
def test_nonsense_is_named_with_file_field_value_and_what_was_expected(
  folder, name
):
  path = folder.root / manifest.FILE
  edit, line = EDITS[name]
  tree = json.loads(path.read_text())
  edit(tree)
  path.write_text(json.dumps(tree))
  with pytest.raises(ValueError, match=rf'manifest\.json: {line}') as caught:
    manifest.read(folder)
  assert '\n' not in str(caught.value)


def test_half_a_file_and_none_are_told_apart(folder):
  path = folder.root / manifest.FILE
  path.write_text(path.read_text()[:100])
  with pytest.raises(ValueError, match=r'manifest\.json is not JSON'):
    manifest.read(folder)
  path.unlink()
  assert manifest.find(folder) is None
  with pytest.raises(ValueError, match='holds no manifest.json'):
    manifest.read(folder)


def test_the_code_of_a_sweep_is_bigdl_and_the_files_its_configs_name(tmp_path):
  file = tmp_path / 'tiny.py'
  file.write_text('x = 1\n')
  configs = [{'data': {'_type': f'{file}:Walk'}, 'f': {'_name': 'jax.nn:gelu'}}]
  first = content.code(configs)
  assert set(first) == {'bigdl', str(file)}
  assert content.changes(first, content.code(configs)) == ''
  file.write_text('x = 2\n')
  words = content.changes(first, content.code(configs))
  assert str(file) in words and 'then' in words and 'bigdl' not in words


def test_a_file_that_was_moved_is_the_same_code():
  then, now = {'/a/tiny.py': 'x1'}, {'/b/tiny.py': 'x1'}
  assert content.changes(then, now) == ''
  assert 'absent' in content.changes(then, {})


def test_an_edit_anywhere_in_the_package_changes_its_hash(
  tmp_path, monkeypatch
):
  root = tmp_path / 'bigdl'
  (root / 'layers').mkdir(parents=True)
  for name in ('__init__.py', 'layers/norm.py'):
    (root / name).write_text('x = 1\n')
  monkeypatch.setattr(content.bigdl, '__file__', str(root / '__init__.py'))
  plain = content.package.__wrapped__
  before = plain()
  assert plain() == before
  (root / 'layers/norm.py').write_text('x = 2\n')
  assert plain() != before


def test_hashes_do_not_depend_on_the_order_of_keys():
  assert content.of({'a': 1, 'b': [2]}) == content.of({'b': [2], 'a': 1})
  assert content.of({'a': 1}) != content.of({'a': 2})
