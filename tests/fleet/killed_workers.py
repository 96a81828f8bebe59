"""Workers whose training is a count, killed at random; run by `kill_test.py`.

usage: killed_workers.py FOLDER SEED KILLS

Each step of a cell is a line `ATTEMPT STEP` in its folder's `steps`, each save a
folder in `checkpoints`, and its end a record, then a line in `ends`. Workers are
forked from this process, which has one thread.
"""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import random
import signal
import sys
import time
import traceback

from bigdl.fleet import attempts, claims, manifest, status
from bigdl.fleet.store import Local

WORKERS = 3
SAVES = 5  # Steps between two.
SILENCE = 0.6  # Seconds.


def append(file: pathlib.Path, line: str) -> None:
  with open(file, 'a') as lines:
    lines.write(line + '\n')


def train(store: Local, claim: claims.Claim) -> None:
  name = claim.cell.name
  folder = store.root / 'cells' / name
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / 'lock', 'a') as lock:
    # As a run does; the lock of who was paused must be out of the way.
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    step = attempts.saved(store, name)
    while step < claim.cell.steps:
      step += 1
      time.sleep(0.002)
      claim.check()
      append(folder / 'steps', f'{claim.number} {step}')
      if step % SAVES == 0:
        (folder / 'checkpoints' / str(step)).mkdir(parents=True, exist_ok=True)
      claim.take({'step': step})
    claim.check()
    record = {'status': 'finished', 'step': step, 'attempt': claim.number}
    store.write(f'cells/{name}/record.json', json.dumps(record).encode())
    # A kill before the record is one before the end.
    append(folder / 'ends', str(claim.number))
  claim.end('finished')


def work(store: Local) -> None:
  cells = manifest.read(store).costliest_first
  queue = claims.Claims(store, cells, {}, silence=SILENCE, attempts=10**6)
  while True:
    claim = queue.next()
    if claim is None:
      if not queue.left:
        return
      time.sleep(0.01)
      continue
    try:
      train(store, claim)
    except claims.Lost:
      claim.end('lost', message='another has it')
      append(store.root / 'fenced', claim.cell.name)


def start(store: Local) -> int:
  process = os.fork()
  if process:
    return process
  try:
    work(store)
  except BaseException:
    traceback.print_exc()
    os._exit(1)
  os._exit(0)


def held(store: Local) -> dict[int, tuple[str, int]]:
  """Returns cell and attempt of each process that holds one."""
  return {
    attempts.read(store, name, made.last, 'claim')['pid']: (name, made.last)
    for name, made in attempts.listed(store).items()
    if made.held
  }


def wait(what) -> None:
  end = time.monotonic() + 60
  while not what():
    assert time.monotonic() < end
    time.sleep(0.005)


def disturb(store: Local, kills: int, chance: random.Random) -> list[int]:
  """Kills workers at random, pauses one; returns those that live."""
  running = [start(store) for _ in range(WORKERS)]
  for number in range(kills):
    time.sleep(chance.uniform(0, 0.05))
    process = running.pop(chance.randrange(WORKERS))
    if number == kills // 2:
      wait(lambda: process in held(store))  # noqa: B023
      paused, (cell, attempt) = process, held(store)[process]
      os.kill(paused, signal.SIGSTOP)
    else:
      os.kill(process, signal.SIGKILL)
      os.waitpid(process, 0)
    running.append(start(store))
  # It wakes up to find itself replaced.
  wait(lambda: attempts.listed(store)[cell].last > attempt)
  os.kill(paused, signal.SIGCONT)
  return [*running, paused]


def main(folder: str, seed: str, kills: str) -> None:
  store = Local(pathlib.Path(folder))
  for process in disturb(store, int(kills), random.Random(int(seed))):
    _, state = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(state) == 0
  assert status.read(store).over


if __name__ == '__main__':
  main(*sys.argv[1:])
