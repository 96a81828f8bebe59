"""launch/skypilot.py: tasks that SkyPilot reads as they are meant."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from typing import Any

import pytest
import skypilot
import yaml

PACKAGE = 'skypilot>=0.14,<0.15'


def some(**changes: Any) -> skypilot.Run:
  return dataclasses.replace(skypilot.tiny(), **changes)


RUNS = {
  'gpu': some(),
  'gpus': some(topology='h100:1x2x8', env=('LEVEL=1',), infra='aws'),
  'tpus': some(topology='v5e:4x4', workdir='gs://bucket/sweep', spot=False),
  'pod': some(topology='v4:4x8x8', workdir='gs://bucket/sweep'),
}


def test_each_worker_is_a_managed_job_of_one_task():
  run = some(workers=2, name='walk')
  file = 'runs/launched/walk/task.yaml'
  launch = ['sky', 'jobs', 'launch', '--yes', '--async']
  assert skypilot.commands(run) == [
    [*launch, '--name=walk-0', file],
    [*launch, '--name=walk-1', file],
  ]
  assert yaml.safe_load(skypilot.files(run)['task.yaml']) == {
    'name': 'walk',
    'num_nodes': 1,
    'workdir': '.',
    'resources': {
      'accelerators': 'H100:1',
      'use_spot': True,
      'disk_size': 256,
      'job_recovery': {
        'strategy': 'EAGER_NEXT_REGION',
        'max_restarts_on_errors': 3,
        'recover_on_exit_codes': [134, 137, 139, 143],
      },
    },
    'setup': (
      'pip install --quiet uv\n'
      'uv venv --quiet --allow-existing --python 3.12 .venv\n'
      "uv pip install --quiet --python .venv -e '.[cuda12,s3]'\n"
    ),
    'run': 'exec .venv/bin/python -m bigdl work --workdir=s3://bucket/sweep\n',
  }


def test_the_machines_of_a_worker_meet_at_the_first():
  text = skypilot.task(RUNS['gpus'])['run']
  stub = text.replace('exec .venv/bin/python', 'echo')
  env = {
    'PATH': os.environ['PATH'],
    'SKYPILOT_NODE_IPS': '10.0.0.5\n10.0.0.6',
    'SKYPILOT_NUM_NODES': '2',
    'SKYPILOT_NODE_RANK': '1',
  }
  done = subprocess.run(
    ['bash', '-c', stub], env=env, capture_output=True, text=True, check=True
  )
  assert done.stdout == (
    '-m bigdl work --workdir=s3://bucket/sweep --distributed'
    ' --coordinator=10.0.0.5:8476 --processes=2 --process=1\n'
  )


def test_a_slice_of_tpus_is_one_node_whose_hosts_find_each_other():
  task = skypilot.task(RUNS['tpus'])
  assert task['num_nodes'] == 1
  assert task['resources']['accelerators'] == 'tpu-v5litepod-16:1'
  assert task['resources']['accelerator_args'] == {
    'runtime_version': 'v2-alpha-tpuv5-lite'
  }
  assert task['run'].endswith('--distributed\n')
  assert "'.[tpu,gcs]'" in task['setup']


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ({'workdir': '/runs/sweep'}, 'must be a bucket, such as gs://bucket/sweep'),
    ({'topology': 'tpu7x:4x4x4'}, 'use launch/xpk.py'),
    ({'topology': 'v5e:4x4*2'}, 'SkyPilot has one slice a job'),
    ({'topology': 'h100'}, 'must be GENERATION:SHAPE'),
    ({'disk': 10}, 'disk=10 must be 50 or more'),
    ({'env': ('1A=b',)}, "env='1A=b' must be NAME=value"),
  ],
)
def test_what_skypilot_could_not_do_is_refused_first(flags, message):
  with pytest.raises(ValueError, match=message):
    some(**flags)


# What SkyPilot has understood, as JSON.
READ = """
import json, sys
import sky
task = sky.Task.from_yaml(sys.argv[1])
(found,) = task.resources
print(json.dumps({
  'name': task.name, 'nodes': task.num_nodes, 'run': task.run,
  'setup': task.setup, 'workdir': task.workdir, 'envs': task.envs,
  'accelerators': found.accelerators, 'spot': found.use_spot,
  'args': found.accelerator_args, 'recovery': found.job_recovery,
  'disk': found.disk_size, 'cloud': str(found.cloud),
}))
"""


@pytest.mark.scheduled
@pytest.mark.parametrize('name', RUNS)
def test_skypilot_itself_reads_the_task_as_it_is_meant(
  name, installed, tmp_path
):
  run = RUNS[name]
  file = tmp_path / 'task.yaml'
  file.write_text(skypilot.files(run)['task.yaml'])
  python = installed(PACKAGE) / 'python'
  env = {
    **os.environ,
    'HOME': str(tmp_path),
    'SKYPILOT_DISABLE_USAGE_COLLECTION': '1',
  }
  done = subprocess.run(
    [python, '-c', READ, file],
    env=env,
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  read = json.loads(done.stdout.splitlines()[-1])
  meant = skypilot.task(run)
  assert (read['name'], read['nodes']) == (meant['name'], meant['num_nodes'])
  assert (read['run'], read['setup']) == (meant['run'], meant['setup'])
  assert read['workdir'] == '.'
  assert (read['envs'] or {}) == meant.get('envs', {})
  wanted = meant['resources']
  kind, _, count = wanted['accelerators'].partition(':')
  assert read['accelerators'] == {kind: int(count)}
  assert read['spot'] == run.spot and read['disk'] == run.disk
  recovery = read['recovery']
  assert recovery['recover_on_exit_codes'] == skypilot.RECOVER
  assert recovery['max_restarts_on_errors'] == run.restarts
  if 'accelerator_args' in wanted:
    assert read['args'] == wanted['accelerator_args']
    assert read['cloud'] == 'GCP'


@pytest.mark.scheduled
def test_skypilot_itself_takes_the_flags_of_the_command(installed):
  words = skypilot.command(skypilot.tiny())
  program = installed(PACKAGE) / words[0]
  done = subprocess.run(
    [program, *words[1:3], '--help'], capture_output=True, text=True, check=True
  )
  for word in words[3:-1]:
    assert word.partition('=')[0] in done.stdout
