"""Peers in processes of their own that take turns, so that noise hits all alike.

A peer is a program that calls `serve(step, sync)`: `step()` does the work once,
`sync()` waits for the device and returns a number. Each waits while another one
runs and takes its turn in every round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]


def pin(threads: int) -> None:
  """Gives this process so many cores, where it will not use a GPU."""
  if (
    hasattr(os, 'sched_setaffinity')
    and not pathlib.Path('/dev/nvidia0').exists()
  ):
    # XLA takes as many threads as the process has cores.
    cores = sorted(os.sched_getaffinity(0))[:threads]
    os.sched_setaffinity(0, cores)


def peak_bytes() -> int:
  """Returns the most memory this process has held: the GPU's, or its own."""
  if 'torch' in sys.modules:
    import torch

    if torch.cuda.is_available():
      return torch.cuda.max_memory_allocated()
  if 'jax' in sys.modules:
    import jax

    stats = jax.local_devices()[0].memory_stats()
    if stats:
      return stats['peak_bytes_in_use']
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def serve(
  make: Callable[[], tuple[Callable[[], None], Callable[[], float]]],
  *,
  warm: int = 3,
) -> None:
  """Works in turns: reads how many steps, writes how long they took."""
  start = time.perf_counter()
  step, sync = make()
  step()
  first = sync()
  reply = {'seconds': time.perf_counter() - start, 'value': first}
  for _ in range(warm):
    step()
  sync()
  while True:
    print(json.dumps(reply), flush=True)
    line = sys.stdin.readline()
    if not line:
      return
    start = time.perf_counter()
    for _ in range(int(line)):
      step()
    value = sync()
    seconds = time.perf_counter() - start
    reply = {'seconds': seconds, 'value': value, 'bytes': peak_bytes()}


class Peer:
  """A peer's process, asleep between its turns."""

  def __init__(self, name: str, command: Sequence[str], threads: int):
    self.name = name
    environment = {
      **os.environ,
      'OMP_NUM_THREADS': str(threads),
      'PYTHONPATH': str(ROOT),
      'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
    }
    environment.pop('XLA_FLAGS', None)
    self.process = subprocess.Popen(
      [sys.executable, *command, '--threads', str(threads)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      env=environment,
      text=True,
    )
    self.seconds: list[float] = []
    self.bytes = 0
    reply = self._read()
    self.compile, self.value = reply['seconds'], reply['value']
    self.steps = 1

  def _read(self) -> dict:
    line = self.process.stdout.readline()
    if not line:
      raise RuntimeError(f'{self.name} ended with {self.process.wait()}')
    return json.loads(line)

  def turn(self, steps: int) -> float:
    """Returns the seconds of a step in a turn of that many."""
    self.process.stdin.write(f'{steps}\n')
    self.process.stdin.flush()
    reply = self._read()
    self.bytes = reply['bytes']
    return reply['seconds'] / steps

  def close(self) -> None:
    """Ends the process."""
    self.process.stdin.close()
    self.process.wait()


def measure(
  commands: dict[str, Sequence[str]],
  *,
  rounds: int,
  seconds: float,
  threads: int,
) -> dict[str, Peer]:
  """Returns the peers after rounds of turns of about that many seconds."""
  running = [Peer(name, line, threads) for name, line in commands.items()]
  for peer in running:
    peer.steps = max(1, round(seconds / peer.turn(2)))
  for k in range(rounds):
    # Nobody always follows the same neighbour.
    for peer in running[k % len(running) :] + running[: k % len(running)]:
      peer.seconds.append(peer.turn(peer.steps))
  for peer in running:
    peer.close()
  return {peer.name: peer for peer in running}


def say_ratios(ran: dict[str, Peer]) -> None:
  """Prints how many times as fast as each other one `bigdl` is."""
  if 'bigdl' not in ran:
    return
  ours = ran['bigdl'].seconds
  for peer in ran.values():
    if peer.name == 'bigdl':
      continue
    # Neighbours in time are compared, so that a busy moment cancels out.
    ratio = statistics.median(
      b / a for a, b in zip(ours, peer.seconds, strict=True)
    )
    best = min(peer.seconds) / min(ours)
    print(
      f'bigdl is {ratio:.2f} x as fast as {peer.name} by the median of rounds,'
      f' {best:.2f} x by the best'
    )
