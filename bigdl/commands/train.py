"""Trains one experiment; the same command goes on where it was stopped."""

from __future__ import annotations

import dataclasses
import signal
import sys
import time
from typing import Any

from bigdl import config, flags


@dataclasses.dataclass(frozen=True)
class Flags:
  """Trains one experiment; the same command goes on where it was stopped.

  Exit codes: 0 finished, 1 diverged, 2 bad input, a full disk or data that do
  not come, 130 and 143 stopped by SIGINT and SIGTERM after saving. `--help`
  beside `--config=FILE` lists that experiment's own fields.

  Several processes train one run together: each is started by the same command,
  with --distributed where JAX detects the cluster (Slurm, Cloud TPU,
  Kubernetes), else with --coordinator, --processes and --process. A signal to
  any of them stops them all at one step.
  """

  config: str  # Experiment file, FILE or FILE:ARG.
  workdir: str  # Run folder; made where there is none.
  distributed: bool = False  # Join the other processes of this job first.
  coordinator: str = ''  # HOST:PORT of process 0, where JAX detects none.
  processes: int = 0  # How many there are.
  process: int = -1  # Which one this is, from 0.
  join_seconds: float = 300.0  # How long to wait for the others.


def main(argv: list[str]) -> int:
  """Runs `bigdl train` and returns the exit code."""
  began = time.perf_counter()
  given, overrides = flags.parse(Flags, argv, verb='train', rest=_shown)
  own = [f.name for f in dataclasses.fields(Flags)]
  experiment = config.load(given.config, overrides, also=own)
  alone = not given.distributed and not given.coordinator
  if not alone or given.processes or given.process >= 0:
    from bigdl.commands import _join

    _join.join(
      given.coordinator, given.processes, given.process, given.join_seconds
    )
  return _train(experiment, given.workdir, began)


def _shown(given: dict[str, Any]) -> Any:
  """Returns what `--help` lists the fields of."""
  # Heavy imports wait until a message on the flags has had its chance.
  from bigdl.experiment import Experiment

  return config.load(given['config']) if 'config' in given else Experiment


def _train(experiment: Any, workdir: str, began: float) -> int:
  import jax

  from bigdl.commands import _join, _progress, _run
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
    with _join.leaving():
      record = loop.run(
        experiment,
        workdir,
        config=tree,
        facts=_run.facts(experiment),
        on_progress=update,
        stop=stop,
        say=say,
        began=began,
      )
  return _end(record, workdir, first=jax.process_index() == 0)


def _end(record: dict[str, Any], workdir: str, *, first: bool) -> int:
  """Says how the run ended, on the first process, and returns the exit code."""
  from bigdl.commands import _run

  if record['status'] == 'finished':
    if first:
      print(_run.summary(record, workdir))
    return 0
  if first:
    print(f'bigdl: {workdir}: {record["message"]}', file=sys.stderr)
  if record['status'] == 'diverged':
    return 1
  # The same on all processes, whichever the signal came to.
  name = record.get('stopped_by') or ''
  return 128 + signal.Signals[name] if name.startswith('SIG') else 2
