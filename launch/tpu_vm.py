"""Trains a sweep on TPU VMs, which gcloud asks for as queued resources.

Command:  python launch/tpu_vm.py --config=experiments/quickstart.py \\
            --workdir=gs://bucket/runs/quickstart --workers=2 \\
            --topology=v5e:4x4 --zone=us-west4-a --code=git+https://host/you/bigdl

A worker is one queued resource (cloud.google.com/tpu/docs/queued-resources): all
machines of a topology. Each machine runs the same script when it boots, which
installs the code and hands the worker to systemd: that starts it again when it
dies, tells it to save when a spot machine is taken back, and deletes the queued
resource when all cells are done or nothing can be (bad input, a full disk: exit
code 2), so that nobody pays for machines that idle; `--keep` keeps it, and what
the workers printed. A spot machine
that was taken back is gone: `--action=delete`, then launch again; training goes on
where it was. `--action=status` and `--action=logs` look at the workers.
"""

from __future__ import annotations

import dataclasses
import shlex
import sys
from typing import Literal

import accelerators
import base

SCRIPT = 'startup-{}.sh'
LOG = '/var/log/bigdl.log'
HOME = '/opt/bigdl'
_RESOURCE = ('gcloud', 'compute', 'tpus', 'queued-resources')
_METADATA = 'http://metadata.google.internal/computeMetadata/v1/instance'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(base.Run):
  """Asks for one queued resource a worker, or looks after those there are.

  Both this machine and the workers must see the workdir, which a bucket does
  best. What is left over of the flags sets fields of the experiment.
  """

  topology: str  # Of one worker, as `bigdl compile` names it: v5e:4x4*2.
  zone: str  # Of Google Cloud, such as us-west4-a.
  action: Literal['create', 'status', 'logs', 'delete'] = 'create'
  code: str = ''  # What pip installs: git+https://…, or the URL of a wheel.
  setup: str = ''  # Shell lines in the place of that install.
  project: str = ''  # '' is gcloud's own.
  spot: bool = True  # Machines that may be taken back.
  runtime: str = ''  # Image of the machines; '' is the one JAX needs.
  grace: int = 300  # Seconds to save in, when told to leave.
  keep: bool = False  # Keep the machines that have nothing left to do.
  service_account: str = ''  # Of the machines; it must reach the workdir.
  options: tuple[str, ...] = ()  # More of create's: --network=net …

  def __post_init__(self):
    super().__post_init__()
    accelerators.cloud(accelerators.parse(self.topology))
    if self.grace < 1:
      raise ValueError(f'grace={self.grace} must be 1 or more')
    if self.action == 'create' and not (self.code or self.setup):
      raise ValueError(
        'code= must say what pip installs (git+https://…, a wheel), or setup='
        ' how bigdl comes to the machines'
      )


def command(run: Run, worker: int = 0) -> list[str]:
  """Returns the command that does to a worker what `action` says."""
  name = run.worker(worker)
  place = [f'--zone={run.zone}']
  place += [f'--project={run.project}'] if run.project else []
  if run.action == 'create':
    return [*_RESOURCE, 'create', name, *place, *_create(run, worker)]
  if run.action == 'status':
    return [*_RESOURCE, 'describe', name, *place, '--format=yaml(name,state)']
  if run.action == 'logs':
    tail = f'tail -n 20 {LOG}'
    every = ('--node=all', '--worker=all', f'--command={tail}')
    return [*_RESOURCE, 'ssh', name, *place, *every]
  return [*_RESOURCE, 'delete', name, *place, *_DELETE]


_DELETE = ('--force', '--quiet', '--async')


def commands(run: Run) -> list[list[str]]:
  """Returns what is run, in order."""
  return [command(run, worker) for worker in range(run.workers)]


def files(run: Run) -> dict[str, str]:
  """Returns the scripts that the machines run when they boot."""
  if run.action != 'create':
    return {}
  return {SCRIPT.format(n): _startup(run, n) for n in range(run.workers)}


def _create(run: Run, worker: int) -> list[str]:
  where = accelerators.parse(run.topology)
  name = run.worker(worker)
  # One name of v4 may mean several shapes; of the others, each has one.
  kind = [f'--accelerator-type={accelerators.cloud(where)}']
  if where.chip.name == 'v4':
    kind = ['--type=v4', f'--topology={"x".join(map(str, where.shape))}']
  nodes = [f'--node-id={name}']
  if where.slices > 1:
    nodes = [f'--node-count={where.slices}', f'--node-prefix={name}']
  runtime = run.runtime or accelerators.RUNTIMES[where.chip.name]
  script = f'{run.folder}/{SCRIPT.format(worker)}'
  owner = run.service_account
  return [
    *kind,
    f'--runtime-version={runtime}',
    *nodes,
    *(['--spot'] if run.spot else []),
    *([f'--service-account={owner}'] if owner else []),
    # The worker reads and writes the bucket, and deletes its machines.
    '--scopes=cloud-platform',
    f'--metadata-from-file=startup-script={script}',
    *run.options,
  ]


def unit(run: Run) -> str:
  """Returns the systemd service that is the worker on one machine."""
  python = '/usr/bin/python3' if run.setup else f'{HOME}/venv/bin/python'
  work = base.work(run, '--distributed', python=python)
  end = [] if run.keep else [f'ExecStopPost=/bin/bash {HOME}/end.sh']
  return '\n'.join(
    [
      '[Unit]',
      'Description=A worker of a sweep',
      # Bad machines, or code, must not start for ever.
      'StartLimitIntervalSec=1h',
      'StartLimitBurst=20',
      '',
      '[Service]',
      f'WorkingDirectory={HOME}',
      f'ExecStart={shlex.join(work)}',
      *end,
      f'StandardOutput=append:{LOG}',
      f'StandardError=append:{LOG}',
      # Again where a host lost its neighbours or its memory; bad input (2) stays.
      'Restart=on-failure',
      'RestartSec=10',
      'RestartPreventExitStatus=2',
      # When the machine is taken back, all of this is for saving.
      f'TimeoutStopSec={run.grace}',
      '',
    ]
  )


def _startup(run: Run, worker: int) -> str:
  """Returns the script that each machine of a worker runs, as root."""
  end = '' if run.keep else _file(f'{HOME}/end.sh', _end(run, worker))
  return (
    '#!/bin/bash\n'
    '# On each machine of the slice, whenever it boots, as root.\n'
    'set -euo pipefail\n'
    f'mkdir -p {HOME} && cd {HOME}\n'
    'if [ ! -e installed ]; then\n'
    f'{run.setup or _install(run)}\n'
    'touch installed\n'
    'fi\n'
    f'{end}{_file("/etc/systemd/system/bigdl.service", unit(run))}'
    'systemctl daemon-reload\n'
    'systemctl start bigdl\n'
  )


def _file(path: str, text: str) -> str:
  return f"cat > {path} <<'END'\n{text}END\n"


def _install(run: Run) -> str:
  wanted = shlex.quote(f'bigdl[{run.extras("tpu")}] @ {run.code}')
  # The machines' own Python is too old; uv brings one.
  return (
    'pip3 install --quiet uv\n'
    'uv venv --quiet --allow-existing --python 3.12 venv\n'
    f'uv pip install --quiet --python venv {wanted}'
  )


def _end(run: Run, worker: int) -> str:
  """Returns the script that systemd runs when the worker has ended."""
  gone = command(dataclasses.replace(run, action='delete'), worker)
  return (
    '# Nothing is left to do (0), or can be (2: bad input, a full disk): the\n'
    '# first machine gives all of them back.\n'
    '[ "$EXIT_STATUS" = 0 ] || [ "$EXIT_STATUS" = 2 ] || exit 0\n'
    "number=$(curl -s -H 'Metadata-Flavor: Google' \\\n"
    f'  {_METADATA}/attributes/agent-worker-number)\n'
    '[ "$number" = 0 ] || exit 0\n'
    f'{shlex.join(gone)}\n'
  )


def tiny() -> Run:
  """Returns the smallest run: one worker on the smallest slice of v6e."""
  return Run(
    workdir='gs://bucket/sweep',
    topology='v6e:1x1',
    zone='zone-a',
    code='git+https://host/bigdl',
    python='python3',
  )


ENGINE = base.Engine(
  file='launch/tpu_vm.py',
  kind=Run,
  devices=lambda run: accelerators.parse(run.topology).devices,
  files=files,
  commands=commands,
  needs=lambda run: {'gcloud': 'it is the Google Cloud SDK'},
  plans=lambda run: run.action == 'create',
)

if __name__ == '__main__':
  sys.exit(base.main(ENGINE))
