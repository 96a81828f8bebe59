"""One run of a GPT that moves from one device to two, four and eight."""

from __future__ import annotations

import dataclasses

import grain.python as grain
import jax.numpy as jnp
import numpy as np
import pytest
import toy_experiment as toy

from bigdl.data.base import Source
from bigdl.experiment import Checkpoints, Evaluation, Experiment, Logs
from bigdl.models.gpt import GPT
from bigdl.objectives.causal_lm import CausalLM
from bigdl.optim.adamw import AdamW
from bigdl.parallel.layout import Layout
from bigdl.train import log, run

SAME_LOSS = 1e-6  # Relative, in float32.
STEPS, BATCH, ROWS = 16, 8, 96
# Where the run is stopped, and what it goes on with.
CHAINS = {
  'up': {1: Layout(1), 5: Layout(2), 9: Layout(4), 13: Layout(8)},
  'down': {
    1: Layout(data=1, fsdp=8),
    5: Layout(data=2, fsdp=2),
    9: Layout(data=1, fsdp=2),
    13: Layout(1),
  },
}


@dataclasses.dataclass(frozen=True)
class Numbered(Source):
  """Tokens that count up, shuffled each epoch; every row knows its number."""

  def rows(self, start, stop):
    at = [
      np.random.default_rng(i // ROWS).permutation(ROWS)[i % ROWS]
      for i in range(start, stop)
    ]
    rows = [self._rows[i] for i in at]
    return {k: np.stack([row[k] for row in rows]) for k in rows[0]}

  def dataset(self):
    def row(i):
      tokens = (i + np.arange(9) * (1 + i % 3)) % 32
      return {'tokens': tokens.astype(np.int32), 'id': np.int32(i)}

    return grain.MapDataset.source(range(ROWS)).map(row)

  def facts(self):
    return {'vocab': 32}

  def fingerprint(self):
    return 'numbered'


@dataclasses.dataclass(frozen=True)
class Telling(CausalLM):
  """Adds the example ids of the batch to the metrics, in their order."""

  def loss(self, model, params, extra, batch, key):
    loss, (extra, metrics) = super().loss(model, params, extra, batch, key)
    ids = {f'id{i}': batch['id'][i].astype(jnp.float32) for i in range(BATCH)}
    return loss, (extra, {**metrics, **ids})


EXPERIMENT = Experiment(
  model=GPT(
    depth=1,
    width=32,
    heads=2,
    vocab=32,
    length=8,
    position='none',
    dropout=0.1,
  ),
  objective=Telling(),
  data=Numbered(),
  optimizer=AdamW(lr=3e-3, ema=0.9),
  steps=STEPS,
  batch=BATCH,
  evaluation=Evaluation(Numbered(), rows=24, every=8),
  checkpoints=Checkpoints(every=0),
  logs=Logs(every=1, tensorboard=False),
)


def train(folder, layout: Layout, *, until: int = STEPS) -> dict:
  seen = [0]
  e = dataclasses.replace(EXPERIMENT, layout=layout)
  return run.run(
    e,
    folder,
    config=toy.config(e),
    on_progress=lambda news: seen.append(news['step']),
    stop=lambda: seen[-1] >= until,
  )


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  folder = tmp_path_factory.mktemp('whole')
  assert train(folder, Layout(data=1))['status'] == 'finished'
  return log.read(folder)


@pytest.mark.parametrize('name', CHAINS)
def test_a_run_on_other_devices_sees_the_same_examples_and_losses(
  whole, tmp_path, name
):
  chain = CHAINS[name]
  starts = [*chain, STEPS + 1]
  for number, layout in enumerate(chain.values()):
    # The loop is one step ahead of what it has logged.
    record = train(tmp_path, layout, until=starts[number + 1] - 2)
    assert record['step'] == starts[number + 1] - 1
    assert record['device'].startswith(f'{layout.mesh().size}x ')
  assert record['status'] == 'finished'
  here = log.read(tmp_path)
  assert [r['step'] for r in here] == [r['step'] for r in whole]
  for one, other in zip(whole, here, strict=True):
    for key in one.keys() & {'loss', 'eval_loss'}:
      assert other[key] == pytest.approx(one[key], rel=SAME_LOSS), one['step']
    ids = [f'id{i}' for i in range(BATCH)] if 'loss' in one else []
    assert [other[i] for i in ids] == [one[i] for i in ids]


def test_every_example_is_seen_once_an_epoch(whole):
  seen = [r[f'id{i}'] for r in whole if 'loss' in r for i in range(BATCH)]
  assert sorted(seen[:ROWS]) == list(range(ROWS))
  assert seen[: STEPS * BATCH - ROWS] != seen[ROWS:]
