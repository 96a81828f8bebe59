"""Trains one experiment; the same command goes on where it was stopped."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

from bigdl import config, flags


@dataclasses.dataclass(frozen=True)
class Flags:
  """Trains one experiment; the same command goes on where it was stopped.

  Exit codes: 0 finished, 1 diverged, 2 bad input or a full disk, 130 and 143
  stopped by SIGINT and SIGTERM after saving. `--help` beside `--config=FILE`
  lists that experiment's own fields.
  """

  config: str  # Experiment file, FILE or FILE:ARG.
  workdir: str  # Run folder; made where there is none.
  distributed: bool = False  # Join the other hosts of this job first.


def main(argv: list[str]) -> int:
  """Runs `bigdl train` and returns the exit code."""
  given, overrides = flags.parse(Flags, argv, verb='train', rest=_shown)
  own = [f.name for f in dataclasses.fields(Flags)]
  experiment = config.load(given.config, overrides, also=own)
  if given.distributed:
    import jax

    jax.distributed.initialize()
  return _train(experiment, given.workdir)


def _shown(given: dict[str, Any]) -> Any:
  """Returns what `--help` lists the fields of."""
  # Heavy imports wait until a message on the flags has had its chance.
  from bigdl.experiment import Experiment

  return config.load(given['config']) if 'config' in given else Experiment


def _train(experiment: Any, workdir: str) -> int:
  import jax

  from bigdl.commands import _progress, _run
  from bigdl.train import device, signals
  from bigdl.train import run as loop

  device.keep_memory()
  tree = config.to_json(experiment)
  _run.check(experiment, workdir, tree)
  if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
    device.enable_compile_cache()
  unit = f'{experiment.objective.unit}s/s'
  _run.silence_writers()
  with signals.interrupts() as stop, _progress.shown(unit) as (update, say):
    record = loop.run(
      experiment,
      workdir,
      config=tree,
      facts=_run.facts(experiment),
      on_progress=update,
      stop=stop,
      say=say,
    )
  if record['status'] == 'finished':
    print(_run.summary(record, workdir))
    return 0
  print(f'bigdl: {workdir}: {record["message"]}', file=sys.stderr)
  if record['status'] == 'diverged':
    return 1
  return 128 + stop() if stop() else 2
