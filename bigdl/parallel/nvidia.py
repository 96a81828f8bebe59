"""Clusters of NVIDIA GPUs that programs are compiled for without one.

XLA is told of the device by a text proto, `GpuTargetConfigProto` of
openxla/xla's `device_description.proto`. Its figures here are those of NVIDIA's
architecture white papers and CUDA's table of compute capabilities; clocks and
bytes of memory are as the driver reports them, after XLA's own descriptions of
the same cards (xla/backends/gpu/target_config/specs). No kernel is timed here, so
that the fastest one is not known: estimates of time take round shares of the peaks.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from typing import Any

from bigdl.parallel.chips import Chip


@dataclasses.dataclass(frozen=True)
class _Card:
  """What a program is compiled for; bytes, Hz and multiprocessors."""

  name: str
  capability: tuple[int, int]
  cores: int  # Streaming multiprocessors.
  clock_ghz: float
  l2_bytes: int
  shared_bytes: int  # A multiprocessor.
  lanes: int = 128  # 32-bit units a multiprocessor.


_CARDS = {
  'a100': _Card('NVIDIA A100-SXM4-80GB', (8, 0), 108, 1.41, 40, 164, 64),
  'h100': _Card('NVIDIA H100 80GB HBM3', (9, 0), 132, 1.98, 50, 228),
  'h200': _Card('NVIDIA H200', (9, 0), 132, 1.98, 50, 228),
  'b200': _Card('NVIDIA B200', (10, 0), 148, 1.965, 126, 228),
}
# Of the CUDA runtime and of cuDNN that kernels are chosen for.
_RUNTIME, _CUDNN = '12.8.0', (9, 10, 0)


def target(chip: Chip) -> str:
  """Returns the device's text proto."""
  card = _CARDS[chip.name]
  kib, mib = 2**10, 2**20
  shared = card.shared_bytes * kib
  fields = {
    'threads_per_block_limit': 1024,
    'threads_per_warp': 32,
    'shared_memory_per_block': 48 * kib,
    'shared_memory_per_core': shared,
    # One KiB of it is the system's.
    'shared_memory_per_block_optin': shared - kib,
    'threads_per_core_limit': 2048,
    'core_count': card.cores,
    'fpus_per_core': card.lanes,
    'block_dim_limit_x': 2**31 - 1,
    'block_dim_limit_y': 2**16 - 1,
    'block_dim_limit_z': 2**16 - 1,
    'thread_dim_limit_x': 1024,
    'thread_dim_limit_y': 1024,
    'thread_dim_limit_z': 64,
    'memory_bandwidth': int(chip.memory_bandwidth),
    'l2_cache_size': card.l2_bytes * mib,
    'clock_rate_ghz': card.clock_ghz,
    'device_memory_size': chip.memory,
    'registers_per_core_limit': 2**16,
    'registers_per_block_limit': 2**16,
  }
  major, minor = card.capability
  extension = 'ACCELERATED_FEATURES' if major >= 9 else 'NONE'
  lines = [f'  {name}: {value}' for name, value in fields.items()]
  lines += [
    f'  cuda_compute_capability {{ major: {major} minor: {minor}'
    f' feature_extension: {extension} }}',
    f'  name: "{card.name}"',
    f'  runtime_version: "{_RUNTIME}"',
    f'  compile_time_toolkit_version: "{_RUNTIME}"',
    f'  dnn_version: "{".".join(map(str, _CUDNN))}"',
  ]
  cudnn = 'major: {} minor: {} patch: {}'.format(*_CUDNN)
  return '\n'.join(
    [
      'gpu_device_info {',
      *lines,
      '}',
      'platform_name: "CUDA"',
      f'dnn_version_info {{ {cudnn} }}',
      f'device_description_str: "{card.name}"',
      '',
    ]
  )


def devices(chip: Chip, size: str) -> list[Any]:
  """Returns devices that programs can be compiled for but not run on.

  Args:
    chip: The kind of GPU.
    size: PARTITIONSxHOSTSxGPUS.

  Raises:
    ValueError: The CUDA plugin of JAX is not installed.
  """
  if not is_installed():
    raise ValueError(
      f"topology={chip.name}:{size} needs JAX's CUDA plugin, the GPU itself need"
      " not be here: pip install 'bigdl[cuda12]'"
    )
  from jax.experimental import topologies

  found = topologies.get_topology_desc(
    platform='cuda', target_config=target(chip), topology=size
  )
  return list(found.devices)


def is_installed() -> bool:
  """Whether JAX has a plugin for CUDA here."""
  return any(
    map(_is_there, ('jax_plugins.xla_cuda12', 'jax_plugins.xla_cuda13'))
  )


def _is_there(name: str) -> bool:
  try:
    return importlib.util.find_spec(name) is not None
  except ModuleNotFoundError:
    return False
