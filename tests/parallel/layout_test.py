"""Layouts: sizes of a mesh, and what cannot be one."""

from __future__ import annotations

import jax
from jax.sharding import AxisType
import pytest

from bigdl.parallel.layout import AXES, Layout


@pytest.mark.parametrize(
  ('layout', 'devices', 'sizes'),
  [
    (Layout(), 8, (8, 1)),
    (Layout(), 1, (1, 1)),
    (Layout(data=1), 8, (1, 1)),
    (Layout(data=1, fsdp=-1), 8, (1, 8)),
    (Layout(fsdp=4), 8, (2, 4)),
    (Layout(data=2, fsdp=4), 8, (2, 4)),
    (Layout(data=3), 8, (3, 1)),
  ],
)
def test_sizes_of_axes_on_so_many_devices(layout, devices, sizes):
  assert layout.sizes(devices) == dict(zip(AXES, sizes, strict=True))


@pytest.mark.parametrize(
  ('data', 'fsdp', 'message'),
  [
    (16, 1, "layout={'data': 16, 'fsdp': 1} needs 16 devices, this machine"),
    (4, 4, "layout={'data': 4, 'fsdp': 4} needs 16 devices, this machine"),
    (-1, 16, "layout={'data': -1, 'fsdp': 16} needs 16 devices, this machine"),
  ],
)
def test_a_mesh_larger_than_the_machine_names_both(data, fsdp, message):
  with pytest.raises(ValueError) as error:
    Layout(data, fsdp).mesh()
  assert str(error.value) == f'{message} has 8'


def test_what_does_not_divide_the_machine_names_both():
  with pytest.raises(ValueError) as error:
    Layout(fsdp=3).mesh()
  assert str(error.value) == (
    "layout={'data': -1, 'fsdp': 3} does not divide 8 devices"
  )


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'data': 0}, r'layout.data=0 must be positive, or -1'),
    ({'fsdp': -2}, r'layout.fsdp=-2 must be positive, or -1'),
    ({'data': -1, 'fsdp': -1}, r'layout={.*} has more than one -1'),
    (
      {'rules': (('kernel$', (None, 'tensor')),)},
      "layout.rules: 'tensor' for 'kernel.' must be one of data, fsdp, or None",
    ),
  ],
)
def test_a_field_that_cannot_be_is_refused_by_name_and_value(fields, message):
  with pytest.raises(ValueError, match=f'^{message}$'):
    Layout(**fields)


def test_mesh_has_named_auto_axes_over_the_first_devices():
  mesh = Layout(data=2, fsdp=2).mesh()
  assert mesh.axis_names == AXES
  assert mesh.axis_types == (AxisType.Auto,) * len(AXES)
  assert set(mesh.devices.flat) == set(jax.devices()[:4])


def test_mesh_takes_the_devices_it_is_given():
  devices = jax.devices()[4:]
  assert set(Layout().mesh(devices).devices.flat) == set(devices)
  with pytest.raises(ValueError, match='needs 8 devices, this machine has 4'):
    Layout(data=8).mesh(devices)
