"""The machine: compile cache, device names, hosts that must agree."""

from __future__ import annotations

import ctypes
import os
import pathlib

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
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


def preempted(step: int) -> bool:
  """Returns whether the cloud's notice, to any host, takes effect at this step.

  JAX's coordination service agrees on the step (jax.experimental
  .multihost_utils.reached_preemption_sync_point); its notice is SIGTERM where
  no other handler has taken that since `jax.distributed.initialize`.
  """
  try:
    return multihost_utils.reached_preemption_sync_point(step)
  except RuntimeError:
    # The service is off: `jax_enable_preemption_service`.
    return False


class Vote:
  """The largest of the numbers that hosts give; each learns it a call later.

  A call starts a reduction of one number and returns what the one before came
  to, so that no host waits for another: by the time of the next call the
  devices have done it, between two updates. All hosts must call equally often.
  """

  def __init__(self, mesh: Mesh):
    self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    self._most = jax.jit(
      jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec())
    )
    self._numbers: dict[int, jax.Array] = {}
    self._last = self._most(self._spread(0))

  def __call__(self, number: int) -> int:
    outcome = int(np.asarray(self._last))
    self._last = self._most(self._spread(number))
    return outcome

  def _spread(self, number: int) -> jax.Array:
    """Returns one element a device; those of other hosts are their own."""
    if number not in self._numbers:
      # Once a number, so that the loop moves nothing to the devices.
      with jax.transfer_guard('allow'):
        self._numbers[number] = jax.make_array_from_callback(
          (self._sharding.mesh.size,),
          self._sharding,
          lambda index: np.full(1, number, np.int32),
        )
    return self._numbers[number]
