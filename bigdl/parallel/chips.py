"""Figures of accelerators: what they compute, hold and send.

Sources: Google's Cloud TPU pages on v2 to TPU7x (peaks, HBM); Austin et al.,
2025, How to Scale Your Model, part 2 (bandwidth of ICI links and of the
data-center network a chip); Jouppi et al., 2023, arXiv:2304.01433, table 4 (v3's
links, 70 GB/s); Norrie et al., 2021, doi:10.1109/MM.2021.3058217 (v2's); NVIDIA's
datasheets of A100, H100, H200 and B200 (SXM), DGX manuals for the network cards.
The HBM of a TPU is what the compiler says is available, less than is built in.
Peaks are those of `scaling.peak`.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

GIB = 2**30
# In two dimensions slices are these; the last one is the pod.
_SQUARES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
_SMALL = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))


@dataclasses.dataclass(frozen=True)
class Chip:
  """One generation of accelerators.

  A bandwidth is in bytes a second, one way.
  """

  name: str
  platform: Literal['tpu', 'gpu']
  flops: float  # Peak of a device a second, bfloat16, dense.
  memory: int  # Bytes a device, as far as a program may use them.
  memory_bandwidth: float  # Of a device.
  link_bandwidth: float  # Of one link to a neighbour: ICI, NVLink.
  links: int  # A chip.
  network_bandwidth: float  # A chip: to other slices, or to other hosts.
  cores: int = 1  # Devices a chip, as JAX counts them.
  pod: tuple[int, ...] = ()  # Chips.
  small: tuple[tuple[int, ...], ...] = ()  # Slices below a cube, or all.
  any_shape: bool = False  # Every cuboid of cubes, or one for a number of them.
  cubes: tuple[int, ...] = ()  # Numbers of cubes above 96 that are sold.
  longest: int = 244  # Chips along a slice.
  counts_cores: bool = False  # `v4-8` means cores: four chips.
  config: str = ''  # What the TPU compiler must be told.

  @property
  def ici_bandwidth(self) -> float:
    """Bytes a second that a device sends over all of its links at once."""
    return self.links * self.link_bandwidth / self.cores

  @property
  def dcn_bandwidth(self) -> float:
    """Bytes a second that a device sends over the slower network."""
    return self.network_bandwidth / self.cores


def _tpu(name, flops, gib, memory_bandwidth, link, links, network, **more):
  return Chip(
    name,
    'tpu',
    flops * 1e12,
    int(gib * GIB),
    memory_bandwidth * 1e9,
    link * 1e9,
    links,
    network * 1e9,
    **more,
  )


def _gpu(name, flops, memory, memory_bandwidth, links, network):
  return Chip(
    name,
    'gpu',
    flops * 1e12,
    memory,
    memory_bandwidth * 1e9,
    25e9 if name != 'b200' else 50e9,
    links,
    network * 1e9,
  )


_SQUARE: dict = {'small': _SQUARES, 'pod': (16, 16)}
# The network of v2 and v3 is not published; that of v5e is assumed.
_ALL = (
  _tpu(
    *('v2', 22.5, 7.48, 350, 62, 4, 3.125),
    cores=2,
    small=((2, 2), (4, 4), (8, 8), (8, 16), (16, 16)),
    pod=(16, 16),
    counts_cores=True,
  ),
  _tpu(
    *('v3', 61.5, 15.48, 450, 70, 4, 3.125),
    cores=2,
    small=((2, 2), (4, 4), (8, 8), (8, 16), (16, 16), (16, 32), (32, 32)),
    pod=(32, 32),
    counts_cores=True,
  ),
  _tpu(
    *('v4', 275, 30.75, 1200, 45, 6, 6.25),
    small=_SMALL,
    pod=(16, 16, 16),
    any_shape=True,
    counts_cores=True,
    # One device a chip, as on a real machine.
    config='megacore',
  ),
  _tpu('v5e', 197, 15.75, 810, 45, 4, 3.125, **_SQUARE),
  _tpu(
    *('v5p', 459, 95.73, 2765, 90, 6, 6.25),
    small=_SMALL,
    pod=(16, 20, 28),
    cubes=(108, 140),
    counts_cores=True,
  ),
  _tpu('v6e', 918, 31.24, 1638, 90, 4, 12.5, **_SQUARE),
  _tpu(
    *('tpu7x', 1153.5, 94.74, 3690, 90, 6, 12.5),
    cores=2,
    small=((1, 1, 1), *_SMALL),
    pod=(16, 24, 24),
    cubes=(108, 128, 140, 144),
    counts_cores=True,
  ),
  _gpu('a100', 312, 85100068864, 2039, 12, 25),
  _gpu('h100', 989.4, 84942979072, 3352, 18, 50),
  _gpu('h200', 989.4, 151397597184, 4800, 18, 50),
  _gpu('b200', 2250, 191514411008, 7672, 18, 50),
)
CHIPS = {chip.name: chip for chip in _ALL}
