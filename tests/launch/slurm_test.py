"""launch/slurm.py: what it submits, and what its script does to a worker."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import signal
import subprocess
import time

import pytest
import slurm

SECONDS = 20  # Most that a stubbed script may take on a busy machine.

# srun runs no worker: it ends with CODE, or once it is told (TERM) with 143.
STUBS = {
  'srun': """
    echo $$ > "$STATE/pid"
    trap 'sleep 0.3; exit 143' TERM
    [ "$CODE" = told ] || exit "$CODE"
    while :; do sleep 0.05; done
  """,
  'scontrol': 'echo "scontrol $*" >> "$STATE/calls"',
  'scancel': """
    echo "scancel $*" >> "$STATE/calls"
    kill -TERM "$(cat "$STATE/pid")"
  """,
}


class Script:
  """The batch script of a run, under stubs of Slurm's commands."""

  def __init__(self, folder: pathlib.Path, run: slurm.Run):
    self.state = folder
    self.file = folder / 'script.sh'
    self.file.write_text(slurm.files(run)[slurm.SCRIPT])
    for name, text in STUBS.items():
      (folder / name).write_text(f'#!/bin/bash\n{text}')
      (folder / name).chmod(0o755)

  def start(self, code: str, restarts: int = 0) -> subprocess.Popen:
    env = {
      **os.environ,
      'PATH': f'{self.state}:{os.environ["PATH"]}',
      'STATE': str(self.state),
      'CODE': code,
      # As it is of the last task of an array: the number of all of them.
      'SLURM_JOB_ID': '7',
      'SLURM_ARRAY_JOB_ID': '7',
      'SLURM_ARRAY_TASK_ID': '3',
      'SLURM_RESTART_COUNT': str(restarts),
    }
    return subprocess.Popen(['bash', str(self.file)], env=env)

  def await_worker(self) -> None:
    deadline = time.monotonic() + SECONDS
    pid = self.state / 'pid'
    # The trap of the stub is set right after its number is written.
    while not (pid.exists() and pid.read_text().strip()):
      assert time.monotonic() < deadline
      time.sleep(0.02)
    time.sleep(0.2)

  @property
  def calls(self) -> list[str]:
    file = self.state / 'calls'
    return file.read_text().splitlines() if file.exists() else []


@pytest.fixture
def script(tmp_path) -> Script:
  return Script(tmp_path, dataclasses.replace(slurm.tiny(), restarts=3))


REQUEUE = 'scontrol requeue Incomplete 7_3'


@pytest.mark.parametrize('code', [0, 2])
def test_a_worker_with_nothing_to_do_or_bad_input_is_not_started_again(
  script, code
):
  assert script.start(str(code)).wait(SECONDS) == code
  assert script.calls == []


@pytest.mark.parametrize('code', [1, 134, 137])
def test_a_worker_that_dies_is_queued_again(script, code):
  assert script.start(str(code)).wait(SECONDS) == code
  assert script.calls == [REQUEUE]


def test_a_worker_is_queued_again_a_limited_number_of_times(script):
  assert script.start('137', restarts=3).wait(SECONDS) == 137
  assert script.calls == []


def test_near_the_time_limit_the_worker_saves_and_is_queued_again(script):
  process = script.start('told')
  script.await_worker()
  process.send_signal(signal.SIGUSR1)
  assert process.wait(SECONDS) == 143
  assert script.calls == ['scancel --signal=TERM 7_3', REQUEUE]


def test_the_script_of_a_cancelled_job_waits_for_its_worker_to_save(script):
  process = script.start('told')
  script.await_worker()
  # Slurm tells the steps, and the script too.
  worker = int((script.state / 'pid').read_text())
  os.kill(worker, signal.SIGTERM)
  process.send_signal(signal.SIGTERM)
  # Slurm itself refuses this, as the job is no longer a running one.
  assert process.wait(SECONDS) == 143
  assert script.calls == [REQUEUE]


def test_a_worker_on_one_node_is_one_task_of_an_array():
  run = slurm.Run(
    workdir='/shared/my sweep',
    python='/env/bin/python',
    workers=8,
    gpus=1,
    cpus=6,
    time='4:00:00',
    partition='gpu',
    options=('--constraint=a100',),
    setup='module load cuda',
  )
  assert slurm.command(run) == ['sbatch', '/shared/my sweep/launch/slurm.sh']
  lines = slurm.files(run)['slurm.sh'].splitlines()
  assert [line for line in lines if line.startswith('#')][:14] == [
    '#!/bin/bash',
    '#SBATCH --job-name=my-sweep',
    '#SBATCH --array=0-7',
    '#SBATCH --nodes=1',
    '#SBATCH --ntasks-per-node=1',
    '#SBATCH --time=4:00:00',
    '#SBATCH --signal=B:USR1@120',
    '#SBATCH --requeue',
    '#SBATCH --open-mode=append',
    '#SBATCH --output="/shared/my sweep/launch/%x-%A_%a.log"',
    '#SBATCH --partition=gpu',
    '#SBATCH --gpus-per-node=1',
    '#SBATCH --cpus-per-task=6',
    '#SBATCH --constraint=a100',
  ]
  assert 'module load cuda' in lines
  assert (
    'srun --cpus-per-task=6 /env/bin/python -m bigdl work'
    " '--workdir=/shared/my sweep' &"
  ) in lines


def test_a_worker_over_several_nodes_has_a_process_for_each_gpu():
  run = dataclasses.replace(slurm.tiny(), nodes=4, gpus=8)
  text = slurm.files(run)['slurm.sh']
  assert '#SBATCH --nodes=4\n#SBATCH --ntasks-per-node=8\n' in text
  # All GPUs of a node are seen by each: JAX takes the one of its number.
  assert '#SBATCH --gpus-per-node=8\n' in text
  assert 'gpus-per-task' not in text
  assert (
    'srun --kill-on-bad-exit=1 python3 -m bigdl work --workdir=/shared/sweep'
    ' --distributed &'
  ) in text


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ({'nodes': 0}, 'nodes=0 must be 1 or more'),
    ({'gpus': -1}, 'gpus=-1 must be 0 or more'),
    ({'grace': 0}, 'grace=0 must be 1 or more'),
    ({'time': 'a day'}, "time='a day' must be minutes"),
    ({'options': ('constraint=a',)}, "options='constraint=a' must begin with"),
  ],
)
def test_what_slurm_would_refuse_is_refused_first(flags, message):
  with pytest.raises(ValueError, match=message):
    dataclasses.replace(slurm.tiny(), **flags)
