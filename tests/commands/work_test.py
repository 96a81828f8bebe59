"""`bigdl work`: cells claimed and trained, given back, shared, refused."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

from object_store import bucket  # noqa: F401  A fixture.
import pytest
from snapshots import snapshot

import bigdl
from bigdl import __main__ as program
from bigdl.commands import _cells, _pool, sweep
from bigdl.fleet import attempts, manifest
from bigdl.fleet.store import Local

ROOT = pathlib.Path(bigdl.__file__).parents[1]
SECONDS = 120  # Most that any part of a tiny sweep may take.


@pytest.fixture(scope='module')
def small_file(tmp_path_factory, experiment_file) -> str:
  """The tiny sweep with two cells."""
  text = pathlib.Path(experiment_file).read_text()
  for old, new in (
    ('(4e7, 8e7, 1.6e8, 3.2e8)', '(4e7, 8e7)'),
    ('(8, 12, 16, 24)', '(16,)'),
  ):
    assert text.count(old) == 1
    text = text.replace(old, new)
  file = tmp_path_factory.mktemp('experiments') / 'small.py'
  file.write_text(text)
  return str(file)


def plan(file: str, folder: pathlib.Path, *more: str) -> int:
  words = [f'--config={file}', f'--workdir={folder}', '--plan_only', *more]
  return program.main(['sweep', *words])


@pytest.fixture
def planned(small_file, tmp_path, capsys) -> pathlib.Path:
  folder = tmp_path / 'sweep'
  assert plan(small_file, folder) == 0
  capsys.readouterr()
  return folder


def work(folder: pathlib.Path, *more: str) -> int:
  return program.main(['work', f'--workdir={folder}', *more])


def statuses(folder: pathlib.Path) -> list[str]:
  files = sorted(folder.glob('cells/*/record.json'))
  return [json.loads(file.read_text())['status'] for file in files]


def test_a_plan_is_written_and_nothing_is_trained(
  small_file, tmp_path, capsys, compiled
):
  folder = tmp_path / 'sweep'
  assert plan(small_file, folder) == 0
  assert not compiled
  assert 'c8e07_n3824' in capsys.readouterr().out
  assert {p.name for p in folder.iterdir()} == {'manifest.json', 'plan.json'}
  made = manifest.read(Local(folder))
  assert [c.name for c in made.costliest_first] == [
    'c8e07_n3824',
    'c4e07_n3824',
  ]
  assert made.spec == small_file and made.cells[0].devices == 1
  assert made.cells[0].data == {
    'train': 'walk-0-16-8',
    'held_out': 'walk-1-16-8',
  }
  assert set(made.code) == {'bigdl', small_file}
  before = snapshot(folder)
  assert plan(small_file, folder) == 0
  assert snapshot(folder) == before


def test_workers_train_what_is_left_the_costliest_first(planned, capsys):
  assert work(planned, '--once') == 0
  assert [p.parent.name for p in planned.glob('cells/*/record.json')] == [
    'c8e07_n3824'
  ]
  assert '1 cell trained here; 1 left' in capsys.readouterr().err
  assert work(planned) == 0
  assert statuses(planned) == ['finished', 'finished']
  assert 'none is left' in capsys.readouterr().err.splitlines()[-1]
  before = snapshot(planned)
  assert work(planned) == 0
  assert snapshot(planned) == before


def test_a_sweep_in_one_process_trains_small_budgets_first(planned):
  setup = _pool.Setup(str(planned), (), 'kept', 'x', silence=60.0, attempts=3)
  names = ['c4e07_n3824', 'c8e07_n3824']
  events: list[dict] = []
  outcome = sweep._here(
    setup, names, on_event=events.append, stop=lambda: False
  )
  started = [e['cell'] for e in events if e['event'] == 'start']
  assert started == [e['cell'] for e in events if e['event'] == 'done'] == names
  assert all(outcome.records[n]['status'] == 'finished' for n in names)
  assert not outcome.failed


def test_a_cell_of_other_data_is_refused_and_can_be_tried_again(
  planned, monkeypatch, capsys
):
  real = _cells.fingerprints
  monkeypatch.setattr(
    _cells, 'fingerprints', lambda e: {**real(e), 'train': 'other'}
  )
  assert work(planned) == 2
  line = capsys.readouterr().err.splitlines()[-1]
  assert 'fingerprint other here, walk-0-16-8 in the manifest' in line
  assert statuses(planned) == []
  store = Local(planned)
  assert 'fingerprint' in attempts.last_words(store, 'c8e07_n3824')


def test_a_cell_that_fails_is_left_after_its_attempts_with_its_last_line(
  planned, small_file, monkeypatch, capsys
):
  def fail(*_, **__):
    raise RuntimeError('RESOURCE_EXHAUSTED: of memory\n  and so on')

  monkeypatch.setattr(_cells.loop, 'run', fail)
  assert work(planned, '--attempts=2') == 1
  err = capsys.readouterr().err
  assert err.count('Traceback') == 4
  program.main(['sweep', f'--status={planned}'])
  out = capsys.readouterr().out
  assert '2 failed' in out
  assert 'RuntimeError: RESOURCE_EXHAUSTED: of memory and so on' in out
  # Planned once more, as launchers do, they may be tried again.
  assert plan(small_file, planned) == 0
  program.main(['sweep', f'--status={planned}'])
  assert '2 waiting' in capsys.readouterr().out


def test_changed_code_is_told_or_refused(planned, monkeypatch, capsys):
  monkeypatch.setattr(_cells.content, 'package', lambda: 'f' * 16)
  assert work(planned, '--same_code') == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert 'the code has changed' in line and 'ffffffff now' in line
  assert not (planned / 'cells').exists()
  monkeypatch.setattr(_cells, 'train', lambda *_, **__: _cells.Tally())
  assert work(planned) == 0
  assert 'the code has changed since' in capsys.readouterr().err


def test_a_sweep_keeps_the_code_that_its_first_cells_were_trained_by(
  small_file, planned, monkeypatch, capsys
):
  first = manifest.read(Local(planned)).code
  monkeypatch.setattr(_cells.content, 'package', lambda: 'f' * 16)
  # Nothing is trained yet: the sweep is of the new code.
  assert plan(small_file, planned) == 0
  assert manifest.read(Local(planned)).code['bigdl'] == 'f' * 16
  monkeypatch.setattr(_cells.loop, 'run', lambda *_, **__: _stopped())
  assert work(planned, '--once') == 2
  monkeypatch.setattr(_cells.content, 'package', lambda: first['bigdl'])
  assert plan(small_file, planned, '--same_code') == 2
  line = capsys.readouterr().err.splitlines()[-1]
  assert 'same_code=True, yet the code has changed: bigdl (ffffffff' in line
  assert plan(small_file, planned) == 0
  assert manifest.read(Local(planned)).code['bigdl'] == 'f' * 16


def test_a_sweep_and_a_worker_of_the_same_code_say_the_same(
  planned, small_file, monkeypatch
):
  monkeypatch.setattr(_cells.loop, 'run', lambda *_, **__: _stopped())
  assert work(planned, '--once') == 2
  setups = []

  def train(names, setup, **_):
    setups.append(setup)
    return _pool.Outcome(failed=dict.fromkeys(names, 'not here'))

  monkeypatch.setattr(_pool, 'train', train)
  words = [f'--config={small_file}', f'--workdir={planned}']
  assert program.main(['sweep', *words]) == 1
  claim = attempts.read(Local(planned), 'c8e07_n3824', 1, 'claim')
  assert [setup.code for setup in setups] == [claim['code']]


def _stopped() -> dict:
  return {'status': 'interrupted', 'step': 1, 'message': 'no space left'}


def test_a_folder_without_a_manifest_or_with_nonsense_is_refused(
  small_file, planned, tmp_path, capsys
):
  assert work(tmp_path / 'nothing') == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert 'holds no manifest.json' in line
  path = planned / 'manifest.json'
  path.write_text(path.read_text().replace('"unit": "token"', '"unit": 3'))
  for args in (
    ['work', f'--workdir={planned}'],
    ['sweep', f'--status={planned}'],
    ['sweep', f'--config={small_file}', f'--workdir={planned}'],
  ):
    assert program.main(args) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith('manifest.json: unit=3: expected text')


@pytest.mark.parametrize(
  ('flag', 'line'),
  [
    ('--attempts=0', 'attempts=0 must be 1 or more'),
    ('--silence=0', 'silence=0.0 must be 1 or more'),
    ('--silence=nan', 'silence=nan must be 1 or more, and finite'),
    ('--silence=inf', 'silence=inf must be 1 or more, and finite'),
    ('--cores=4096', 'must be among'),
    ('--wiat', '--wiat: no such field; nearest is --wait'),
  ],
)
def test_a_bad_flag_is_one_line(planned, flag, line, capsys):
  assert work(planned, flag) == 2
  (shown,) = capsys.readouterr().err.splitlines()
  assert line in shown


def slow(file: str, folder: pathlib.Path) -> str:
  """Returns an experiment file whose batches take a tenth of a second."""
  text = pathlib.Path(file).read_text()
  text = text.replace(
    '\n  def facts(self):\n',
    '\n  def batch(self, *args, **more):\n    import time\n'
    '    time.sleep(0.1)\n    return super().batch(*args, **more)\n'
    '\n  def facts(self):\n',
  )
  slower = folder / 'slow.py'
  slower.write_text(text)
  return str(slower)


def start(folder: pathlib.Path, *more: str, **env: str) -> subprocess.Popen:
  cache = os.environ['JAX_COMPILATION_CACHE_DIR']
  return subprocess.Popen(
    [sys.executable, '-m', 'bigdl', 'work', f'--workdir={folder}', *more],
    cwd=ROOT,
    env={**os.environ, 'JAX_COMPILATION_CACHE_DIR': cache, **env},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
  )


def wait(what) -> None:
  end = time.monotonic() + SECONDS
  while not what():
    assert time.monotonic() < end
    time.sleep(0.02)


def test_a_stopped_worker_saves_gives_its_cell_back_and_another_goes_on(
  small_file, tmp_path, capsys
):
  folder = tmp_path / 'sweep'
  assert plan(slow(small_file, tmp_path), folder, '--logs.every=1') == 0
  worker = start(folder, '--silence=3')

  def told() -> dict:
    capsys.readouterr()
    assert program.main(['sweep', f'--status={folder}', '--json']) == 0
    return json.loads(capsys.readouterr().out)

  def steps() -> int:
    assert worker.poll() is None, worker.stderr.read()
    return max(run['step'] for run in told()['runs'])

  # While it works, its progress is seen from outside.
  wait(lambda: steps() >= 2)
  assert told()['states']['claimed'] == 1
  assert told()['runs'][1]['where'].endswith(f':{worker.pid}')
  worker.send_signal(signal.SIGTERM)
  _, err = worker.communicate(timeout=SECONDS)
  assert worker.returncode == 143, err
  assert 'saved and given back' in err.splitlines()[-1]
  name = 'c8e07_n3824'
  made = attempts.listed(Local(folder))[name]
  assert (made.last, made.end(1)) == (1, 'returned')
  record = json.loads((folder / 'cells' / name / 'record.json').read_text())
  assert record['status'] == 'interrupted' and record['step'] >= 2
  assert work(folder, '--once') == 0
  claim = attempts.read(Local(folder), name, 2, 'claim')
  assert claim['step'] == record['step']
  assert statuses(folder) == ['finished']


@pytest.mark.scheduled
def test_the_processes_of_a_job_train_each_cell_together(small_file, tmp_path):
  folder = tmp_path / 'sweep'
  assert plan(small_file, folder, '--layout.data=2') == 0
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'--coordinator=localhost:{free.getsockname()[1]}'
  flags = '--xla_force_host_platform_device_count=1'
  pair = [
    start(folder, address, '--processes=2', f'--process={i}', XLA_FLAGS=flags)
    for i in range(2)
  ]
  for process in pair:
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
  assert statuses(folder) == ['finished', 'finished']
  ends = attempts.listed(Local(folder))
  assert [made.last for made in ends.values()] == [1, 1]
  alone = tmp_path / 'alone'
  assert plan(small_file, alone) == 0
  assert work(alone) == 0
  for file in alone.glob('cells/*/record.json'):
    one = json.loads(file.read_text())
    two = json.loads((folder / file.relative_to(alone)).read_text())
    assert two['loss'] == pytest.approx(one['loss'], rel=1e-5)


@pytest.mark.scheduled
def test_a_sweep_in_an_object_store_is_planned_worked_off_and_told(
  bucket,  # noqa: F811
  small_file,
  capsys,
):
  folder = f'{bucket}/sweep'
  words = [f'--config={small_file}', f'--workdir={folder}']
  assert program.main(['sweep', *words]) == 2
  assert '--plan_only' in capsys.readouterr().err
  assert program.main(['sweep', *words, '--plan_only']) == 0
  assert program.main(['work', f'--workdir={folder}', '--once']) == 0
  assert program.main(['work', f'--workdir={folder}']) == 0
  capsys.readouterr()
  assert program.main(['sweep', f'--status={folder}', '--json']) == 0
  told = json.loads(capsys.readouterr().out)
  assert told['states']['finished'] == 2
  assert [run['attempts'] for run in told['runs']] == [1, 1]


@pytest.mark.scheduled
def test_two_sweeps_on_one_folder_share_its_cells(experiment_file, tmp_path):
  folder = tmp_path / 'sweep'
  words = [f'--config={experiment_file}', f'--workdir={folder}', '--workers=1']
  pair = [
    subprocess.Popen(
      [sys.executable, '-m', 'bigdl', 'sweep', *words],
      cwd=ROOT,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )
    for _ in range(2)
  ]
  for process in pair:
    _, err = process.communicate(timeout=2 * SECONDS)
    assert process.returncode in (0, 3), err
    assert 'Traceback' not in err
  store = Local(folder)
  ends = attempts.listed(store)
  assert len(ends) == 16
  assert all(made.ends == {1: {'finished'}} for made in ends.values())
  pids = [attempts.read(store, name, 1, 'claim')['pid'] for name in ends]
  assert len(set(pids)) == 2
