"""A GPT of one block whose examples have numbers, in the log too.

Dropout is on: the draws of a step are part of what must not change.
"""

from __future__ import annotations

import dataclasses

import grain.python as grain
import jax.numpy as jnp
import numpy as np

from bigdl.data.base import Source
from bigdl.experiment import Checkpoints, Evaluation, Experiment, Logs
from bigdl.models.gpt import GPT
from bigdl.objectives.causal_lm import CausalLM
from bigdl.optim.adamw import AdamW

STEPS, BATCH, ROWS = 16, 8, 96


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
