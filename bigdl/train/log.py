"""Metrics of a run: `metrics.jsonl` always, other places where asked."""

from __future__ import annotations

from collections.abc import Callable
import errno
import importlib
import io
import json
import os
import pathlib
from typing import Any

from bigdl import storage
from bigdl.experiment import Logs
from bigdl.train import mirror

Sink = Callable[[int, dict[str, float]], None]
FILE = 'metrics.jsonl'


def read(workdir: str | os.PathLike) -> list[dict[str, Any]]:
  """Returns the whole lines of `metrics.jsonl`, [] where there is none.

  Lines at the end that are no records are dropped: a killed writer leaves half
  of one, a loss of power whatever was in those blocks.

  Raises:
    ValueError: Records follow a line that is none.
  """
  path = storage.folder(workdir) / FILE
  text = storage.read_bytes(path) or b''
  records: list[dict[str, Any]] = []
  torn = 0
  lines = text[: text.rfind(b'\n') + 1].split(b'\n')[:-1]
  for number, line in enumerate(lines, 1):
    record = _record(line)
    if record is None:
      torn = torn or number
    elif torn:
      raise ValueError(
        f'{path}, line {torn} is no record, though line {number} is one; remove'
        ' the lines that are damaged'
      )
    else:
      records.append(record)
  return records


def _record(line: bytes) -> dict[str, Any] | None:
  try:
    value = json.loads(line)
  except ValueError:
    return None
  return value if isinstance(value, dict) else None


class Log:
  """Appends records to `metrics.jsonl` and to the places in `logs`.

  Opening drops what was written after `step`, the checkpoint that the run goes
  on from, so that the file has each record once. A record is one `write` to
  the system: it survives a kill of the process. An object store gets the file
  whole now and then, and at every `flush`.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    logs: Logs,
    *,
    step: int,
    config: dict,
    primary: bool = True,
  ):
    self.records = [r for r in read(workdir) if r['step'] <= step]
    self._file: io.FileIO | None = None
    self._mirror: mirror.Mirror | None = None
    self._sinks: list[Sink] = []
    self._closers: list[Callable[[], None]] = []
    # One host of many writes.
    if not primary:
      return
    self._mirror = mirror.Mirror(workdir)
    here = self._mirror.folder
    for wanted, build in (
      (logs.tensorboard, _tensorboard),
      (logs.wandb, _wandb),
      (logs.mlflow, _mlflow),
    ):
      if wanted:
        sink, close = build(workdir, here, wanted, step, config)
        self._sinks.append(sink)
        self._closers.append(close)

    path = here / FILE
    storage.write(path, ''.join(map(_line, self.records)))
    # Unbuffered: a record that is written is the system's to keep.
    self._file = open(path, 'ab', buffering=0)  # noqa: SIM115
    self._mirror.start()

  def __enter__(self) -> Log:
    return self

  def __exit__(self, *_) -> None:
    if self._file is not None:
      self._file.close()
    for close in self._closers:
      close()
    if self._mirror is not None:
      self._mirror.close()

  def flush(self) -> None:
    """Returns once all records are where the run folder is."""
    if self._mirror is not None:
      self._mirror.flush()

  def write(self, record: dict[str, Any]) -> None:
    """Adds one record; it must have a `step`."""
    self.records.append(record)
    if self._file is not None:
      line = _line(record).encode()
      if self._file.write(line) < len(line):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for sink in self._sinks:
      sink(record['step'], _numbers(record))


def _numbers(record: dict[str, Any]) -> dict[str, float]:
  return {k: v for k, v in record.items() if k != 'step' and v is not None}


def _line(record: dict[str, Any]) -> str:
  return json.dumps(record) + '\n'


def check(logs: Logs) -> None:
  """Raises ValueError where a package that the logs ask for is missing."""
  if logs.tensorboard:
    _need('tensorboardX', 'tensorboard', 'tensorboardX')
  if logs.wandb:
    _need('wandb', 'wandb', 'bigdl[wandb]')
  if logs.mlflow:
    _need('mlflow', 'mlflow', 'bigdl[mlflow]')


def _need(module: str, field: str, extra: str) -> Any:
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise ValueError(
      f'logs.{field} needs the package {module}: pip install {extra}'
    ) from error


def _tensorboard(workdir, here, _, step, config):
  del config
  tensorboard = _need('tensorboardX', 'tensorboard', 'tensorboardX')
  # What an earlier start wrote is hidden and written again: a kill may have
  # cost it the events of its last two minutes. Two starts within a second
  # would share a file, were it not for the suffix.
  writer = tensorboard.SummaryWriter(
    str(here / 'tensorboard'), purge_step=0, filename_suffix=f'.{step}'
  )

  def sink(step, numbers):
    for name, value in numbers.items():
      writer.add_scalar(name, value, step)

  for record in read(workdir):
    if record['step'] <= step:
      sink(record['step'], _numbers(record))
  return sink, writer.close


def _wandb(workdir, here, project, step, config):
  del step
  wandb = _need('wandb', 'wandb', 'bigdl[wandb]')
  # A run that is started again goes on under its id.
  path = workdir / 'wandb_id'
  identity = storage.read(path) or os.urandom(8).hex()
  storage.write(path, identity)
  run = wandb.init(
    project=project,
    name=workdir.name,
    id=identity,
    dir=str(here),
    config=config,
    resume='allow',
  )
  return (lambda step, numbers: run.log(numbers, step=step)), run.finish


def _mlflow(workdir, here, experiment, step, config):
  del here, step
  mlflow = _need('mlflow', 'mlflow', 'bigdl[mlflow]')
  client = mlflow.MlflowClient()
  path = workdir / 'mlflow_id'
  run_id = storage.read(path)
  if run_id is None:
    found = client.get_experiment_by_name(experiment)
    number = (
      found.experiment_id if found else client.create_experiment(experiment)
    )
    run = client.create_run(number, run_name=workdir.name)
    client.log_dict(run.info.run_id, config, 'config.json')
    run_id = run.info.run_id
    storage.write(path, run_id)

  def sink(step, numbers):
    for name, value in numbers.items():
      client.log_metric(run_id, name, value, step=step)

  return sink, lambda: client.set_terminated(run_id)
