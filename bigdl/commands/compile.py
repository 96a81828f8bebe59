"""Compiles a run for machines that are not here: does it fit, how fast is it?"""

from __future__ import annotations

import dataclasses
from typing import Any

from bigdl import config, flags


@dataclasses.dataclass(frozen=True)
class Flags:
  """Compiles a run for machines that are not here: does it fit, how fast is it?

  The update is compiled as training would compile it, by the compiler of those
  machines; nothing is run. For TPUs that takes `pip install 'bigdl[pods]'`, for
  GPUs `bigdl[cuda12]`. Times are estimates, whose assumptions are printed.

  Topologies: v4:8x8x8, v5e:16x16*2 (two slices), h100:1x64x8 (64 hosts of 8);
  an experiment file may have its own, which `get_topology(arg)` returns.
  Exit codes: 0 it fits, 2 bad input or a state that this topology cannot hold
  however it is split, 3 it does not fit as it is.
  """

  config: str  # Experiment file, FILE or FILE:ARG.
  topology: str = ''  # GENERATION:SHAPE, in chips; '': the file's own.
  full: bool = False  # Write code too: exact peak, the compiler's own cycles.
  search: bool = False  # Try layouts, remat and batch sizes; print a table.
  json: str = ''  # File to write the result to.
  timeout: float = 600.0  # Seconds for one compilation.


def main(argv: list[str]) -> int:
  """Runs `bigdl compile` and returns the exit code."""
  given, overrides = flags.parse(Flags, argv, verb='compile', rest=_shown)
  from bigdl.parallel import topology

  slices = topology.parse(given.topology or _own(given.config))
  if not given.timeout > 0:
    raise ValueError(f'timeout={given.timeout} must be positive')
  own = [f.name for f in dataclasses.fields(Flags)]
  experiment = config.load(given.config, overrides, also=own)
  from bigdl.commands import _fit

  case = _fit.case(experiment, slices)
  if given.search:
    from bigdl.commands import _search

    return _search.main(case, timeout=given.timeout, path=given.json)
  return _one(case, given)


def _own(spec: str) -> str:
  """Returns the topology that the experiment file recommends."""
  module, arg = config.load_module(spec)
  if not hasattr(module, 'get_topology'):
    raise ValueError(
      f'--topology is required, as {spec} recommends none; see bigdl compile'
      ' --help'
    )
  return config.call(module, 'get_topology', arg)


def _shown(given: dict[str, Any]) -> Any:
  """Returns what `--help` lists the fields of."""
  from bigdl.experiment import Experiment

  return config.load(given['config']) if 'config' in given else Experiment


def _one(case: Any, given: Flags) -> int:
  from bigdl.commands import _compilation, _fit, _remedies, _waiting

  def compiled(case: Any, what: str) -> Any:
    with _waiting.shown(what) as tick:
      return _compilation.run(
        case.config,
        case.rows,
        case.topology,
        full=given.full and what == name,
        timeout=given.timeout,
        tick=tick,
      )

  name = f'compiling for {case.topology.name}'
  try:
    found = compiled(case, name)
  except _compilation.TooLarge as error:
    raise ValueError(_fit.hopeless(error, case.topology)) from None
  verdict = _fit.verdict(case, found)
  print(_fit.text(verdict))
  if given.json:
    _fit.write(verdict, given.json)
    print(f'\nwritten to {given.json}')
  if found.fits:
    return 0
  print()
  for line in _remedies.remedies(case, found, compiled):
    print(line, flush=True)
  return 3
