"""Layouts: sizes of a mesh, and what cannot be one."""

from __future__ import annotations

import dataclasses
import itertools

import jax
from jax.sharding import AxisType
import numpy as np
import pytest

from bigdl.parallel import layout as layouts
from bigdl.parallel.layout import AXES, Layout


@pytest.mark.parametrize(
  ('layout', 'devices', 'sizes'),
  [
    (Layout(), 8, {'data': 8}),
    (Layout(), 1, {}),
    (Layout(data=1), 8, {}),
    (Layout(data=1, fsdp=-1), 8, {'fsdp': 8}),
    (Layout(fsdp=4), 8, {'data': 2, 'fsdp': 4}),
    (Layout(data=2, fsdp=4), 8, {'data': 2, 'fsdp': 4}),
    (Layout(data=3), 8, {'data': 3}),
    (Layout(tensor=4), 8, {'data': 2, 'tensor': 4}),
    (Layout(data=1, context=-1), 8, {'context': 8}),
    (Layout(pipeline=2, tensor=2), 8, {'pipeline': 2, 'data': 2, 'tensor': 2}),
    (Layout(slices=2), 8, {'data': 8}),
  ],
)
def test_sizes_of_axes_on_so_many_devices(layout, devices, sizes):
  assert layout.sizes(devices) == {axis: sizes.get(axis, 1) for axis in AXES}


@pytest.mark.parametrize(
  ('data', 'fsdp', 'message'),
  [
    (16, 1, "layout={'data': 16, 'fsdp': 1} needs 16 devices, there are"),
    (4, 4, "layout={'data': 4, 'fsdp': 4} needs 16 devices, there are"),
    (-1, 16, "layout={'data': -1, 'fsdp': 16} needs 16 devices, there are"),
  ],
)
def test_a_mesh_larger_than_the_machine_names_both(data, fsdp, message):
  with pytest.raises(ValueError) as error:
    Layout(data, fsdp).mesh()
  assert str(error.value) == f'{message} 8'


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
      {'rules': (('kernel$', (None, 'model')),)},
      "layout.rules: 'model' for 'kernel.' must be one of pipeline, data, fsdp,"
      ' context, tensor, or None',
    ),
    ({'tensor': 0}, r'layout.tensor=0 must be positive, or -1'),
    ({'context': -3}, r'layout.context=-3 must be positive, or -1'),
    ({'tensor': -1}, r"layout={'data': -1, .*'tensor': -1} has more than .*"),
    (
      {'microbatches': 4},
      'layout.microbatches=4 must be 0 where layout.pipeline=1',
    ),
    (
      {'microbatches': -1, 'pipeline': 2},
      'layout.microbatches=-1 must not be negative',
    ),
    ({'slices': 0}, 'layout.slices=0 must be at least 1'),
    (
      {'data': 4, 'slices': 3},
      'layout.slices=3 must divide layout.data=4',
    ),
    (
      {'slices': 2, 'across': 'pipeline'},
      'layout.slices=2 must divide layout.pipeline=1',
    ),
    (
      {'across': 'fsdp'},
      'layout.across=fsdp must be one of data, pipeline',
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
  with pytest.raises(ValueError, match='needs 8 devices, there are 4'):
    Layout(data=8).mesh(devices)


def test_what_is_left_must_be_of_whole_slices():
  with pytest.raises(ValueError) as error:
    Layout(fsdp=2, slices=3).mesh()
  assert str(error.value) == 'layout.slices=3 must divide layout.data=4'


@pytest.mark.parametrize(
  ('layout', 'axis'),
  [
    (Layout(data=4, tensor=2, slices=2), 'data'),
    (Layout(data=2, pipeline=4, slices=2, across='pipeline'), 'pipeline'),
  ],
)
def test_the_outermost_part_of_one_axis_goes_across_slices(layout, axis):
  mesh = layout.mesh()
  assert mesh.axis_names == AXES
  assert mesh.axis_types == (AxisType.Auto,) * len(AXES)
  halves = np.split(mesh.devices, 2, axis=AXES.index(axis))
  # A slice is a group of neighbours.
  for half, own in zip(halves, (range(4), range(4, 8)), strict=True):
    assert {d.id for d in half.flat} == set(own)


@dataclasses.dataclass(frozen=True)
class Chip:
  """A device that is not here."""

  id: int
  coords: tuple[int, ...]
  slice_index: int = 0
  core_on_chip: int = 0
  platform: str = 'tpu'
  device_kind: str = 'TPU v4'
  process_index: int = 0


def chips(*shape, slices=1):
  coords = list(itertools.product(*map(range, shape)))
  return [
    Chip(slice_ * len(coords) + i, at, slice_)
    for slice_ in range(slices)
    for i, at in enumerate(coords)
  ]


def test_axes_follow_the_links_between_chips():
  placed = layouts._placed((1, 1, 4, 1, 16), chips(4, 4, 4)[::-1])
  assert placed.shape == (1, 1, 4, 1, 16)
  for row in placed.reshape(4, 16):
    # Each of the four is a plane of chips.
    spans = [len({c.coords[i] for c in row}) for i in range(3)]
    assert sorted(spans) == [1, 4, 4]


def test_sizes_that_fit_no_links_go_by_coordinates():
  given = chips(5, 7, 1)
  placed = layouts._placed((1, 35, 1, 1, 1), given[::-1])
  assert [c.coords for c in placed.flat] == [c.coords for c in given]


def test_slices_of_chips_are_what_the_layout_says():
  given = chips(2, 2, 1, slices=2)
  groups = Layout(data=4, fsdp=2, slices=2)._groups(given[::-1])
  assert [{c.slice_index for c in group} for group in groups] == [{0}, {1}]
  with pytest.raises(ValueError) as error:
    Layout(data=4, fsdp=2)._groups(given)
  assert str(error.value) == (
    'layout.slices=1 must be 2, the slices that these devices are of'
  )
  with pytest.raises(ValueError, match='slices of .* must be of as many each'):
    Layout(data=2, slices=2)._groups(given[:6])
