"""Trains a sweep on a Slurm cluster: one array task, or several nodes, a worker.

Command:  python launch/slurm.py --config=experiments/quickstart.py \\
            --workdir=/shared/runs/quickstart --workers=8 --gpus=1 --time=4:00:00

A task that reaches its time limit saves, leaves, and is queued again; so is one
that dies of what Slurm knows nothing of, such as a full memory. Preempted tasks and those of lost nodes Slurm queues again itself, and
what is cancelled (`scancel`) stays so.
"""

from __future__ import annotations

import dataclasses
import re
import shlex
import sys

import base

SCRIPT = 'slurm.sh'
# Of sbatch's own forms of a time limit: minutes, h:mm:ss, days-hours …
_TIME = re.compile(r'\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}')


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(base.Run):
  """Submits one array job; each of its tasks is a worker.

  Run it where `sbatch` is; workdir, code and Python must be the same paths on
  all nodes. Start it again at any time, to add workers. What is left over of
  the flags sets fields of the experiment.
  """

  nodes: int = 1  # Of one worker, which trains a cell over all of them.
  gpus: int = 0  # A node; over several nodes each has its own process.
  cpus: int = 0  # A process; 0 leaves it to the cluster.
  memory: str = ''  # A node, such as 64G; '' leaves it to the cluster.
  time: str = '24:00:00'  # Limit after which a worker is queued again.
  grace: int = 120  # Seconds before the limit at which it begins to save.
  restarts: int = 100  # Most times that a task is queued again.
  partition: str = ''
  account: str = ''
  qos: str = ''
  options: tuple[
    str, ...
  ] = ()  # More of sbatch's: --options=--exclusive,--nice=10.
  setup: str = ''  # Shell line before the worker: module load cuda …
  chdir: str = ''  # Folder to run in; '' is this one.

  def __post_init__(self):
    super().__post_init__()
    for field in ('nodes', 'gpus', 'cpus', 'grace', 'restarts'):
      least = 1 if field in ('nodes', 'grace') else 0
      if getattr(self, field) < least:
        raise ValueError(
          f'{field}={getattr(self, field)} must be {least} or more'
        )
    if not _TIME.fullmatch(self.time):
      raise ValueError(
        f'time={self.time!r} must be minutes, hours:minutes:seconds or'
        ' days-hours'
      )
    for option in self.options:
      if not option.startswith('--'):
        raise ValueError(f'options={option!r} must begin with --')

  @property
  def processes(self) -> int:
    """Processes a node: under Slurm, JAX gives each process one device."""
    return max(1, self.gpus) if self.nodes > 1 else 1


def command(run: Run) -> list[str]:
  """Returns the command that submits the job."""
  return ['sbatch', f'{run.folder}/{SCRIPT}']


def files(run: Run) -> dict[str, str]:
  """Returns the batch script."""
  return {SCRIPT: '\n'.join([*_header(run), '', *_body(run), ''])}


def _header(run: Run) -> list[str]:
  given = {
    'partition': run.partition,
    'account': run.account,
    'qos': run.qos,
    'gpus-per-node': run.gpus or '',
    'cpus-per-task': run.cpus or '',
    'mem': run.memory,
    'chdir': run.chdir,
  }
  options = [
    f'--job-name={run.job}',
    f'--array=0-{run.workers - 1}',
    f'--nodes={run.nodes}',
    f'--ntasks-per-node={run.processes}',
    f'--time={run.time}',
    # B: to this script, which knows what the signal is for.
    f'--signal=B:USR1@{run.grace}',
    '--requeue',
    '--open-mode=append',
    f'--output={run.folder}/%x-%A_%a.log',
    *(f'--{key}={value}' for key, value in given.items() if value),
    *run.options,
  ]
  return ['#!/bin/bash', *(f'#SBATCH {_quote(option)}' for option in options)]


def _quote(option: str) -> str:
  """Returns an option as sbatch reads it from a script."""
  name, equals, value = option.partition('=')
  return f'{name}="{value}"' if ' ' in value else f'{name}{equals}{value}'


def _body(run: Run) -> list[str]:
  several = run.nodes > 1
  step = ['srun']
  if run.cpus:
    # Since Slurm 22.05 srun does not take it over from sbatch.
    step.append(f'--cpus-per-task={run.cpus}')
  if several:
    step.append('--kill-on-bad-exit=1')
  step += base.work(run, *(['--distributed'] if several else []))
  return [
    *([run.setup] if run.setup else []),
    '# The last task has the number of the whole array for its SLURM_JOB_ID.',
    'task="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"',
    '# Near the time limit Slurm sends USR1, to this shell alone. The worker is',
    '# then told to save and leave: all processes of all steps get TERM.',
    'trap \'told=1; scancel --signal=TERM "$task"\' USR1',
    '# Preempted or cancelled: the steps have had TERM too, wait for them.',
    'trap told=1 TERM',
    f'{shlex.join(step)} &',
    'step=$! code=127 told=1',
    '# A signal interrupts `wait`; 127 is of a step that it has told of before.',
    'while [ "$told" ]; do',
    '  told=',
    '  wait "$step"',
    '  got=$?',
    '  [ "$got" -eq 127 ] || code=$got',
    'done',
    '# 0: nothing is left to do. 2: bad input, which starting again would not',
    '# help. Else it was told to leave, or died. What was cancelled stays so.',
    'if [ "$code" -ne 0 ] && [ "$code" -ne 2 ] &&',
    f'  [ "${{SLURM_RESTART_COUNT:-0}}" -lt {run.restarts} ]; then',
    '  scontrol requeue Incomplete "$task"',
    'fi',
    'exit "$code"',
  ]


def tiny() -> Run:
  """Returns the smallest run: one worker on one node."""
  return Run(workdir='/shared/sweep', python='python3')


ENGINE = base.Engine(
  file='launch/slurm.py',
  kind=Run,
  devices=lambda run: run.nodes * max(1, run.gpus),
  files=files,
  commands=lambda run: [command(run)],
  needs=lambda run: {
    'sbatch': "run this on a login node of the cluster (Debian's package is"
    ' slurm-client)'
  },
)

if __name__ == '__main__':
  sys.exit(base.main(ENGINE))
