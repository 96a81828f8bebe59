"""What a run compiles, what it scores by, and where it logs by default."""

from __future__ import annotations

import dataclasses
import sys

import jax
import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import (
  EventAccumulator,
)
import toy_experiment as toy

from bigdl.experiment import Evaluation, Logs
from bigdl.optim.adamw import AdamW
from bigdl.parallel.layout import Layout
from bigdl.train import checkpoint, device, log, program, run

ONE = Layout(data=1)
CLOSE = 1e-6  # Relative, in float32.


def planned(**changes):
  e = toy.experiment(**{'layout': ONE, 'optimizer': AdamW(), **changes})
  plan = program.Program(e, e.layout.mesh())
  return plan, plan.state_shapes()


def train(folder, e):
  return run.run(e, folder, config=toy.config(e))


def test_runs_that_differ_in_rate_and_length_are_one_program(
  tmp_path, cache_settings
):
  folder = device.enable_compile_cache(tmp_path)

  def programs(**changes) -> int:
    plan, shapes = planned(**changes)
    plan.update(shapes)
    return len([p for p in folder.iterdir() if p.name.startswith('jit_step')])

  once = programs()
  assert once == 1
  assert programs(optimizer=AdamW(lr=1e-5)) == once
  assert programs(steps=500) == once
  assert programs(seed=3) == once
  assert programs(optimizer=AdamW(b1=0.8)) == once + 1


@pytest.mark.parametrize('layout', [ONE, Layout(data=2, fsdp=4)], ids=str)
def test_an_update_takes_the_memory_of_the_state_before_it(layout):
  plan, shapes = planned(layout=layout, optimizer=AdamW(ema=0.9))
  update, _ = plan.update(shapes)
  state = plan.init(shapes)
  after, _ = update(state, plan.batches()(0), plan.key())
  assert all(x.is_deleted() for x in jax.tree.leaves(state))
  assert not any(x.is_deleted() for x in jax.tree.leaves(after))
  for got, want in zip(
    jax.tree.leaves(after), jax.tree.leaves(shapes), strict=True
  ):
    assert got.sharding == want.sharding
    assert (got.shape, got.dtype) == (want.shape, want.dtype)


def test_a_step_fetches_one_vector():
  plan, shapes = planned()
  update, names = plan.update(shapes)
  _, metrics = update(plan.init(shapes), plan.batches()(0), plan.key())
  assert metrics.shape == (len(names),)
  assert metrics.is_fully_replicated
  assert {'loss', 'grad_norm'} <= set(names)


def test_held_out_loss_is_that_of_the_averaged_weights(tmp_path):
  held_out = toy.Points(seed=1)
  e = toy.experiment(
    optimizer=AdamW(lr=0.03, ema=0.8),
    layout=ONE,
    evaluation=Evaluation(held_out, rows=16),
  )
  record = train(tmp_path, e)
  plan = program.Program(e, e.layout.mesh())
  state = checkpoint.load(tmp_path, plan.state_shapes())
  rows = held_out.rows(0, 16)

  def loss(params):
    y = e.model.apply({'params': params}, rows['x'])[:, 0]
    return float(np.mean((y - rows['y']) ** 2))

  assert record['loss'] == pytest.approx(loss(state.opt.average), rel=CLOSE)
  assert abs(loss(state.params) / record['loss'] - 1) > 1e-3


def test_tensorboard_has_the_numbers_of_the_log_also_after_a_stop(tmp_path):
  e = toy.experiment(
    layout=ONE, steps=6, logs=dataclasses.replace(Logs(), every=1)
  )
  seen: list[int] = []
  stopped = run.run(
    e,
    tmp_path,
    config=toy.config(e),
    on_progress=lambda news: seen.append(news['step']),
    stop=lambda: 3 in seen,
  )
  assert stopped['status'] == 'interrupted'
  assert train(tmp_path, e)['status'] == 'finished'
  events = EventAccumulator(str(tmp_path / 'tensorboard'))
  events.Reload()
  lines = [r for r in log.read(tmp_path) if 'loss' in r]
  for name in ('loss', 'grad_norm', 'lr'):
    points = {p.step: p.value for p in events.Scalars(name)}
    assert points == {r['step']: pytest.approx(r[name]) for r in lines}
  assert [p.step for p in events.Scalars('eval_loss')] == [6]


@pytest.mark.parametrize('name', ['wandb', 'mlflow'])
def test_a_logger_that_is_not_installed_is_one_line_before_any_file(
  tmp_path, monkeypatch, name
):
  monkeypatch.setitem(sys.modules, name, None)
  logs = Logs(tensorboard=False, **{name: 'project'})
  with pytest.raises(ValueError) as error:
    train(tmp_path, toy.experiment(layout=ONE, logs=logs))
  assert str(error.value) == (
    f'logs.{name} needs the package {name}: pip install bigdl[{name}]'
  )
  assert {p.name for p in tmp_path.iterdir()} <= {'lock'}
