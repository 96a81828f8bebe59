"""`bigdl sweep`: planned, trained, fitted; killed and repeated."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest
from snapshots import snapshot

import bigdl
from bigdl import __main__ as program

ROOT = pathlib.Path(bigdl.__file__).parents[1]
SECONDS = 120  # Most that any part of a tiny sweep may take.


def arguments(file: str, folder: pathlib.Path, *more: str) -> list[str]:
  return ['sweep', f'--config={file}', f'--workdir={folder}', *more]


def cells(folder: pathlib.Path) -> dict[str, dict]:
  return {
    p.parent.name: json.loads(p.read_text())
    for p in sorted(folder.glob('cells/*/record.json'))
  }


def planned(out: str) -> list[list[str]]:
  """Returns the lines of a printed plan that are cells, in words."""
  rows = [line.split() for line in out.splitlines()]
  return [row for row in rows if row and re.match(r'c\S+_n\d+', row[0])]


@pytest.fixture(scope='module')
def swept(tmp_path_factory, experiment_file) -> pathlib.Path:
  """A finished sweep; to be read only."""
  folder = tmp_path_factory.mktemp('sweeps') / 'whole'
  assert program.main(arguments(experiment_file, folder)) in (0, 3)
  return folder


class Started:
  """A sweep in a process of its own, to be interrupted."""

  def __init__(self, file: str, folder: pathlib.Path):
    self.folder = folder
    self.process = subprocess.Popen(
      [sys.executable, '-m', 'bigdl', *arguments(file, folder)],
      cwd=ROOT,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
      # A cache of its own would make each test compile everything anew.
      env={**os.environ, 'JAX_COMPILATION_CACHE_DIR': _cache()},
    )

  def wait_for_cells(self, count: int) -> None:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
      assert self.process.poll() is None, self.process.stderr.read()
      done = [r for r in cells_so_far(self.folder) if r == 'finished']
      if len(done) >= count:
        return
      time.sleep(0.01)
    raise TimeoutError(f'{count} cells did not finish')

  def workers(self) -> list[int]:
    found = []
    for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
      try:
        name, _, rest = path.read_text().rpartition(')')
      except OSError:
        continue
      command = path.with_name('cmdline').read_bytes()
      if int(rest.split()[1]) == self.process.pid and b'_worker' in command:
        found.append(int(name.split()[0]))
    return found

  def kill(self) -> None:
    self.process.kill()
    self.process.communicate()


def _cache() -> str:
  import jax

  return str(jax.config.jax_compilation_cache_dir)


def cells_so_far(folder: pathlib.Path) -> list[str]:
  found = []
  for path in folder.glob('cells/*/record.json'):
    match = re.search(r'"status": "(\w+)"', path.read_text())
    found += [match[1]] if match else []
  return found


def gone(pids: list[int]) -> bool:
  end = time.monotonic() + 10
  while time.monotonic() < end:
    if not any(alive(pid) for pid in pids):
      return True
    time.sleep(0.05)
  return False


def alive(pid: int) -> bool:
  try:
    state = pathlib.Path(f'/proc/{pid}/stat').read_text()
  except OSError:
    return False
  return state.rpartition(')')[2].split()[0] != 'Z'


def test_a_dry_run_prints_the_plan_and_touches_nothing(
  experiment_file, tmp_path, capsys, compiled
):
  folder = tmp_path / 'sweep'
  args = arguments(experiment_file, folder, '--dry_run', '--mfu=0.25')
  assert program.main(args) == 0
  out = capsys.readouterr().out
  assert len(planned(out)) == 16
  for word in ('steps', 'batch', 'lr', 'memory', 'ETA', 'matmul_causal'):
    assert word in out
  assert 'assumed MFU of 25%' in out
  assert not folder.exists()


def test_every_cell_is_trained_to_its_end_at_its_budget(swept):
  plan = json.loads((swept / 'plan.json').read_text())
  records = cells(swept)
  assert {c['name'] for c in plan['cells']} == set(records)
  for cell in plan['cells']:
    record = records[cell['name']]
    assert record['status'] == 'finished'
    assert record['step'] == cell['steps']
    assert record['budget'] == cell['budget']
    assert record['units'] == cell['d']
    assert record['flops']['matmul_causal'] == cell['flops']['matmul_causal']
    assert record['params'] == cell['params']
    assert record['loss'] is not None and record['loss_se'] > 0


def test_a_sweep_leaves_a_law_a_table_and_a_report(swept):
  law = json.loads((swept / 'law.json').read_text())
  assert law['records']['total'] == 16
  assert law['budgets']['held_out'] == [3.2e8]
  table = pd.read_csv(swept / 'runs.csv')
  records = cells(swept)
  assert len(table) == 16
  for row in table.to_dict('records'):
    assert row['loss'] == pytest.approx(records[row['name']]['loss'], rel=1e-12)
  assert '<html' in (swept / 'report.html').read_text()
  assert (swept / 'figures' / 'isoflop.png').stat().st_size > 10_000


def test_repeating_trains_nothing_and_gives_the_same_law(
  swept, experiment_file, capsys
):
  before = snapshot(swept)
  assert program.main(arguments(experiment_file, swept)) in (0, 3)
  captured = capsys.readouterr()
  assert snapshot(swept) == before
  assert 'all 16 cells are trained already' in captured.err
  assert 'report' in captured.out


def test_the_status_of_a_finished_sweep_tells_its_cost(swept, capsys):
  before = snapshot(swept)
  assert program.main(['sweep', '--status', str(swept)]) == 0
  out = capsys.readouterr().out
  assert '16 cells: 16 finished; 100.0% of the work is done' in out
  assert re.search(r'device-hours  spent 0\.0\d+ CPU core\n', out)
  assert program.main(['sweep', f'--status={swept}', '--json']) == 0
  told = json.loads(capsys.readouterr().out)
  assert told['over'] and told['device_hours']['left'] == {}
  records = cells(swept)
  for run in told['runs']:
    assert run['loss'] == records[run['name']]['loss']
    assert run['attempts'] == 1
  assert snapshot(swept) == before


def test_a_killed_sweep_ends_in_the_same_law(swept, experiment_file, tmp_path):
  folder = tmp_path / 'killed'
  for count in (2, 9):
    run = Started(experiment_file, folder)
    run.wait_for_cells(count)
    workers = run.workers()
    run.kill()
    assert workers and gone(workers)
  ended = snapshot(folder / 'cells')
  assert program.main(arguments(experiment_file, folder)) in (0, 3)
  assert (folder / 'law.json').read_bytes() == (swept / 'law.json').read_bytes()
  # What had been trained to its end was not trained again.
  after = snapshot(folder / 'cells')
  for name, content in ended.items():
    record = json.loads(content) if name.endswith('record.json') else {}
    if record.get('status') == 'finished':
      assert after[name] == content


def test_a_stopped_sweep_saves_says_so_and_goes_on(
  swept, experiment_file, tmp_path
):
  folder = tmp_path / 'stopped'
  run = Started(experiment_file, folder)
  run.wait_for_cells(3)
  workers = run.workers()
  run.process.send_signal(signal.SIGTERM)
  _, err = run.process.communicate(timeout=SECONDS)
  assert run.process.returncode == 143
  assert 'the same command goes on' in err.splitlines()[-1]
  assert 'Traceback' not in err
  assert gone(workers)
  assert not (folder / 'law.json').exists()
  assert 'running' not in cells_so_far(folder)
  assert program.main(arguments(experiment_file, folder)) in (0, 3)
  assert (folder / 'law.json').read_bytes() == (swept / 'law.json').read_bytes()


def test_a_dead_worker_loses_no_cell(swept, experiment_file, tmp_path):
  folder = tmp_path / 'bereft'
  run = Started(experiment_file, folder)
  run.wait_for_cells(1)
  os.kill(run.workers()[0], signal.SIGKILL)
  _, err = run.process.communicate(timeout=SECONDS)
  assert run.process.returncode in (0, 3), err
  assert 'SIGKILL' in err and 'it is tried again' in err
  assert (folder / 'law.json').read_bytes() == (swept / 'law.json').read_bytes()


def test_the_number_of_workers_does_not_change_the_law(
  swept, experiment_file, tmp_path
):
  folder = tmp_path / 'alone'
  args = arguments(experiment_file, folder, '--workers=1')
  assert program.main(args) in (0, 3)
  assert len(list((folder / 'workers').iterdir())) == 1
  assert (folder / 'law.json').read_bytes() == (swept / 'law.json').read_bytes()


def test_a_diverged_cell_is_set_aside_by_name(
  swept, experiment_file, tmp_path, capsys
):
  folder = shutil.copytree(swept, tmp_path / 'diverged')
  name = sorted(cells(folder))[1]
  path = folder / 'cells' / name / 'record.json'
  record = {**json.loads(path.read_text()), 'status': 'diverged', 'loss': None}
  path.write_text(json.dumps(record))
  program.main(arguments(experiment_file, folder))
  law = json.loads((folder / 'law.json').read_text())
  assert [r['name'] for r in law['records']['set_aside']] == [name]
  assert name in capsys.readouterr().out


def test_an_override_reaches_every_cell(experiment_file, tmp_path, capsys):
  args = arguments(experiment_file, tmp_path / 's', '--dry_run', '--batch=4')
  assert program.main(args) == 0
  out = capsys.readouterr().out
  place = out.split('\n')[0].split().index('batch')
  assert {row[place] for row in planned(out)} == {'4'}


def test_a_misspelt_field_is_refused_with_the_nearest(
  experiment_file, tmp_path, capsys
):
  folder = tmp_path / 'sweep'
  args = arguments(experiment_file, folder, '--model.heds=2')
  assert program.main(args) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert '--model.heds' in line and '--model.heads' in line
  assert not folder.exists()


@pytest.mark.parametrize('silence', ['nan', 'inf', '0.5'])
def test_a_silence_that_is_no_time_is_refused(
  silence, experiment_file, tmp_path, capsys
):
  flag = f'--silence={silence}'
  assert program.main(arguments(experiment_file, tmp_path / 's', flag)) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert f'silence={silence} must be 1 or more, and finite' in line
  assert not (tmp_path / 's').exists()


def test_a_folder_of_another_sweep_is_refused_and_kept(
  swept, experiment_file, capsys
):
  before = snapshot(swept)
  for flag, word in (('--seed=5', 'seed'), ('--model.bias=false', '_n')):
    assert program.main(arguments(experiment_file, swept, flag)) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert 'holds another' in line and word in line
    assert snapshot(swept) == before


def test_bad_input_inside_a_worker_ends_the_sweep_in_one_line(
  experiment_file, tmp_path, capsys
):
  folder = tmp_path / 'sweep'
  args = arguments(experiment_file, folder, '--logs.wandb=project')
  code = program.main(args)
  lines = capsys.readouterr().err.splitlines()
  assert code == 2
  assert 'wandb' in lines[-1] and 'Traceback' not in '\n'.join(lines)


def test_help_lists_flags_and_the_fields_of_the_experiment(
  experiment_file, capsys
):
  assert program.main(['sweep', '--help', f'--config={experiment_file}']) == 0
  out = capsys.readouterr().out
  for word in ('--dry_run', '--status', '--model.depth', '--evaluation.rows'):
    assert word in out
