"""A mesh of devices as one frozen value of axis sizes."""

from __future__ import annotations

import dataclasses
import math

import jax
from jax.sharding import AxisType, Mesh

AXES = ('data', 'fsdp')


@dataclasses.dataclass(frozen=True)
class Layout:
  """How many devices each way of splitting gets; -1 takes all that is left.

  data: rows of the batch; parameters are copied.
  fsdp: rows of the batch and parameters (ZeRO-3, Rajbhandari et al., 2020,
    arXiv:1910.02054).
  rules: which axes split the last dimensions of which parameters, where
    `parallel.rules` should not go by size: `(('embedding$', ('fsdp', None)),)`.
  """

  data: int = -1
  fsdp: int = 1
  rules: tuple[tuple[str, tuple[str | None, ...]], ...] = ()

  def __post_init__(self):
    for pattern, axes in self.rules:
      for axis in axes:
        if axis is not None and axis not in AXES:
          raise ValueError(
            f'layout.rules: {axis!r} for {pattern!r} must be one of'
            f' {", ".join(AXES)}, or None'
          )
    sizes = self._asked()
    for name, size in sizes.items():
      if size == 0 or size < -1:
        raise ValueError(f'layout.{name}={size} must be positive, or -1')
    if list(sizes.values()).count(-1) > 1:
      raise ValueError(f'layout={sizes} has more than one -1')

  def sizes(self, devices: int) -> dict[str, int]:
    """Returns the axis sizes on that many devices.

    A layout without -1 may use fewer devices than there are.
    """
    sizes = self._asked()
    known = math.prod(s for s in sizes.values() if s > 0)
    if known > devices:
      raise ValueError(
        f'layout={sizes} needs {known} devices, this machine has {devices}'
      )
    if -1 in sizes.values() and devices % known:
      raise ValueError(f'layout={sizes} does not divide {devices} devices')
    return {k: devices // known if s == -1 else s for k, s in sizes.items()}

  def _asked(self) -> dict[str, int]:
    return {axis: getattr(self, axis) for axis in AXES}

  def mesh(self, devices: list[jax.Device] | None = None) -> Mesh:
    """Returns the mesh over `devices` (default: all), axes as in `AXES`."""
    devices = list(jax.devices() if devices is None else devices)
    sizes = tuple(self.sizes(len(devices)).values())
    # Without explicit Auto, make_mesh builds Explicit axes.
    return jax.make_mesh(
      sizes,
      AXES,
      axis_types=(AxisType.Auto,) * len(AXES),
      devices=devices[: math.prod(sizes)],
    )
