"""Trains toy runs in processes that are killed; run by `kill_test.py`.

usage: killed_runs.py FOLDER CACHE SEED CHAINS KILLS

A chain is one run folder: its process gets SIGKILL at a random moment, KILLS
times, and is then let go to the end. Processes are forked from this one after
the slow imports, before JAX has started a thread or a device.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import random
import signal
import sys
import time

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=2'
# A fork keeps only the thread that forks; numpy must not have others.
os.environ['OPENBLAS_NUM_THREADS'] = '1'

import jax
import numpy as np
import toy_experiment as toy

from bigdl.experiment import Checkpoints, Evaluation
from bigdl.parallel.layout import Layout
from bigdl.train import checkpoint, device, program, run

STEPS = 150


class Slow(toy.Points):
  """Takes long enough over a batch that a kill finds any step."""

  def batch(self, step, **kwargs):
    time.sleep(0.002)
    return super().batch(step, **kwargs)


def experiment():
  return toy.experiment(
    data=Slow(),
    steps=STEPS,
    batch=4,
    layout=Layout(data=1, fsdp=2),
    checkpoints=Checkpoints(every=10, keep=2),
    evaluation=Evaluation(toy.Points(seed=1), rows=6, every=20),
  )


def train(folder: pathlib.Path, cache: str, pipe: int) -> None:
  """Goes on with the run; writes a byte to `pipe` for each step it takes."""
  device.enable_compile_cache(cache)
  e = experiment()
  record = run.run(
    e,
    folder,
    config=toy.config(e),
    on_progress=lambda _: os.write(pipe, b'.'),
  )
  assert record['status'] == 'finished', record
  plan = program.Program(e, e.layout.mesh())
  with checkpoint.Store(folder, e.checkpoints, print) as store:
    state = store.restore(plan.state_shapes())
  digest = hashlib.sha256()
  for leaf in jax.tree.leaves(state):
    digest.update(np.asarray(leaf).tobytes())
  (folder / 'digest').write_text(digest.hexdigest())


def start(folder: pathlib.Path, cache: str) -> tuple[int, int]:
  """Forks a process that trains; returns its id and the pipe it reports on."""
  reader, writer = os.pipe()
  process = os.fork()
  if process:
    os.close(writer)
    return process, reader
  os.close(reader)
  try:
    train(folder, cache, writer)
  except BaseException as error:
    print(f'{type(error).__name__}: {error}', file=sys.stderr, flush=True)
    os._exit(1)
  os._exit(0)


def last_step(folder: pathlib.Path) -> int:
  lines = (folder / 'metrics.jsonl').read_bytes().splitlines()
  return max((int(x.split(b',')[0].split()[-1]) for x in lines), default=0)


def chain(
  folder: pathlib.Path, cache: str, kills: int, chance: random.Random
) -> list[list]:
  """Trains one run under `kills` kills.

  Returns the step each fell on, and whether it cut a save short.
  """
  points: list[list] = []
  for number in range(kills + 1):
    process, reader = start(folder, cache)
    if number < kills:
      # A few steps on, or none; then somewhere between two, or in a save.
      for _ in range(chance.choice([0, *range(5, 35)])):
        os.read(reader, 1)
      time.sleep(chance.uniform(0, 0.03))
      os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    os.close(reader)
    if os.WIFSIGNALED(status):
      assert os.WTERMSIG(status) == signal.SIGKILL
      torn = list(folder.glob('checkpoints/*.orbax-checkpoint-tmp*'))
      points.append([last_step(folder), bool(torn)])
    else:
      assert os.WEXITSTATUS(status) == 0, 'a run failed'
      break
  return points


def main(root: str, cache: str, seed: str, chains: str, kills: str) -> None:
  tasks = os.listdir('/proc/self/task')
  assert len(tasks) == 1, 'imports started threads: a fork is not safe'
  chance = random.Random(int(seed))
  points = {'whole': chain(pathlib.Path(root) / 'whole', cache, 0, chance)}
  for number in range(int(chains)):
    name = f'chain{number}'
    points[name] = chain(pathlib.Path(root) / name, cache, int(kills), chance)
  print(json.dumps(points))


if __name__ == '__main__':
  main(*sys.argv[1:])
