"""`bigdl train`: run, resume, stop, exit codes, what is shown."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys

import pytest

import bigdl
from bigdl import __main__ as program
from bigdl import config
from bigdl.commands import _progress, _run
from bigdl.scaling import count

ROOT = pathlib.Path(bigdl.__file__).parents[1]


def _train(experiment_file, folder, *more: str) -> int:
  args = [f'--config={experiment_file}', f'--workdir={folder}', *more]
  return program.main(['train', *args])


def _losses(folder) -> dict[int, float]:
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  rows = [json.loads(line) for line in lines]
  return {r['step']: r['loss'] for r in rows if 'loss' in r}


def _record(folder) -> dict:
  return json.loads((folder / 'record.json').read_text())


def _interrupt(monkeypatch, number: int, step: int) -> None:
  """Sends this process a signal when the run reports a step."""
  say = _progress._say

  def update(news):
    if news['step'] == step:
      signal.raise_signal(number)

  class Shown:
    def __enter__(self):
      return update, say

    def __exit__(self, *_):
      pass

  monkeypatch.setattr(_progress, 'shown', lambda unit: Shown())


def test_run_folder_holds_what_rebuilds_the_experiment(
  trained, experiment_file
):
  tree = json.loads((trained / 'config.json').read_text())
  assert config.from_json(tree) == config.load(experiment_file)


def test_record_carries_counts_of_this_model(trained, experiment_file):
  e, record = config.load(experiment_file), _record(trained)
  spec = e.data.spec()
  assert record['params'] == count.params(e.model, e.objective, spec)
  flops = count.flops_per_unit(e.model, e.objective, spec)
  assert record['flops_per_unit'] == flops
  assert record['units'] == 6 * 8 * 8
  for name, value in flops.items():
    assert record['flops'][name] == value * record['units']
  assert record['mfu'] > 0


def test_training_lowers_the_held_out_loss_and_prints_it(
  experiment_file, tmp_path, capsys
):
  args = ['--steps=60', '--checkpoints.every=0', '--logs.every=20']
  assert _train(experiment_file, tmp_path / 'run', *args) == 0
  record, shown = _record(tmp_path / 'run'), capsys.readouterr()
  uniform = 2.7726  # log 16
  assert record['loss'] < uniform - 0.3
  assert f'{record["loss"]:.4f} ± {record["loss_se"]:.4f} nats' in shown.out
  assert f'{record["bits_per_byte"]:.4f} bits per byte' in shown.out
  assert f'{record["params"]["total"]:,} total' in shown.out
  assert '3,840 tokens' in shown.out
  assert f'{record["flops"]["6N"]:.3e} 6N' in shown.out
  assert str(tmp_path / 'run') in shown.out
  assert shown.err == ''


def test_repeating_a_finished_run_trains_nothing(
  run_folder, experiment_file, capsys, compiled
):
  metrics = (run_folder / 'metrics.jsonl').read_bytes()
  assert _train(experiment_file, run_folder) == 0
  assert 'finished at step 6 of 6' in capsys.readouterr().out
  assert (run_folder / 'metrics.jsonl').read_bytes() == metrics
  assert compiled == []


@pytest.mark.parametrize(
  ('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_stopped_run_saves_says_so_and_goes_on_to_the_same_end(
  experiment_file, trained, tmp_path, monkeypatch, capsys, number, code
):
  folder = tmp_path / 'run'
  handler = signal.getsignal(number)
  with monkeypatch.context() as patch:
    _interrupt(patch, number, step=3)
    assert _train(experiment_file, folder) == code
  assert signal.getsignal(number) == handler
  shown = capsys.readouterr()
  assert shown.out == ''
  assert shown.err.count('\n') == 1
  assert f'bigdl: {folder}: stopped' in shown.err
  assert 'the same command' in shown.err
  record = _record(folder)
  assert record['status'] == 'interrupted'
  assert 3 <= record['step'] < 6
  assert (folder / 'checkpoints' / str(record['step'])).is_dir()
  assert _train(experiment_file, folder) == 0
  assert _losses(folder) == _losses(trained)
  assert _record(folder)['loss'] == _record(trained)['loss']


def test_diverged_run_is_exit_code_1_with_the_step(
  experiment_file, tmp_path, capsys
):
  folder = tmp_path / 'run'
  assert _train(experiment_file, folder, '--optimizer.lr=1e38') == 1
  shown = capsys.readouterr()
  assert shown.err.count('\n') == 1
  assert 'at step' in shown.err
  assert _record(folder)['status'] == 'diverged'
  # A diverged run is not tried again.
  assert _train(experiment_file, folder, '--optimizer.lr=1e38') == 1


def test_what_moves_no_number_may_change_between_two_starts(
  run_folder, experiment_file
):
  assert _train(experiment_file, run_folder, '--checkpoints.keep=1') == 0


def test_lines_are_spaced_out_and_say_where_the_run_is(monkeypatch, capsys):
  now = [0.0]
  monkeypatch.setattr(_progress.time, 'monotonic', lambda: now[0])
  news = {'steps': 100, 'loss': 2.5, 'tokens_per_second': 12345.6}
  with _progress.shown('tokens/s') as (update, _):
    for step in range(100):
      now[0] = float(step)
      update({**news, 'step': step, 'mfu': 0.125, 'eta_seconds': 3725.0})
  lines = capsys.readouterr().err.splitlines()
  assert len(lines) == 9
  assert lines[0] == (
    'step 10/100  loss 2.5000  12,346 tokens/s  MFU 12.5%  ETA 1:02:05'
  )


def test_bar_on_a_terminal_shows_loss_speed_mfu_and_time_left(monkeypatch):
  import io

  class Terminal(io.StringIO):
    def isatty(self):
      return True

  terminal = Terminal()
  monkeypatch.setattr(sys, 'stderr', terminal)
  monkeypatch.setenv('TERM', 'xterm')
  monkeypatch.setenv('COLUMNS', '120')
  with _progress.shown('tokens/s') as (update, say):
    update(
      {'step': 7, 'steps': 9, 'loss': 2.5, 'tokens_per_second': 1e4}
      | {'mfu': 0.5, 'eta_seconds': 62}
    )
    say('something [odd]')
  text = terminal.getvalue()
  for part in ('7/9', 'loss 2.5000', '10,000 tokens/s', 'MFU 50.0%', '1:02'):
    assert part in text
  assert 'bigdl: something [odd]' in text


def test_summary_leaves_out_what_is_not_known():
  record = {
    **{'status': 'finished', 'step': 2, 'steps': 2, 'seconds': 1.0},
    **{'device': '1x cpu', 'loss': None, 'loss_se': None, 'mfu': None},
    **{'bits_per_byte': None, 'train_loss': 1.5, 'unit': 'image', 'units': 64},
    **{'params': {}, 'flops': {'xla': None}, 'tokens_per_second': None},
  }
  assert _run.summary(record, 'runs/x').splitlines() == [
    'finished at step 2 of 2, 1.0 s on 1x cpu',
    'train loss     1.5000 nats per image',
    'D              64 images',
    'folder         runs/x',
  ]


def test_console_program_trains(experiment_file, tmp_path):
  args = [f'--config={experiment_file}', f'--workdir={tmp_path / "run"}']
  done = subprocess.run(
    [sys.executable, '-m', 'bigdl', 'train', *args, '--steps', '2'],
    capture_output=True,
    text=True,
    cwd=tmp_path,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    check=False,
  )
  assert (done.returncode, done.stderr) == (0, '')
  assert 'finished at step 2 of 2' in done.stdout
