"""Sweeps whose cells train nothing: what workers agree on needs no model."""

from __future__ import annotations

from collections.abc import Callable
import errno
import fcntl
import json
import os
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


@pytest.fixture
def nfs(monkeypatch) -> None:
  """Locks files as Linux does over NFS: exclusively if open for writing."""
  real = fcntl.flock

  def flock(file, how: int) -> None:
    number = file if isinstance(file, int) else file.fileno()
    mode = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE
    if how & fcntl.LOCK_EX and mode == os.O_RDONLY:
      raise OSError(errno.EBADF, 'Bad file descriptor')
    real(number, how)

  monkeypatch.setattr(fcntl, 'flock', flock)


@pytest.fixture
def unlockable(monkeypatch) -> None:
  """Has every exclusive lock fail, and shared ones succeed."""
  real = fcntl.flock

  def flock(file, how: int) -> None:
    if how & fcntl.LOCK_EX:
      raise OSError(errno.ENOLCK, 'No locks available')
    real(file, how)

  monkeypatch.setattr(fcntl, 'flock', flock)
