"""Launchers as a script's siblings see them, and a sweep of a few seconds."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
import tempfile
import venv

import pytest

import bigdl

ROOT = pathlib.Path(bigdl.__file__).parents[1]
# As `python launch/slurm.py` finds the modules beside it.
sys.path.append(str(ROOT / 'launch'))
sys.path.append(str(pathlib.Path(__file__).parent))

# Eight cells whose batches take a while, so that there is time to be killed in.
FILE = '''
"""A tiny sweep."""

import dataclasses
import time

from bigdl.data.synthetic import Markov
from bigdl.experiment import Checkpoints, Evaluation, Experiment, Logs
from bigdl.models.gpt import GPT
from bigdl.objectives.causal_lm import CausalLM
from bigdl.optim.adamw import AdamW
from bigdl.parallel.layout import Layout
from bigdl.scaling import grid


@dataclasses.dataclass(frozen=True)
class Slow(Markov):
  pause: float = 0.0  # Seconds a batch.

  def batch(self, *args, **more):
    time.sleep(self.pause)
    return super().batch(*args, **more)


def get_config(arg=''):
  return Experiment(
    model=GPT(depth=1, width=16, heads=2, vocab=16, length=8),
    objective=CausalLM(),
    data=Slow(vocab=16, length=8),
    optimizer=AdamW(lr=1e-2),
    steps=6,
    batch=8,
    evaluation=Evaluation(
      data=Markov(split='validation', vocab=16, length=8), rows=64
    ),
    layout=Layout(data=1),
    checkpoints=Checkpoints(every=10, keep=2),
    logs=Logs(every=5, tensorboard=False),
  )


def get_sweep(base, arg=''):
  # `:few` is a tenth of the work.
  budgets = (1e7, 2e7) if arg else (1e8, 2e8)
  return grid.isoflop(
    base,
    budgets=budgets,
    models=[base.model.clone(width=width) for width in (8, 12, 16, 24)],
    batch=base.batch,
    min_steps=4,
    max_epochs=100,
    xla=False,
  )
'''


@pytest.fixture(scope='session')
def experiment_file(tmp_path_factory) -> str:
  file = tmp_path_factory.mktemp('experiments') / 'tiny.py'
  file.write_text(FILE)
  return str(file)


@pytest.fixture(scope='session')
def planned(experiment_file, tmp_path_factory) -> pathlib.Path:
  """The folder of a sweep that is planned and not begun; to be read only."""
  from bigdl import __main__ as program

  folder = tmp_path_factory.mktemp('planned') / 'sweep'
  args = [f'--config={experiment_file}', f'--workdir={folder}', '--plan_only']
  assert program.main(['sweep', *args]) == 0
  return folder


@pytest.fixture(scope='session')
def installed():
  """Returns the folder of programs of a package, in an environment of its own.

  It is kept from one session to the next; for scheduled tests.
  """

  def install(requirement: str) -> pathlib.Path:
    name = re.split(r'\W', requirement)[0]
    home = pathlib.Path(tempfile.gettempdir()) / f'bigdl-test-{name}'
    done = home / 'installed'
    if not done.exists() or done.read_text() != requirement:
      venv.create(home, clear=True, with_pip=True)
      python = str(home / 'bin' / 'python')
      pip = [python, '-m', 'pip', 'install', '--quiet', requirement]
      subprocess.run(pip, check=True)
      done.write_text(requirement)
    return home / 'bin'

  return install
