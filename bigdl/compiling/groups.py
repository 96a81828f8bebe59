"""Which devices take part in a collective together."""

from __future__ import annotations

import math
import re

import numpy as np


def replica_groups(attributes: str, devices: int) -> list[list[int]]:
  """Returns the groups of partitions that an instruction names.

  In any of the three forms that XLA prints: lists, an iota that is reshaped and
  transposed, axes of a mesh. No groups at all are one of all devices.
  """
  listed = re.search(r'replica_groups=(\{\{.*?\}\}|\{\})', attributes)
  if listed:
    return lists(listed.group(1)) or [list(range(devices))]
  iota = re.search(
    r'replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', attributes
  )
  if iota:
    return _iota(*iota.groups()).tolist()
  mesh = re.search(
    r'replica_groups=@?mesh\[([^\]]*)\]'
    r'(?:,?\s*device_ids=\(?\[([\d,]+)\](?:<=\[([\d,]+)\])?'
    r'(?:T\(([\d,]+)\))?\)?)?\s*\{([^}]*)\}',
    attributes,
  )
  if mesh is None:
    return [list(range(devices))]
  return _mesh(*mesh.groups())


def lists(text: str) -> list[list[int]]:
  """Returns the lists of numbers in `{{0,1},{2,3}}`."""
  found = [re.findall(r'\d+', part) for part in re.findall(r'\{[^{}]*\}', text)]
  return [[int(n) for n in part] for part in found if part]


def _numbers(text: str) -> list[int]:
  return [int(n) for n in text.split(',')]


def _iota(shape: str, dims: str, turned: str | None) -> np.ndarray:
  sizes = _numbers(dims)
  ids = np.arange(math.prod(sizes)).reshape(sizes)
  if turned:
    ids = ids.transpose(_numbers(turned))
  return ids.reshape(_numbers(shape))


def _mesh(sizes, ids, dims, turned, axes) -> list[list[int]]:
  named = re.findall(r"'([^']+)'=(\d+)", sizes)
  shape = {name: int(size) for name, size in named}
  count = math.prod(shape.values())
  order = np.arange(count)
  if ids and (dims or turned):
    order = _iota(ids, dims or ids, turned).ravel()
  elif ids:
    order = np.asarray(_numbers(ids)).ravel()
  # A part of an axis is `'name':(size of what is outside of it)size`.
  parts = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", axes)
  split: list[int] = []
  chosen: list[tuple[int, int]] = []
  for name, size in shape.items():
    cuts = {1, size}
    for part, outside, own in parts:
      if part == name and outside:
        cuts |= {int(outside), int(outside) * int(own)}
    for low, high in zip(sorted(cuts), sorted(cuts)[1:], strict=False):
      for place, (part, outside, own) in enumerate(parts):
        first = int(outside or 1)
        if part == name and first <= low < first * int(own or size):
          chosen.append((place, len(split)))
      split.append(high // low)
  inner = [dim for _, dim in sorted(chosen)]
  outer = [dim for dim in range(len(split)) if dim not in inner]
  grid = order.reshape(split).transpose(outer + inner)
  return grid.reshape(-1, math.prod(split[d] for d in inner)).tolist()
