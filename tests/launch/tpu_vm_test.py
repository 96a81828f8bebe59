"""launch/tpu_vm.py: what gcloud is told, and what machines do when they boot."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shlex
import shutil
import subprocess
from typing import Any

import pytest
import tpu_vm


def some(run: tpu_vm.Run | None = None, **changes: Any) -> tpu_vm.Run:
  return dataclasses.replace(run or tpu_vm.tiny(), **changes)


RESOURCES = ['gcloud', 'compute', 'tpus', 'queued-resources']
RUNS = {
  'slice': some(topology='v5e:4x4', project='lab', service_account='a@b'),
  'slices': some(topology='v5p:2x2x4*2'),
  'shape': some(topology='v4:4x4x16', spot=False),
  'old': some(topology='v3:4x4', options=('--network=net',)),
}
ACTIONS = ('create', 'status', 'logs', 'delete')


def test_a_worker_is_a_queued_resource_with_a_script_for_its_machines():
  run = dataclasses.replace(RUNS['slice'], workers=2)
  assert tpu_vm.commands(run)[1] == [
    *(*RESOURCES, 'create', 'sweep-1', '--zone=zone-a', '--project=lab'),
    '--accelerator-type=v5litepod-16',
    '--runtime-version=v2-alpha-tpuv5-lite',
    *('--node-id=sweep-1', '--spot', '--service-account=a@b'),
    '--scopes=cloud-platform',
    '--metadata-from-file=startup-script=runs/launched/sweep/startup-1.sh',
  ]
  assert list(tpu_vm.files(run)) == ['startup-0.sh', 'startup-1.sh']


def test_several_slices_are_nodes_of_one_resource():
  words = tpu_vm.command(RUNS['slices'])
  assert '--accelerator-type=v5p-32' in words
  assert '--node-count=2' in words and '--node-prefix=sweep-0' in words
  assert not any(word.startswith('--node-id') for word in words)


def test_a_shape_of_v4_is_asked_for_as_it_is():
  words = tpu_vm.command(RUNS['shape'])
  assert '--type=v4' in words and '--topology=4x4x16' in words
  assert '--spot' not in words
  assert not any(word.startswith('--accelerator-type') for word in words)


def test_workers_are_looked_after_by_name():
  run = some(project='lab')
  place = ['sweep-0', '--zone=zone-a', '--project=lab']
  look = {
    action: tpu_vm.command(some(run, action=action)) for action in ACTIONS[1:]
  }
  assert look == {
    'status': [*RESOURCES, 'describe', *place, '--format=yaml(name,state)'],
    'logs': [
      *(*RESOURCES, 'ssh', *place, '--node=all', '--worker=all'),
      '--command=tail -n 20 /var/log/bigdl.log',
    ],
    'delete': [
      *(*RESOURCES, 'delete', *place, '--force', '--quiet', '--async')
    ],
  }
  # Nothing is planned, and nothing written, to look at what there is.
  for action in ACTIONS[1:]:
    other = some(run, action=action)
    assert not tpu_vm.ENGINE.plans(other) and tpu_vm.files(other) == {}


class Machine:
  """The root of a file system, in which a boot script runs under stubs."""

  def __init__(self, folder: pathlib.Path, run: tpu_vm.Run, number: int = 0):
    self.root = folder
    self.bin = folder / 'bin'
    for path in ('bin', 'opt', 'etc/systemd/system', 'var/log'):
      (folder / path).mkdir(parents=True)
    for name in ('pip3', 'uv', 'systemctl', 'gcloud'):
      self._stub(name, f'echo {name} "$@" >> {folder}/calls')
    self._stub('curl', f'echo {number}')
    text = tpu_vm.files(run)['startup-0.sh']
    for path in ('/opt/', '/etc/', '/var/'):
      text = text.replace(path, f'{folder}{path}')
    self.script = text

  def _stub(self, name: str, line: str) -> None:
    (self.bin / name).write_text(f'#!/bin/sh\n{line}\n')
    (self.bin / name).chmod(0o755)

  def _run(self, *words: str, **env: str) -> None:
    path = f'{self.bin}:{os.environ["PATH"]}'
    subprocess.run(words, env={'PATH': path, **env}, check=True)

  def boot(self) -> list[str]:
    self._run('bash', '-c', self.script)
    return self.calls()

  def end(self, code: int) -> list[str]:
    self._run('bash', f'{self.root}/opt/bigdl/end.sh', EXIT_STATUS=str(code))
    return self.calls()

  def calls(self) -> list[str]:
    file = self.root / 'calls'
    lines = file.read_text().splitlines() if file.exists() else []
    file.unlink(missing_ok=True)
    return lines


def test_a_machine_installs_once_and_starts_its_worker_at_every_boot(tmp_path):
  machine = Machine(tmp_path, some())
  start = ['systemctl daemon-reload', 'systemctl start bigdl']
  assert machine.boot() == [
    'pip3 install --quiet uv',
    'uv venv --quiet --allow-existing --python 3.12 venv',
    'uv pip install --quiet --python venv'
    ' bigdl[tpu,gcs] @ git+https://host/bigdl',
    *start,
  ]
  assert machine.boot() == start
  unit = (tmp_path / 'etc/systemd/system/bigdl.service').read_text()
  assert (
    f'ExecStart={tmp_path}/opt/bigdl/venv/bin/python -m bigdl work'
    ' --workdir=gs://bucket/sweep --distributed\n'
  ) in unit


@pytest.mark.parametrize(
  ('code', 'number', 'deletes'),
  [
    *((0, 0, True), (0, 1, False), (2, 0, True), (2, 1, False)),
    *((1, 0, False), (143, 0, False)),
  ],
)
def test_the_first_machine_gives_all_back_when_nothing_is_left_to_do(
  code, number, deletes, tmp_path
):
  machine = Machine(tmp_path, some(), number)
  machine.boot()
  gone = (
    'gcloud compute tpus queued-resources delete sweep-0 --zone=zone-a --force'
    ' --quiet --async'
  )
  assert machine.end(code) == ([gone] if deletes else [])


def test_machines_that_are_to_be_kept_are_kept(tmp_path):
  run = some(keep=True)
  Machine(tmp_path, run).boot()
  assert not (tmp_path / 'opt/bigdl/end.sh').exists()
  assert 'ExecStopPost' not in tpu_vm.unit(run)


def test_own_lines_take_the_place_of_the_install(tmp_path):
  run = some(code='', setup='uv first\nuv second')
  assert Machine(tmp_path, run).boot()[:2] == ['uv first', 'uv second']
  assert 'ExecStart=/usr/bin/python3 -m bigdl work' in tpu_vm.unit(run)


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ({'topology': 'tpu7x:4x4x4'}, 'not tpu7x: use launch/xpk.py'),
    ({'topology': 'h100:1x1x8'}, 'not h100: use another launcher'),
    ({'topology': 'v4:8x8x9'}, 'no such slice of v4 is sold'),
    ({'code': ''}, 'code= must say what pip installs'),
    ({'grace': 0}, 'grace=0 must be 1 or more'),
  ],
)
def test_what_cloud_tpu_could_not_do_is_refused_first(flags, message):
  with pytest.raises(ValueError, match=message):
    some(**flags)


@pytest.mark.scheduled
@pytest.mark.skipif(shutil.which('gcloud') is None, reason='needs gcloud')
@pytest.mark.parametrize('action', ACTIONS)
@pytest.mark.parametrize('name', RUNS)
def test_gcloud_itself_takes_the_command(name, action, tmp_path):
  run = some(RUNS[name], action=action)
  text = shlex.join(tpu_vm.command(run))
  wrong = f'{text} --zoen=a'
  env = {**os.environ, 'CLOUDSDK_CONFIG': str(tmp_path)}
  for line, taken in ((text, True), (wrong, False)):
    # Its parser alone: nothing is asked of any cloud.
    done = subprocess.run(
      ['gcloud', 'meta', 'lint-gcloud-commands', f'--command-string={line}'],
      env=env,
      capture_output=True,
      text=True,
      check=True,
    )
    (found,) = json.loads(done.stdout)
    assert found['success'] == taken, found['error_message']


@pytest.mark.scheduled
@pytest.mark.skipif(
  shutil.which('systemd-analyze') is None, reason='needs systemd'
)
@pytest.mark.parametrize('keep', [True, False])
def test_systemd_itself_takes_the_service(keep, tmp_path):
  unit = tpu_vm.unit(some(keep=keep, code='', setup='true'))
  # The check is of a machine that has what the service names.
  unit = unit.replace('/usr/bin/python3', '/bin/sh')
  for text, taken in (
    (unit, True),
    (unit.replace('Restart=', 'Restrat='), False),
  ):
    file = tmp_path / 'bigdl.service'
    file.write_text(text)
    done = subprocess.run(
      ['systemd-analyze', 'verify', file],
      capture_output=True,
      text=True,
      check=False,
    )
    assert (done.stderr == '') == taken, done.stderr
