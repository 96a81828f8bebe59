"""Encoder-decoders through the same planner, loop and law as any other family."""

from __future__ import annotations

import json
import pathlib

import pytest

import bigdl
from bigdl import __main__ as program
from bigdl import config
from bigdl.objectives.seq2seq import Seq2Seq

ROOT = pathlib.Path(bigdl.__file__).parents[1]
FILE = '''
"""A tiny sweep of Transformers over sequences to reverse."""

from bigdl.data.algorithmic import Algorithmic
from bigdl.experiment import Checkpoints, Evaluation, Experiment, Logs
from bigdl.models.transformer import Transformer
from bigdl.objectives.seq2seq import Seq2Seq
from bigdl.optim.adamw import AdamW
from bigdl.scaling import grid


def rows(split):
  return Algorithmic(task='reverse', vocab=8, length=7, split=split)


def get_config():
  return Experiment(
    model=Transformer(depth=1, width=16, heads=2, vocab=8, length=8),
    objective=Seq2Seq(),
    data=rows('train'),
    optimizer=AdamW(lr=1e-2),
    steps=100,
    batch=8,
    evaluation=Evaluation(data=rows('validation'), rows=64, batch=32),
    checkpoints=Checkpoints(every=1000, keep=1),
    logs=Logs(every=50, tensorboard=False),
  )


def get_sweep(base):
  return grid.isoflop(
    base,
    budgets=(8e7,),
    models=grid.ladder(base.model, (0.5, 1)),
    batch=base.batch,
    min_steps=10,
    lr=1e-2,
  )
'''


@pytest.fixture(scope='module')
def swept(tmp_path_factory):
  folder = tmp_path_factory.mktemp('transformer')
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
  assert len(records) == 2
  for record in records:
    assert record['status'] == 'finished'
    assert 0 < record['loss'] < 3 and record['loss_se'] > 0
    assert 0 < record['measures']['error'] <= 1
    assert record['flops']['matmul_causal'] == pytest.approx(8e7, rel=0.05)


def test_the_default_sweep_plans_sizes_around_the_best():
  spec = f'{ROOT / "experiments" / "isoflop.py"}:transformer'
  base = config.load(spec)
  base.check()
  module, arg = config.load_module(spec)
  plan = config.call(module, 'get_sweep', arg, given=(base,))
  assert isinstance(base.objective, Seq2Seq)
  budgets = sorted({cell.budget for cell in plan})
  assert len(budgets) >= 4
  for budget in budgets:
    sizes = [cell.n for cell in plan if cell.budget == budget]
    assert len(sizes) >= 4 and max(sizes) > 3 * min(sizes)
  assert all(abs(cell.mismatch) < 0.02 for cell in plan)
  assert sum(cell.budget for cell in plan) < 4e13


@pytest.mark.parametrize('arg', ['copy', 'reverse'])
def test_the_trained_tasks_fit_their_models(arg):
  experiment = config.load(f'{ROOT / "experiments" / "transformer.py"}:{arg}')
  experiment.check()
  assert experiment.data.task == arg


def test_pairs_from_a_file_fit_their_models(tmp_path):
  file = tmp_path / 'pairs.txt'
  words = [f'go {i} times\tva {i} fois' for i in range(300)]
  file.write_text('\n'.join(words))
  for size in ('', 'base@'):
    experiment = config.load(
      f'{ROOT / "experiments" / "transformer.py"}:{size}{file}'
    )
    experiment.check()


def test_other_names_are_refused():
  spec = f'{ROOT / "experiments" / "transformer.py"}:'
  with pytest.raises(ValueError, match="'large@x' must be copy, reverse, PATH"):
    config.load(f'{spec}large@x')
