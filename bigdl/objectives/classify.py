"""Tells the class of an image or of a text.

Cross-entropy in nats a row. Label smoothing: Szegedy et al., 2015,
arXiv:1512.00567, section 7: of the target, a share `smoothing` is uniform over
the classes. Mixed rows: Zhang et al., 2017, arXiv:1710.09412, eq. 2: of the
target, a share `mix` is the first label and the rest the second.
Differs from the papers: nothing.
"""

# Shapes: B rows, N classes.
from __future__ import annotations

import dataclasses
from typing import Any, Literal

from flax import linen as nn
import jax
import jax.numpy as jnp

from bigdl.objectives import rows
from bigdl.objectives.base import Batch, Metrics, Objective, Params


@dataclasses.dataclass(frozen=True)
class Classify(Objective):
  """Cross-entropy of each row's class, one logit a class from the model.

  A row holds `label`, and `image`, or else `tokens` with `segments` and `types`
  where the data has them. It may hold `label_2` and `mix`, the share of `label`;
  and `weight`, 0 where the row does not count. A row of segments 0, which are
  padding, does not count either. Held-out rows are scored without smoothing.
  """

  smoothing: float = 0.0
  unit: Literal['image', 'example'] = 'image'  # What D counts.

  def __post_init__(self):
    if not 0 <= self.smoothing < 1:
      raise ValueError(f'smoothing={self.smoothing} must be in [0, 1)')

  def units(self, spec: dict[str, jax.ShapeDtypeStruct]) -> int:
    return 1

  def check(
    self, model: nn.Module, spec: dict[str, jax.ShapeDtypeStruct], facts: dict
  ) -> None:
    if 'label' not in spec or not {'image', 'tokens'} & spec.keys():
      raise ValueError(
        f'data rows hold {", ".join(spec)}, expected label and image or tokens'
      )
    label = spec['label']
    if not jnp.issubdtype(label.dtype, jnp.integer) or label.shape:
      raise ValueError(
        f'data label={label.dtype}{list(label.shape)} must be one integer'
      )
    classes, known = facts.get('classes', 0), getattr(model, 'classes', None)
    if known is not None and classes > known:
      raise ValueError(
        f'data classes={classes} are more than model.classes={known}'
      )
    # The model says itself which images or texts it can take.
    logits = rows.first_output(model, spec, facts)
    least = max(classes, 2)
    if len(logits.shape) != 2 or logits.shape[1] < least:
      raise ValueError(
        f'{type(model).__name__} returns {list(logits.shape)} for one row,'
        f' expected logits [1, {least}] or wider'
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
    losses_B, errors_B, weight_B = self._rows(
      model,
      params,
      batch,
      self.smoothing,
      deterministic=False,
      rngs={'dropout': key},
    )
    weight = weight_B.sum()
    share_B = weight_B / jnp.maximum(weight, 1)
    loss = (losses_B * share_B).sum()
    metrics = {'loss': loss, 'accuracy': ((1 - errors_B) * share_B).sum()}
    metrics = jax.lax.stop_gradient(metrics)
    return loss, (extra, {**metrics, 'weight': weight})

  def score(
    self, model: nn.Module, params: Params, extra: Any, batch: Batch
  ) -> tuple[jax.Array, jax.Array]:
    sums, weight_B = self.measures(model, params, extra, batch)
    return sums['loss'], weight_B

  def measures(
    self, model: nn.Module, params: Params, extra: Any, batch: Batch
  ) -> tuple[Metrics, jax.Array]:
    """Also measures `error`: the share of rows given another class."""
    losses_B, errors_B, weight_B = self._rows(
      model, params, batch, 0.0, deterministic=True
    )
    return {'loss': losses_B * weight_B, 'error': errors_B * weight_B}, weight_B

  def _rows(self, model, params, batch, smoothing, **apply):
    """Returns loss, share of wrong label and weight, each `[B]`."""
    arrays, context = rows.inputs(batch)
    logits_BN = model.apply({'params': params}, *arrays, **context, **apply)
    log_p_BN = jax.nn.log_softmax(logits_BN)
    first_B = jnp.argmax(logits_BN, axis=-1)

    def against(label_B):
      own_BN = jnp.take_along_axis(log_p_BN, label_B[:, None], axis=-1)
      return -own_BN[:, 0], (first_B != label_B).astype(log_p_BN.dtype)

    losses_B, errors_B = against(batch['label'])
    if 'label_2' in batch:
      pairs = zip((losses_B, errors_B), against(batch['label_2']), strict=True)
      mix_B = batch['mix']
      losses_B, errors_B = (mix_B * a + (1 - mix_B) * b for a, b in pairs)
    if smoothing:
      even_B = -log_p_BN.mean(axis=-1)
      losses_B = (1 - smoothing) * losses_B + smoothing * even_B
    return losses_B, errors_B, rows.weights(batch, 'label')


def tiny() -> tuple[Classify, nn.Module, Batch]:
  """Returns the objective, a model for it, and a batch with a row left out."""

  class Linear(nn.Module):
    """Tells a class from the sum of weighted pixels."""

    classes: int = 3

    @nn.compact
    def __call__(self, image_BHWC, deterministic=True):
      rows = image_BHWC.reshape(len(image_BHWC), -1)
      return nn.Dense(self.classes)(rows / 255)

  image_BHWC = jnp.arange(64, dtype=jnp.uint8).reshape(4, 4, 4, 1) ** 2
  batch = {
    'image': image_BHWC,
    'label': jnp.array([0, 2, 1, 2], jnp.int32),
    'label_2': jnp.array([1, 2, 1, 0], jnp.int32),
    'mix': jnp.array([0.9, 1.0, 0.3, 1.0], jnp.float32),
    'weight': jnp.array([1, 1, 1, 0], jnp.float32),
  }
  return Classify(), Linear(), batch
