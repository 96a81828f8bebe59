"""Eight virtual CPU devices and a persistent compilation cache for all tests."""

from __future__ import annotations

import os
import pathlib
import sys
import tempfile

import pytest

FLAGS = os.environ.get('XLA_FLAGS', '')
if 'host_platform_device_count' not in FLAGS:
  os.environ['XLA_FLAGS'] = (
    f'{FLAGS} --xla_force_host_platform_device_count=8'.strip()
  )
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
# XLA's threads: a device that waits for the others in a collective keeps one, and
# with as many as devices, two collectives at a time wait for ever.
os.environ.setdefault('NPROC', '32')
CACHE = pathlib.Path(tempfile.gettempdir()) / f'bigdl-test-xla-{os.getuid()}'
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(CACHE))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.1')
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES', '0')

# The batteries are plain modules that several test files run.
BATTERIES = pathlib.Path(__file__).parent / 'contracts'
sys.path.insert(0, str(BATTERIES))
pytest.register_assert_rewrite(
  *(file.stem for file in BATTERIES.glob('*_battery.py'))
)
