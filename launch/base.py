"""What launchers share: a run as a value, its checks, its dry run.

A launcher plans a sweep (`bigdl sweep --plan_only`) and asks an engine, such as
Slurm, to start workers (`bigdl work`). Which worker trains which cell is settled
among them by claims in the sweep's folder; when and where they run, and that they
are started again, by the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import contextlib
import dataclasses
import io
import math
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from typing import Any

import yaml

from bigdl import config, flags, storage
from bigdl.fleet import manifest, store
from bigdl.parallel.layout import AXES

# What engines have in common: Kubernetes allows 63, and adds to the name.
_NAME = re.compile(r'[a-z]([-a-z0-9]{0,38}[a-z0-9])?')
NAME_RULE = (
  'up to 40 lower-case letters, digits and inner hyphens, a letter first'
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
  """A sweep and the workers that are to train it; each launcher adds fields."""

  workdir: str  # Folder that all workers see: a path, gs://… or s3://….
  config: str = ''  # Experiment file, FILE or FILE:ARG; '' if it is planned.
  workers: int = 1  # Each claims cells, one by one, until none is left.
  name: str = ''  # Of the jobs; '' takes the last part of the workdir.
  dry_run: bool = False  # Print exactly what would be run; run nothing.
  overrides: tuple[str, ...] = ()  # Flags left over: fields of the experiment.
  python: str = ''  # Plans, and runs workers on this cluster; '' is this one.

  def __post_init__(self):
    if not self.workdir:
      raise ValueError('workdir= must name a folder')
    scheme, url, _ = self.workdir.partition('://')
    if url and scheme not in storage.PACKAGES:
      raise ValueError(
        f'workdir={self.workdir} must be a path, or begin with'
        f' {" or ".join(f"{s}://" for s in storage.PACKAGES)}'
      )
    if self.workers < 1:
      raise ValueError(f'workers={self.workers} must be 1 or more')
    if self.name and not _NAME.fullmatch(self.name):
      raise ValueError(f'name={self.name!r} must be {NAME_RULE}')

  def extras(self, device: str) -> str:
    """Returns what of bigdl's extras a worker needs: device and bucket."""
    scheme = self.workdir.partition('://')[0]
    return device + {'gs': ',gcs', 's3': ',s3'}.get(scheme, '')

  @property
  def job(self) -> str:
    """The name that the engine shows."""
    return self.name or slug(self.workdir)

  @property
  def folder(self) -> str:
    """Where what is handed to the engine is written."""
    if '://' in self.workdir:
      return f'runs/launched/{self.job}'
    return f'{self.workdir}/launch'

  def worker(self, number: int) -> str:
    """Returns the name of one worker, where an engine knows each by name."""
    # XPK, for one, takes no more letters in all.
    end = f'-{number}'
    return self.job[: 40 - len(end)].rstrip('-') + end


@dataclasses.dataclass(frozen=True)
class Engine:
  """A launcher: what it takes, what it writes, what it runs."""

  file: str  # Of the launcher, `launch/slurm.py`.
  kind: type[Run]
  files: Callable[[Any], Mapping[str, str]]  # Name in `Run.folder` to text.
  commands: Callable[[Any], Sequence[Sequence[str]]]
  # The programs that it runs, and how each is had.
  needs: Callable[[Any], Mapping[str, str]]
  # Devices that a worker has, which the sweep's layout is checked against; 0
  # where that is not known: as many as the layout asks for.
  devices: Callable[[Any], int] = lambda run: 0
  # Whether the sweep is planned first: not to look at one, or to end it.
  plans: Callable[[Any], bool] = lambda run: True
  # Runs the commands; None runs one after the other.
  submit: Callable[[Any], int] | None = None


def slug(workdir: str) -> str:
  """Returns a name for jobs, of the last part of a path or URL."""
  last = re.sub(r'[^a-z0-9]+', '-', workdir.rstrip('/').split('/')[-1].lower())
  name = last.strip('-')
  if not name[:1].isalpha():
    name = f'sweep-{name}'
  return name[:40].strip('-')


def plan(run: Run, devices: int = 1) -> list[str]:
  """Returns the command that plans the sweep: it writes its manifest.

  It takes no device of this machine, and believes that it has those of a
  worker, so that a layout which does not fit them is refused here.
  """
  many = f'XLA_FLAGS=--xla_force_host_platform_device_count={devices}'
  return [
    *('env', 'JAX_PLATFORMS=cpu', *([many] if devices > 1 else [])),
    *(run.python, '-m', 'bigdl', 'sweep', f'--config={run.config}'),
    *(f'--workdir={run.workdir}', '--plan_only', *run.overrides),
  ]


def work(run: Run, *more: str, python: str = '') -> list[str]:
  """Returns the command of a worker; `more` are further flags of its verb."""
  own = [python or run.python, '-m', 'bigdl', 'work']
  return [*own, f'--workdir={run.workdir}', *more]


class _Yaml(yaml.SafeDumper):
  """Writes text of several lines as it reads."""


_Yaml.add_representer(
  str,
  lambda dumper, text: dumper.represent_scalar(
    'tag:yaml.org,2002:str', text, style='|' if '\n' in text else None
  ),
)


def to_yaml(*documents: Any) -> str:
  """Returns values of dicts, lists and scalars as YAML, in their order."""
  return yaml.dump_all(documents, Dumper=_Yaml, sort_keys=False, width=1000)


def read(engine: Engine, argv: Sequence[str]) -> Run:
  """Returns the run that flags name, with what they leave open filled in.

  Raises:
    ValueError: A flag is unknown or out of range.
  """
  # The parser speaks of verbs of `bigdl`, and a launcher is none.
  verb, shown = engine.file, io.StringIO()
  wrong, right = f'bigdl {verb}', f'python {verb}'
  try:
    with contextlib.redirect_stdout(shown):
      run, left = flags.parse(engine.kind, argv, verb=verb, rest=_fields)
  except ValueError as error:
    raise ValueError(str(error).replace(wrong, right)) from error
  finally:
    print(shown.getvalue().replace(wrong, right), end='')
  if left and not run.config:
    raise ValueError(f'{left[0]}: no such flag of {verb}, and no --config')
  workdir = run.workdir
  if '://' not in workdir:
    workdir = str(pathlib.Path(workdir).absolute())
  return dataclasses.replace(
    run,
    workdir=workdir,
    python=run.python or sys.executable,
    overrides=(*run.overrides, *left),
  )


def show(engine: Engine, run: Run) -> str:
  """Returns all that a launch does: `$ COMMAND` and `==> FILE <==`."""
  parts = []
  if run.config and engine.plans(run):
    parts.append(f'$ {shlex.join(plan(run, _devices(engine, run)))}\n')
  for name, text in engine.files(run).items():
    parts.append(f'==> {run.folder}/{name} <==\n{text}')
  parts += [f'$ {shlex.join(words)}\n' for words in engine.commands(run)]
  return ''.join(parts)


def launch(engine: Engine, argv: Sequence[str]) -> int:
  """Plans, writes and submits what the flags name; returns an exit code.

  Everything is checked before anything is written.

  Raises:
    ValueError: Bad flags or experiment, or a program that is not installed.
  """
  run = read(engine, argv)
  shown = show(engine, run)
  if run.dry_run:
    if engine.plans(run):
      _check_cells(run, _count(run, _devices(engine, run)))
    print(shown, end='')
    return 0
  for program, how in engine.needs(run).items():
    if shutil.which(program) is None:
      raise ValueError(f'{program} is not installed here: {how}')
  if engine.plans(run):
    if run.config:
      words = plan(run, _devices(engine, run))
      done = subprocess.run(words, check=False)
      if done.returncode:
        return done.returncode
    _check_cells(run, len(_planned(run.workdir).cells))
  folder = store.open_folder(run.folder)
  for name, text in engine.files(run).items():
    folder.write(name, text.encode())
  if engine.submit:
    return engine.submit(run)
  code = _submit(engine.commands(run))
  if not code and engine.plans(run):
    print(
      f'{run.workers} {"worker" if run.workers == 1 else "workers"} asked for;'
      f' how they fare: bigdl sweep --status={run.workdir}'
    )
  return code


def main(engine: Engine, argv: Sequence[str] | None = None) -> int:
  """Runs a launcher: what is wrong is one line, and exit code 2."""
  try:
    return launch(engine, sys.argv[1:] if argv is None else argv)
  except (ValueError, OSError) as error:
    print(f'bigdl: {" ".join(str(error).split())}', file=sys.stderr)
    return 2
  except KeyboardInterrupt:
    print('bigdl: interrupted', file=sys.stderr)
    return 130
  except SystemExit as end:
    return end.code if isinstance(end.code, int) else 2


def _fields(given: dict[str, Any]) -> Any:
  """Returns what `--help` lists beside the launcher's own flags."""
  if 'config' in given:
    return config.load(given['config'])
  return None


def _experiment(run: Run) -> Any:
  own = [f.name for f in dataclasses.fields(run)]
  return config.load(run.config, run.overrides, also=own)


def _devices(engine: Engine, run: Run) -> int:
  known = engine.devices(run)
  if known or not run.config:
    return known or 1
  layout = _experiment(run).layout
  sizes = [getattr(layout, axis) for axis in AXES]
  return math.prod(size for size in sizes if size > 0)


def _count(run: Run, devices: int) -> int:
  """Returns the number of cells, planned in memory where they are not yet.

  Raises:
    ValueError: The layout of the sweep does not fit that many devices.
  """
  if not run.config:
    return len(_planned(run.workdir).cells)
  base = _experiment(run)
  try:
    base.layout.sizes(devices)
  except ValueError as error:
    raise ValueError(str(error).replace('there are', 'a worker has')) from error
  module, arg = config.load_module(run.config)
  return len(config.call(module, 'get_sweep', arg, given=[base]).cells)


def _planned(workdir: str) -> manifest.Manifest:
  return manifest.read(store.open_folder(workdir))


def _check_cells(run: Run, cells: int) -> None:
  if run.workers > cells:
    raise ValueError(
      f'workers={run.workers} are more than the {cells} cells of the sweep'
    )


def _submit(commands: Sequence[Sequence[str]]) -> int:
  """Runs the commands one by one; stops at the first that fails."""
  for done, words in enumerate(commands):
    sys.stdout.flush()
    code = subprocess.run(words, check=False).returncode
    if code:
      print(
        f'bigdl: {words[0]} ended with exit code {code} at command {done + 1}'
        f' of {len(commands)}: {shlex.join(words)}',
        file=sys.stderr,
      )
      return 2
  return 0
