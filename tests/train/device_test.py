"""The machine: what records call it, and the programs kept for it."""

import jax
import jax.numpy as jnp

from bigdl.parallel.layout import Layout
from bigdl.train import device


def test_small_programs_are_kept_on_disk(tmp_path, cache_settings):
  folder = device.enable_compile_cache(tmp_path / 'xla')
  jax.jit(lambda x: x * 3 + 1)(jnp.ones(7)).block_until_ready()
  assert any(folder.iterdir())


def test_devices_are_counted_by_mesh_not_by_machine():
  found = device.describe(Layout(2).mesh())
  assert found['count'] == 2
  assert found['hosts'] == 1
  assert found['platform'] == 'cpu'
