"""Trains a sweep on spot machines of whatever cloud has them, by SkyPilot.

Command:  python launch/skypilot.py --config=experiments/quickstart.py \\
            --workdir=s3://bucket/runs/quickstart --workers=4 \\
            --topology=h100:1x1x8

A worker is one managed job (`sky jobs launch`, docs.skypilot.co): SkyPilot finds a
machine, copies the checkout to it, starts the worker, finds another one when a
spot machine is taken back, and gives it back at the end. The workdir is a bucket,
which takes the place of a shared folder.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from typing import Any

import accelerators
import base

TASK = 'task.yaml'
PORT = 8476  # Of the coordinator, where JAX does not find it by itself.
# Ends that are no error of the worker: abort (a neighbour is lost), kill (memory
# is full), segmentation fault, and told to save and leave.
RECOVER = [134, 137, 139, 143]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(base.Run):
  """Launches one managed job a worker.

  Run it in the checkout. What is left over of the flags sets fields of the
  experiment.
  """

  topology: str  # Of one worker, as `bigdl compile` names it: h100:1x2x8.
  infra: str = ''  # Where to look, such as gcp/us-central1; '' is everywhere.
  spot: bool = True  # Machines that may be taken back.
  restarts: int = 3  # Most times that a worker that failed is started again.
  code: str = '.'  # Folder that is copied to the machines, the checkout.
  setup: str = (
    ''  # Shell lines before the worker; '' makes a .venv of the code.
  )
  env: tuple[str, ...] = ()  # Environment of the workers: NAME=value …
  image: str = ''  # Of the machines, as SkyPilot's image_id.
  disk: int = 256  # GB a machine.

  def __post_init__(self):
    super().__post_init__()
    accelerators.sky(accelerators.parse(self.topology))
    if '://' not in self.workdir:
      raise ValueError(
        f'workdir={self.workdir} must be a bucket, such as gs://bucket/sweep:'
        ' the machines share no folder'
      )
    for field, least in (('restarts', 0), ('disk', 50)):
      if getattr(self, field) < least:
        raise ValueError(
          f'{field}={getattr(self, field)} must be {least} or more'
        )
    for text in self.env:
      if not text.partition('=')[0].isidentifier() or '=' not in text:
        raise ValueError(f'env={text!r} must be NAME=value')


def command(run: Run, worker: int = 0) -> list[str]:
  """Returns the command that launches a worker, and does not wait for it."""
  return [
    *('sky', 'jobs', 'launch', '--yes', '--async'),
    f'--name={run.worker(worker)}',
    f'{run.folder}/{TASK}',
  ]


def commands(run: Run) -> list[list[str]]:
  """Returns what is run, in order."""
  return [command(run, worker) for worker in range(run.workers)]


def files(run: Run) -> dict[str, str]:
  """Returns the task, which all workers have in common."""
  return {TASK: base.to_yaml(task(run))}


def task(run: Run) -> dict[str, Any]:
  """Returns a worker as a SkyPilot task."""
  where = accelerators.parse(run.topology)
  devices, nodes = accelerators.sky(where)
  resources: dict[str, Any] = {
    'accelerators': devices,
    'use_spot': run.spot,
    'disk_size': run.disk,
    'job_recovery': {
      'strategy': 'EAGER_NEXT_REGION',
      'max_restarts_on_errors': run.restarts,
      'recover_on_exit_codes': RECOVER,
    },
  }
  if where.chip.platform == 'tpu':
    runtime = accelerators.RUNTIMES[where.chip.name]
    resources['accelerator_args'] = {'runtime_version': runtime}
  if run.infra:
    resources['infra'] = run.infra
  if run.image:
    resources['image_id'] = run.image
  made: dict[str, Any] = {
    'name': run.job,
    'num_nodes': nodes,
    'workdir': run.code,
    'resources': resources,
  }
  if run.env:
    pairs = (text.partition('=') for text in run.env)
    made['envs'] = {key: value for key, _, value in pairs}
  made['setup'] = run.setup or _setup(run)
  made['run'] = _run(run)
  return made


def _setup(run: Run) -> str:
  on_tpu = accelerators.parse(run.topology).chip.platform == 'tpu'
  extras = run.extras('tpu' if on_tpu else 'cuda12')
  # The machines' own Python may be too old; uv brings one.
  return (
    'pip install --quiet uv\n'
    'uv venv --quiet --allow-existing --python 3.12 .venv\n'
    f"uv pip install --quiet --python .venv -e '.[{extras}]'\n"
  )


def _run(run: Run) -> str:
  where = accelerators.parse(run.topology)
  _, nodes = accelerators.sky(where)
  python = 'python3' if run.setup else '.venv/bin/python'
  join = nodes > 1 or where.chip.platform == 'tpu'
  words = base.work(run, *(['--distributed'] if join else []), python=python)
  line = f'exec {shlex.join(words)}'
  if nodes == 1:
    return f'{line}\n'
  return (
    'first=$(head -n 1 <<< "$SKYPILOT_NODE_IPS")\n'
    f'{line} --coordinator="$first:{PORT}"'
    ' --processes="$SKYPILOT_NUM_NODES" --process="$SKYPILOT_NODE_RANK"\n'
  )


def tiny() -> Run:
  """Returns the smallest run: one worker on one GPU."""
  return Run(
    workdir='s3://bucket/sweep', topology='h100:1x1x1', python='python3'
  )


ENGINE = base.Engine(
  file='launch/skypilot.py',
  kind=Run,
  devices=lambda run: accelerators.parse(run.topology).devices,
  files=files,
  commands=commands,
  needs=lambda run: {'sky': "pip install 'skypilot[aws,gcp]', then sky check"},
)

if __name__ == '__main__':
  sys.exit(base.main(ENGINE))
