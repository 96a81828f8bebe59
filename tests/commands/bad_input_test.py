"""Bad input: exit code 2, one line, nothing compiled, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import subprocess
import sys

import orbax.checkpoint as ocp
import pytest
from snapshots import snapshot

import bigdl
from bigdl import __main__ as program
from bigdl.commands import _run

ROOT = pathlib.Path(bigdl.__file__).parents[1]


def _train(experiment_file, folder, *more: str) -> int:
  args = [f'--config={experiment_file}', f'--workdir={folder}', *more]
  return program.main(['train', *args])


def _one_line(capsys) -> str:
  shown = capsys.readouterr()
  assert shown.out == ''
  assert shown.err.startswith('bigdl: ')
  assert shown.err.count('\n') == 1, shown.err
  return shown.err


def _edited(experiment_file, tmp_path, *changes: tuple[str, str]) -> str:
  """Returns a copy of the experiment file with some text replaced."""
  text = pathlib.Path(experiment_file).read_text()
  for old, new in changes:
    assert old in text
    text = text.replace(old, new)
  file = tmp_path / 'edited.py'
  file.write_text(text)
  return str(file)


FLAGS = {
  'misspelt field': (
    ['--model.dept=2'],
    '--model.dept: no such field; nearest is --model.depth',
  ),
  'misspelt flag': (
    ['--wrokdir=x'],
    '--wrokdir: no such field; nearest is --workdir',
  ),
  'wrong type': (['--steps=many'], '--steps=many: expected int'),
  'wrong choice': (
    ['--model.norm=batch'],
    "--model.norm=batch: expected 'layernorm' or 'rmsnorm'",
  ),
  'heads': (['--model.heads=3'], 'heads=3 must divide width=16'),
  'steps': (['--steps=0'], 'steps=0 must be at least 1'),
  'microbatches': (['--accumulate=3'], 'accumulate=3 must divide batch=8'),
  'devices': (
    ['--batch=12', '--layout.data=8'],
    'batch=12 must be divisible by the 8 devices of layout data=8',
  ),
  'mesh': (
    ['--layout.data=64', '--batch=64'],
    "layout={'data': 64, 'fsdp': 1} needs 64 devices, there are 8",
  ),
  'mesh of an odd size': (
    ['--layout.data=-1', '--layout.fsdp=3'],
    "layout={'data': -1, 'fsdp': 3} does not divide 8 devices",
  ),
  'not a flag': (['steps=3'], "'steps=3': unexpected argument"),
}


@pytest.mark.parametrize('name', FLAGS)
def test_bad_flag_is_one_line_before_compiling(
  name, experiment_file, tmp_path, capsys, compiled
):
  args, message = FLAGS[name]
  assert _train(experiment_file, tmp_path / 'run', *args) == 2
  assert message in _one_line(capsys)
  assert compiled == []
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize('name', FLAGS)
def test_bad_flag_harms_no_run_that_is_there(
  name, experiment_file, run_folder, capsys
):
  before = snapshot(run_folder)
  assert _train(experiment_file, run_folder, *FLAGS[name][0]) == 2
  _one_line(capsys)
  assert snapshot(run_folder) == before


def test_good_input_compiles(experiment_file, tmp_path, compiled):
  # Without this, the assertions that nothing was compiled would be empty.
  assert _train(experiment_file, tmp_path / 'run', '--steps=2') == 0
  assert compiled


def test_data_and_model_that_disagree_on_the_vocabulary(
  experiment_file, tmp_path, capsys, compiled
):
  args = ['--data.vocab=20', '--evaluation.data.vocab=20']
  assert _train(experiment_file, tmp_path / 'run', *args) == 2
  line = _one_line(capsys)
  assert 'vocab=16' in line
  assert '20' in line
  assert compiled == []
  assert list(tmp_path.iterdir()) == []


SOURCES = {
  'missing path': (
    "TextFiles(paths=('nowhere/*.txt',), length=8)",
    'paths=nowhere/*.txt matches no file',
  ),
  'empty file': (
    "TextFiles(paths=('{folder}/empty.txt',), length=8)",
    'holds no document',
  ),
  'broken line': (
    "TextFiles(paths=('{folder}/broken.jsonl',), length=8)",
    'broken.jsonl:2 is not JSON',
  ),
  'tfds name': (
    "TFDS(name='imdb_reviews', data_dir='{folder}', length=8)",
    'name=imdb_reviews is not prepared under',
  ),
  'tokenizer': (
    "StandardLibrary(tokenizer=TokenizerFile('nowhere.json'), length=8)",
    'tokenizer.path=nowhere.json: no such file',
  ),
}


@pytest.mark.parametrize('name', SOURCES)
def test_data_that_cannot_be_read(
  name, experiment_file, tmp_path, capsys, compiled
):
  source, message = SOURCES[name]
  (tmp_path / 'empty.txt').touch()
  (tmp_path / 'broken.jsonl').write_text('{"text": "a"}\n{"text":\n')
  imports = (
    'from bigdl.data.stdlib import StandardLibrary\n'
    'from bigdl.data.text import TextFiles\n'
    'from bigdl.data.tfds import TFDS\n'
    'from bigdl.data.tokenizers import TokenizerFile\n'
  )
  made = source.replace('{folder}', str(tmp_path))
  file = _edited(
    experiment_file,
    tmp_path,
    ('data=Walk(),', f'data={made},'),
    ('import grain', f'{imports}import grain'),
  )
  for verb in ('train', 'sweep'):
    args = [f'--config={file}', f'--workdir={tmp_path / verb}']
    assert program.main([verb, *args]) == 2
    assert message in _one_line(capsys)
    assert compiled == []
    assert not (tmp_path / verb).exists()


@pytest.mark.parametrize(
  ('spec', 'message'),
  [
    ('nowhere.py', 'config=nowhere.py: no such file'),
    ('{}:huge', 'get_config() takes no argument'),
    ('.', 'config=.: no such file'),
  ],
)
def test_experiment_file_that_is_not_there(
  spec, message, experiment_file, tmp_path, capsys, compiled
):
  file = _edited(experiment_file, tmp_path, ("arg: str = ''", ''))
  assert _train(spec.format(file), tmp_path / 'run') == 2
  assert message in _one_line(capsys)
  assert compiled == []
  assert not (tmp_path / 'run').exists()


def test_unknown_keyword_in_the_experiment_file(
  experiment_file, tmp_path, capsys, compiled
):
  file = _edited(experiment_file, tmp_path, ('depth=1', 'dept=1'))
  assert _train(file, tmp_path / 'run') == 2
  line = _one_line(capsys)
  assert "unexpected keyword argument 'dept'" in line
  assert f'{file}:' in line
  assert compiled == []


@pytest.mark.parametrize('missing', ['config', 'workdir'])
def test_required_flag(missing, experiment_file, tmp_path, capsys):
  given = {'config': experiment_file, 'workdir': tmp_path / 'run'}
  del given[missing]
  assert program.main(['train', *[f'--{k}={v}' for k, v in given.items()]]) == 2
  assert f'--{missing} is required' in _one_line(capsys)


def test_folder_of_another_experiment_shows_the_differing_fields(
  experiment_file, run_folder, capsys, compiled, monkeypatch
):
  before = snapshot(run_folder)
  # It is said at once, not after minutes of opening data and counting FLOPs.
  monkeypatch.setattr(_run, 'facts', lambda *_: pytest.fail('counted'))
  args = ['--model.width=32', '--optimizer.lr=0.5']
  assert _train(experiment_file, run_folder, *args) == 2
  line = _one_line(capsys)
  assert f'{run_folder} holds another experiment' in line
  assert 'model.width: 32 here, 16 in the folder' in line
  assert 'optimizer.lr: 0.5 here, 0.01 in the folder' in line
  assert line.count(' in the folder') == 2
  assert compiled == []
  assert snapshot(run_folder) == before


def test_workdir_that_is_a_file(experiment_file, tmp_path, capsys, compiled):
  file = tmp_path / 'file'
  file.write_text('mine')
  for workdir in (file, file / 'below'):
    assert _train(experiment_file, workdir) == 2
    assert f'{file} is not a folder' in _one_line(capsys)
  assert compiled == []
  assert file.read_text() == 'mine'


def _unfinish(folder) -> dict:
  """Makes a finished run look killed after its last save; returns it before."""
  record = json.loads((folder / 'record.json').read_text())
  changed = {**record, 'status': 'running', 'loss': None}
  (folder / 'record.json').write_text(json.dumps(changed))
  return record


def test_truncated_checkpoint_falls_back_to_the_one_before(
  experiment_file, run_folder, capsys
):
  record = _unfinish(run_folder)
  newest = run_folder / 'checkpoints' / '6'
  files = [p for p in newest.rglob('*') if p.is_file()]
  largest = max(files, key=lambda p: p.stat().st_size)
  os.truncate(largest, largest.stat().st_size // 2)
  assert _train(experiment_file, run_folder) == 0
  shown = capsys.readouterr()
  assert shown.err.count('\n') == 1
  assert f'{newest}' in shown.err
  assert 'step 4' in shown.err
  assert 'finished at step 6' in shown.out
  again = json.loads((run_folder / 'record.json').read_text())
  assert again['loss'] == record['loss']


def _fill_disk_at(monkeypatch, step: int) -> None:
  save = ocp.CheckpointManager.save

  def full(self, at, *args, **kwargs):
    if at == step:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return save(self, at, *args, **kwargs)

  monkeypatch.setattr(ocp.CheckpointManager, 'save', full)


def test_full_disk_leaves_the_checkpoints_that_are_there(
  experiment_file, trained, tmp_path, capsys, monkeypatch
):
  folder = tmp_path / 'run'
  with monkeypatch.context() as patch:
    _fill_disk_at(patch, 4)
    assert _train(experiment_file, folder) == 2
  line = _one_line(capsys)
  assert 'no space left on device' in line.lower()
  assert str(folder) in line
  assert (folder / 'checkpoints' / '2').is_dir()
  assert not (folder / 'checkpoints' / '4').exists()
  # Once there is space, the same command ends as if nothing had happened.
  assert _train(experiment_file, folder) == 0
  losses = [
    json.loads((f / 'record.json').read_text())['loss']
    for f in (folder, trained)
  ]
  assert losses[0] == losses[1]


def test_full_disk_before_the_first_step_is_one_line(
  experiment_file, tmp_path, capsys, monkeypatch
):
  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), 'config.json')

  monkeypatch.setattr(os, 'replace', full)
  assert _train(experiment_file, tmp_path / 'run') == 2
  assert 'No space left on device: config.json' in _one_line(capsys)
  assert not list((tmp_path / 'run').glob('*.json'))
  assert not list((tmp_path / 'run').glob('.*json*'))


def test_one_line_and_exit_code_hold_in_a_process_of_its_own(
  experiment_file, tmp_path
):
  args = [f'--config={experiment_file}', f'--workdir={tmp_path / "run"}']
  done = subprocess.run(
    [sys.executable, '-m', 'bigdl', 'train', *args, '--model.heads=3'],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    check=False,
  )
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr == 'bigdl: heads=3 must divide width=16\n'
  assert not (tmp_path / 'run').exists()


def test_only_the_echo_of_a_failed_write_is_silenced(monkeypatch):
  seen = []
  monkeypatch.setattr(sys, 'excepthook', lambda *a: seen.append(str(a[1])))
  for _ in range(3):
    _run.silence_writers()
  for text in ('Event loop is closed', 'something else'):
    sys.excepthook(RuntimeError, RuntimeError(text), None)
  assert seen == ['something else']
