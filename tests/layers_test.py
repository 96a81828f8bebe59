"""Imports run downward only, and what must start at once imports nothing heavy.

`ROWS` is the table of the house, top first. A module may import what stands in
a row below its own, and its own sub-package (a folder, or one of the names
below where a folder spans two rows); whatever else it imports of `bigdl` is
upward or sideways.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
import graphlib
import pathlib
import subprocess
import sys
import textwrap

import pytest

import bigdl
from bigdl.scaling import synthetic

PACKAGE = pathlib.Path(bigdl.__file__).parent
ROWS: tuple[tuple[str, ...], ...] = (
  ('__main__', 'commands'),
  # They read each other's files, never each other.
  ('train', 'scaling', 'compiling', 'fleet'),
  ('experiment',),
  # A foreign checkpoint is of one family, whose model it builds.
  ('interop',),
  ('models', 'objectives', 'data', 'optim'),
  (
    'layers',
    'objectives.base',
    'data.base',
    'optim.base',
    'tensors',
  ),
  # Layers ask it which devices they are traced for, and how those split.
  ('parallel',),
  ('config', 'optim.schedule', 'optim.depth'),
  ('flags',),
  ('values', 'tree', 'storage'),
)
# What works for any model must not know one of them.
KNOW_NOTHING_CONCRETE = ('train', 'experiment')
CONCRETE = (*ROWS[3], *ROWS[4])
MAY_READ_FLAGS = ROWS[0]
FLAG_READERS = ('absl.flags', 'absl.app', 'argparse', 'optparse', 'getopt')
ENVIRONMENT = ('os.environ', 'os.environb', 'os.getenv', 'sys.argv')


def violations(folder: pathlib.Path) -> list[str]:
  """Returns a sentence for each import in a package that breaks the table."""
  modules = {name_of(path, folder): path for path in folder.rglob('*.py')}
  found: list[str] = []
  graph: dict[str, set[str]] = {}
  for name, path in sorted(modules.items()):
    parsed = ast.parse(path.read_text('utf-8'))
    here = path.relative_to(folder).as_posix()
    if name and place(name) is None:
      found.append(f'{here}: stands in no row of the table')
      continue
    is_package = path.name == '__init__.py'
    for line, target in imports(parsed, name, folder.name, is_package):
      known = resolve(target, modules, folder.name)
      if known is not None and known != name:
        graph.setdefault(name, set()).add(known)
        reason = judge(name, known)
        if reason:
          found.append(f'{here}:{line}: {reason}')
    if not name or place(name) not in MAY_READ_FLAGS:
      found += [
        f'{here}:{line}: reads {what}, which commands alone may'
        for line, what in outside(parsed)
      ]
  try:
    graphlib.TopologicalSorter(graph).prepare()
  except graphlib.CycleError as error:
    found.append(f'{" > ".join(error.args[1])} import each other')
  return found


def name_of(path: pathlib.Path, folder: pathlib.Path) -> str:
  """Returns `train.run` for `bigdl/train/run.py`; '' for the package itself."""
  parts = path.relative_to(folder).with_suffix('').parts
  return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


def place(name: str) -> str | None:
  """Returns the longest entry of the table that a module is, or is in."""
  entries = [
    e for row in ROWS for e in row if name == e or name.startswith(f'{e}.')
  ]
  return max(entries, key=len, default=None)


def judge(name: str, target: str) -> str | None:
  """Returns why `name` must not import `target`, or None."""
  if not name:
    return f'imports {target}, and the package itself imports nothing'
  mine, other = place(name), place(target)
  assert mine is not None
  if other is None:
    return f'imports {target}, which stands in no row of the table'
  if mine in KNOW_NOTHING_CONCRETE and other in CONCRETE:
    return f'imports {target}, and {mine} knows nothing concrete'
  rank = {entry: i for i, row in enumerate(ROWS) for entry in row}
  if rank[other] > rank[mine] or other == mine:
    return None
  way = 'sideways' if rank[other] == rank[mine] else 'upward'
  return f'imports {target}, {way} from {mine}'


def resolve(target: str, modules: dict, package: str) -> str | None:
  """Returns the module of the package that is imported; None for another's."""
  if target != package and not target.startswith(f'{package}.'):
    return None
  name = target[len(package) + 1 :]
  # `bigdl.tree.norm` is a name in bigdl/tree.py; folders need no __init__.
  while name and name not in modules:
    if any(m.startswith(f'{name}.') for m in modules):
      return name
    name = name.rpartition('.')[0]
  return name or None


def imports(
  parsed: ast.Module, name: str, package: str, is_package: bool
) -> Iterator[tuple[int, str]]:
  """Yields line and full name of each import, wherever in the file it is."""
  for node in ast.walk(parsed):
    if isinstance(node, ast.Import):
      yield from ((node.lineno, alias.name) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ''
      if node.level:
        parts = [package, *name.split('.')] if name else [package]
        up = node.level - is_package
        parts = parts[: len(parts) - up] if up else parts
        base = '.'.join([*parts, *base.split('.')] if base else parts)
      yield from ((node.lineno, f'{base}.{a.name}') for a in node.names)
    elif isinstance(node, ast.Call) and node.args:
      # importlib.import_module('bigdl.train.run')
      called = ast.unparse(node.func).rpartition('.')[2]
      first = node.args[0]
      if called in ('import_module', '__import__') and isinstance(
        first, ast.Constant
      ):
        yield node.lineno, str(first.value)


def outside(parsed: ast.Module) -> Iterator[tuple[int, str]]:
  """Yields line and name of whatever reads flags or the environment."""
  for line, target in imports(parsed, '', '', False):
    for what in (*FLAG_READERS, *ENVIRONMENT):
      if target == what or target.startswith(f'{what}.'):
        yield line, what
  for node in ast.walk(parsed):
    if isinstance(node, ast.Attribute) and ast.unparse(node) in ENVIRONMENT:
      yield node.lineno, ast.unparse(node)


def test_imports_run_downward_only():
  assert violations(PACKAGE) == []


def test_the_table_names_nothing_that_is_not_there():
  for entry in (e for row in ROWS for e in row):
    path = PACKAGE.joinpath(*entry.split('.'))
    assert path.is_dir() or path.with_suffix('.py').is_file(), entry


@pytest.fixture
def write(tmp_path):
  """Writes a package `bigdl` of the given files; returns its violations."""

  def build(files: dict[str, str]) -> list[str]:
    folder = tmp_path / 'bigdl'
    for name, text in files.items():
      path = folder / name
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text(textwrap.dedent(text))
    return violations(folder)

  return build


HOUSE = {
  '__init__.py': '"""The map."""\n',
  'tree.py': 'import jax\n',
  'optim/schedule.py': '',
  'optim/base.py': 'from bigdl import tree\n'
  'from bigdl.optim.schedule import WSD\n',
  'optim/lion.py': 'from bigdl.optim.base import Optimizer\n',
  'data/base.py': '',
  'data/tokens.py': 'from bigdl.data.base import Source\n',
  'data/stdlib.py': 'from bigdl.data import tokens\n',
  'models/gpt.py': 'from bigdl.layers.norm import Norm\n',
  'objectives/classify.py': '',
  'interop/gpt2.py': 'from bigdl.models.gpt import GPT\n',
  'layers/norm.py': 'from ..tree import norm\n',
  'experiment.py': 'from bigdl.data.base import Source\n',
  'train/__init__.py': '',
  'train/run.py': 'from . import log\nimport bigdl.experiment\n',
  'train/log.py': 'import absl.logging\n',
  'scaling/count.py': 'from bigdl.experiment import Experiment\n',
  'commands/train.py': """
    import argparse, os
    print(os.environ)
    def main():
      from bigdl.train import run
      from bigdl.scaling import count
    """,
}


def test_a_house_in_order_has_no_violation(write):
  assert write(HOUSE) == []


@pytest.mark.parametrize(
  ('file', 'text', 'sentence'),
  [
    (
      'layers/mlp.py',
      'from bigdl.models.gpt import GPT\n',
      'layers/mlp.py:1: imports models.gpt, upward from layers',
    ),
    (
      'train/state.py',
      '\nimport bigdl.scaling.count\n',
      'train/state.py:2: imports scaling.count, sideways from train',
    ),
    (
      'scaling/fit.py',
      'from bigdl.train.log import read\n',
      'scaling/fit.py:1: imports train.log, sideways from scaling',
    ),
    (
      'models/gpt.py',
      'from bigdl.interop import gpt2\n',
      'models/gpt.py:1: imports interop.gpt2, upward from models',
    ),
    (
      'models/vit.py',
      'from bigdl.objectives import classify\n',
      'models/vit.py:1: imports objectives.classify, sideways',
    ),
    (
      'data/images.py',
      'def f():\n  from bigdl.optim.lion import Lion\n',
      'data/images.py:2: imports optim.lion, sideways from data',
    ),
    (
      'data/base.py',
      'from bigdl.data import tokens\n',
      'data/base.py:1: imports data.tokens, upward from data.base',
    ),
    (
      'experiment.py',
      'from bigdl.optim.lion import Lion\n',
      'experiment.py:1: imports optim.lion, and experiment knows nothing',
    ),
    (
      'train/run.py',
      'from bigdl.models import gpt\n',
      'train/run.py:1: imports models.gpt, and train knows nothing concrete',
    ),
    (
      'train/run.py',
      'from ..scaling import count\n',
      'train/run.py:1: imports scaling.count, sideways from train',
    ),
    (
      'train/__init__.py',
      'from ..scaling import count\n',
      'train/__init__.py:1: imports scaling.count, sideways from train',
    ),
    (
      'optim/lion.py',
      'if TYPE_CHECKING:\n  from bigdl.commands import train\n',
      'optim/lion.py:2: imports commands.train, upward from optim',
    ),
    (
      'tree.py',
      'import importlib\nimportlib.import_module("bigdl.train.run")\n',
      'tree.py:2: imports train.run, upward from tree',
    ),
    (
      'tree.py',
      'from bigdl.commands.train import main\n',
      'tree.py:1: imports commands.train, upward from tree',
    ),
    (
      '__init__.py',
      'from bigdl import tree\n',
      '__init__.py:1: imports tree, and the package itself imports nothing',
    ),
    (
      'tools.py',
      'import os\n',
      'tools.py: stands in no row of the table',
    ),
    (
      'models/gpt.py',
      'from absl import flags\n',
      'models/gpt.py:1: reads absl.flags, which commands alone may',
    ),
    (
      'scaling/count.py',
      'import argparse\n',
      'scaling/count.py:1: reads argparse, which commands alone may',
    ),
    (
      'train/log.py',
      'import os\n\nprint(os.environ["HOME"])\n',
      'train/log.py:3: reads os.environ, which commands alone may',
    ),
    (
      'data/tokens.py',
      'from os import getenv\n',
      'data/tokens.py:1: reads os.getenv, which commands alone may',
    ),
    (
      'tree.py',
      'import sys\nname = sys.argv[0]\n',
      'tree.py:2: reads sys.argv, which commands alone may',
    ),
    (
      'data/tokens.py',
      'from bigdl.data import stdlib\n',
      'data.stdlib > data.tokens > data.stdlib import each other',
    ),
  ],
)
def test_a_violation_is_found_with_its_line(write, file, text, sentence):
  found = write({**HOUSE, file: text})
  assert any(f.startswith(sentence) for f in found), found


# Importing any of these names fails, whoever asks.
REFUSE = """
import sys

class Refuse:
  def find_spec(self, name, path=None, target=None):
    if name.partition('.')[0] in {heavy}:
      raise AssertionError(f'{{name}} is imported')

sys.meta_path.insert(0, Refuse())
"""


def run_without(heavy: tuple[str, ...], code: str) -> str:
  done = subprocess.run(
    [sys.executable, '-c', REFUSE.format(heavy=heavy) + code],
    capture_output=True,
    text=True,
    cwd=PACKAGE.parent,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-2000:]
  return done.stdout


def test_help_needs_neither_jax_nor_numpy():
  # The help of the verbs that train lists the fields of an experiment.
  shown = run_without(
    ('jax', 'jaxlib', 'flax', 'numpy', 'pandas', 'scipy', 'rich'),
    'import bigdl, bigdl.__main__ as program\n'
    'for args in (["--help"], ["law", "--help"], ["plan", "--help"]):\n'
    '  assert program.main(args) == 0',
  )
  assert shown.count('usage: bigdl') == 3


def test_a_law_is_fitted_without_jax(tmp_path):
  surface = synthetic.Surface()
  runs = synthetic.isoflop(surface, budgets=(1e18, 1e19, 1e20, 1e21))
  runs.to_csv(tmp_path / 'runs.csv')
  args = ['law', str(tmp_path / 'runs.csv'), '--bootstrap=40', '--holdout=1']
  shown = run_without(
    ('jax', 'jaxlib', 'flax'),
    f'import bigdl.__main__ as program\nassert program.main({args}) == 0',
  )
  assert 'parametric' in shown


def test_the_refusal_of_heavy_imports_refuses():
  with pytest.raises(AssertionError, match='numpy is imported'):
    run_without(('numpy',), 'import numpy')
