"""How long a compiled step should take: a roofline of each instruction.

An instruction takes the longer of its products at the rate that products reach
and its bytes at the rate that memory reaches (Williams et al., 2009,
doi:10.1145/1498765.1498785). A collective takes its wire bytes at the rate of
the links that its group spans and a delay for each hop (Austin et al., 2025,
How to Scale Your Model, part 3); it runs beside the instructions that the
schedule puts between its start and its end, and what is left of it the step
waits for. Where the compiler has estimated cycles, as after code generation for
a TPU, those stand for the roofline.

Stragglers, input, the vector unit and collectives that share links are not
modelled and make a real step longer; kernels better than the compiler's own
estimates of them make it shorter. `compiling.published` says how far it is off.
"""

# Shapes: M, N free dimensions of a product, K its contracted ones.
from __future__ import annotations

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np

from bigdl.compiling import operations, traffic
from bigdl.compiling.hlo import Computation, Instruction, Module
from bigdl.parallel.chips import Chip
from bigdl.parallel.topology import Topology

# From neighbour to neighbour, as in How to Scale Your Model, part 3.
HOP_SECONDS = 1e-6
# From host to host, by the network of a data center.
NETWORK_SECONDS = 1e-5


class Reached(NamedTuple):
  """What of a chip's peaks its programs reach, and how it multiplies."""

  products: float  # Share of peak FLOPs.
  memory: float  # Share of the bandwidth of main memory.
  results: float  # Elements a second that products can hand over.
  clock: float  # Cycles a second, by which its compiler counts.
  tile: int  # Edge of what it multiplies by at once; less is padded.


# Of TPUs what the compiler (libtpu 0.0.51) estimates of three programs: a
# bfloat16 product of edge 8192, one with 64 contracted terms, and a pass over 1
# GiB of float32; the clock is that which makes peak FLOPs of its cycles.
# Nothing here is fitted to a measured run. Of GPUs, for which it estimates
# nothing, round numbers between those.
REACHED = {
  'v2': Reached(1.00, 0.89, 5.07e10, 0.70e9, 128),
  'v3': Reached(0.97, 0.94, 6.85e10, 0.94e9, 128),
  'v4': Reached(0.93, 0.79, 1.55e11, 1.05e9, 128),
  'v5e': Reached(0.88, 0.82, 1.10e11, 1.50e9, 128),
  'v5p': Reached(0.90, 0.72, 3.27e11, 1.75e9, 128),
  'v6e': Reached(0.70, 0.81, 2.40e11, 1.75e9, 256),
  'tpu7x': Reached(0.81, 0.76, 5.52e11, 2.20e9, 256),
}
GPU = Reached(0.75, 0.85, math.inf, math.nan, 16)
# Of a fused attention kernel, whose inside the compiler does not estimate.
KERNEL_PRODUCTS = 0.5


@dataclasses.dataclass(frozen=True)
class Estimate:
  """How long a step takes, of what, and what was assumed.

  Of `parts`, in seconds: `products` is the time of all products alone, `memory`
  of all bytes alone, `busy` of all instructions one after the other, `kernels`
  the custom kernels among them, and `waiting:LINK` what remains of collectives.
  """

  seconds: float
  mfu: float
  convention: str  # Of `scaling.count.CONVENTIONS`, of the model's FLOPs.
  parts: dict[str, float]
  assumptions: tuple[str, ...]


# Seconds of one run of a computation: in all, and by the parts of an
# `Estimate`.
_Span = dict[str, float]


def _add(span: _Span, more: _Span, *, times: int = 1) -> None:
  for part, value in more.items():
    span[part] = span.get(part, 0.0) + times * value


def reached(chip: Chip) -> Reached:
  """Returns what programs reach of a chip's peaks."""
  return GPU if chip.platform == 'gpu' else REACHED[chip.name]


def estimate(
  module: Module,
  placement: traffic.Placement,
  topology: Topology,
  *,
  model_flops: float,
  convention: str = 'matmul_full',
) -> Estimate:
  """Returns how long a step of that program should take there.

  Args:
    module: The program of one device, scheduled.
    placement: Where the devices of its mesh are.
    topology: What they are and how they are joined.
    model_flops: FLOPs of a step over all devices, of the model alone (what is
      recomputed does not count), by the convention.
    convention: The name of the convention, one of `scaling.count`.
  """
  steps = _Steps(module, placement, topology)
  parts = {'products': 0.0, 'memory': 0.0, 'kernels': 0.0}
  _add(parts, steps.run(module.entry))
  # Prefetches run beside all else, as far as the memory's bandwidth goes.
  seconds = max(parts.pop('total'), parts['memory'])
  waiting = sum(v for part, v in parts.items() if part.startswith('waiting'))
  parts['busy'] = seconds - waiting
  peak = topology.chip.flops * topology.devices
  return Estimate(
    seconds,
    model_flops / peak / seconds,
    convention,
    parts,
    assumptions(module, topology, convention),
  )


def assumptions(
  module: Module, topology: Topology, convention: str
) -> tuple[str, ...]:
  """Returns what an estimate rests on, a sentence each."""
  chip, rates = topology.chip, reached(topology.chip)
  found = [
    f'peak {chip.flops / 1e12:g} TFLOP/s, memory'
    f' {chip.memory_bandwidth / 1e9:g} GB/s a device ({chip.name})'
  ]
  if operations.cycles(module) is not None:
    found.append(
      f"instructions take the compiler's estimated cycles at"
      f' {rates.clock / 1e9:g} GHz'
    )
  else:
    found.append(
      f'an instruction takes the longest of its products at'
      f' {rates.products:.0%} of peak (padded to tiles of {rates.tile}), their'
      f' results at {rates.results:.2g} a second and its bytes at'
      f' {rates.memory:.0%} of the bandwidth'
    )
  found.append(
    f'links of {chip.link_bandwidth / 1e9:g} GB/s one way, rings where a'
    f' dimension wraps around, {HOP_SECONDS * 1e6:g} us a hop; the network'
    f' {chip.dcn_bandwidth / 1e9:g} GB/s a device'
  )
  found.append(
    'collectives run beside what the schedule puts between their start and'
    ' their end; links are not shared with other groups'
  )
  if operations.kernels(module):
    found.append(
      f'custom kernels take their FLOPs at {KERNEL_PRODUCTS:.0%} of peak'
    )
  if module.unresolved:
    found.append(
      f'{len(module.unresolved)} loops whose rounds are unknown count once'
    )
  found.append(f'MFU counts FLOPs by {convention}; no input, no stragglers')
  return tuple(found)


class _Steps:
  """Walks a schedule with a clock for the device and one for each link."""

  def __init__(self, module, placement, topology):
    self._module, self._placement = module, placement
    self._topology, self._rates = topology, reached(topology.chip)
    self._known: dict[str, _Span] = {}

  def run(self, name: str) -> _Span:
    if name not in self._known:
      self._known[name] = self._walk(self._module.computations[name])
    return self._known[name]

  def _walk(self, computation: Computation) -> _Span:
    placed = traffic.scheduled(self._module, computation, self._placement)
    starts: dict[int, list[traffic.Placed]] = {}
    ends: dict[int, list[traffic.Placed]] = {}
    for each in placed:
      starts.setdefault(each.start, []).append(each)
      ends.setdefault(each.end, []).append(each)
    now: _Span = {'total': 0.0}
    done: dict[str, float] = {}
    free: dict[str, float] = {}
    for position, instruction in enumerate(computation):
      for each in starts.get(position, ()):
        begin = max(now['total'], free.get(each.collective.link, 0.0))
        end = begin + seconds(each.collective, self._placement, self._topology)
        done[each.collective.name] = free[each.collective.link] = end
      _add(now, self._cost(computation, instruction))
      for each in ends.get(position, ()):
        rest = max(0.0, done[each.collective.name] - now['total'])
        _add(now, {'total': rest, f'waiting:{each.collective.link}': rest})
    return now

  def _cost(self, computation: Computation, each: Instruction) -> _Span:
    if each.opcode == 'while':
      rounds = self._module.trips(computation, each)
      span: _Span = {}
      for name in (*each.called['body'], *each.called['condition']):
        _add(span, self.run(name), times=1 if rounds is None else rounds)
      return span
    if each.opcode == 'conditional':
      names = [n for group in each.called.values() for n in group]
      return max((self.run(n) for n in names), key=lambda span: span['total'])
    if each.opcode == 'call':
      return self.run(each.called['to_apply'][0])
    if operations.is_kernel(each):
      return self._kernel(computation, each)
    return self.instruction(computation, each)

  def _kernel(self, computation, each) -> _Span:
    work = operations.kernel_flops(operations.kernel(computation, each, 1))
    took = work / (KERNEL_PRODUCTS * self._topology.chip.flops)
    return {'total': took, 'kernels': took}

  def instruction(self, computation: Computation, each: Instruction) -> _Span:
    """Returns what one run of an instruction takes, collectives apart."""
    chip, rates = self._topology.chip, self._rates
    products = sum(
      max(
        p.flops / _filled(p, rates.tile) / (rates.products * chip.flops),
        p.results / rates.results,
      )
      for p in operations.products(self._module, computation, each)
    )
    moved = operations.moved(self._module, computation, each)
    memory = moved / (rates.memory * chip.memory_bandwidth)
    if each.opcode in operations.PREFETCHES:
      return {'memory': memory}
    took = max(products, memory)
    if each.cycles is not None:
      took = each.cycles / rates.clock
    return {'total': took, 'products': products, 'memory': memory}


def _filled(product: operations.Product, tile: int) -> float:
  """Returns the share of the tiles of a product that is not padding."""

  def share(n: int) -> float:
    return n / (math.ceil(n / tile) * tile)

  # Either side can be the one that stays in place.
  return share(product.K) * max(share(product.M), share(product.N))


def seconds(
  collective: traffic.Collective,
  placement: traffic.Placement,
  topology: Topology,
) -> float:
  """Returns how long one collective takes on links that are its own."""
  if collective.link == 'dcn':
    return collective.wire_bytes / topology.chip.dcn_bandwidth + NETWORK_SECONDS
  if collective.link == 'network':
    # A ring leaves each host once, over the cards of all its members there.
    hosts = {placement.hosts[m] for m in collective.members}
    cards = len(collective.members) / len(hosts)
    spent = collective.wire_bytes / (cards * topology.chip.dcn_bandwidth)
    if cards > 1:
      inside = collective.wire_bytes / topology.chip.ici_bandwidth
      spent = max(spent, inside)
    return spent + NETWORK_SECONDS
  lines = _lines(collective.members, placement, topology)
  hops = collective.group - 1
  if collective.kind == 'collective-permute':
    lines, hops = min(lines, 1.0), 1
  elif collective.kind == 'all-reduce':
    hops *= 2
  # Messages go both ways at once, and along all dimensions.
  hops = math.ceil(hops / max(1.0, 2 * lines)) if lines > 1 else hops
  rate = topology.chip.ici_bandwidth
  if lines:
    rate = lines * topology.chip.link_bandwidth / topology.chip.cores
  return collective.wire_bytes / rate + hops * HOP_SECONDS


@functools.lru_cache(maxsize=1024)
def _lines(members, placement, topology) -> float:
  """Returns how many links a device of a group sends on at once.

  Two along a dimension that the group goes round, one along a part of it; 0
  where all links of a device lead to a switch, or the group is one chip.
  """
  coords = [placement.coords[m] for m in members]
  if not all(coords) or topology.chip.platform == 'gpu':
    return 0.0
  at = np.asarray(coords)
  lines = 0.0
  for dim in range(at.shape[1]):
    places = len(np.unique(at[:, dim]))
    size = topology.shape[dim] if dim < len(topology.shape) else 1
    if places > 1:
      lines += 2.0 if topology.wrap[dim] and places == size > 2 else 1.0
  return lines
