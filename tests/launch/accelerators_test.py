"""Names that the clouds have for topologies."""

from __future__ import annotations

import accelerators
import pytest


@pytest.mark.parametrize(
  ('name', 'cloud', 'xpk', 'machines'),
  [
    # The number is of cores up to v4 and of v5p, of chips of v5e and v6e.
    ('v4:2x2x1', 'v4-8', 'v4-2x2x1', (1, 4)),
    ('v4:8x8x8', 'v4-1024', 'v4-8x8x8', (128, 4)),
    ('v5p:4x4x8', 'v5p-256', 'v5p-4x4x8', (32, 4)),
    ('v5p:16x20x28', 'v5p-17920', 'v5p-16x20x28', (2240, 4)),
    ('v5e:2x4', 'v5litepod-8', 'v5litepod-2x4', (2, 4)),
    ('v5e:4x4*2', 'v5litepod-16', 'v5litepod-4x4', (4, 4)),
    ('v6e:1x1', 'v6e-1', 'v6e-1x1', (1, 1)),
    ('v6e:16x16', 'v6e-256', 'v6e-16x16', (64, 4)),
  ],
)
def test_a_topology_has_the_names_that_google_gives_it(
  name, cloud, xpk, machines
):
  where = accelerators.parse(name)
  assert accelerators.cloud(where) == cloud
  assert accelerators.xpk(where) == xpk
  assert accelerators.gke_machines(where) == machines


def test_old_pods_are_lent_by_cloud_tpu_alone():
  v3 = accelerators.parse('v3:32x32')
  assert accelerators.cloud(v3) == 'v3-2048'
  with pytest.raises(ValueError, match='XPK has no such slice'):
    accelerators.xpk(v3)
  with pytest.raises(ValueError, match='expected one of v4, v5e'):
    accelerators.gke(v3)


def test_tpu7x_is_lent_by_gke_alone():
  where = accelerators.parse('tpu7x:4x4x4')
  assert accelerators.xpk(where) == 'tpu7x-4x4x4'
  assert accelerators.gke(where) == {
    'cloud.google.com/gke-tpu-accelerator': 'tpu7x',
    'cloud.google.com/gke-tpu-topology': '4x4x4',
  }
  with pytest.raises(ValueError, match=r'not tpu7x: use launch/xpk\.py'):
    accelerators.cloud(where)


def test_gpus_are_named_by_kind_and_number():
  where = accelerators.parse('h100:1x4x8')
  assert accelerators.xpk(where) == 'h100-80gb-8'
  assert accelerators.sky(where) == ('H100:8', 4)
  assert accelerators.gke_machines(where) == (4, 8)
  with pytest.raises(ValueError, match='hosts of 8'):
    accelerators.xpk(accelerators.parse('h100:1x4x4'))
  with pytest.raises(ValueError, match='another launcher'):
    accelerators.cloud(where)


def test_skypilot_has_one_slice_of_the_shape_that_a_name_stands_for():
  sky = accelerators.sky
  assert sky(accelerators.parse('v5e:4x4')) == ('tpu-v5litepod-16:1', 1)
  assert sky(accelerators.parse('v4:4x8x8')) == ('tpu-v4-512:1', 1)
  with pytest.raises(ValueError, match='v4-512, which has another shape'):
    sky(accelerators.parse('v4:4x4x16'))
  with pytest.raises(ValueError, match='one slice a job'):
    sky(accelerators.parse('v5e:4x4*2'))


def test_every_generation_that_cloud_tpu_lends_has_an_image():
  for name, runtime in accelerators.RUNTIMES.items():
    shape = '2x2' if name in ('v2', 'v3', 'v5e', 'v6e') else '2x2x1'
    where = accelerators.parse(f'{name}:{shape}')
    assert accelerators.cloud(where).startswith(
      'v5litepod-' if name == 'v5e' else f'{name}-'
    )
    assert runtime
