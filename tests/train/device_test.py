"""The machine: what records call it, and the programs kept for it."""

import jax
import jax.numpy as jnp
import pytest

from bigdl.parallel.layout import Layout
from bigdl.train import device


@pytest.fixture
def settings():
  names = [
    'jax_compilation_cache_dir',
    'jax_persistent_cache_min_compile_time_secs',
    'jax_persistent_cache_min_entry_size_bytes',
  ]
  before = {name: getattr(jax.config, name) for name in names}
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  jax.experimental.compilation_cache.compilation_cache.reset_cache()


def test_small_programs_are_kept_on_disk(tmp_path, settings):
  from jax.experimental.compilation_cache import compilation_cache

  compilation_cache.reset_cache()
  folder = device.enable_compile_cache(tmp_path / 'xla')
  jax.jit(lambda x: x * 3 + 1)(jnp.ones(7)).block_until_ready()
  assert any(folder.iterdir())


def test_devices_are_counted_by_mesh_not_by_machine():
  found = device.describe(Layout(2).mesh())
  assert found['count'] == 2
  assert found['hosts'] == 1
  assert found['platform'] == 'cpu'
