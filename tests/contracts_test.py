"""Each file that extends the package keeps the contract of its kind.

A new file in `bigdl/models`, `objectives`, `data` or `optim` is found by itself,
and its `tiny()` put through every check of the battery in `tests/contracts`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import json
import os
import pathlib
import subprocess
import sys
import textwrap
from typing import Any

import finding
from flax import linen as nn
import model_battery
import objective_battery
import optimizer_battery
import pytest
import source_battery

from bigdl.data.base import Source
from bigdl.objectives.base import Objective
from bigdl.optim.base import Optimizer

HERE = pathlib.Path(__file__).parent

KINDS: dict[str, tuple[type, list[Callable]]] = {
  'bigdl.models': (nn.Module, model_battery.CHECKS),
  'bigdl.objectives': (Objective, objective_battery.CHECKS),
  'bigdl.data': (Source, source_battery.CHECKS),
  'bigdl.optim': (Optimizer, optimizer_battery.CHECKS),
}


def cases() -> Iterator[Any]:
  for package, (kind, checks) in KINDS.items():
    for name, tiny in finding.tinies(package, kind).items():
      short = name.removeprefix('bigdl.')
      for check in checks:
        title = check.__name__.removeprefix('check_')
        yield pytest.param(check, tiny, id=f'{short}-{title}')


@pytest.mark.parametrize(('check', 'tiny'), list(cases()))
def test_contract(check, tiny):
  check(tiny)


@pytest.mark.parametrize('package', KINDS)
def test_every_file_with_something_to_use_ends_in_tiny(package):
  kind, _ = KINDS[package]
  assert finding.missing(package, kind) == []


@pytest.mark.parametrize('package', KINDS)
def test_tiny_returns_what_its_own_file_defines(package):
  kind, _ = KINDS[package]
  found = finding.tinies(package, kind)
  assert found
  for name, tiny in found.items():
    value = tiny()
    value = value[0] if isinstance(value, tuple) else value
    assert isinstance(value, kind), name
    assert type(value).__module__ == name
    assert tiny.__doc__


def test_fingerprints_do_not_depend_on_the_process():
  names = list(finding.tinies('bigdl.data', Source))
  code = f"""
    import importlib, json
    tinies = [importlib.import_module(name).tiny for name in {names}]
    print(json.dumps([tiny().fingerprint() for tiny in tinies]))
  """
  done = subprocess.run(
    [sys.executable, '-c', textwrap.dedent(code)],
    # Sets and hashes come in another order there.
    env={**os.environ, 'PYTHONHASHSEED': '271828'},
    cwd=HERE.parent,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  there = json.loads(done.stdout.splitlines()[-1])
  tinies = finding.tinies('bigdl.data', Source).values()
  assert there == [tiny().fingerprint() for tiny in tinies]
