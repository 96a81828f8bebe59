"""The machine: compile cache, device names, hosts that must agree."""

from __future__ import annotations

import ctypes
import os
import pathlib

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
import numpy as np

CACHE = '~/.cache/bigdl/xla'


def enable_compile_cache(path: str | os.PathLike = CACHE) -> pathlib.Path:
  """Keeps compiled programs on disk, so that a second run starts at once."""
  folder = pathlib.Path(path).expanduser()
  jax.config.update('jax_compilation_cache_dir', str(folder))
  # The defaults skip programs that compile in under a second; on small models
  # those are all of them.
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0)
  jax.config.update('jax_persistent_cache_min_entry_size_bytes', -1)
  return folder


def keep_memory() -> bool:
  """Lets the C library keep what is freed; returns whether it is glibc.

  On CPU, XLA allocates the temporary buffers of every step anew. glibc maps so
  large a block for the occasion and unmaps it right after, so each step of a
  model of 0.2 M parameters began with 21,600 page faults, one of 4 M with
  82,000: a fifth of its time. Call it before the first computation: threads
  that have a heap of their own keep it.
  """
  try:
    mallopt = ctypes.CDLL(None).mallopt
  except (AttributeError, OSError, TypeError):
    return False
  # M_ARENA_MAX: one heap, as that of another thread is too small for a step.
  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD: blocks below 1 GiB, and never shrink.
  return all([mallopt(-8, 1), mallopt(-3, 2**30), mallopt(-1, 2**31 - 1)])


def describe(mesh: Mesh) -> dict:
  """Returns kind and number of the devices of a mesh, as records name them."""
  device = mesh.devices.flat[0]
  return {
    'platform': device.platform,
    'kind': device.device_kind,
    'count': mesh.size,
    'hosts': jax.process_count(),
  }


def any_host(flag: bool) -> bool:
  """Returns whether the flag is set on any host; all hosts must call it."""
  if jax.process_count() == 1:
    return flag
  return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))
