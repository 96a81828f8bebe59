"""Trains a sweep on this machine: workers side by side, devices shared out.

Command:  python launch/local.py --config=experiments/quickstart.py \\
            --workdir=runs/quickstart --workers=2

Each worker has cores, GPUs or TPU chips of its own and claims one cell after the
other. Ctrl-C or SIGTERM to the launcher makes all save and leave; start it again
to go on, or a second one beside it. `bigdl sweep --status=DIR` shows how it stands.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys

import base

PORT = 8476  # Of the first TPU process, as libtpu has it.
# Chips of one process, and how they lie on the board of a host.
_BOUNDS = {1: '1,1,1', 2: '1,2,1', 4: '2,2,1', 8: '2,4,1'}
_DEVICES = re.compile(r'(cpu|gpu|tpu):(\d+(?:,\d+)*)')


def found() -> str:
  """Returns what this machine has to train on, as `Run.devices` spells it."""
  chips = len([*pathlib.Path('/dev').glob('accel[0-9]*')])
  chips = chips or len([*pathlib.Path('/dev/vfio').glob('[0-9]*')])
  gpus = _gpus()
  # A disk of a virtual machine may go through vfio as well.
  if chips and not gpus:
    return f'tpu:{_numbers(range(chips))}'
  if gpus:
    return f'gpu:{_numbers(gpus)}'
  if hasattr(os, 'sched_getaffinity'):
    return f'cpu:{_numbers(sorted(os.sched_getaffinity(0)))}'
  return f'cpu:{_numbers(range(os.cpu_count() or 1))}'


def _gpus() -> list[int]:
  given = os.environ.get('CUDA_VISIBLE_DEVICES')
  if given is not None:
    return [int(n) for n in given.split(',') if n.isdigit()]
  if shutil.which('nvidia-smi') is None:
    return []
  listed = subprocess.run(
    ['nvidia-smi', '-L'], capture_output=True, text=True, check=False
  )
  return list(range(listed.stdout.count('GPU ')))


def _numbers(values) -> str:
  return ','.join(map(str, values))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(base.Run):
  """Starts workers on this machine and waits for them.

  What is left over of the flags sets fields of the experiment.
  """

  # To share out: cpu:0,1 (cores), gpu:0,1,2,3 or tpu:0,1,2,3; found by itself.
  devices: str = dataclasses.field(default_factory=found)

  def __post_init__(self):
    super().__post_init__()
    if not _DEVICES.fullmatch(self.devices):
      raise ValueError(
        f'devices={self.devices!r} must be cpu:, gpu: or tpu: and numbers, as'
        ' gpu:0,1,2,3'
      )
    numbers = self.numbers
    if len(set(numbers)) < len(numbers):
      raise ValueError(f'devices={self.devices} names a device twice')
    if len(numbers) < self.workers:
      raise ValueError(
        f'workers={self.workers} need a device each, and there are'
        f' {len(numbers)}: {self.devices}'
      )
    if self.kind != 'cpu' and len(numbers) % self.workers:
      raise ValueError(
        f'workers={self.workers} must divide the {len(numbers)} devices of'
        f' {self.devices}'
      )
    if self.kind == 'tpu' and len(numbers) // self.workers not in _BOUNDS:
      raise ValueError(
        f'workers={self.workers} have {len(numbers) // self.workers} chips each'
        f' of {self.devices}, which must be {_numbers(_BOUNDS)}'
      )

  @property
  def kind(self) -> str:
    return self.devices.partition(':')[0]

  @property
  def numbers(self) -> list[int]:
    return [int(n) for n in self.devices.partition(':')[2].split(',')]

  def share(self, worker: int) -> list[int]:
    """Returns the devices of one worker, as even as can be, neighbours."""
    least, more = divmod(len(self.numbers), self.workers)
    first = worker * least + min(worker, more)
    return self.numbers[first : first + least + (worker < more)]


def command(run: Run, worker: int = 0) -> list[str]:
  """Returns the command of one worker, with the devices that are its own."""
  own = run.share(worker)
  if run.kind == 'cpu':
    cores = f'--cores={_numbers(own)}'
    return ['env', 'JAX_PLATFORMS=cpu', *base.work(run, cores)]
  settings: dict[str, Callable[[], dict[str, str]]] = {
    'gpu': lambda: {'CUDA_VISIBLE_DEVICES': _numbers(own)},
    'tpu': lambda: _tpu(own, worker),
  }
  given = [f'{k}={v}' for k, v in settings[run.kind]().items()]
  return ['env', *given, *base.work(run)]


def devices_of(run: Run) -> int:
  """Returns the devices of one worker: a CPU is one, or as many as XLA's flag."""
  if run.kind != 'cpu':
    return len(run.share(0))
  asked = re.search(
    r'host_platform_device_count=(\d+)', os.environ.get('XLA_FLAGS', '')
  )
  return int(asked[1]) if asked else 1


def _tpu(chips: list[int], worker: int) -> dict[str, str]:
  """Returns how libtpu is told that a process has some chips to itself.

  As JAX's own tests of several processes do (jax/_src/test_multiprocess.py).
  """
  port = PORT + worker
  return {
    'TPU_VISIBLE_CHIPS': _numbers(chips),
    'TPU_CHIPS_PER_PROCESS_BOUNDS': _BOUNDS[len(chips)],
    'TPU_PROCESS_BOUNDS': '1,1,1',
    'TPU_PROCESS_ADDRESSES': f'localhost:{port}',
    'TPU_PROCESS_PORT': str(port),
    'CLOUD_TPU_TASK_ID': '0',
    'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  }


def start(run: Run) -> int:
  """Starts the workers, waits for them, and returns the worst exit code.

  A signal makes all of them save and leave.
  """
  folder = pathlib.Path(run.folder)
  folder.mkdir(parents=True, exist_ok=True)
  workers: list[subprocess.Popen] = []
  stopped = False

  def pass_on(*_) -> None:
    nonlocal stopped
    stopped = True
    for worker in workers:
      worker.terminate()

  for kind in (signal.SIGINT, signal.SIGTERM):
    signal.signal(kind, pass_on)
  for number in range(run.workers):
    if stopped:
      break
    with open(folder / f'worker-{number}.log', 'ab') as log:
      # In a session of its own: Ctrl-C is for this process, which passes it on.
      workers.append(
        subprocess.Popen(
          command(run, number),
          stdout=log,
          stderr=log,
          start_new_session=True,
        )
      )
  print(
    f'{len(workers)} workers; their logs: {folder}/worker-*.log', flush=True
  )
  codes = [worker.wait() for worker in workers]
  for number, code in enumerate(codes):
    if code:
      # A signal that was not caught has no exit code of its own.
      how = signal.Signals(-code).name if code < 0 else f'exit code {code}'
      print(f'bigdl: worker {number}: {how}', file=sys.stderr)
  return max((code if code >= 0 else 128 - code for code in codes), default=143)


def tiny() -> Run:
  """Returns the smallest run: one worker on one core."""
  return Run(workdir='/runs/sweep', python='python3', devices='cpu:0')


ENGINE = base.Engine(
  file='launch/local.py',
  kind=Run,
  files=lambda run: {},
  commands=lambda run: [command(run, i) for i in range(run.workers)],
  needs=lambda run: {},
  devices=devices_of,
  submit=start,
)

if __name__ == '__main__':
  sys.exit(base.main(ENGINE))
