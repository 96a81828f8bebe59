"""launch/slurm.py on a real Slurm: jobs are killed, requeued; nothing is lost."""

from __future__ import annotations

from collections.abc import Iterator
import json
import pathlib
import subprocess
import sys
import time

import pytest
import slurm_cluster

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 300  # Most that a sweep of the tiny cells may take on a busy machine.
# So long a batch takes: the cells then outlive the disturbances.
PAUSE = '--data.pause=0.06'

pytestmark = pytest.mark.scheduled


@pytest.fixture(scope='module')
def cluster(tmp_path_factory) -> Iterator[dict[str, str]]:
  """The environment of a cluster that is gone after the tests."""
  missing = slurm_cluster.missing()
  assert not missing, f'{missing}: apt-get install slurm-wlm munge, as root'
  with slurm_cluster.started(tmp_path_factory.mktemp('slurm')) as env:
    # One device a process, as in a process that no test has started.
    env = {k: v for k, v in env.items() if k != 'XLA_FLAGS'}
    yield {**env, 'JAX_PLATFORMS': 'cpu', 'OMP_NUM_THREADS': '1'}


def run(env: dict[str, str], *words: str) -> str:
  """Returns what a command prints; its errors are the test's."""
  done = subprocess.run(
    words, env=env, cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, f'{words}: {done.stdout}{done.stderr}'
  return done.stdout


def launch(env: dict[str, str], *flags: str) -> str:
  """Submits by the launcher; returns the number of the job."""
  shown = run(env, sys.executable, 'launch/slurm.py', '--time=30', *flags)
  return shown.split('Submitted batch job ')[1].split()[0]


def tasks(env: dict[str, str], job: str) -> dict[str, str]:
  """Returns the states of a job's tasks that are not over, by JOB_TASK."""
  lines = run(env, 'squeue', '-h', '-r', f'--job={job}', '--format=%i %T')
  return dict(line.split() for line in lines.splitlines())


def ends(folder: pathlib.Path) -> dict[str, list[str]]:
  """Returns how the attempts at each cell ended, in order."""
  found: dict[str, list[str]] = {}
  plan = json.loads((folder / 'manifest.json').read_text())
  for cell in plan['cells']:
    files = folder.glob(f'claims/{cell["name"]}.*.*')
    found[cell['name']] = [
      p.suffix[1:] for p in sorted(files) if p.suffix != '.claim'
    ]
  return found


def wait(what, say) -> None:
  deadline = time.monotonic() + SECONDS
  while not what():
    assert time.monotonic() < deadline, say()
    time.sleep(0.3)


def test_a_sweep_of_which_jobs_are_killed_loses_no_cell_and_gives_the_same_law(
  cluster, experiment_file, tmp_path
):
  folder = tmp_path / 'with space'
  sweep = [f'--config={experiment_file}', PAUSE]
  job = launch(cluster, *sweep, f'--workdir={folder}', '--workers=3')

  def log() -> str:
    logs = (folder / 'launch').glob('*.log')
    return '\n'.join(p.read_text()[-1500:] for p in logs)

  def running(task: int) -> bool:
    return tasks(cluster, job).get(f'{job}_{task}') == 'RUNNING'

  def held() -> int:
    claims = len(list(folder.glob('claims/*.claim')))
    return claims - sum(map(len, ends(folder).values()))

  # Each worker has a cell and has taken its first steps.
  wait(lambda: held() == 3 and all(map(running, range(3))), log)
  time.sleep(2)
  # The time of one is nearly up: of the last, whose number is the array's.
  run(cluster, 'scancel', '--batch', '--signal=USR1', f'{job}_2')
  wait(lambda: not running(2), log)
  assert running(0) and running(1), log()
  # The machine's memory is full: the worker is killed, its script is not.
  run(cluster, 'scancel', '--signal=KILL', f'{job}_0.0')
  # Preempted: Slurm asks it to leave and queues it again.
  run(cluster, 'scontrol', 'requeue', f'{job}_1')
  wait(lambda: not running(0) and not running(1), log)
  wait(lambda: running(0) and running(2) and held() >= 2, log)
  # Everything dies at once, as on a machine that lost its power.
  run(cluster, 'scancel', '--signal=KILL', '--full', f'{job}_0')
  wait(lambda: not running(0), log)
  run(cluster, 'scontrol', 'requeue', f'{job}_0')
  # Cancelled, which no script may undo.
  run(cluster, 'scancel', f'{job}_2')
  wait(lambda: not tasks(cluster, job), log)

  status = [sys.executable, '-m', 'bigdl', 'sweep', f'--status={folder}']
  states = json.loads(run(cluster, *status, '--json'))
  assert states['over'] and states['states']['finished'] == 8, log()
  shown = run(cluster, 'scontrol', 'show', 'job', job)
  over = {
    block.split('ArrayTaskId=')[1].split()[0]: block
    for block in shown.split('\n\n')
    if 'ArrayTaskId=' in block
  }
  assert 'JobState=CANCELLED' in over['2'] and 'Restarts=1' in over['2']
  assert 'JobState=COMPLETED' in over['1'] and 'Restarts=1' in over['1']
  assert 'JobState=COMPLETED' in over['0'] and 'Restarts=2' in over['0']
  # Every cell was run to its end once, and some were interrupted.
  attempts = ends(folder)
  assert all(made.count('finished') == 1 for made in attempts.values())
  assert sum(map(len, attempts.values())) > 8
  assert not (folder / 'law.json').exists()
  fit(cluster, sweep, folder)
  calm = tmp_path / 'calm'
  fit(cluster, [f'--config={experiment_file}'], calm)
  assert (folder / 'law.json').read_bytes() == (calm / 'law.json').read_bytes()


def fit(env: dict[str, str], sweep: list[str], folder: pathlib.Path) -> None:
  """Fits the law of a sweep, after training what is left of it."""
  words = [sys.executable, '-m', 'bigdl', 'sweep', *sweep]
  done = subprocess.run(
    [*words, f'--workdir={folder}', '--bootstrap=40'],
    env=env,
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  # So small a sweep may have no law, which is then written all the same.
  assert done.returncode in (0, 3), done.stdout + done.stderr


def test_the_processes_of_a_worker_over_a_job_train_each_cell_together(
  cluster, experiment_file, tmp_path
):
  folder = tmp_path / 'together'
  flags = [f'--config={experiment_file}:few', f'--workdir={folder}']
  # One node is all there is: two processes on it are what two nodes would be.
  script = run(
    cluster,
    *(sys.executable, 'launch/slurm.py', *flags, '--nodes=2', '--dry_run'),
    *('--restarts=0', '--layout.data=2'),
  )
  assert '--distributed' in script
  text = script.split('<==\n')[1].split('\n$ sbatch')[0]
  text = text.replace('--nodes=2', '--nodes=1')
  text = text.replace('--ntasks-per-node=1', '--ntasks-per-node=2')
  # What a dry run prints can be run as it is.
  run(cluster, 'bash', '-c', script.partition('\n')[0].removeprefix('$ '))
  file = folder / 'launch' / 'slurm.sh'
  file.parent.mkdir(exist_ok=True)
  file.write_text(text)
  shown = run(cluster, 'sbatch', str(file))
  job = shown.split('Submitted batch job ')[1].split()[0]

  def log() -> str:
    return '\n'.join(p.read_text()[-3000:] for p in file.parent.glob('*.log'))

  wait(lambda: not tasks(cluster, job), log)
  assert all(made == ['finished'] for made in ends(folder).values()), log()
  for file in folder.glob('cells/*/record.json'):
    # Each process has one device.
    assert json.loads(file.read_text())['device'].startswith('2x ')
