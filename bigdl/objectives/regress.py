"""Predicts numbers of an image or of a text, such as how alike two sentences are.

The loss is half the mean squared error a row, which are nats of a normal
distribution of unit variance, less its constant. Standardise the targets: what
predicts their mean then scores 0.5.
"""

# Shapes: B rows, K numbers a row.
from __future__ import annotations

import dataclasses
from typing import Any, Literal

from flax import linen as nn
import jax
import jax.numpy as jnp

from bigdl.objectives import rows
from bigdl.objectives.base import Batch, Metrics, Objective, Params


@dataclasses.dataclass(frozen=True)
class Regress(Objective):
  """Half the squared error of each row's target, summed over its K numbers.

  A row holds `target`, one number or K, and `image`, or else `tokens` with
  `segments` and `types` where the data has them; and it may hold `weight`, 0
  where the row does not count. A row of segments 0 does not count either.
  """

  unit: Literal['image', 'example'] = 'example'  # What D counts.

  def units(self, spec: dict[str, jax.ShapeDtypeStruct]) -> int:
    return 1

  def check(
    self, model: nn.Module, spec: dict[str, jax.ShapeDtypeStruct], facts: dict
  ) -> None:
    if 'target' not in spec or not {'image', 'tokens'} & spec.keys():
      raise ValueError(
        f'data rows hold {", ".join(spec)}, expected target and image or tokens'
      )
    target = spec['target']
    if not jnp.issubdtype(target.dtype, jnp.floating) or len(target.shape) > 1:
      raise ValueError(
        f'data target={target.dtype}{list(target.shape)} must be a float or K'
      )
    found = rows.first_output(model, spec, facts)
    numbers = target.shape[0] if target.shape else 1
    if getattr(found, 'shape', None) != (1, numbers):
      shape = getattr(found, 'shape', type(found).__name__)
      raise ValueError(
        f'{type(model).__name__} returns {shape} for a row, expected'
        f' {numbers} as the data target'
      )

  def init(
    self, model: nn.Module, key: jax.Array, batch: Batch
  ) -> tuple[Params, Any]:
    arrays, context = rows.inputs(batch)
    return model.init(key, *arrays, **context)['params'], {}

  def loss(
    self,
    model: nn.Module,
    params: Params,
    extra: Any,
    batch: Batch,
    key: jax.Array,
  ) -> tuple[jax.Array, tuple[Any, Metrics]]:
    errors_BK, found_BK, weight_B = self._rows(
      model, params, batch, deterministic=False, rngs={'dropout': key}
    )
    weight = weight_B.sum()
    share_B = weight_B / jnp.maximum(weight, 1)
    loss = (jnp.square(errors_BK).sum(1) * share_B).sum() / 2
    pearson = _pearson(found_BK, found_BK - errors_BK, share_B)
    metrics = {'loss': loss, 'pearson': pearson}
    return loss, (
      extra,
      {**jax.lax.stop_gradient(metrics), 'weight': weight},
    )

  def score(
    self, model: nn.Module, params: Params, extra: Any, batch: Batch
  ) -> tuple[jax.Array, jax.Array]:
    sums, weight_B = self.measures(model, params, extra, batch)
    return sums['loss'], weight_B

  def measures(
    self, model: nn.Module, params: Params, extra: Any, batch: Batch
  ) -> tuple[Metrics, jax.Array]:
    """Also measures `mae`, the mean absolute error, summed over K."""
    errors_BK, _, weight_B = self._rows(
      model, params, batch, deterministic=True
    )
    return {
      'loss': jnp.square(errors_BK).sum(1) / 2 * weight_B,
      'mae': jnp.abs(errors_BK).sum(1) * weight_B,
    }, weight_B

  def _rows(self, model, params, batch, **apply):
    """Returns errors and predictions `[B, K]`, and the weight of each row."""
    arrays, context = rows.inputs(batch)
    found_BK = model.apply({'params': params}, *arrays, **context, **apply)
    target_BK = batch['target'].reshape(found_BK.shape)
    return found_BK - target_BK, found_BK, rows.weights(batch, 'target')


def _pearson(x_BK, y_BK, share_B):
  """Returns the correlation within the batch, its mean over K."""
  share_B1 = share_B[:, None]

  def mean(z_BK):
    return (z_BK * share_B1).sum(0)

  x_BK, y_BK = x_BK - mean(x_BK), y_BK - mean(y_BK)
  scale = jnp.sqrt(mean(x_BK**2) * mean(y_BK**2))
  return (mean(x_BK * y_BK) / jnp.maximum(scale, 1e-12)).mean()


def tiny() -> tuple[Regress, nn.Module, Batch]:
  """Returns the objective, a model for it, and a batch with a row left out."""

  class Linear(nn.Module):
    """Tells two numbers from the sum of weighted pixels."""

    @nn.compact
    def __call__(self, image_BHWC, deterministic=True):
      rows = image_BHWC.reshape(len(image_BHWC), -1)
      return nn.Dense(2)(rows / 255)

  image_BHWC = jnp.arange(64, dtype=jnp.uint8).reshape(4, 4, 4, 1) ** 2
  target_BK = jnp.array([[1, 0], [-1, 2], [0, 1], [3, 3]], jnp.float32)
  weight = jnp.array([1, 1, 1, 0], jnp.float32)
  batch = {'image': image_BHWC, 'target': target_BK, 'weight': weight}
  return Regress(unit='image'), Linear(), batch
