"""What the devices that run a compiled program send to each other.

Wire bytes are what one device sends if each collective is a ring: of an
all-gather of R bytes over g devices R (g - 1) / g, of a reduce-scatter as much
of its input, of an all-reduce twice that, of an all-to-all R (g - 1) / g, of a
permutation R for each device that sends (Patarasuk & Yuan, 2009,
doi:10.1016/j.jpdc.2008.09.002, for the all-reduce). Two ends of an asynchronous
collective, and the pieces that the compiler of TPUs cuts one into, are one.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
import math
import re
from typing import Any, Literal

import numpy as np

from bigdl.compiling import groups, operations
from bigdl.compiling.hlo import Computation, Instruction, Module

Kind = Literal[
  'all-gather',
  'reduce-scatter',
  'all-reduce',
  'all-to-all',
  'collective-permute',
  'collective-broadcast',
]
Link = Literal['ici', 'dcn', 'nvlink', 'network']
# The TPU compiler's own form of a reduce-scatter, around an all-reduce.
_SCATTER = 'all-reduce-scatter'
_TRANSFER = '_xla_megascale_transfer_type'
_RENDEZVOUS = re.compile(r'_xla_host_transfer_rendezvous="([^"]*)"')


@dataclasses.dataclass(frozen=True)
class Placement:
  """Where the devices of a mesh are, in the order of the mesh."""

  axes: tuple[str, ...]
  shape: tuple[int, ...]
  slices: tuple[int, ...]  # Of each device.
  hosts: tuple[int, ...]
  coords: tuple[tuple[int, ...], ...]  # In a slice; () where there are none.
  platform: str = 'tpu'

  @classmethod
  def of(cls, mesh: Any) -> Placement:
    """Returns the placement of a `jax.sharding.Mesh`."""
    found = list(mesh.devices.flat)
    return cls(
      tuple(mesh.axis_names),
      tuple(mesh.devices.shape),
      tuple(int(getattr(d, 'slice_index', 0) or 0) for d in found),
      tuple(int(d.process_index) for d in found),
      tuple(tuple(map(int, getattr(d, 'coords', None) or ())) for d in found),
      found[0].platform,
    )

  @classmethod
  def from_json(cls, values: dict) -> Placement:
    fields = {k: tuple(v) for k, v in values.items() if k != 'platform'}
    fields['coords'] = tuple(map(tuple, fields['coords']))
    return cls(**fields, platform=values['platform'])

  def to_json(self) -> dict:
    return dataclasses.asdict(self)

  @functools.cached_property
  def own(self) -> np.ndarray:
    """Positions in the mesh of the first slice's devices.

    A program for several slices is compiled for one of them, whose partitions
    are counted from 0.
    """
    return np.flatnonzero(np.asarray(self.slices) == self.slices[0])

  def spanned(self, positions: np.ndarray) -> tuple[str, ...]:
    """Returns the axes along which those positions differ."""
    at = np.unravel_index(positions, self.shape)
    return tuple(
      axis
      for axis, index in zip(self.axes, at, strict=True)
      if len(np.unique(index)) > 1
    )

  def link(self, groups: np.ndarray) -> Link:
    """Returns the slowest link in groups of positions `[groups, members]`."""
    tpu = self.platform == 'tpu'
    places = np.asarray(self.slices if tpu else self.hosts)[groups]
    if (places == places[:, :1]).all():
      return 'ici' if tpu else 'nvlink'
    return 'dcn' if tpu else 'network'


@dataclasses.dataclass(frozen=True)
class Collective:
  """One collective of a program, as often as it runs in a step."""

  kind: Kind
  result_bytes: int  # Of one execution, on one device.
  wire_bytes: int  # That one device sends in one execution.
  executions: int
  group: int  # Devices that take part together.
  axes: tuple[str, ...]
  link: Link
  members: tuple[int, ...]  # Positions in the mesh of one such group.
  name: str


@dataclasses.dataclass(frozen=True)
class Placed:
  """A collective and when it runs: it starts at one instruction, and is
  awaited at another, or at the same where nothing runs beside it."""

  collective: Collective
  start: int
  end: int


def collectives(module: Module, placement: Placement) -> list[Collective]:
  """Returns all collectives of a step with more than one participant."""
  found = []
  for name, times in module.executions.items():
    if name not in operations.fused(module):
      for placed in scheduled(module, module.computations[name], placement):
        found.append(dataclasses.replace(placed.collective, executions=times))
  return found


def totals(found: list[Collective]) -> dict[str, int]:
  """Returns wire bytes of a step by axes and link: `{'fsdp:ici': bytes}`."""
  sums: dict[str, int] = {}
  for each in found:
    key = f'{"+".join(each.axes)}:{each.link}'
    sums[key] = sums.get(key, 0) + each.wire_bytes * each.executions
  return dict(sorted(sums.items()))


def counts(found: list[Collective]) -> dict[str, int]:
  """Returns executions of a step by kind and axes: `{'all-gather:fsdp': n}`."""
  sums: dict[str, int] = {}
  for each in found:
    key = f'{each.kind}:{"+".join(each.axes)}'
    sums[key] = sums.get(key, 0) + each.executions
  return dict(sorted(sums.items()))


def scheduled(
  module: Module, computation: Computation, placement: Placement
) -> list[Placed]:
  """Returns the collectives of one computation, in the order they start.

  Executions are 1; those of loops inside are not included.
  """
  started: dict[str, tuple[Collective, int, int]] = {}
  ends: dict[str, str] = {}  # Of an instruction that ends one: its key.
  for position, each in enumerate(computation):
    for host, inner in _inside(module, computation, each):
      key = _key(inner, each)
      if key in started:
        started[key] = (*started[key][:2], position)
        continue
      found = _collective(host, inner, placement)
      if found is not None:
        started[key] = (found, position, position)
        ends[each.name] = key
    if each.opcode.endswith(('-done', '-update')) or each.opcode in (
      'get-tuple-element',
      'bitcast',
    ):
      key = ends.get(each.operands[0], '') if each.operands else ''
      if each.opcode == 'recv-done':
        key = _rendezvous(computation.operand(each, 0))
      if key in started:
        ends[each.name] = key
        if each.opcode.endswith('-done'):
          started[key] = (*started[key][:2], position)
  return [Placed(*found) for found in started.values()]


def _inside(
  module: Module, computation: Computation, each: Instruction
) -> Iterator[tuple[Computation, Instruction]]:
  """Yields what communicates in an instruction, its fused parts included."""
  if _kind(each) or (each.opcode == 'send' and _TRANSFER in each.attributes):
    yield computation, each
  else:
    for inner, part in operations.parts(module, each):
      yield from _inside(module, inner, part)


def _kind(each: Instruction) -> Any:
  name = each.opcode.removesuffix('-start')
  return name if name in operations.KINDS else None


def _key(inner: Instruction, each: Instruction) -> str:
  if inner.opcode == 'send':
    return _rendezvous(inner)
  channel = inner.attribute('channel_id')
  return f'{inner.opcode} {channel}' if channel else f'{each.name} {inner.name}'


def _rendezvous(each: Instruction) -> str:
  found = _RENDEZVOUS.search(each.attributes)
  return f'transfer {found.group(1)}' if found else ''


def _collective(host, each, placement) -> Collective | None:
  if each.opcode == 'send':
    return _transfer(host, each, placement)
  kind = _kind(each)
  result = each.bytes
  if each.opcode.endswith('-start') and kind != 'all-reduce':
    # What is sent stands before the result, and what more is needed after it.
    sent = sum(host.instructions[name].bytes for name in each.operands)
    result = sent if kind == 'collective-permute' else result - sent
  if kind == 'collective-permute':
    return _permutation(each, result, placement)
  found = groups.replica_groups(each.attributes, len(placement.own))
  members = next((g for g in found if len(g) > 1), None)
  if members is None:
    return None
  size = len(members)
  if kind == 'all-reduce' and host.name.startswith(_SCATTER):
    kind, result = 'reduce-scatter', result // size
  wire = {
    'all-gather': result * (size - 1) / size,
    'reduce-scatter': result * (size - 1),
    'all-reduce': 2 * result * (size - 1) / size,
    'collective-broadcast': result,
  }.get(kind, result * (size - 1) / size)
  positions = placement.own[np.asarray(members)]
  return Collective(
    'all-to-all' if kind == 'ragged-all-to-all' else kind,
    result,
    math.ceil(wire),
    1,
    size,
    placement.spanned(positions),
    placement.link(positions[None]),
    tuple(positions.tolist()),
    each.name,
  )


def _permutation(each, result, placement) -> Collective | None:
  text = re.search(r'source_target_pairs=(\{\{.*?\}\})', each.attributes)
  pairs = groups.lists(text.group(1)) if text else []
  moving = [pair for pair in pairs if pair[0] != pair[1]]
  if not moving:
    return None
  positions = placement.own[np.asarray(moving)]
  differ = np.unravel_index(positions, placement.shape)
  axes = tuple(
    axis
    for axis, index in zip(placement.axes, differ, strict=True)
    if (index[:, 0] != index[:, 1]).any()
  )
  sizes = dict(zip(placement.axes, placement.shape, strict=True))
  return Collective(
    'collective-permute',
    result,
    math.ceil(result * len(moving) / len(placement.own)),
    1,
    math.prod(sizes[axis] for axis in axes),
    axes,
    placement.link(positions),
    tuple(positions[0].tolist()),
    each.name,
  )


def _transfer(host, each, placement) -> Collective:
  """What a device hands to the network between slices (Megascale XLA)."""
  found = re.search(rf'{_TRANSFER}="([A-Z_]+)"', each.attributes)
  assert found
  kind: Any = found.group(1).lower().replace('_', '-')
  slices = len(set(placement.slices))
  size = host.instructions[each.operands[0]].bytes
  share = (slices - 1) / slices
  sent = size * {'all-reduce': 2 * share, 'all-gather': slices - 1}.get(
    kind, share
  )
  first = placement.own[0]
  # The same place in every slice.
  at = [
    int(np.flatnonzero(np.asarray(placement.slices) == s)[0])
    for s in sorted(set(placement.slices))
  ]
  assert first in at
  positions = np.asarray(at)
  return Collective(
    kind if kind in operations.KINDS else 'collective-permute',
    size,
    math.ceil(sent),
    1,
    slices,
    placement.spanned(positions),
    'dcn',
    tuple(at),
    each.name,
  )
