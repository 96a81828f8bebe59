"""The platform that a program is traced for, which may not be this machine's.

A program can be compiled here for devices that are elsewhere (a TPU slice, on a
laptop). What layers choose by platform must then follow the devices of the mesh
in whose context they are traced, as `jax.set_mesh` sets it.
"""

from __future__ import annotations

import jax


def platform() -> str:
  """Returns 'cpu', 'gpu' or 'tpu': of the mesh in context, else the default."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return jax.default_backend() if device is None else device.platform
