"""Trains a sweep by workers that are killed; run by `faults_test.py`.

usage: killed_sweeps.py FILE FOLDER CACHE SEED KILLS

Makes FOLDER/whole, trained by one `bigdl work`, and FOLDER/killed, by two of
which one or both get SIGKILL at random moments, KILLS times; then fits both.
Processes are forked from this one after the slow imports, before JAX has started
a thread or a device.
"""

from __future__ import annotations

from collections.abc import Callable
import json
import os
import pathlib
import random
import signal
import sys
import time

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = ''
# A fork keeps only the thread that forks; numpy must not have others.
os.environ['OPENBLAS_NUM_THREADS'] = '1'

import bigdl.__main__ as program
from bigdl.commands import _board, _cells, sweep, work  # noqa: F401
from bigdl.fleet import attempts
from bigdl.fleet.store import Local

SECONDS = 120  # Most that anything here may take.


def start(cache: str, *commands: list[str]) -> int:
  """Forks a process that runs commands; returns its id."""
  process = os.fork()
  if process:
    return process
  code = 1
  try:
    # Output is of interest where something fails.
    os.dup2(2, 1)
    import jax

    jax.config.update('jax_compilation_cache_dir', cache)
    jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
    jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
    for words in commands:
      code = program.main(list(words))
      if code not in (0, 3):
        break
  finally:
    os._exit(code)


def end(process: int, codes: tuple[int, ...] = (0,)) -> None:
  _, state = os.waitpid(process, 0)
  assert os.waitstatus_to_exitcode(state) in codes, state


def wait(what: Callable[[], bool]) -> None:
  until = time.monotonic() + SECONDS
  while not what():
    assert time.monotonic() < until
    time.sleep(0.005)


def held(store: Local) -> set[int]:
  """Returns the processes that hold a cell, or did and were killed."""
  return {
    attempts.read(store, name, made.last, 'claim')['pid']
    for name, made in attempts.listed(store).items()
    if made.held
  }


def disturb(
  work_: Callable[[], int], store: Local, kills: int, chance: random.Random
) -> int:
  """Returns how many processes were killed."""
  running, killed = [work_(), work_()], 0
  while killed < kills:
    wait(lambda: bool(held(store) & set(running)))
    time.sleep(chance.uniform(0, 0.6))
    doomed = [p for p in running if p in held(store)]
    # Both at once is what the end of their launcher, or their machine, does.
    doomed = running[:] if chance.random() < 0.3 else doomed[:1]
    for process in doomed:
      os.kill(process, signal.SIGKILL)
      os.waitpid(process, 0)
      running[running.index(process)] = work_()
      killed += 1
  for process in running:
    end(process)
  return killed


def main(file: str, root: str, cache: str, seed: str, kills: str) -> None:
  tasks = os.listdir('/proc/self/task')
  assert len(tasks) == 1, 'imports started threads: a fork is not safe'
  folders = {name: pathlib.Path(root) / name for name in ('whole', 'killed')}

  def on(name: str, verb: str, *more: str) -> list[str]:
    return [verb, f'--workdir={folders[name]}', *more]

  def both(*more: str) -> None:
    each = [on(name, 'sweep', f'--config={file}', *more) for name in folders]
    end(start(cache, *each), (0, 3))

  both('--plan_only')
  end(start(cache, on('whole', 'work')))
  killed = disturb(
    lambda: start(cache, on('killed', 'work', '--wait', '--attempts=100')),
    Local(folders['killed']),
    int(kills),
    random.Random(int(seed)),
  )
  both('--bootstrap=40')
  print(json.dumps({'killed': killed}))


if __name__ == '__main__':
  main(*sys.argv[1:])
