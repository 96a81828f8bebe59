"""The contract between a model, a loss and the training loop."""

from __future__ import annotations

import dataclasses
from typing import Any

from flax import linen as nn
from flax import struct
import jax
import jax.numpy as jnp
import optax

Batch = dict[str, jax.Array]
Metrics = dict[str, jax.Array]
Params = Any


@struct.dataclass
class State:
  """All that evolves while a run trains; a checkpoint is exactly this.

  There is no random key here: the step's key is `fold_in(key(seed), step)`, so
  a resumed run draws what an uninterrupted one would have drawn.
  """

  step: jax.Array  # int32 scalar: updates done so far.
  params: Params  # float32 master weights.
  opt: optax.OptState
  extra: Any  # Batch statistics, target nets, replay buffers; {} for most.


@dataclasses.dataclass(frozen=True)
class Objective:
  """What training means: parameters to start from, a loss, one update.

  A subclass must define `init`, `loss`, `score` and `units`; a GAN or DQN
  overrides `update` as well. Objectives receive a module and call its `apply`;
  they never import models.
  """

  # What one unit of data D is called in tables and plots.
  unit = 'token'

  def units(self, spec: dict[str, jax.ShapeDtypeStruct]) -> int:
    """Returns how many units of D (targets) one row of data holds."""
    raise NotImplementedError

  def check(
    self, model: nn.Module, spec: dict[str, jax.ShapeDtypeStruct], facts: dict
  ) -> None:
    """Raises ValueError where model and data do not fit together.

    Args:
      model: The module to train.
      spec: Shape and dtype of one row (no batch dimension), by field.
      facts: What the source knows of its data, `{'vocab': 256}` for example.
    """

  def init(
    self, model: nn.Module, key: jax.Array, batch: Batch
  ) -> tuple[Params, Any]:
    """Returns fresh `(params, extra)`; only the shapes of `batch` matter."""
    raise NotImplementedError

  def loss(
    self,
    model: nn.Module,
    params: Params,
    extra: Any,
    batch: Batch,
    key: jax.Array,
  ) -> tuple[jax.Array, tuple[Any, Metrics]]:
    """Returns `(loss, (extra, metrics))`.

    The loss is a mean over `metrics['weight']` targets (a float32 scalar); the
    weight lets microbatches and hosts be averaged exactly.
    """
    raise NotImplementedError

  def score(
    self, model: nn.Module, params: Params, extra: Any, batch: Batch
  ) -> tuple[jax.Array, jax.Array]:
    """Returns summed held-out loss and its weight, both float32 `[rows]`."""
    raise NotImplementedError

  def measures(
    self, model: nn.Module, params: Params, extra: Any, batch: Batch
  ) -> tuple[Metrics, jax.Array]:
    """Returns held-out sums by name and their weight, all float32 `[rows]`.

    `loss`, which is what `score` returns, is among them; whatever else is there
    (`error` of a classifier) stands in the run's record beside it, and a law
    can be fitted to it.
    """
    loss, weight = self.score(model, params, extra, batch)
    return {'loss': loss}, weight

  def update(
    self,
    model: nn.Module,
    tx: optax.GradientTransformation,
    state: State,
    batch: Batch,
    key: jax.Array,
    *,
    accumulate: int = 1,
  ) -> tuple[State, Metrics]:
    """Takes one gradient step, over `accumulate` microbatches if above 1."""
    grad_fn = jax.value_and_grad(self.loss, argnums=1, has_aux=True)
    if accumulate == 1:
      (_, (extra, metrics)), grads = grad_fn(
        model, state.params, state.extra, batch, key
      )
    else:
      grads, extra, metrics = _accumulate(
        grad_fn, model, state, batch, key, accumulate
      )
    updates, opt = tx.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    metrics = {**metrics, 'grad_norm': optax.tree.norm(grads)}
    state = State(step=state.step + 1, params=params, opt=opt, extra=extra)
    return state, metrics


def _accumulate(grad_fn, model, state, batch, key, count):
  """Averages gradients and metrics over `count` microbatches by weight."""

  # Row r goes to microbatch r % count, so that a batch sharded by contiguous
  # rows stays evenly spread over the devices in every microbatch.
  def split(x):
    return jnp.swapaxes(x.reshape(-1, count, *x.shape[1:]), 0, 1)

  def body(carry, inputs):
    total, extra = carry
    micro, index = inputs
    (_, (extra, metrics)), grads = grad_fn(
      model, state.params, extra, micro, jax.random.fold_in(key, index)
    )
    weight = metrics['weight']
    total = jax.tree.map(lambda t, g: t + weight * g, total, grads)
    return (total, extra), metrics

  start = jax.tree.map(jnp.zeros_like, state.params), state.extra
  (total, extra), parts = jax.lax.scan(
    body, start, (jax.tree.map(split, batch), jnp.arange(count))
  )
  weights = parts.pop('weight')
  weight = weights.sum()
  scale = 1 / jnp.maximum(weight, 1)
  grads = jax.tree.map(lambda g: g * scale, total)
  metrics = {k: (v * weights).sum() * scale for k, v in parts.items()}
  return grads, extra, {**metrics, 'weight': weight}


def check_room(model: nn.Module, **values: int) -> None:
  """Raises ValueError where data have more of something than a model has room.

  Args:
    model: Fields that it has not limit nothing.
    **values: What the data have, by the model's field: `vocab`, `length`.
  """
  for name, value in values.items():
    most = getattr(model, name, None)
    if most is not None and value > most:
      raise ValueError(
        f'data {name}={value} is larger than model.{name}={most}'
      )
