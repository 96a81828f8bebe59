"""One experiment file, of a GPT that trains in a moment, and its trained run."""

from __future__ import annotations

import pathlib
import shutil
import sys

import jax
import pytest

from bigdl import __main__ as program

sys.path.insert(0, str(pathlib.Path(__file__).parent))

# A run of six updates on one device; every part can be overridden by a flag.
FILE = '''
"""A tiny run."""

from __future__ import annotations

import dataclasses

import grain.python as grain
import numpy as np

from bigdl.data.base import Source
from bigdl.experiment import Checkpoints
from bigdl.experiment import Evaluation
from bigdl.experiment import Experiment
from bigdl.experiment import Logs
from bigdl.models.gpt import GPT
from bigdl.objectives.causal_lm import CausalLM
from bigdl.optim.adamw import AdamW
from bigdl.parallel.layout import Layout
from bigdl.scaling import grid


@dataclasses.dataclass(frozen=True)
class Letters:
  """Sixteen letters, one token each."""

  @property
  def vocab(self):
    return 16

  @property
  def eod(self):
    return 15

  def encode(self, text):
    for letter in text:
      if letter not in 'abcdefghijklmnop':
        raise ValueError(f'{letter!r} is not in the vocabulary a to p')
    return np.array([ord(t) - ord('a') for t in text], np.int32)

  def decode(self, tokens):
    return ''.join(chr(ord('a') + int(t)) for t in tokens)


@dataclasses.dataclass(frozen=True)
class Walk(Source):
  """Tokens that mostly go up by one."""

  seed: int = 0
  vocab: int = 16
  length: int = 8
  tokenizer: Letters = Letters()

  def row(self, i):
    rng = np.random.default_rng((self.seed, i))
    steps = 1 + (rng.random(self.length + 1) < 0.1)
    tokens = (rng.integers(self.vocab) + steps.cumsum()) % self.vocab
    return {'tokens': tokens.astype(np.int32)}

  def dataset(self):
    return grain.MapDataset.range(4096).map(self.row)

  def facts(self):
    return {'vocab': self.vocab, 'bytes_per_token': 1.0}

  def fingerprint(self):
    return f'walk-{self.seed}-{self.vocab}-{self.length}'


def get_config(arg: str = ''):
  return Experiment(
    model=GPT(depth=1, width=16, heads=2, vocab=16, length=16),
    objective=CausalLM(),
    data=Walk(),
    optimizer=AdamW(lr=1e-2),
    steps=6,
    batch=8,
    evaluation=Evaluation(data=Walk(seed=1), rows=16),
    layout=Layout(data=1),
    checkpoints=Checkpoints(every=2, keep=3),
    logs=Logs(every=1, tensorboard=False),
  )


def get_sweep(base):
  return grid.isoflop(
    base,
    budgets=(4e7, 8e7, 1.6e8, 3.2e8),
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
def trained(tmp_path_factory, experiment_file) -> pathlib.Path:
  """A finished run; to be read only."""
  folder = tmp_path_factory.mktemp('runs') / 'trained'
  args = [f'--config={experiment_file}', f'--workdir={folder}']
  assert program.main(['train', *args]) == 0
  return folder


@pytest.fixture
def run_folder(trained, tmp_path) -> pathlib.Path:
  """A copy of the finished run, to be changed."""
  return pathlib.Path(shutil.copytree(trained, tmp_path / 'run'))


@pytest.fixture
def compiled():
  """A list that grows with every program that XLA compiles."""
  events: list[str] = []

  def listen(event: str, seconds: float, **_) -> None:
    if event == '/jax/core/compile/backend_compile_duration':
      events.append(event)

  jax.monitoring.register_event_duration_secs_listener(listen)
  yield events
  jax.monitoring.unregister_event_duration_listener(listen)
