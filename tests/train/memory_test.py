"""Steps find their memory where the step before left it."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import bigdl

ROOT = pathlib.Path(bigdl.__file__).parents[1]
STEPS = """
import resource
from bigdl.train import device
kept = {keep} and device.keep_memory()
import jax, jax.numpy as jnp

@jax.jit
def step(x):
  y = jnp.exp(-jnp.outer(x, x))
  return (y @ x) / jnp.max(y, axis=0)

x = jnp.ones(3500)
for _ in range(10):
  x = step(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
  x = step(x).block_until_ready()
print(int(kept), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(keep: bool) -> tuple[int, int]:
  out = subprocess.run(
    [sys.executable, '-c', STEPS.format(keep=keep)],
    capture_output=True,
    text=True,
    check=True,
    cwd=ROOT,
  )
  kept, count = out.stdout.split()
  return int(kept), int(count)


def test_steps_do_not_map_their_memory_anew():
  kept, few = faults(keep=True)
  _, many = faults(keep=False)
  # Twenty steps of 49 MB take 240,000 page faults where nothing is kept, and
  # few where all is; how few depends on the machine. Another C library may
  # keep memory by itself, or not at all.
  assert not kept or 3 * few < many
