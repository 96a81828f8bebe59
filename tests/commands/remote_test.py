"""Verbs on folders in an object store: `bigdl train`, `bigdl law`."""

from __future__ import annotations

import json

from object_store import bucket  # noqa: F401  A fixture.
import sweep_records

from bigdl import __main__ as program
from bigdl import storage
from bigdl.scaling import synthetic

BUDGETS = (1e18, 1e19, 1e20, 1e21)


def test_a_run_trains_into_a_store_and_is_told_finished(
  bucket,  # noqa: F811
  experiment_file,
  tmp_path,
  capsys,
):
  folders = f'{bucket}/runs/a', str(tmp_path / 'a')
  for folder in folders:
    args = ['train', f'--config={experiment_file}', f'--workdir={folder}']
    assert program.main(args) == 0
  said = capsys.readouterr()
  assert f'folder         {folders[0]}' in said.out
  losses = [
    json.loads(storage.read(f'{folder}/record.json'))['loss']
    for folder in folders
  ]
  assert losses[0] == losses[1] is not None
  # Its weights can be started from, and the same command again trains nothing.
  more = [f'--workdir={tmp_path / "b"}', f'--start.folder={folders[0]}']
  assert program.main([*args[:2], *more]) == 0
  assert f'start={folders[0]}: ' in capsys.readouterr().err
  assert program.main(args[:2] + [f'--workdir={folders[0]}']) == 0
  args = [*args[:2], f'--workdir={folders[0]}', '--seed=4']
  assert program.main(args) == 2
  assert 'holds another experiment: seed: 4 here' in capsys.readouterr().err


def test_stores_that_are_not_there_are_one_line(
  bucket,  # noqa: F811
  experiment_file,
  capsys,
):
  for workdir, line in (
    ('s3://no-such-bucket/run', 'there is no bucket no-such-bucket'),
    ('s3://', 's3:// must name a bucket'),
    (
      'ftp://host/run',
      'ftp:// must be a path on a disk or one of gs://, s3://',
    ),
  ):
    args = ['train', f'--config={experiment_file}', f'--workdir={workdir}']
    assert program.main(args) == 2
    err = capsys.readouterr().err
    assert err.startswith('bigdl: ') and err.count('\n') == 1
    assert line in err


def test_a_law_is_fitted_to_a_sweep_in_a_store(
  bucket,  # noqa: F811
  tmp_path,
  capsys,
):
  runs = synthetic.isoflop(synthetic.Surface(), budgets=BUDGETS)
  here = sweep_records.write(tmp_path / 'sweep', runs)
  there = f'{bucket}/sweep'
  storage.filesystem(there).put(str(here), there, recursive=True)
  options = ['--bootstrap=40', '--approach=2']
  assert program.main(['law', there, *options]) == 0
  assert f'written to {there}/law.json' in capsys.readouterr().out
  assert program.main(['law', str(here), *options]) == 0
  assert storage.read(f'{there}/law.json') == (here / 'law.json').read_text()


def test_an_empty_folder_of_a_store_is_named_as_the_user_knows_it(
  bucket,  # noqa: F811
  capsys,
):
  assert program.main(['law', f'{bucket}/nothing']) == 2
  err = capsys.readouterr().err
  assert f'{bucket}/nothing holds no cells/*/record.json' in err
