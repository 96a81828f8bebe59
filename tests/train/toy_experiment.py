"""A model, an objective, data and an optimizer of a few lines each.

The loop knows none of them: what holds for these holds for any.
"""

from __future__ import annotations

import dataclasses

from flax import linen as nn
import grain.python as grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bigdl.data.base import Source
from bigdl.experiment import Checkpoints, Evaluation, Experiment, Logs
from bigdl.objectives.base import Objective
from bigdl.optim.base import Optimizer

WIDTH = 8


class Net(nn.Module):
  """Two layers."""

  width: int = 128

  @nn.compact
  def __call__(self, x_BD):
    return nn.Dense(1)(nn.relu(nn.Dense(self.width)(x_BD)))


@dataclasses.dataclass(frozen=True)
class Regress(Objective):
  """Squared error under noise on the inputs; `explode` makes a step NaN."""

  noise: float = 0.1
  explode: int = -1

  def units(self, spec):
    return 1

  def init(self, model, key, batch):
    seen = jnp.zeros((), jnp.float32)
    return model.init(key, batch['x'])['params'], {'seen': seen}

  def score(self, model, params, extra, batch):
    y = model.apply({'params': params}, batch['x'])[:, 0]
    return (y - batch['y']) ** 2, jnp.ones_like(y)

  def loss(self, model, params, extra, batch, key):
    noise = self.noise * jax.random.normal(key, batch['x'].shape)
    error, weight = self.score(
      model, params, extra, {**batch, 'x': batch['x'] + noise}
    )
    step = extra['seen']
    loss = jnp.where(step == self.explode, jnp.nan, error.mean())
    metrics = {
      'loss': loss,
      'weight': weight.sum(),
      'noise': noise.mean(),
      'ids': batch['id'].astype(jnp.float32).mean(),
    }
    return loss, ({'seen': step + 1}, metrics)


@dataclasses.dataclass(frozen=True)
class Points(Source):
  """Row i is drawn from a generator seeded with i."""

  length: int = 4096
  seed: int = 0
  clusters: int = 0  # Rows a cluster; 0 names none.

  def row(self, i):
    x = np.random.default_rng((self.seed, i)).normal(size=WIDTH)
    y = np.sin(x).sum()
    row = {'x': x.astype(np.float32), 'y': np.float32(y), 'id': np.int32(i)}
    if self.clusters:
      row['cluster'] = np.int32(i // self.clusters)
    return row

  def dataset(self):
    return grain.MapDataset.range(self.length).map(self.row)

  def facts(self):
    return {'bytes_per_token': 2.0}

  def fingerprint(self):
    return f'points-{self.length}-{self.seed}'


@dataclasses.dataclass(frozen=True)
class Adam(Optimizer):
  """Adam with a constant learning rate, called another for the log."""

  def make(self, steps):
    return optax.adam(self.lr)

  def learning_rate(self, step, steps):
    return self.lr * (1 - jnp.asarray(step, jnp.float32) / steps)


def experiment(**changes) -> Experiment:
  """Returns a run of 20 updates that is over in a moment."""
  values = dict(
    model=Net(),
    objective=Regress(),
    data=Points(),
    optimizer=Adam(lr=1e-2),
    steps=20,
    batch=8,
    evaluation=Evaluation(Points(seed=1), rows=20, every=10),
    checkpoints=Checkpoints(every=5, keep=2),
    logs=Logs(every=1, tensorboard=False),
  )
  return Experiment(**{**values, **changes})


def config(experiment: Experiment) -> dict:
  """Returns what the run folder is compared by."""

  def plain(value):
    if isinstance(value, nn.Module) or dataclasses.is_dataclass(value):
      fields = (f.name for f in dataclasses.fields(value))
      names = [n for n in fields if n not in ('parent', 'name')]
      return {n: plain(getattr(value, n)) for n in names}
    return value

  return plain(experiment)
