"""A mesh of devices as one frozen value of axis sizes."""

from __future__ import annotations

import collections
import dataclasses
import math
from typing import Any, Literal, get_args

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh
import numpy as np

# Outermost first: neighbours in the last axes are nearest to each other.
AXES = ('pipeline', 'data', 'fsdp', 'context', 'tensor')
# These split the rows of a batch; over the others it is copied.
ROW_AXES = ('data', 'fsdp')

AcrossKind = Literal['data', 'pipeline']


@dataclasses.dataclass(frozen=True)
class Layout:
  """How many devices each way of splitting gets; -1 takes all that is left.

  data: rows of the batch; parameters are copied.
  fsdp: rows of the batch and parameters (ZeRO-3, Rajbhandari et al., 2020,
    arXiv:1910.02054).
  tensor: heads, features and vocabulary (Shoeybi et al., 2019,
    arXiv:1909.08053), and between them positions (Korthikanti et al., 2022,
    arXiv:2205.05198).
  context: positions of the sequence.
  pipeline: blocks, by depth.
  microbatches: parts of the batch that pass through a pipeline one after the
    other; 0 takes as many as there are stages.
  repeats: how often a microbatch goes round a pipeline; above 1, a stage holds
    as many runs of blocks, and idles less (`parallel.pipeline`).
  slices: groups of devices that a slower network joins; the outermost part of
    an axis goes across them, and is counted in its size.
  across: the axis that goes across slices.
  rules: which axes split the last dimensions of which parameters, before the
    rules of `parallel.rules`: `(('embedding$', ('fsdp', None)),)`.
  """

  data: int = -1
  fsdp: int = 1
  tensor: int = 1
  context: int = 1
  pipeline: int = 1
  microbatches: int = 0
  repeats: int = 1
  slices: int = 1
  across: AcrossKind = 'data'
  rules: tuple[tuple[str, tuple[str | None, ...]], ...] = ()

  def __post_init__(self):
    for pattern, axes in self.rules:
      for axis in axes:
        if axis is not None and axis not in AXES:
          raise ValueError(
            f'layout.rules: {axis!r} for {pattern!r} must be one of'
            f' {", ".join(AXES)}, or None'
          )
    for name, size in self._asked().items():
      if size == 0 or size < -1:
        raise ValueError(f'layout.{name}={size} must be positive, or -1')
    if list(self._asked().values()).count(-1) > 1:
      raise ValueError(f'layout={self._said()} has more than one -1')
    if self.microbatches < 0:
      raise ValueError(
        f'layout.microbatches={self.microbatches} must not be negative'
      )
    if self.microbatches and self.pipeline == 1:
      raise ValueError(
        f'layout.microbatches={self.microbatches} must be 0 where'
        ' layout.pipeline=1'
      )
    if self.repeats < 1:
      raise ValueError(f'layout.repeats={self.repeats} must be at least 1')
    if self.repeats > 1 and self.pipeline == 1:
      raise ValueError(
        f'layout.repeats={self.repeats} must be 1 where layout.pipeline=1'
      )
    if self.across not in get_args(AcrossKind):
      raise ValueError(
        f'layout.across={self.across} must be one of'
        f' {", ".join(get_args(AcrossKind))}'
      )
    if self.slices < 1:
      raise ValueError(f'layout.slices={self.slices} must be at least 1')
    self._check_slices(self._asked())

  def sizes(self, devices: int) -> dict[str, int]:
    """Returns the axis sizes on that many devices.

    A layout without -1 may use fewer devices than there are.
    """
    sizes = self._asked()
    known = math.prod(s for s in sizes.values() if s > 0)
    if known > devices:
      raise ValueError(
        f'layout={self._said()} needs {known} devices, there are {devices}'
      )
    if -1 in sizes.values() and devices % known:
      raise ValueError(
        f'layout={self._said()} does not divide {devices} devices'
      )
    sizes = {k: devices // known if s == -1 else s for k, s in sizes.items()}
    self._check_slices(sizes)
    return sizes

  def _asked(self) -> dict[str, int]:
    return {axis: getattr(self, axis) for axis in AXES}

  def _said(self) -> dict[str, int]:
    """Returns what is asked for, without the axes that few know."""
    asked = self._asked()
    return {k: s for k, s in asked.items() if k in ROW_AXES or s != 1}

  def _check_slices(self, sizes: dict[str, int]) -> None:
    size = sizes[self.across]
    if size > 0 and size % self.slices:
      raise ValueError(
        f'layout.slices={self.slices} must divide layout.{self.across}={size}'
      )

  def mesh(self, devices: list[jax.Device] | None = None) -> Mesh:
    """Returns the mesh over `devices` (default: all), axes as in `AXES`.

    Devices of one slice are placed so that axes follow the links between them.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = self.sizes(len(devices))
    devices = devices[: math.prod(sizes.values())]
    own = dict(sizes)
    own[self.across] //= self.slices
    groups = self._groups(devices)
    parts = np.stack([_placed(tuple(own.values()), group) for group in groups])
    array = np.moveaxis(parts, 0, AXES.index(self.across))
    return Mesh(
      array.reshape(tuple(sizes.values())),
      AXES,
      axis_types=(AxisType.Auto,) * len(AXES),
    )

  def _groups(self, devices: list[Any]) -> list[list[Any]]:
    """Returns the devices of each slice."""
    found: dict[int, list[Any]] = collections.defaultdict(list)
    for device in devices:
      found[getattr(device, 'slice_index', None) or 0].append(device)
    if len(found) > 1 and devices[0].platform == 'tpu':
      # No link but the slower network joins these.
      if len(found) != self.slices:
        raise ValueError(
          f'layout.slices={self.slices} must be {len(found)}, the slices that'
          ' these devices are of'
        )
      if len({len(group) for group in found.values()}) > 1:
        sizes = {k: len(group) for k, group in found.items()}
        raise ValueError(f'slices of {sizes} devices must be of as many each')
      return [found[index] for index in sorted(found)]
    # Other devices come in order: those of one host, or group of hosts, are
    # neighbours.
    size = len(devices) // self.slices
    return [
      devices[i * size : (i + 1) * size] for i in range(len(devices) // size)
    ]


def _placed(sizes: tuple[int, ...], devices: list[Any]) -> np.ndarray:
  """Returns the devices of one slice in an array of those sizes."""
  try:
    return mesh_utils.create_device_mesh(
      sizes, devices, allow_split_physical_axes=True
    )
  # It knows no place for some sizes (35 on 16 x 20 x 28), and says so in any
  # of these ways; nor for a part of a slice.
  except (AssertionError, NotImplementedError, TypeError, ValueError):
    pass

  def place(device):
    coords = tuple(getattr(device, 'coords', None) or ())
    return *coords, getattr(device, 'core_on_chip', 0), device.id

  array = np.empty(len(devices), object)
  array[:] = sorted(devices, key=place)
  return array.reshape(sizes)
