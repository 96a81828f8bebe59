"""Held-out loss with its standard error.

The mean is a ratio of sums, L = sum_g l_g / sum_g w_g over clusters g
(documents, or rows where the data names none), and its standard error that of
the ratio estimator (Cochran, "Sampling Techniques", 3rd ed., 1977, eq. 6.13):

  se(L)^2 = G / (G - 1) * sum_g (l_g - L w_g)^2 / (sum_g w_g)^2
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import math
from typing import cast

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from bigdl.data.base import Source
from bigdl.objectives.base import State
from bigdl.parallel import scope
from bigdl.parallel.layout import Layout
from bigdl.train import batches


@dataclasses.dataclass(frozen=True)
class Score:
  """A held-out loss; what the data cannot say is None."""

  loss: float  # Nats per target.
  se: float | None  # Standard error of `loss`; None for a single cluster.
  count: float  # Targets scored.
  bits_per_byte: float | None
  # What else the objective measures, by name: mean and standard error.
  more: dict[str, tuple[float, float | None]] = dataclasses.field(
    default_factory=dict
  )


def ratio(
  losses: np.ndarray, weights: np.ndarray, clusters: np.ndarray
) -> tuple[float, float | None]:
  """Returns sum(losses) / sum(weights) and its clustered standard error."""
  total = weights.sum()
  if not total > 0:
    raise ValueError('evaluation: no target has a weight above zero')
  mean = losses.sum() / total
  _, group = np.unique(clusters, return_inverse=True)
  residuals = np.bincount(group, losses - mean * weights)
  used = int((np.bincount(group, weights) > 0).sum())
  if used < 2:
    return float(mean), None
  variance = used / (used - 1) * (residuals**2).sum() / total**2
  return float(mean), float(np.sqrt(variance))


class Evaluator:
  """Scores the first `rows` rows of `data`; compiled at its first use."""

  def __init__(
    self,
    measure: Callable,  # (state, batch) -> ({name: sum}, weight), all [rows]
    data: Source,
    *,
    rows: int,
    batch: int,
    sharding: NamedSharding,
    layout: Layout = Layout(),
    watch: batches.Watch | None = None,
  ):
    self._data = data
    self._rows = min(rows or len(data), len(data))
    self._size = batch
    self._watch = watch
    self._layout, self._mesh = layout, cast(Mesh, sharding.mesh)
    self._own = batches.own_rows(sharding, batch)
    self._place = batches.Placer(sharding, batch)
    self._facts = data.facts()
    replicated = NamedSharding(sharding.mesh, PartitionSpec())

    def step(state, batch):
      sums, weight = measure(state, batch)
      cluster = batch.get('cluster', batch['_row'])
      return {**sums, '_weight': weight, '_cluster': cluster}

    self._step = jax.jit(step, out_shardings=replicated)

  def __call__(self, state: State) -> Score:
    """Returns the held-out score of the state."""
    with scope.entered(self._layout, self._mesh):
      return self._score(state)

  def _score(self, state):
    starts = range(0, self._rows, self._size)
    parts = []
    with batches.Prefetch(
      self._batch, 0, len(starts), watch=self._watch
    ) as stream:
      late = None
      for _ in starts:
        now = self._step(state, next(stream))
        if late is not None:
          parts.append(jax.device_get(late))
        late = now
      parts.append(jax.device_get(late))
    # Rows that only fill up the last batch are cut off; they may be NaN.
    columns = {
      k: np.concatenate([p[k] for p in parts])[: self._rows].astype(np.float64)
      for k in parts[0]
    }
    weights, clusters = columns.pop('_weight'), columns.pop('_cluster')
    means = {k: ratio(sums, weights, clusters) for k, sums in columns.items()}
    loss, se = means.pop('loss')
    bytes_per_token = self._facts.get('bytes_per_token')
    bits = loss / math.log(2) / bytes_per_token if bytes_per_token else None
    return Score(loss, se, float(weights.sum()), bits, means)

  def _batch(self, number: int) -> dict[str, jax.Array]:
    index = (self._own + number * self._size).astype(np.int32)
    stop = min(int(index[-1]) + 1, self._rows)
    start = min(int(index[0]), stop - 1)
    rows = self._data.rows(start, stop)
    # Rows beyond the end repeat the last one.
    take = np.minimum(index, self._rows - 1) - start
    rows = {name: x[take] for name, x in rows.items()}
    return self._place({**rows, '_row': index})
