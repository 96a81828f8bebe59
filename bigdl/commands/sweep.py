"""Plans a compute-matched sweep, trains it, fits the law, says how it fared."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import sys
from typing import Any

from bigdl import config, flags


@dataclasses.dataclass(frozen=True)
class Flags:
  """Plans a compute-matched sweep, trains it, fits the law, says how it fared.

  Repeated, it goes on where it was stopped; a finished sweep trains nothing.
  """

  config: str  # Experiment file with get_sweep, FILE or FILE:ARG.
  workdir: str = ''  # Sweep folder.
  dry_run: bool = False  # Print the plan and stop.


def main(argv: list[str]) -> int:
  """Runs `bigdl sweep` and returns the exit code."""
  given, _ = flags.parse(Flags, argv, verb='sweep')
  module, arg = config.load_module(given.config)
  if not hasattr(module, 'get_sweep'):
    raise ValueError(f'config={given.config} defines no get_sweep(arg)')
  plan = module.get_sweep(arg)
  from bigdl.scaling import grid

  if given.dry_run:
    print(grid.table(plan, peak=_peak(plan)))
    return 0
  if not given.workdir:
    raise ValueError('--workdir=DIR is needed, unless --dry_run')
  return _sweep(plan, pathlib.Path(given.workdir))


def _peak(plan: Any) -> float | None:
  from bigdl.commands import _run

  return _run.facts(plan[0].experiment)['peak_flops'] if len(plan) else None


def _sweep(plan: Any, folder: pathlib.Path) -> int:
  import jax

  from bigdl.commands import _progress, _run
  from bigdl.scaling import fit, grid, records, summary
  from bigdl.train import device, signals
  from bigdl.train import run as loop

  _claim(folder, grid.to_plan(plan))
  if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
    device.enable_compile_cache()
  _run.silence_writers()
  with signals.interrupts() as stop:
    for number, cell in enumerate(plan, 1):
      unit = f'{cell.experiment.objective.unit}s/s'
      print(f'cell {number} of {len(plan)}: {cell.name}', file=sys.stderr)
      with _progress.shown(unit) as (update, say):
        record = loop.run(
          cell.experiment,
          folder / 'cells' / cell.name,
          config=config.to_json(cell.experiment),
          facts=_run.facts(cell.experiment, budget=cell.budget),
          on_progress=update,
          stop=stop,
          say=say,
        )
      if record['status'] == 'interrupted':
        print(f'bigdl: {cell.name}: {record["message"]}', file=sys.stderr)
        return 128 + stop() if stop() else 2
  law = fit.fit(records.load(folder))
  _write(folder / 'law.json', json.dumps(law, sort_keys=True, indent=1))
  print(summary.text(law))
  return 3 if law['approaches'][law['primary']]['refused'] else 0


def _claim(folder: pathlib.Path, plan: dict) -> None:
  """Writes the plan; refuses a folder that holds another."""
  file = folder / 'plan.json'
  if file.exists():
    if json.loads(file.read_text())['hash'] != plan['hash']:
      raise ValueError(f'workdir={folder} holds another sweep: {file} differs')
    return
  folder.mkdir(parents=True, exist_ok=True)
  _write(file, json.dumps(plan, indent=1))


def _write(file: pathlib.Path, text: str) -> None:
  made = file.with_name(f'.{file.name}.new')
  made.write_text(text + '\n')
  os.replace(made, file)
