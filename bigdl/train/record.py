"""What a run folder says of itself: config, provenance, record, lock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import datetime
import fcntl
import importlib.metadata
import json
import logging
import pathlib
import platform
import subprocess
from typing import Any, Protocol

import jax

from bigdl import storage
from bigdl.experiment import Experiment
from bigdl.parallel import pipeline
from bigdl.train import lease

Say = Callable[[str], None]
_warn = logging.getLogger(__name__).warning
# What may change between two starts of one run: it moves no number, `guard` none
# of a run that goes well.
FREE = ('checkpoints', 'guard', 'layout', 'logs')
PACKAGES = (
  'bigdl',
  'jax',
  'jaxlib',
  'flax',
  'optax',
  'orbax-checkpoint',
  'numpy',
)
Busy = lease.Busy


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes the file whole or not at all; the caller holds the lock."""
  storage.write(path, json.dumps(value, indent=2) + '\n')


def read_json(path: pathlib.Path) -> Any:
  """Returns the content of the file, or None where there is none.

  A loss of power can leave a file empty, or filled with zeros.

  Raises:
    ValueError: It is not JSON.
  """
  text = storage.read(path)
  if text is None or not text.strip('\0 \n'):
    return None
  try:
    return json.loads(text)
  except json.JSONDecodeError as error:
    raise ValueError(f'{path} is not JSON: {error}') from error


class Held(Protocol):
  """A run folder that is this process's own."""

  def check(self) -> None:
    """Raises Busy where it is not any more."""


class _Always:
  """The system frees a file lock when its holder dies, and not before."""

  def check(self) -> None:
    pass


@contextlib.contextmanager
def locked(workdir: pathlib.Path, say: Say = _warn) -> Iterator[Held]:
  """Holds a run folder, or raises Busy where a process has it.

  On a disk it locks the file `workdir/lock`; an object store has a lease. Where
  the file system has no locks, as Lustre mounted without `flock`, one line says
  so and the run goes on: in a sweep the claims keep others out.

  Args:
    workdir: The folder; made where there is none.
    say: Takes one line where it has to wait for a sign of life, or cannot lock.

  Raises:
    Busy: A process that lives holds it.
  """
  if storage.is_remote(workdir):
    with lease.held(workdir, say) as mine:
      yield mine
    return
  workdir.mkdir(parents=True, exist_ok=True)
  with open(workdir / 'lock', 'a') as file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      raise Busy(f'{workdir} is being trained already') from error
    except OSError as error:
      say(
        f'{workdir} cannot be locked ({error.strerror}); see that no other process'
        ' trains in it'
      )
    yield _Always()


def check_config(workdir: pathlib.Path, config: dict) -> None:
  """Raises ValueError where the folder holds another experiment."""
  config = json.loads(json.dumps(config))
  before = read_json(workdir / 'config.json')
  if before is None:
    if (workdir / 'checkpoints').exists():
      raise ValueError(f'{workdir} has checkpoints but no config.json')
    return
  here, there = _flat(config), _flat(before)
  lines = [
    f'{name}: {_show(here, name)} here, {_show(there, name)} in the folder'
    for name in sorted(here.keys() | there.keys())
    if name.split('.')[0] not in FREE and here.get(name) != there.get(name)
  ]
  if lines:
    raise ValueError(f'{workdir} holds another experiment: {"; ".join(lines)}')


def _flat(value: Any, prefix: str = '') -> dict[str, Any]:
  if not isinstance(value, dict | list) or not value:
    return {prefix: value}
  items = value.items() if isinstance(value, dict) else enumerate(value)
  flat: dict[str, Any] = {}
  for name, child in items:
    flat |= _flat(child, f'{prefix}.{name}' if prefix else str(name))
  return flat


def _show(flat: dict[str, Any], name: str) -> str:
  return json.dumps(flat[name]) if name in flat else 'absent'


def write_config(folder: pathlib.Path, config: dict) -> None:
  """Writes `config.json`, by which the folder is known from now on."""
  if jax.process_index() == 0:
    write_json(folder / 'config.json', config)


def write_provenance(
  folder: pathlib.Path,
  experiment: Experiment,
  device: dict,
  step: int,
  start: dict | None = None,
) -> None:
  """Writes who made the numbers: code, versions, device, data, seed, time.

  A run that goes on adds itself to what is there.

  Args:
    folder: The run folder.
    experiment: What is trained.
    device: What `device.describe` says.
    step: From where on.
    start: Of the weights that step 0 has, what is known.

  Raises:
    ValueError: The data is not what the run was started on.
  """
  held_out = experiment.evaluation.data
  now: dict[str, Any] = {
    'commit': _commit(),
    'versions': {
      'python': platform.python_version(),
      **{name: _version(name) for name in PACKAGES},
    },
    'device': device,
    'data': experiment.data.fingerprint(),
    'held_out': held_out.fingerprint() if held_out is not None else None,
    'seed': experiment.seed,
    **({'start': start} if start else {}),
    **_pipeline(experiment, device),
    'time': datetime.datetime.now(datetime.UTC).isoformat(),
  }
  path = folder / 'provenance.json'
  first = read_json(path)
  if first is None or not step:
    value = now
  else:
    for name in ('data', 'held_out'):
      if first[name] != now[name]:
        raise ValueError(
          f'{folder} was trained on other data: {name} fingerprint'
          f' {now[name]} here, {first[name]} in the folder'
        )
    again = {'step': step, **now}
    value = {**first, 'resumed': [*first.get('resumed', []), again]}
  if jax.process_index() == 0:
    write_json(path, value)


def _pipeline(experiment: Experiment, device: dict) -> dict:
  """Returns the schedule of a pipeline, if there is one, and what it idles."""
  layout = experiment.layout
  stages = layout.sizes(device['count'])['pipeline']
  if stages == 1:
    return {}
  plan = pipeline.schedule(layout, stages)
  return {'pipeline': {**dataclasses.asdict(plan), 'bubble': plan.bubble}}


def _commit() -> str | None:
  """Returns the commit of this code, `+` where files differ from it."""
  folder = pathlib.Path(__file__).parent
  try:
    git = ['git', '-C', str(folder)]
    commit = subprocess.check_output(
      [*git, 'rev-parse', 'HEAD'], text=True, stderr=subprocess.DEVNULL
    )
    dirty = subprocess.check_output(
      [*git, 'status', '--porcelain', '--untracked-files=no'],
      stderr=subprocess.DEVNULL,
    )
  except (OSError, subprocess.CalledProcessError):
    return None
  return commit.strip() + ('+' if dirty else '')


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None
