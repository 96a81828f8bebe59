"""Sweeps whose cells train nothing: what workers agree on needs no model."""

from __future__ import annotations

from collections.abc import Callable
import json
import pathlib
import sys

import pytest

from bigdl.fleet import manifest
from bigdl.fleet.store import Local

sys.path.append(str(pathlib.Path(__file__).parent))

from fake_sweeps import cell, plan


@pytest.fixture
def folder(tmp_path) -> Local:
  """The folder of a sweep of three cells, `b` the costliest."""
  store = Local(tmp_path / 'sweep')
  cells = (cell('a', 1e9), cell('b', 4e9), cell('c', 2e9))
  manifest.write(store, plan(*cells))
  return store


@pytest.fixture
def write(folder) -> Callable:
  """Writes what a run leaves in the folder of its cell."""

  def put(name: str, file: str, **content) -> None:
    folder.write(f'cells/{name}/{file}', json.dumps(content).encode())

  return put
