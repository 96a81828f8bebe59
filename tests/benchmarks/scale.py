"""What scale costs: the share of our own code, disks, compiling, planning.

  python tests/benchmarks/scale.py [steps] [saves] [compile] [plan]

Every number is a ratio, or comes with the seconds that it is a ratio of. It
measures, at fixed work a device:

  steps    seconds a step of the compiled update alone and of the real loop, on
           1, 2, 4 and 8 virtual devices and in 2 and 4 processes. Of the loop,
           `outside` is what it spends neither in the update nor waiting for it,
           and `own` the processor's time of that: batches, metrics, logs,
           signals, without what others had the core for. Promise: `own` under
           2 % of a step, though the devices have the next one to do meanwhile.
  saves    bytes/s of a save and a restore against a plain copy of the same
           files, each written, synced, dropped from memory and read again; what
           the checksums take of them. The best of the rounds.
  compile  seconds to compile the update by depth, scanned and as a loop.
  plan     seconds of `bigdl sweep --dry_run` for 1,000 cells: 20 models at 50
           budgets, promised under 60, and 200 at 5: each model is traced once.

Virtual devices share the cores of this machine, so that a step gets longer with
their number; that says nothing of a pod. Exits with 1 where a promise is broken.

On two cores that ten other programs kept busy, it said:

  a state of 653 MiB, 604 on disk
  copy                 0.36 s    1,796 MiB/s   1.00 x copy
  save                 1.29 s      507 MiB/s   3.54 x copy
  read                 0.74 s      883 MiB/s   1.00 x read
  restore              1.07 s      610 MiB/s   1.45 x read
  unchecked            0.99 s      658 MiB/s   1.34 x read
  check                0.86 s      761 MiB/s   1.16 x read
  check, in memory     0.04 s   15,426 MiB/s   0.06 x read

  devices processes     update       loop   outside       own   share
        1         1    61.2 ms    77.2 ms   3.22 ms   0.39 ms   0.51%
        2         1   157.2 ms   171.9 ms   1.66 ms   0.50 ms   0.29%
        4         1   358.7 ms   321.2 ms   6.37 ms   1.07 ms   0.33%
        8         1   628.0 ms   581.2 ms  15.48 ms   1.65 ms   0.28%
        2         2   242.6 ms   267.7 ms   1.49 ms   0.37 ms   0.14%

    depth      scan      loop
        2    4.48 s    3.67 s
        8    5.97 s    5.76 s
       32    3.94 s   24.87 s

  1,000 cells of 20 models: 13.5 s
  1,000 cells of 200 models: 65.9 s
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parents[2]
OWN_SHARE = 0.02
PLAN_SECONDS = 60.0
MODELS = 20  # Of the plan that the promise is of.
ROUNDS, STEPS, ROWS = 3, 30, 2
# (virtual devices a process, processes)
SHAPES = ((1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (1, 4))
DEPTHS = (2, 8, 32)
MEBIBYTE = 2**20


def experiment(devices: int, steps: int, **model):
  """Returns a GPT whose rows a device are the same on any number of them."""
  import grain.python as grain
  import numpy as np

  from bigdl.data.base import Source
  from bigdl.experiment import Checkpoints, Experiment, Logs
  from bigdl.models.gpt import GPT
  from bigdl.objectives.causal_lm import CausalLM
  from bigdl.optim.adamw import AdamW
  from bigdl.parallel.layout import Layout

  class Tokens(Source):
    """Random tokens, made as quickly as others are read."""

    def dataset(self):
      table = np.random.default_rng(0).integers(0, 256, (512, 257), np.int32)
      return grain.MapDataset.source(table).map(
        lambda row: {'tokens': row[:-1], 'targets': row[1:]}
      )

    def facts(self):
      return {'vocab': 256}

    def fingerprint(self):
      return 'random'

  shape = {'depth': 4, 'width': 192, 'heads': 4, 'vocab': 256, 'length': 256}
  return Experiment(
    model=GPT(**{**shape, **model}),
    objective=CausalLM(),
    data=Tokens(),
    optimizer=AdamW(lr=1e-3),
    steps=steps,
    batch=ROWS * devices,
    layout=Layout(data=devices),
    checkpoints=Checkpoints(every=0),
    logs=Logs(every=5, tensorboard=False),
  )


# What a child process measures; each is called by name.


def measure_steps(devices: int, processes: int, host: int, port: int) -> dict:
  """Returns seconds a step, by round, and what of them is the loop's own."""
  import jax
  import numpy as np

  if processes > 1:
    jax.distributed.initialize(f'localhost:{port}', processes, host)
  from bigdl.train import device, program, run

  device.keep_memory()
  e = experiment(devices * processes, STEPS)
  plan = program.Program(e, e.layout.mesh())
  shapes = plan.state_shapes()
  update, names = plan.update(shapes)
  batch, key = plan.batches()(0), plan.key()
  inside = Inside()
  names_ = ('update', 'loop', 'outside', 'own')
  found: dict[str, list[float]] = {name: [] for name in names_}
  # The loop gets the update that is compiled already, and waits for nothing
  # but it: what is left of the time between two records is the loop's own.
  with (
    mock.patch.object(
      program.Program, 'update', lambda *_, **__: (inside.timed(update), names)
    ),
    mock.patch.object(np, 'asarray', inside.timed(np.asarray, of=jax.Array)),
  ):
    for number in range(ROUNDS + 1):
      state = plan.init(shapes)
      state, metrics = update(state, batch, key)
      jax.block_until_ready(metrics)
      start = time.perf_counter()
      for _ in range(STEPS):
        state, metrics = update(state, batch, key)
      jax.block_until_ready(metrics)
      found['update'].append((time.perf_counter() - start) / STEPS)
      marks: list[np.ndarray] = []

      def mark(news, marks=marks):
        outside = time.perf_counter() - inside.seconds
        own = time.thread_time() - inside.cpu
        now = [news['step'], time.perf_counter(), outside, own]
        marks.append(np.array(now))

      folder = f'{tempfile.gettempdir()}/bigdl-scale-{port}/{number}'
      run.run(e, folder, config={'round': number}, on_progress=mark)
      steps, *seconds = (marks[-2] - marks[1]).tolist()
      for name, value in zip(names_[1:], seconds, strict=True):
        found[name].append(value / steps)
  if host == 0:
    shutil.rmtree(f'{tempfile.gettempdir()}/bigdl-scale-{port}')
  return {name: values[1:] for name, values in found.items()}


class Inside:
  """Adds up the seconds inside some functions, and the processor's of them."""

  def __init__(self):
    self.seconds = self.cpu = 0.0

  def timed(self, function, of=object):
    """Returns the function, timed where its first argument is one of `of`."""

    def call(*args, **kwargs):
      if not isinstance(args[0], of):
        return function(*args, **kwargs)
      start, cpu = time.perf_counter(), time.thread_time()
      try:
        return function(*args, **kwargs)
      finally:
        self.seconds += time.perf_counter() - start
        self.cpu += time.thread_time() - cpu

    return call


def measure_saves(width: int) -> dict:
  """Returns seconds and bytes of saving, restoring and copying one state."""
  import jax

  from bigdl.experiment import Checkpoints
  from bigdl.train import checkpoint, program, sums

  e = experiment(1, 1, depth=8, width=width, heads=8)
  plan = program.Program(e, e.layout.mesh())
  shapes = plan.state_shapes()
  # Moments that are all zero would be compressed to nothing.
  state = jax.tree.map(noise, plan.init(shapes))
  size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
  found: dict[str, list[float]] = {}

  def timed(name, call):
    start = time.perf_counter()
    value = call()
    found.setdefault(name, []).append(time.perf_counter() - start)
    return value

  with tempfile.TemporaryDirectory() as scratch:
    for number in range(ROUNDS):
      folder = pathlib.Path(scratch) / f'{number}'

      def save(folder=folder):
        with checkpoint.Store(folder, Checkpoints(), print) as store:
          store.save(state, 1)
          store.wait()
          sync(folder)

      timed('save', save)
      place = folder / checkpoint.FOLDER / '1'
      timed('check, in memory', lambda p=place: sums.damage(p))
      copy = folder.with_name(f'copy{number}')
      timed('copy', lambda a=place, b=copy: copied(a, b))
      drop(folder)
      timed('restore', lambda f=folder: checkpoint.load(f, shapes))
      drop(folder)
      with mock.patch.object(sums, 'damage', lambda *_: None):
        timed('unchecked', lambda f=folder: checkpoint.load(f, shapes))
      drop(copy)
      timed('read', lambda b=copy: read(b))
      drop(folder)
      problem = timed('check', lambda p=place: sums.damage(p))
      assert problem is None, problem
      disk = sum(p.stat().st_size for p in place.rglob('*') if p.is_file())
      shutil.rmtree(folder)
      shutil.rmtree(copy)
  best = {k: min(v) for k, v in found.items()}
  return {'bytes': size, 'disk': disk, **best}


def copied(source: pathlib.Path, target: pathlib.Path) -> None:
  shutil.copytree(source, target)
  sync(target)


def sync(folder: pathlib.Path) -> None:
  for path in folder.rglob('*'):
    if path.is_file():
      with open(path, 'rb') as file:
        os.fsync(file.fileno())


def noise(leaf):
  """Returns random numbers of that shape; whole ones stay as they are."""
  import jax

  if not jax.numpy.issubdtype(leaf.dtype, jax.numpy.floating):
    return leaf
  return jax.random.normal(jax.random.key(leaf.size), leaf.shape, leaf.dtype)


def read(folder: pathlib.Path) -> None:
  for path in folder.rglob('*'):
    if path.is_file():
      with open(path, 'rb', buffering=0) as file:
        while file.read(4 * MEBIBYTE):
          pass


def drop(folder: pathlib.Path) -> None:
  """Asks the system to forget what it keeps of the files in memory."""
  for path in folder.rglob('*'):
    if path.is_file():
      with open(path, 'rb') as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_compile(depth: int, stack: str) -> dict:
  """Returns seconds to trace and to compile one update."""
  from bigdl.train import program

  e = experiment(1, 10, depth=depth, width=64, stack=stack)
  plan = program.Program(e, e.layout.mesh())
  shapes = plan.state_shapes()
  start = time.perf_counter()
  plan.update(shapes)
  return {'seconds': time.perf_counter() - start}


MEASURES = {
  'steps': measure_steps,
  'saves': measure_saves,
  'compile': measure_compile,
}


def child(name: str, *args, devices: int = 1, cores: set[int] | None = None):
  """Starts a process that prints what one measure returns."""
  env = {
    **os.environ,
    'PYTHONPATH': str(ROOT),
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
    # Nothing is to be found that was compiled before.
    'JAX_ENABLE_COMPILATION_CACHE': 'false' if name == 'compile' else 'true',
  }
  return subprocess.Popen(
    [sys.executable, __file__, '--child', json.dumps([name, *args])],
    env=env,
    stdout=subprocess.PIPE,
    text=True,
  )


def answer(process: subprocess.Popen) -> dict:
  out, _ = process.communicate()
  if process.returncode:
    raise SystemExit('a measuring process failed')
  return json.loads(out.splitlines()[-1])


def steps() -> bool:
  """Prints the table of steps; returns whether the promise is kept."""
  print(
    f'{"devices":>7} {"processes":>9} {"update":>10} {"loop":>10}'
    f' {"outside":>9} {"own":>9} {"share":>7}'
  )
  kept = True
  for devices, processes in SHAPES:
    with socket.socket() as probe:
      probe.bind(('localhost', 0))
      port = probe.getsockname()[1]
    hosts = [
      child('steps', devices, processes, host, port, devices=devices)
      for host in range(processes)
    ]
    found = [answer(host) for host in hosts][0]
    update, loop, outside, own = map(statistics.median, found.values())
    kept &= own / loop < OWN_SHARE
    print(
      f'{devices * processes:>7} {processes:>9} {update * 1e3:>7.1f} ms'
      f' {loop * 1e3:>7.1f} ms {outside * 1e3:>6.2f} ms'
      f' {own * 1e3:>6.2f} ms {own / loop:>7.2%}',
      flush=True,
    )
  return kept


def saves() -> bool:
  """Prints bandwidths beside those of a copy."""
  found = answer(child('saves', 768))
  size, disk = found.pop('bytes'), found.pop('disk')
  print(
    f'a state of {size / MEBIBYTE:,.0f} MiB, {disk / MEBIBYTE:,.0f} on disk'
  )
  for name, peer in (
    ('copy', 'copy'),
    ('save', 'copy'),
    ('read', 'read'),
    ('restore', 'read'),
    ('unchecked', 'read'),
    ('check', 'read'),
    ('check, in memory', 'read'),
  ):
    seconds = found[name]
    print(
      f'{name:<17} {seconds:>7.2f} s {size / seconds / MEBIBYTE:>8,.0f} MiB/s'
      f' {seconds / found[peer]:>6.2f} x {peer}'
    )
  return True


def compiling() -> bool:
  """Prints seconds by depth."""
  print(f'{"depth":>7} {"scan":>9} {"loop":>9}')
  for depth in DEPTHS:
    row = [
      answer(child('compile', depth, stack))['seconds']
      for stack in ('scan', 'loop')
    ]
    print(f'{depth:>7} {row[0]:>7.2f} s {row[1]:>7.2f} s', flush=True)
  return True


PLAN = """
from bigdl import config
from bigdl.scaling import grid

BASE = config.load({quickstart!r})


def get_config():
  return BASE


def get_sweep(base):
  shapes = [(16 + 4 * i, 2 + i // 8) for i in range({models})]
  models = [base.model.clone(width=w, depth=d, heads=1) for w, d in shapes]
  return grid.isoflop(
    base,
    budgets=[1e11 * 1.2**k for k in range({budgets})],
    models=models,
    batch=base.batch,
    min_steps=1,
    max_epochs=1e12,
  )
"""


def plan() -> bool:
  """Prints seconds to plan; returns whether the promise is kept."""
  kept = True
  for models, budgets in ((MODELS, 50), (200, 5)):
    with tempfile.TemporaryDirectory() as scratch:
      file = pathlib.Path(scratch) / 'thousand.py'
      quickstart = str(ROOT / 'experiments' / 'quickstart.py')
      file.write_text(
        PLAN.format(quickstart=quickstart, models=models, budgets=budgets)
      )
      command = ['sweep', f'--config={file}', '--dry_run']
      start = time.perf_counter()
      done = subprocess.run(
        [sys.executable, '-m', 'bigdl', *command],
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'JAX_PLATFORMS': 'cpu'},
        capture_output=True,
        text=True,
      )
      seconds = time.perf_counter() - start
    if done.returncode or '\n1000 cells, ' not in done.stdout:
      raise SystemExit(f'{done.stdout[-300:]}{done.stderr[-2000:]}')
    kept &= seconds < PLAN_SECONDS or models > MODELS
    print(f'1,000 cells of {models} models: {seconds:.1f} s', flush=True)
  return kept


PARTS = {'steps': steps, 'saves': saves, 'compile': compiling, 'plan': plan}


def main() -> int:
  parser = argparse.ArgumentParser(description=(__doc__ or '').split('\n')[0])
  parser.add_argument('parts', nargs='*', metavar='PART')
  parser.add_argument('--child', help=argparse.SUPPRESS)
  given = parser.parse_args()
  if given.child:
    name, *args = json.loads(given.child)
    with contextlib.redirect_stdout(io.StringIO()):
      found = MEASURES[name](*args)
    print(json.dumps(found))
    return 0
  if unknown := set(given.parts) - set(PARTS):
    parser.error(f'{", ".join(unknown)} must be of {", ".join(PARTS)}')
  kept = True
  for name in given.parts or PARTS:
    print(f'\n{name}')
    kept &= PARTS[name]()
  return 0 if kept else 1


if __name__ == '__main__':
  sys.exit(main())
