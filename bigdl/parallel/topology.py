"""Machines that are not here: slices of TPU pods and clusters of GPUs.

A topology is named `GENERATION:SHAPE`, with `*SLICES` where several slices are
joined by the data-center network: `v4:8x8x8`, `v5e:16x16*2`, `tpu7x:4x4x8`. The
shape is in chips, as Google names it; `SLICES` is how many slices there are. A
GPU cluster is named `h100:1x64x8`: partitions, hosts and GPUs a host.

Only slices that are sold are known here. Sources: Cloud TPU's pages on each
generation; for v5p and TPU7x, which come in one shape for a number of 4x4x4
cubes, GKE's list of topologies as XPK has it (AI-Hypercomputer/xpk,
system_characteristics.py). Figures of a chip are in `parallel.chips`.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import difflib
import functools
import math
import re
from typing import Any

from bigdl.parallel import nvidia
from bigdl.parallel.chips import CHIPS, Chip

# What people call them, and what the compiler does.
ALIASES = {
  'v5litepod': 'v5e',
  'v7x': 'tpu7x',
  'v7': 'tpu7x',
  'ironwood': 'tpu7x',
  'trillium': 'v6e',
}
_PATTERN = re.compile(r'([a-z]\w*):(\d+(?:x\d+)*)(?:\*(\d+))?')
# The edge of a cube of chips, out of which 3-D slices are made.
_CUBE = 4


@dataclasses.dataclass(frozen=True)
class Topology:
  """Devices of one kind and how they are joined."""

  chip: Chip
  shape: tuple[int, ...]  # Of a slice, in chips; hosts and GPUs for a GPU.
  slices: int = 1

  @property
  def name(self) -> str:
    size = 'x'.join(map(str, self.shape))
    if self.chip.platform == 'gpu':
      return f'{self.chip.name}:{self.slices}x{size}'
    return f'{self.chip.name}:{size}' + (
      f'*{self.slices}' if self.slices > 1 else ''
    )

  @property
  def chips(self) -> int:
    """How many chips there are in all slices together."""
    return math.prod(self.shape) * self.slices

  @property
  def devices(self) -> int:
    """How many devices JAX sees: two a chip of TPU v2, v3 and TPU7x."""
    return self.chips * self.chip.cores

  @property
  def hosts(self) -> int:
    """How many machines hold the chips."""
    if self.chip.platform == 'gpu':
      return self.shape[0] * self.slices
    own = math.prod(self.shape)
    return self.slices * max(1, own // self.chips_per_host)

  @property
  def chips_per_host(self) -> int:
    if self.chip.platform == 'gpu':
      return self.shape[1]
    own = math.prod(self.shape)
    # Eight chips in two dimensions are one machine; more are sold by fours.
    return own if len(self.shape) == 2 and own <= 8 else min(4, own)

  @property
  def wrap(self) -> tuple[bool, bool, bool]:
    """Which dimensions of a slice close to a ring.

    In three dimensions a slice is a torus where it is made of whole cubes; in
    two, a dimension wraps around where it is that of the whole pod.
    """
    if self.chip.platform == 'gpu':
      return False, False, False
    if len(self.shape) == 3:
      whole = all(size % _CUBE == 0 for size in self.shape)
      return whole, whole, whole
    pod = self.chip.pod
    first, second = (a == b for a, b in zip(self.shape, pod, strict=True))
    return first, second, False


def parse(text: str) -> Topology:
  """Returns the topology of that name.

  Raises:
    ValueError: There is none; the message shows the nearest.
  """
  match = _PATTERN.fullmatch(text.strip().lower())
  name = match[1] if match else re.split('[:-]', text.strip().lower())[0]
  chip = CHIPS.get(ALIASES.get(name, name))
  if match is None or chip is None:
    known = chip or CHIPS.get(_nearest_generation(name))
    raise ValueError(
      f'topology={text!r} must be GENERATION:SHAPE with GENERATION one of'
      f' {", ".join(CHIPS)}, such as {_example(known, text)}'
    )
  shape = tuple(int(n) for n in match[2].split('x'))
  slices = int(match[3] or 1)
  if chip.platform == 'gpu':
    return _gpu(chip, shape, match[3], text)
  if shape not in shapes(chip):
    close = ', '.join(_near(chip, shape))
    raise ValueError(
      f'topology={text!r}: no such slice of {chip.name} is sold; near are'
      f' {close}'
    )
  if slices < 1:
    raise ValueError(f'topology={text!r} must have at least one slice')
  return Topology(chip, shape, slices)


@functools.cache
def shapes(chip: Chip) -> tuple[tuple[int, ...], ...]:
  """Returns the slices of a generation of TPU that are sold, smallest first."""
  found = set(chip.small)
  if len(chip.pod) == 3:
    cubes = _any_cuboid(chip) if chip.any_shape else _one_cuboid(chip)
    found |= {tuple(_CUBE * n for n in sides) for sides in cubes}
  return tuple(sorted(found, key=lambda shape: (math.prod(shape), shape)))


def larger(topology: Topology) -> Iterator[Topology]:
  """Yields what has more devices of that kind, smallest first.

  Of each size the most cubic slice, then two to four whole pods; of GPUs, twice
  the hosts until there are 4,096.
  """
  if topology.chip.platform == 'gpu':
    hosts, own = topology.shape
    while hosts < 4096:
      hosts *= 2
      yield dataclasses.replace(topology, shape=(hosts, own))
    return
  best: dict[int, tuple[int, ...]] = {}
  for shape in sorted(shapes(topology.chip), key=sum):
    best.setdefault(math.prod(shape), shape)
  for chips, shape in sorted(best.items()):
    if chips > topology.chips:
      yield Topology(topology.chip, shape)
  largest = shapes(topology.chip)[-1]
  for slices in (2, 3, 4):
    if slices * math.prod(largest) > topology.chips:
      yield Topology(topology.chip, largest, slices)


def devices(topology: Topology) -> list[Any]:
  """Returns devices that programs can be compiled for but not run on.

  The environment must have been set before JAX was imported; see
  `commands._lower`.

  Raises:
    ValueError: The compiler for them is not installed.
  """
  from jax.experimental import topologies

  if topology.chip.platform == 'gpu':
    return nvidia.devices(topology.chip, topology.name.partition(':')[2])
  try:
    import libtpu  # noqa: F401
  except ImportError:
    raise ValueError(
      f'topology={topology.name} needs the TPU compiler:'
      " pip install 'bigdl[pods]'"
    ) from None
  options: dict[str, Any] = {'wrap': topology.wrap}
  if topology.chip.config:
    options['chip_config_name'] = topology.chip.config
  if topology.slices > 1:
    options['num_slices'] = topology.slices
  size = 'x'.join(map(str, topology.shape))
  found = topologies.get_topology_desc(
    platform='tpu', topology_name=f'{topology.chip.name}:{size}', **options
  )
  return list(found.devices)


def _any_cuboid(chip: Chip) -> Iterator[tuple[int, int, int]]:
  """Yields all cuboids of cubes with sides in order that a pod can hold."""
  most = math.prod(chip.pod) // _CUBE**3
  side = max(chip.pod) * 2 // _CUBE
  for a in range(1, side + 1):
    for b in range(a, side + 1):
      for c in range(b, side + 1):
        if a * b * c <= most:
          yield a, b, c


def _one_cuboid(chip: Chip) -> Iterator[tuple[int, int, int]]:
  """Yields, for each number of cubes that is sold, its most cubic cuboid."""
  for n in (*range(1, 97), *chip.cubes):
    best = min(_cuboids(n), key=sum)
    if _CUBE * best[2] <= chip.longest:
      yield best


def _cuboids(n: int) -> Iterator[tuple[int, int, int]]:
  for a in range(1, n + 1):
    if n % a == 0:
      for b in range(a, n // a + 1):
        if n // a % b == 0 and n // a // b >= b:
          yield a, b, n // a // b


def _gpu(chip: Chip, shape: tuple[int, ...], star, text: str) -> Topology:
  if len(shape) != 3 or star or min(shape) < 1:
    raise ValueError(
      f'topology={text!r} must be {chip.name}:PARTITIONSxHOSTSxGPUS, such as'
      f' {chip.name}:1x64x8'
    )
  if shape[2] not in (1, 2, 4, 8):
    raise ValueError(
      f'topology={text!r}: a host has 1, 2, 4 or 8 of {chip.name}, not'
      f' {shape[2]}'
    )
  return Topology(chip, shape[1:], shape[0])


def _nearest_generation(name: str) -> str:
  known = difflib.get_close_matches(name, [*CHIPS, *ALIASES], 1, 0.5)
  found = known[0] if known else 'v5e'
  return ALIASES.get(found, found)


def _example(chip: Chip | None, text: str) -> str:
  """Returns a name that can be used, near in size where a size was given."""
  assert chip is not None
  if chip.platform == 'gpu':
    return f'{chip.name}:1x64x8'
  numbers = [int(n) for n in re.findall(r'\d+', text.partition(':')[2])]
  # Of `v5e-8` the 8 is the size, of `v4:8x8x8` the product.
  tail = re.fullmatch(r'[a-z]\w*-(\d+)', text.strip().lower())
  if tail:
    numbers = [int(tail[1]) // (2 if chip.counts_cores else 1)]
  shape = tuple(n for n in numbers if n) or shapes(chip)[-1]
  return _near(chip, shape)[0]


def _near(chip: Chip, shape: tuple[int, ...]) -> list[str]:
  """Returns names of slices that are sold: of like size, or of like shape."""
  size = max(1, math.prod(shape))
  known = shapes(chip)

  def distance(shape):
    # Of one size the most cubic, whose links go the farthest.
    return abs(math.log(math.prod(shape) / size)), sum(shape)

  by_size = sorted(known, key=distance)
  same = tuple(sorted(shape))
  names = {'x'.join(map(str, s)): s for s in known}
  alike = difflib.get_close_matches('x'.join(map(str, same)), names, 1, 0.7)
  found = [same] if same in known else []
  found += [names[n] for n in alike] + by_size[:3]
  return [f'{chip.name}:{"x".join(map(str, s))}' for s in dict.fromkeys(found)][
    :3
  ]
