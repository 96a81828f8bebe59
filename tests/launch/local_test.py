"""launch/local.py: devices shared out, exact commands, signals passed on."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import base
import local
import pytest

from bigdl.fleet import attempts
from bigdl.fleet.store import Local

ROOT = pathlib.Path(local.__file__).parents[1]
SECONDS = 120


def run(devices: str, workers: int = 1) -> local.Run:
  return dataclasses.replace(local.tiny(), devices=devices, workers=workers)


def test_a_worker_on_cores_is_bound_to_them():
  assert local.command(run('cpu:0,1,2,5', 2), 1) == [
    'env',
    'JAX_PLATFORMS=cpu',
    *('python3', '-m', 'bigdl', 'work', '--workdir=/runs/sweep'),
    '--cores=2,5',
  ]


def test_a_worker_on_gpus_sees_them_alone():
  assert local.command(run('gpu:0,1,2,3', 2), 1) == [
    'env',
    'CUDA_VISIBLE_DEVICES=2,3',
    *('python3', '-m', 'bigdl', 'work', '--workdir=/runs/sweep'),
  ]


def test_a_worker_on_tpu_chips_has_a_board_of_its_own():
  assert local.command(run('tpu:0,1,2,3', 2), 1) == [
    'env',
    'TPU_VISIBLE_CHIPS=2,3',
    'TPU_CHIPS_PER_PROCESS_BOUNDS=1,2,1',
    'TPU_PROCESS_BOUNDS=1,1,1',
    'TPU_PROCESS_ADDRESSES=localhost:8477',
    'TPU_PROCESS_PORT=8477',
    'CLOUD_TPU_TASK_ID=0',
    'ALLOW_MULTIPLE_LIBTPU_LOAD=1',
    *('python3', '-m', 'bigdl', 'work', '--workdir=/runs/sweep'),
  ]


def test_a_worker_has_the_devices_that_its_layout_is_checked_against(
  monkeypatch,
):
  def devices(shared, workers):
    run = local.Run(workdir='/runs/a', devices=shared, workers=workers)
    return local.ENGINE.devices(run)

  assert devices('gpu:0,1,2,3', 2) == 2
  monkeypatch.delenv('XLA_FLAGS', raising=False)
  assert devices('cpu:0,1', 2) == 1
  flag = '--xla_force_host_platform_device_count=8'
  monkeypatch.setenv('XLA_FLAGS', flag)
  assert devices('cpu:0,1', 2) == 8


@pytest.mark.parametrize('workers', [1, 2, 3, 5])
def test_every_core_goes_to_one_worker_as_evenly_as_can_be(workers):
  one = run('cpu:0,1,2,3,4,5,6,7', workers)
  shares = [one.share(i) for i in range(workers)]
  assert sum(shares, []) == list(range(8))
  assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize(
  ('devices', 'workers', 'line'),
  [
    ('gpus:0', 1, "devices='gpus:0' must be cpu:, gpu: or tpu: and numbers"),
    ('gpu:0,0', 1, 'devices=gpu:0,0 names a device twice'),
    ('gpu:0,1,2,3', 3, 'workers=3 must divide the 4 devices of gpu:0,1,2,3'),
    ('cpu:0,1', 3, 'workers=3 need a device each, and there are 2: cpu:0,1'),
    ('tpu:0,1,2,3,4,5', 2, 'workers=2 have 3 chips each of tpu:'),
  ],
)
def test_devices_that_cannot_be_shared_out_are_refused(devices, workers, line):
  with pytest.raises(ValueError, match='must|twice|need|have') as caught:
    run(devices, workers)
  assert str(caught.value).startswith(line)


def test_what_is_there_is_found(monkeypatch):
  monkeypatch.delenv('CUDA_VISIBLE_DEVICES', raising=False)
  cores = ','.join(map(str, sorted(os.sched_getaffinity(0))))
  monkeypatch.setattr(local, '_gpus', lambda: [])
  assert local.found() == f'cpu:{cores}'
  monkeypatch.undo()
  monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '1,3')
  assert local.found() == 'gpu:1,3'


def test_a_dry_run_prints_what_will_be_run_and_touches_nothing(
  experiment_file, tmp_path, capsys, monkeypatch
):
  monkeypatch.delenv('XLA_FLAGS')
  folder = tmp_path / 'sweep'
  flags = [f'--config={experiment_file}', f'--workdir={folder}', '--workers=2']
  more = ['--devices=cpu:0,1', '--python=python3', '--seed=3', '--dry_run']
  assert base.main(local.ENGINE, [*flags, *more]) == 0
  own = f'python3 -m bigdl work --workdir={folder}'
  assert capsys.readouterr().out.splitlines() == [
    f'$ env JAX_PLATFORMS=cpu python3 -m bigdl sweep --config={experiment_file}'
    f' --workdir={folder} --plan_only --seed=3',
    f'$ env JAX_PLATFORMS=cpu {own} --cores=0',
    f'$ env JAX_PLATFORMS=cpu {own} --cores=1',
  ]
  assert not folder.exists()


@pytest.fixture
def stand_in(tmp_path) -> str:
  """A program in the place of Python, which says how it was called."""
  file = tmp_path / 'python'
  file.write_text(
    '#!/bin/bash\n'
    "trap 'echo told; exit 143' TERM\n"
    'echo "$CUDA_VISIBLE_DEVICES $*"\n'
    '[ -e "$0.quick" ] && exit "$CUDA_VISIBLE_DEVICES"\n'
    'while :; do sleep 0.05; done\n'
  )
  file.chmod(0o755)
  return str(file)


def logs(folder: pathlib.Path) -> list[str]:
  return [p.read_text() for p in sorted(folder.glob('launch/worker-*.log'))]


def launched(folder: pathlib.Path, python: str) -> subprocess.Popen:
  code = (
    'import sys; sys.path.insert(0, "launch"); import local\n'
    f'one = local.Run(workdir={str(folder)!r}, python={python!r}, workers=2,'
    ' devices="gpu:0,1")\n'
    'sys.exit(local.start(one))'
  )
  return subprocess.Popen(
    [sys.executable, '-c', code],
    cwd=ROOT,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def test_a_signal_reaches_every_worker_and_the_worst_exit_code_counts(
  stand_in, tmp_path
):
  process = launched(tmp_path / 'sweep', stand_in)
  end = time.monotonic() + SECONDS
  while not (len(said := logs(tmp_path / 'sweep')) == 2 and all(said)):
    assert time.monotonic() < end and process.poll() is None
    time.sleep(0.02)
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=SECONDS)
  assert process.returncode == 143
  assert '2 workers' in out
  assert err.count('exit code 143') == 2
  for number, text in enumerate(logs(tmp_path / 'sweep')):
    words = f'-m bigdl work --workdir={tmp_path / "sweep"}'
    assert text == f'{number} {words}\ntold\n'
  pathlib.Path(f'{stand_in}.quick').touch()
  process = launched(tmp_path / 'sweep', stand_in)
  _, err = process.communicate(timeout=SECONDS)
  assert process.returncode == 1 and 'worker 1: exit code 1' in err


@pytest.mark.scheduled
def test_a_sweep_is_planned_and_trained_by_workers_side_by_side(
  experiment_file, tmp_path
):
  folder = tmp_path / 'sweep'
  flags = [f'--config={experiment_file}', f'--workdir={folder}']
  cores = sorted(os.sched_getaffinity(0))
  workers = min(2, len(cores))
  devices = f'--devices=cpu:{",".join(map(str, cores))}'
  done = subprocess.run(
    [
      sys.executable,
      'launch/local.py',
      *flags,
      f'--workers={workers}',
      devices,
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  shown = subprocess.run(
    [sys.executable, '-m', 'bigdl', 'sweep', f'--status={folder}', '--json'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert json.loads(shown.stdout)['states']['finished'] == 8
  store = Local(folder)
  claims = [attempts.read(store, n, 1, 'claim') for n in attempts.listed(store)]
  assert {claim['devices'] for claim in claims} == {len(cores) // workers}
  assert len({claim['pid'] for claim in claims}) == workers
