"""Topologies: names, what is sold, how slices are joined, figures of chips."""

from __future__ import annotations

import math
import sys

import pytest

from bigdl.parallel import chips, nvidia, topology
from bigdl.scaling import peak


@pytest.mark.parametrize(
  ('name', 'devices', 'hosts', 'wrap'),
  [
    ('v2:16x16', 512, 64, (True, True, False)),
    ('v3:32x32*4', 8192, 1024, (True, True, False)),
    ('v3:16x32', 1024, 128, (False, True, False)),
    ('v4:8x8x8', 512, 128, (True, True, True)),
    ('v4:12x16x16*2', 6144, 1536, (True, True, True)),
    ('v4:2x4x4', 32, 8, (False, False, False)),
    ('v5e:2x4', 8, 1, (False, False, False)),
    ('v5e:8x16', 128, 32, (False, True, False)),
    ('v5p:16x20x28', 8960, 2240, (True, True, True)),
    ('v6e:1x1', 1, 1, (False, False, False)),
    ('tpu7x:4x4x8', 256, 32, (True, True, True)),
    ('h100:1x64x8', 512, 64, (False, False, False)),
    ('a100:2x4x4', 32, 8, (False, False, False)),
  ],
)
def test_a_name_is_a_machine_and_back(name, devices, hosts, wrap):
  found = topology.parse(name)
  assert (found.devices, found.hosts, found.wrap) == (devices, hosts, wrap)
  assert found.name == name
  assert topology.parse(found.name) == found


@pytest.mark.parametrize(
  ('name', 'same'),
  [
    ('v5litepod:4x4', 'v5e:4x4'),
    ('v7x:2x2x1', 'tpu7x:2x2x1'),
    (' V4:4x4x4 ', 'v4:4x4x4'),
  ],
)
def test_other_names_of_a_generation_are_understood(name, same):
  assert topology.parse(name) == topology.parse(same)


@pytest.mark.parametrize(
  ('name', 'near'),
  [
    ('v9:2x2', 'GENERATION one of v2, v3, v4, v5e'),
    ('v5e-8', 'such as v5e:2x4'),
    ('v4-1024', 'such as v4:8x8x8'),
    ('v4', 'such as v4:'),
    ('v4:16x8x8', 'near are v4:8x8x16'),
    ('v4:8x8', 'near are v4:8x8x8'),
    ('v5e:32x32', 'v5e:16x16'),
    # Sixteen by four by four is sold of v4 alone.
    ('v5p:4x4x16', 'v5p:4x8x8'),
    ('v5e:16x16*0', 'at least one slice'),
    ('h100:8', 'h100:1x64x8'),
    ('h100:1x64x8*2', 'h100:1x64x8'),
    ('h100:1x2x3', '1, 2, 4 or 8'),
    ('', 'GENERATION:SHAPE'),
  ],
)
def test_what_is_not_sold_is_refused_with_what_is_near(name, near):
  with pytest.raises(ValueError, match='^topology=') as error:
    topology.parse(name)
  assert near in str(error.value)
  assert '\n' not in str(error.value)


# GKE's list of v5p, of which each number of cubes comes in one shape.
V5P = """
4x4x4 4x4x8 4x4x12 4x8x8 4x4x20 4x8x12 4x4x28 8x8x8 4x12x12 4x8x20 4x4x44 8x8x12
8x8x16 4x4x92 8x12x16 12x12x12 4x4x124 8x16x16 4x4x148 4x4x164 4x4x172 4x4x188
4x4x212 4x4x236 4x4x244 16x16x16 16x16x24 12x24x24 16x20x28
""".split()


def test_cubes_come_in_the_shapes_that_are_sold():
  known = {
    'x'.join(map(str, shape)) for shape in topology.shapes(chips.CHIPS['v5p'])
  }
  assert set(V5P) <= known
  assert not known & {'4x4x16', '8x8x32', '4x4x268', '16x16x32'}
  assert len(known) == 4 + 92
  tpu7x = topology.shapes(chips.CHIPS['tpu7x'])
  assert {(16, 16, 32), (16, 24, 24), (1, 1, 1)} <= set(tpu7x)


@pytest.mark.parametrize('name', [n for n, c in chips.CHIPS.items() if c.pod])
def test_no_slice_is_larger_than_its_pod(name):
  chip = chips.CHIPS[name]
  found = topology.shapes(chip)
  assert max(map(math.prod, found)) == math.prod(chip.pod)
  assert chip.pod in found
  assert list(found) == sorted(found, key=lambda s: (math.prod(s), s))


@pytest.mark.parametrize('name', ['v5e:4x8', 'v4:8x8x8', 'h100:1x2x8'])
def test_larger_machines_come_in_order(name):
  here = topology.parse(name)
  sizes = [other.devices for other in topology.larger(here)]
  assert sizes == sorted(sizes)
  assert sizes[0] > here.devices
  # More than the largest slice there is: several of them.
  assert sizes[-1] > 4000 or sizes[-1] == 4 * 256


@pytest.mark.parametrize('name', chips.CHIPS)
def test_peaks_are_those_that_mfu_divides_by(name):
  chip = chips.CHIPS[name]
  assert peak.peak_flops(name, chip.platform).flops == chip.flops


def test_a_chip_with_two_devices_shares_its_links_between_them():
  chip = chips.CHIPS['tpu7x']
  assert chip.ici_bandwidth == pytest.approx(6 * 90e9 / 2)
  assert chip.dcn_bandwidth == pytest.approx(12.5e9 / 2)


def test_without_the_compiler_the_message_says_what_to_install(monkeypatch):
  monkeypatch.setitem(sys.modules, 'libtpu', None)
  with pytest.raises(ValueError, match=r"pip install 'bigdl\[pods\]'"):
    topology.devices(topology.parse('v5e:2x4'))


def test_without_the_cuda_plugin_the_message_says_what_to_install(monkeypatch):
  monkeypatch.setattr(nvidia, 'is_installed', lambda: False)
  with pytest.raises(ValueError, match=r"pip install 'bigdl\[cuda12\]'"):
    topology.devices(topology.parse('h100:1x1x8'))


def test_a_gpu_is_described_by_its_own_figures():
  text = nvidia.target(chips.CHIPS['h100'])
  assert 'core_count: 132\n' in text
  assert f'device_memory_size: {chips.CHIPS["h100"].memory}\n' in text
  assert 'major: 9 minor: 0 feature_extension: ACCELERATED' in text
  assert 'core_count: 108\n' in nvidia.target(chips.CHIPS['a100'])
  assert text.count('{') == text.count('}')
