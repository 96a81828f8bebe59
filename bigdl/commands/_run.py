"""What every verb that trains does before a run and says after it."""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

from bigdl import storage
from bigdl.experiment import Experiment
from bigdl.scaling import count, peak
from bigdl.train import program, record


def check(experiment: Experiment, workdir: str, config: dict) -> None:
  """Raises ValueError for whatever can be known before anything is compiled.

  Nothing is written.
  """
  # The cheap ones first: the data may take a while to open.
  program.Program(experiment, experiment.layout.mesh())
  folder = storage.folder(workdir)
  storage.check(workdir)
  for path in () if storage.is_remote(workdir) else (folder, *folder.parents):
    if path.exists():
      if not path.is_dir():
        raise ValueError(f'workdir={workdir}: {path} is not a folder')
      if not os.access(path, os.W_OK):
        raise ValueError(f'workdir={workdir}: {path} cannot be written')
      break
  record.check_config(folder, config)
  experiment.check()


def facts(
  experiment: Experiment, *, budget: float | None = None
) -> dict[str, Any]:
  """Returns what a run's record says beyond what the loop knows.

  Parameters and FLOPs per unit by convention, the peak FLOP/s of the devices
  the layout takes, and the compute budget where the run has one.
  """
  e, spec = experiment, experiment.data.spec()
  return {
    'params': count.params(e.model, e.objective, spec),
    'flops_per_unit': count.flops_per_unit(e.model, e.objective, spec),
    'budget': budget,
    **peak_facts(e),
  }


def peak_facts(experiment: Experiment) -> dict[str, Any]:
  """Returns peak FLOP/s of the devices that the layout takes, and a note."""
  mesh = experiment.layout.mesh()
  device = mesh.devices.flat[0]
  dtype = getattr(experiment.model, 'dtype', 'float32')
  most = peak.peak_flops(
    device.device_kind,
    device.platform,
    dtype if isinstance(dtype, str) else 'float32',
    mesh.size,
  )
  return {'peak_flops': most.flops, 'peak_note': most.note}


def silence_writers() -> None:
  """Keeps what a full disk leaves behind from printing, until the process ends.

  Orbax closes its event loop at the first write that fails; TensorStore's
  threads print that they found it closed, asyncio that nobody asked for their
  errors. The one error that matters is raised all the same.
  """
  logging.getLogger('asyncio').setLevel(logging.CRITICAL)
  before = sys.excepthook

  def drop_closed_loop(kind, error, trace):
    if str(error) != 'Event loop is closed':
      before(kind, error, trace)

  if before.__name__ != drop_closed_loop.__name__:
    sys.excepthook = drop_closed_loop


def summary(record: dict[str, Any], workdir: str) -> str:
  """Returns a run's record as lines for a person."""
  unit = record['unit']
  lines = [
    f'{record["status"]} at step {record["step"]:,} of {record["steps"]:,}, '
    f'{record["seconds"]:.1f} s on {record["device"]}'
  ]
  if record['loss'] is not None:
    loss = f'held-out loss  {record["loss"]:.4f}'
    if record['loss_se'] is not None:
      loss += f' ± {record["loss_se"]:.4f}'
    loss += f' nats per {unit}'
    if record['bits_per_byte'] is not None:
      loss += f', {record["bits_per_byte"]:.4f} bits per byte'
    lines.append(loss)
    for name, value in (record.get('measures') or {}).items():
      error = record['measures'].get(f'{name}_se')
      if error is not None:
        lines.append(f'held-out {name:<5} {value:.4f} ± {error:.4f}')
  elif record['train_loss'] is not None:
    lines.append(f'train loss     {record["train_loss"]:.4f} nats per {unit}')
  counts = record['params']
  if counts:
    lines.append(
      'N              '
      + ', '.join(f'{v:,} {k}' for k, v in counts.items())
      + ' parameters'
    )
  lines.append(f'D              {record["units"]:,} {unit}s')
  known = {k: v for k, v in record['flops'].items() if v}
  if known:
    lines.append(
      'FLOPs          ' + ', '.join(f'{v:.3e} {k}' for k, v in known.items())
    )
  if record.get('tokens_per_second'):
    speed = f'speed          {record["tokens_per_second"]:,.0f} {unit}s/s'
    if record.get('mfu'):
      speed += f', MFU {record["mfu"]:.1%} ({record["mfu_flops"]})'
    lines.append(speed)
  parts = record.get('goodput_parts')
  if parts:
    lines.append('goodput        ' + _goodput(record, parts))
  lines.append(f'folder         {workdir}')
  return '\n'.join(lines)


def _goodput(record: dict[str, Any], parts: dict[str, float]) -> str:
  """Returns the share of time that trained, and where most of the rest went."""
  wall, starts = sum(parts.values()), record.get('starts', 1)
  lost = sorted(
    ((seconds, part) for part, seconds in parts.items() if part != 'train'),
    reverse=True,
  )
  most = ', '.join(
    f'{part} {seconds / wall:.1%}'
    for seconds, part in lost[:3]
    if seconds >= 0.001 * wall
  )
  text = f'{record["goodput"]:.1%} of {wall:.1f} s'
  text += f' over {starts} starts' if starts > 1 else ''
  return text + (f' ({most})' if most else '')
