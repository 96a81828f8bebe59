"""Lets the tests here import `toy_experiment`, and change the compile cache."""

import pathlib
import sys

import jax
from jax.experimental.compilation_cache import compilation_cache
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent))

SETTINGS = (
  'jax_compilation_cache_dir',
  'jax_persistent_cache_min_compile_time_secs',
  'jax_persistent_cache_min_entry_size_bytes',
)


@pytest.fixture
def cache_settings():
  """Puts the cache of compiled programs back as it was."""
  before = {name: getattr(jax.config, name) for name in SETTINGS}
  compilation_cache.reset_cache()
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
