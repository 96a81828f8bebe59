"""Peak dense FLOP/s by device kind and dtype: what MFU divides by.

The table holds vendors' numbers for dense products (no sparsity), per device as
JAX counts devices: a TPU v2, v3 or v7 chip shows as two. Sources: Google Cloud
TPU system architecture pages; NVIDIA datasheets and architecture white papers
of Pascal, Volta, Turing, Ampere, Ada, Hopper and Blackwell; AMD CDNA 2 and 3
datasheets. Where a datasheet prints only a number with sparsity, half of it.

float32 means what JAX does by default with float32 products: one bfloat16 pass
on a TPU, TensorFloat-32 on NVIDIA cards that have it. A CPU is measured at each
start, and the best that was measured on it counts.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from pathlib import Path
import platform as host
import tempfile
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

CACHE = Path('~/.cache/bigdl/peak.json')


class Rates(NamedTuple):
  """TFLOP/s of one device; None where it has no such products."""

  bfloat16: float | None
  float32: float
  float16: float | None


def _gpu(half: float, single: float) -> Rates:
  return Rates(half, single, half)


def _old(half: float, single: float) -> Rates:
  """Before Ampere there was no bfloat16."""
  return Rates(None, single, half)


def _tpu(half: float) -> Rates:
  return Rates(half, half, None)


# The longest name found in the device kind wins, so 'h100 pcie' beats 'h100'.
_TPU = {
  'v2': _tpu(22.5),
  'v3': _tpu(61.5),
  'v4': _tpu(275),
  'v5 lite': _tpu(197),
  'v5e': _tpu(197),
  'v5': _tpu(459),
  'v5p': _tpu(459),
  'v6 lite': _tpu(918),
  'v6e': _tpu(918),
  'tpu7x': _tpu(1153.5),
  'v7': _tpu(1153.5),
}
_GPU = {
  'p100': _old(21.2, 10.6),
  'v100-pcie': _old(112, 14),
  'v100': _old(125, 15.7),
  't4': _old(65, 8.1),
  'a100': _gpu(312, 156),
  'a800': _gpu(312, 156),
  'a30': _gpu(165, 82),
  'a40': _gpu(149.7, 74.8),
  'a10g': _gpu(70, 35),
  'a10': _gpu(125, 62.5),
  'rtx a6000': _gpu(154.8, 77.4),
  'rtx 6000 ada': _gpu(364.2, 182.1),
  'rtx 3090': _gpu(71, 35.6),
  'rtx 4090': _gpu(165.2, 82.6),
  'rtx 5090': _gpu(209.5, 104.8),
  'l4': _gpu(121, 60),
  'l40': _gpu(181, 90.5),
  'l40s': _gpu(362, 183),
  'h100': _gpu(989.4, 494.7),
  'h100 pcie': _gpu(756, 378),
  'h100 nvl': _gpu(835, 417.5),
  'h800': _gpu(989.4, 494.7),
  'h20': _gpu(148, 74),
  'h200': _gpu(989.4, 494.7),
  'h200 nvl': _gpu(835, 417.5),
  'gh200': _gpu(989.4, 494.7),
  'b100': _gpu(1750, 875),
  'b200': _gpu(2250, 1125),
  'gb200': _gpu(2500, 1250),
  'mi250': _gpu(191.5, 47.9),
  'mi300x': _gpu(1307.4, 653.7),
  'mi325x': _gpu(1307.4, 653.7),
}


@dataclasses.dataclass(frozen=True)
class Peak:
  """A peak and where it is from; `flops` (per second) is None if unknown."""

  flops: float | None
  note: str


def peak_flops(
  device_kind: str,
  platform: str,
  dtype: str = 'bfloat16',
  devices: int = 1,
  *,
  cache: Path | None = CACHE,
) -> Peak:
  """Returns the peak FLOP/s of `devices` devices together.

  Args:
    device_kind: As `jax.devices()[0].device_kind` says.
    platform: As `jax.devices()[0].platform` says.
    dtype: What products are computed in: bfloat16, float16 or float32.
    devices: How many; on CPU they share the machine, so it does not matter.
    cache: The JSON file that keeps what was measured; None keeps nothing.
  """
  if platform == 'cpu':
    return _cpu(dtype, cache)
  rates = _find(device_kind, _TPU if platform == 'tpu' else _GPU)
  rate = getattr(rates, dtype, None)
  if rate is None:
    what = f'{dtype} on {device_kind!r}'
    return Peak(None, f'no published peak of {what} is known here: no MFU')
  return Peak(rate * 1e12 * devices, f'datasheet, {dtype}, dense')


def _find(kind: str, table: dict[str, Rates]) -> Rates | None:
  words = f' {kind.lower()} '
  found = [name for name in table if _holds(words, name)]
  return table[max(found, key=len)] if found else None


def _holds(words: str, name: str) -> bool:
  # 'l4' is in 'NVIDIA L4' but not in 'NVIDIA L40S'; 'v100' in 'V100-SXM2'.
  start = words.find(name)
  if start < 0:
    return False
  return not (words[start - 1].isalnum() or words[start + len(name)].isalnum())


def _cpu(dtype: str, cache: Path | None) -> Peak:
  threads = _threads()
  key = f'{_cpu_model()}; {os.cpu_count()} cores; {threads} threads; {dtype}'
  note = f'measured, {dtype}, {threads} threads'
  path = cache and cache.expanduser()
  known = _load(path) if path else {}
  # A machine that was busy when it was measured once would be called slow
  # forever, and an MFU exceed 100 %: the best that was ever seen counts.
  found = _measured(dtype, threads)
  if found > known.get(key, 0):
    known[key] = found
    if path:
      note += _save(path, known)
  return Peak(known[key], note)


def _threads() -> int:
  if hasattr(os, 'sched_getaffinity'):
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def _cpu_model() -> str:
  info = Path('/proc/cpuinfo')
  if info.exists():
    for line in info.read_text().splitlines():
      if line.startswith('model name'):
        return line.partition(':')[2].strip()
  return host.processor() or host.machine()


@functools.cache
def _measured(dtype: str, threads: int) -> float:
  """Measures once a process."""
  del threads  # A process that is given others has another peak.
  return _measure(dtype)


def _measure(dtype: str, *, size: int = 1024, seconds: float = 0.2) -> float:
  """Returns the best FLOP/s of a square product within that time."""
  device = jax.local_devices(backend='cpu')[0]
  with jax.default_device(device):
    x = jnp.ones((size, size), dtype)
    multiply = jax.jit(jnp.matmul)
    multiply(x, x).block_until_ready()
    best, start = float('inf'), time.perf_counter()
    while time.perf_counter() - start < seconds:
      before = time.perf_counter()
      multiply(x, x).block_until_ready()
      best = min(best, time.perf_counter() - before)
  return 2 * size**3 / best


def _load(path: Path) -> dict[str, float]:
  try:
    known = json.loads(path.read_text())
  except (OSError, ValueError):
    return {}
  if not isinstance(known, dict):
    return {}
  return {k: v for k, v in known.items() if isinstance(v, float)}


def _save(path: Path, known: dict[str, float]) -> str:
  """Writes the cache whole or not at all; returns a note where it cannot."""
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix='.json')
    with os.fdopen(handle, 'w') as file:
      json.dump(known, file, indent=1, sort_keys=True)
    os.replace(name, path)
  except OSError as error:
    return f' (not kept: {error.strerror})'
  return ''
