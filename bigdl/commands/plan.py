"""Plans a run at a compute budget: N, D, batch, learning rate and hours."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from bigdl import flags


@dataclasses.dataclass(frozen=True)
class Flags:
  """Plans a run at a compute budget: N, D, batch, learning rate and hours.

  N and D are the law's optimum; batch and learning rate follow a published
  rule, or the one that the sweep's own cells follow.
  """

  law: str  # law.json, or the sweep folder that holds it.
  compute: tuple[float, ...]  # FLOPs, one or more budgets.
  approach: str = ''  # envelope, isoflop or parametric; '' is the headline.
  device: str = 'h100'  # Kind of GPU or TPU, such as a100, h200 or v5p.
  devices: int = 1  # How many share the run.
  mfu: float = 0.4  # Share of their peak that training is expected to reach.
  rule: str = 'auto'  # Of batch and rate: sweep, step_law or auto.
  json: str = ''  # File to write the plan to.


def main(argv: list[str]) -> int:
  """Runs `bigdl plan` and returns the exit code."""
  given, _ = flags.parse(Flags, argv, verb='plan', positional=('law',))
  from bigdl.scaling import budget, fit

  path = _path(given.law)
  body = _read(path)
  plan = budget.plan(
    body,
    given.compute,
    approach=given.approach,
    peak=_peak(given.device),
    device=given.device,
    devices=given.devices,
    mfu=given.mfu,
    rule=given.rule,
    cells=_cells(path.parent),
  )
  print(budget.text(plan), end='')
  if given.json:
    fit.save(plan, given.json)
    print(f'\nwritten to {given.json}')
  return 0


def _path(text: str) -> Path:
  path = Path(text)
  path = path / 'law.json' if path.is_dir() else path
  if not path.is_file():
    raise ValueError(
      f'{path} is not there: `bigdl law SWEEP` writes it for a finished sweep'
    )
  return path


def _read(path: Path) -> dict[str, Any]:
  try:
    body = json.loads(path.read_text())
  except (OSError, ValueError) as error:
    raise ValueError(f'{path} cannot be read as JSON: {error}') from None
  if not isinstance(body, dict) or 'approaches' not in body:
    raise ValueError(f'{path} must be a law that `bigdl law` wrote')
  return body


def _cells(folder: Path) -> list[dict[str, Any]]:
  """Returns the cells of the sweep's plan, where the law lies beside one."""
  file = folder / 'plan.json'
  if not file.is_file():
    return []
  try:
    return list(json.loads(file.read_text())['cells'])
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise ValueError(f'{file} cannot be read as a plan: {error}') from None


def _peak(device: str) -> float:
  from bigdl.scaling import peak

  for platform in ('gpu', 'tpu'):
    found = peak.peak_flops(device, platform)
    if found.flops:
      return found.flops
  raise ValueError(
    f'device={device!r} has no known peak; name a GPU or TPU such as a100,'
    ' h100, b200, v5e or v5p'
  )
