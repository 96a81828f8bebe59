"""Compiles an experiment for another machine, in a process that is ended early.

The compiler of TPUs writes down what a program will do, its memory included,
long before it is done: what remains, code for each kernel, is most of the time.
So the process that compiles is ended once that is written, unless asked not to
be. A program that does not fit is refused by the compiler before that point.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from typing import Any

from bigdl.commands import _lower
from bigdl.compiling import traffic
from bigdl.parallel.topology import Topology

SECONDS_BETWEEN_LOOKS = 0.05
# What the compiler writes last before it begins with code for kernels.
_PROGRAM = '*jit_step*after_optimizations_after_buffer_assignment.txt'
_CODE = '*jit_step*after_codegen.txt'
_REPORT = '*jit_step*memory-usage-report.txt'
# Written by either compiler where all was written.
_COMPILED = 'compiled.txt'
_TOTAL = re.compile(r'required[^()]*\(([\d.]+)([KMGT])\)')
_UNITS = {'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}

Tick = Callable[[float], None]


class TooLarge(ValueError):
  """A state that a topology cannot hold, however it is split."""

  def __init__(self, message: str, state_bytes: int):
    super().__init__(message)
    self.state_bytes = state_bytes


@dataclasses.dataclass(frozen=True)
class Compiled:
  """What the compiler said of one update on one topology."""

  topology: Topology
  fits: bool
  seconds: float
  # Of one device; the peak is an upper bound where not all was compiled, since
  # buffers that are never in use together are then summed.
  peak_bytes: int
  argument_bytes: int
  temporary_bytes: int
  state_bytes: int  # Of all devices.
  product_flops: int  # Of all devices, as traced.
  axes: dict[str, int]  # Of the mesh: their sizes.
  placement: traffic.Placement
  whole: bool  # Whether code was written too.
  bounded: bool = (
    False  # Whether all that is known of the peak is that it fits.
  )
  undivided: tuple[str, ...] = ()  # Parameters that more devices could split.
  text: str = dataclasses.field(default='', repr=False)
  report: str = dataclasses.field(default='', repr=False)


def run(
  config: dict[str, Any],
  rows: dict[str, Any],
  topology: Topology,
  *,
  full: bool = False,
  timeout: float = 600,
  tick: Tick = lambda seconds: None,
) -> Compiled:
  """Compiles one update and returns what is known of it.

  Args:
    config: The experiment as JSON.
    rows: Shape and dtype of one row of data, by field.
    topology: What to compile for.
    full: Let the compiler end; takes ten times as long.
    timeout: Seconds.
    tick: Called with the seconds since the start, a few times a second.

  Raises:
    TooLarge: The state alone is larger than all memory of the topology.
    ValueError: The experiment cannot be laid out so, the compiler fails, or
      time is up.
  """
  began = time.monotonic()
  with tempfile.TemporaryDirectory(prefix='bigdl-compile-') as name:
    folder = pathlib.Path(name)
    spec = {'config': config, 'topology': topology.name, 'rows': rows}
    _lower.write(folder / 'spec.json', spec)
    with _child(folder) as child:
      while child.poll() is None and not (folder / 'done.json').exists():
        seconds = time.monotonic() - began
        if seconds > timeout:
          raise ValueError(
            f'timeout={timeout:g} seconds are over, and {topology.name} is not'
            ' compiled'
          )
        tick(seconds)
        if not full and topology.chip.platform == 'tpu' and _written(folder):
          break
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return _outcome(folder, topology, full, time.monotonic() - began)


def rows_of(spec: Any) -> dict[str, Any]:
  """Returns the shapes of one row as JSON."""
  return {k: [list(v.shape), v.dtype.name] for k, v in spec.items()}


@contextlib.contextmanager
def _child(folder: pathlib.Path) -> Iterator[subprocess.Popen]:
  """Starts the process that compiles, and ends it with the block."""
  # The devices of this machine's tests must not become those of the child.
  environment = {k: v for k, v in os.environ.items() if k != 'JAX_PLATFORMS'}
  topology = json.loads((folder / 'spec.json').read_text())['topology']
  environment |= _lower.environment(topology, environment)
  with open(folder / 'log.txt', 'wb') as log:
    child = subprocess.Popen(
      [sys.executable, '-m', 'bigdl.commands._lower', str(folder)],
      # Never written to: it ends when this process does, however it does.
      stdin=subprocess.PIPE,
      stdout=log,
      stderr=log,
      env=environment,
      # An interrupt is this process's to deal with.
      start_new_session=True,
    )
  try:
    yield child
  finally:
    child.kill()
    child.communicate()


def _written(folder: pathlib.Path) -> bool:
  """Whether the program lies there whole: its file ends as a program does."""
  found = _newest(folder, _PROGRAM)
  if found is None or _newest(folder, _REPORT) is None:
    return False
  with open(found, 'rb') as file:
    file.seek(0, os.SEEK_END)
    file.seek(max(0, file.tell() - 4))
    return file.read().rstrip(b'\n').endswith(b'}')


def _newest(folder: pathlib.Path, pattern: str) -> pathlib.Path | None:
  found = sorted((folder / 'dump').glob(pattern))
  return found[-1] if found else None


def _outcome(folder, topology, full, seconds) -> Compiled:
  done = _read_json(folder / 'done.json')
  lowered = _read_json(folder / 'lowered.json')
  status = done.get('status')
  if status == 'too large':
    state = done['state_bytes']
    raise TooLarge(
      f'topology={topology.name}: the state of {size(state)} is more than'
      f' {topology.devices} devices of {size(topology.chip.memory)} hold',
      state,
    )
  if status in ('input', 'compiler'):
    raise ValueError(_first(done['message']))
  if not lowered or (not done and not _written(folder)):
    raise ValueError(f'topology={topology.name}: {_last_words(folder)}')
  program = _newest(folder, _CODE) if full else None
  program = program or _newest(folder, _PROGRAM)
  program = program or _newest(folder, _COMPILED)
  report = _newest(folder, _REPORT)
  text = report.read_text(errors='replace') if report else ''
  memory = done.get('memory') or _from_report(done, text, lowered)
  fits = status != 'memory'
  if topology.chip.platform == 'gpu':
    # For these the compiler only warns.
    fits = fits and memory['peak'] <= topology.chip.memory
  return Compiled(
    topology=topology,
    fits=fits,
    seconds=seconds,
    # What the compiler accepts has a lower peak than its report may say.
    peak_bytes=min(memory['peak'], topology.chip.memory)
    if fits
    else memory['peak'],
    bounded=fits and memory['peak'] >= topology.chip.memory,
    argument_bytes=memory['arguments'],
    temporary_bytes=memory['temporaries'],
    state_bytes=lowered['state_bytes'],
    product_flops=lowered['product_flops'],
    axes=lowered['axes'],
    placement=traffic.Placement.from_json(lowered['placement']),
    whole=status == 'compiled',
    undivided=tuple(lowered['whole']),
    text=program.read_text(errors='replace') if program else '',
    report=text,
  )


def _from_report(done, report: str, lowered) -> dict[str, int]:
  """Returns the memory of a program whose compilation was not ended."""
  found = _TOTAL.search(done.get('message', ''))
  own = re.search(r'Total bytes: (\d+)', report)
  if found:
    peak = round(float(found[1]) * _UNITS[found[2]])
  else:
    assert own, report[:200]
    peak = int(own[1])
  arguments = lowered['argument_bytes']
  return {
    'peak': peak,
    'arguments': arguments,
    'temporaries': max(0, peak - arguments),
  }


def size(count: float) -> str:
  """Returns bytes in GiB, as Google and NVIDIA count memory."""
  return f'{count / 2**30:,.{0 if count >= 100 * 2**30 else 2}f} GiB'


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  return json.loads(path.read_text()) if path.exists() else {}


def _first(message: str) -> str:
  return message.strip().partition('\nSee http')[0]


def _last_words(folder: pathlib.Path) -> str:
  lines = (folder / 'log.txt').read_text(errors='replace').split('\n')
  said = [line for line in lines if line.strip()]
  return f'the compiler ended without a word: {said[-1] if said else ""}'
