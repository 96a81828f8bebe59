"""BERT through the same planner, loop and law as any other family."""

from __future__ import annotations

import json
import pathlib

import pytest

import bigdl
from bigdl import __main__ as program
from bigdl import config
from bigdl.objectives.masked_lm import MaskedLM
from bigdl.scaling import grid

ROOT = pathlib.Path(bigdl.__file__).parents[1]
FILE = '''
"""A tiny sweep of BERT over pairs of sentences."""

from bigdl.data.masked import Masked
from bigdl.data.pairs import Pairs
from bigdl.data.stdlib import StandardLibrary
from bigdl.experiment import Checkpoints, Evaluation, Experiment, Logs
from bigdl.models.bert import BERT
from bigdl.objectives.masked_lm import MaskedLM
from bigdl.optim.adamw import AdamW
from bigdl.parallel.layout import Layout
from bigdl.scaling import grid


def rows(split):
  return Masked(Pairs(StandardLibrary(length=16, split=split)))


def get_config():
  return Experiment(
    model=BERT(depth=1, width=16, heads=2, vocab=260, length=16, init_std=0.1),
    objective=MaskedLM(),
    data=rows('train'),
    optimizer=AdamW(lr=1e-2),
    steps=100,
    batch=4,
    evaluation=Evaluation(data=rows('validation'), rows=64, batch=32),
    layout=Layout(data=1),
    checkpoints=Checkpoints(every=1000, keep=1),
    logs=Logs(every=50, tensorboard=False),
  )


def get_sweep(base):
  return grid.isoflop(
    base,
    budgets=(2e8, 4e8),
    models=grid.ladder(base.model, (1, 4)),
    batch=base.batch,
    min_steps=10,
    lr=1e-2,
    xla=False,
  )
'''


@pytest.fixture(scope='module')
def swept(tmp_path_factory):
  folder = tmp_path_factory.mktemp('bert')
  (folder / 'tiny.py').write_text(FILE)
  arguments = [
    f'--config={folder / "tiny.py"}',
    f'--workdir={folder / "runs"}',
  ]
  assert program.main(['sweep', *arguments]) in (0, 3)
  return folder / 'runs'


def test_every_cell_is_trained_at_its_budget_and_scored(swept):
  records = [
    json.loads(p.read_text()) for p in swept.glob('cells/*/record.json')
  ]
  assert len(records) == 4
  for record in records:
    assert record['status'] == 'finished'
    assert 0 < record['loss'] < 6 and record['loss_se'] > 0
    # Bits per byte would be of all of the text.
    assert record['bits_per_byte'] is None
    flops = record['flops']['matmul_causal']
    assert min(abs(flops / c - 1) for c in (2e8, 4e8)) < 0.05


def test_the_default_sweep_plans_sizes_around_the_best(monkeypatch):
  # Its numbers are of no use here, and take a second a model.
  monkeypatch.setattr(grid, 'XLA_MODELS', 0)
  spec = f'{ROOT / "experiments" / "isoflop.py"}:bert'
  base = config.load(spec)
  module, arg = config.load_module(spec)
  # The largest of the ladder are beyond all budgets.
  monkeypatch.setattr(module, 'FACTORS', module.FACTORS[:9])
  plan = config.call(module, 'get_sweep', arg, given=(base,))
  assert isinstance(base.objective, MaskedLM)
  budgets = sorted({cell.budget for cell in plan})
  assert len(budgets) >= 4
  for budget in budgets:
    sizes = [cell.n for cell in plan if cell.budget == budget]
    assert len(sizes) >= 4 and max(sizes) > 3 * min(sizes)
  assert all(abs(cell.mismatch) < 0.02 for cell in plan)
  assert sum(cell.budget for cell in plan) < 4e13
