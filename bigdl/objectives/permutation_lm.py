"""Predicts tokens in an order of their positions that each row brings.

Yang et al., 2019 (XLNet), arXiv:1906.08237, eq. 5: the mean cross-entropy, in
nats, of each target given all that comes before it in the order.
Differs from the paper: nothing.
"""

# Shapes: B rows, T positions, P predicted ones, D width.
from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from bigdl.objectives import chunked
from bigdl.objectives.base import (
  Batch,
  Metrics,
  Objective,
  Params,
  check_room,
)

_FIELDS = ('tokens', 'order', 'targets_at', 'targets', 'weight')
# Those that the model is given, if a row has them.
_CONTEXT = ('segments', 'types', 'order', 'targets_at')


@dataclasses.dataclass(frozen=True)
class PermutationLM(Objective):
  """Cross-entropy of tokens given those of lower rank, and where they stand.

  A row holds `tokens` [T], the ranks `order` [T], `targets_at` [P], which are
  positions, and `targets` [P] and `weight` [P] of those. It may hold `segments`,
  where 0 is padding, and `types`.

  D counts tokens read, T a row, and FLOPs are per token read. Losses are nats
  per target.
  """

  chunk: int = 0  # Targets whose logits exist at once; 0: by their size.

  def __post_init__(self):
    if self.chunk < 0:
      raise ValueError(f'chunk={self.chunk} must not be negative')

  def units(self, spec: dict[str, jax.ShapeDtypeStruct]) -> int:
    return spec['tokens'].shape[0]

  def check(
    self, model: nn.Module, spec: dict[str, jax.ShapeDtypeStruct], facts: dict
  ) -> None:
    if any(name not in spec for name in _FIELDS):
      raise ValueError(
        f'data rows hold {", ".join(spec)}, expected {", ".join(_FIELDS)}: wrap'
        ' the text in data.permuted.Permuted'
      )
    _check_shapes(spec)
    hidden = getattr(model, 'hidden', None)
    if hidden is None or 'order' not in inspect.signature(hidden).parameters:
      raise ValueError(
        f'model={type(model).__name__} has no hidden(tokens, order=...),'
        ' expected one such as models.xlnet.XLNet'
      )
    check_room(
      model,
      vocab=facts.get('vocab', 0),
      length=spec['tokens'].shape[0],
    )

  def init(
    self, model: nn.Module, key: jax.Array, batch: Batch
  ) -> tuple[Params, Any]:
    return model.init(key, batch['tokens'], **_context(batch))['params'], {}

  def loss(
    self,
    model: nn.Module,
    params: Params,
    extra: Any,
    batch: Batch,
    key: jax.Array,
  ) -> tuple[jax.Array, tuple[Any, Metrics]]:
    work, values, x_BPD, targets_BP, weight_BP = self._prepare(
      model, params, batch, deterministic=False, rngs={'dropout': key}
    )
    weight = weight_BP.sum()
    share_BP = weight_BP / jnp.maximum(weight, 1)
    loss, metrics = chunked.mean(work, values, x_BPD, targets_BP, share_BP)
    return loss, (extra, {**metrics, 'weight': weight})

  def score(
    self, model: nn.Module, params: Params, extra: Any, batch: Batch
  ) -> tuple[jax.Array, jax.Array]:
    work, values, *places = self._prepare(
      model, params, batch, deterministic=True
    )
    losses_B, _ = chunked.sums(work, values, *places)
    return losses_B, places[-1].sum(1)

  def _prepare(self, model, params, batch, **options):
    """Runs the model up to its head, and says how the rest is cut."""
    x_BPD = model.apply(
      {'params': params},
      batch['tokens'],
      method='hidden',
      **_context(batch),
      **options,
    )
    weight_BP = batch['weight']
    if 'segments' in batch:
      real_BP = jnp.take_along_axis(
        batch['segments'] != 0, batch['targets_at'], axis=1
      )
      weight_BP = weight_BP * real_BP
    work, values = chunked.prepare(model, params, x_BPD, chunk=self.chunk)
    return work, values, x_BPD, batch['targets'], weight_BP


def _context(batch) -> dict[str, Any]:
  return {name: batch[name] for name in _CONTEXT if name in batch}


def _check_shapes(spec) -> None:
  """Raises ValueError where a row's fields are not of one row of tokens."""
  for names, rule in (
    (('tokens', 'order', 'segments', 'types'), 'tokens'),
    (('targets_at', 'targets', 'weight'), 'targets_at'),
  ):
    for name in names:
      if name not in spec:
        continue
      row, kind = spec[name], 'floats' if name == 'weight' else 'integers'
      whole = jnp.issubdtype(row.dtype, jnp.integer)
      fits = len(row.shape) == 1 and row.shape == spec[rule].shape
      if whole == (name == 'weight') or not fits:
        raise ValueError(
          f'data {name}={row.dtype}{list(row.shape)} must be {kind}'
          f' {list(spec[rule].shape[:1])}'
        )


def tiny() -> tuple[PermutationLM, nn.Module, Batch]:
  """Returns the objective in chunks, a model for it, and a batch with padding."""

  class Mean(nn.Module):
    """Predicts from the mean of what comes first, and the token to the left."""

    vocab: int = 11
    length: int = 6

    def setup(self):
      self.embed = nn.Embed(self.vocab, 8)
      self.left = nn.Embed(self.vocab, 8)
      self.out = nn.Dense(self.vocab)

    def __call__(self, tokens_BT, **kwargs):
      return self.logits(self.hidden(tokens_BT, **kwargs))

    def hidden(
      self,
      tokens_BT,
      segments=None,
      order=None,
      targets_at=None,
      deterministic=True,
    ):
      own_BP = jnp.take_along_axis(order, targets_at, axis=1)
      before_BPT = order[:, None] < own_BP[:, :, None]
      mean_BPD = before_BPT @ self.embed(tokens_BT) / self.length
      shifted_BT = jnp.roll(tokens_BT, 1, axis=1)
      left_BP = jnp.take_along_axis(shifted_BT, targets_at, axis=1)
      return mean_BPD + self.left(left_BP)

    def logits(self, x):
      return self.out(x)

  tokens = jnp.arange(24, dtype=jnp.int32).reshape(4, 6) ** 2 % 11
  targets_at = jnp.array([[1, 4, 5], [0, 2, 3]] * 2, jnp.int32)
  batch = {
    'tokens': tokens,
    'segments': jnp.array([[1] * 6] * 3 + [[1] * 3 + [0] * 3], jnp.int32),
    'order': jnp.array([[0, 4, 2, 1, 3, 5], [5, 0, 3, 4, 1, 2]] * 2, jnp.int32),
    'targets_at': targets_at,
    'targets': jnp.take_along_axis(tokens, targets_at, axis=1),
    'weight': jnp.ones(targets_at.shape, jnp.float32).at[0, 0].set(0),
  }
  return PermutationLM(chunk=2), Mean(), batch
