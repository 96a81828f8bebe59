"""Predicts each next token of a target, given a source.

Cross-entropy with label smoothing: Szegedy et al., 2015, arXiv:1512.00567,
section 7, as Vaswani et al., 2017, arXiv:1706.03762, section 5.4 have it, with
e = 0.1. What is reported and scored is the loss without smoothing.
"""

# Shapes: B rows, S source positions, T target positions, D width.
from __future__ import annotations

import dataclasses
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

# Ids that model and data may both name.
_IDS = ('pad', 'begin', 'end')


@dataclasses.dataclass(frozen=True)
class Seq2Seq(Objective):
  """Cross-entropy of each target token, in nats.

  A row holds `source` and `tokens`, the target between its begin and its end,
  one more than the model reads. It may hold `source_segments` and `segments`,
  which tell packed pairs from 1 and padding by 0: a target token counts where it
  continues the segment of the token before it, so that `begin` never does. D
  counts the positions of a row that a target may take, padded ones too.
  """

  smoothing: float = 0.1  # e: the share of a target that all tokens divide.
  chunk: int = 0  # Positions whose logits exist at once; 0: by their size.

  def __post_init__(self):
    if not 0 <= self.smoothing < 1:
      raise ValueError(f'smoothing={self.smoothing} must be in [0, 1)')
    if self.chunk < 0:
      raise ValueError(f'chunk={self.chunk} must not be negative')

  def units(self, spec: dict[str, jax.ShapeDtypeStruct]) -> int:
    return spec['tokens'].shape[0] - 1

  def check(
    self, model: nn.Module, spec: dict[str, jax.ShapeDtypeStruct], facts: dict
  ) -> None:
    for name, least in (('source', 1), ('tokens', 2)):
      row = spec.get(name)
      if row is None:
        raise ValueError(f'data rows hold {", ".join(spec)}, expected {name}')
      if not jnp.issubdtype(row.dtype, jnp.integer) or len(row.shape) != 1:
        raise ValueError(
          f'data {name}={row.dtype}{list(row.shape)} must be integers, one axis'
        )
      if row.shape[0] < least:
        raise ValueError(
          f'data {name} of {row.shape[0]} must have at least {least}'
        )
    check_room(
      model,
      vocab=facts.get('vocab', 0),
      length=max(spec['source'].shape[0], spec['tokens'].shape[0] - 1),
    )
    for name in _IDS:
      own, theirs = getattr(model, name, None), facts.get(name)
      if None not in (own, theirs) and own != theirs:
        raise ValueError(f'data {name}={theirs} must be model.{name}={own}')

  def init(
    self, model: nn.Module, key: jax.Array, batch: Batch
  ) -> tuple[Params, Any]:
    variables = model.init(key, batch['source'], batch['tokens'][:, :-1])
    return variables['params'], {}

  def loss(
    self,
    model: nn.Module,
    params: Params,
    extra: Any,
    batch: Batch,
    key: jax.Array,
  ) -> tuple[jax.Array, tuple[Any, Metrics]]:
    x_BTD, targets_BT, counts_BT = self._read(
      model, params, batch, deterministic=False, rngs={'dropout': key}
    )
    work, values = chunked.prepare(
      model, params, x_BTD, chunk=self.chunk, smoothing=self.smoothing
    )
    weight = counts_BT.sum()
    share_BT = counts_BT / jnp.maximum(weight, 1)
    loss, metrics = chunked.mean(work, values, x_BTD, targets_BT, share_BT)
    return loss, (extra, {**metrics, 'weight': weight})

  def score(
    self, model: nn.Module, params: Params, extra: Any, batch: Batch
  ) -> tuple[jax.Array, jax.Array]:
    sums, weight_B = self.measures(model, params, extra, batch)
    return sums['loss'], weight_B

  def measures(
    self, model: nn.Module, params: Params, extra: Any, batch: Batch
  ) -> tuple[Metrics, jax.Array]:
    """Returns a row's summed `loss` and `error`, and its targets.

    The error of a target is 1 where it does not rank first after its true
    prefix. A row without one is what greedy decoding writes.
    """
    x_BTD, targets_BT, counts_BT = self._read(
      model, params, batch, deterministic=True
    )
    work, values = chunked.prepare(model, params, x_BTD, chunk=self.chunk)
    losses_B, hits_B = chunked.sums(work, values, x_BTD, targets_BT, counts_BT)
    weight_B = counts_BT.sum(1)
    return {'loss': losses_B, 'error': weight_B - hits_B}, weight_B

  def _read(self, model, params, batch, **apply):
    """Returns hidden states, targets, and 1 for each target that counts."""
    tokens, segments = batch['tokens'], batch.get('segments')
    targets_BT = tokens[:, 1:]
    counts_BT = jnp.ones(targets_BT.shape, jnp.float32)
    if segments is not None:
      within = (segments[:, :-1] == segments[:, 1:]) & (segments[:, 1:] != 0)
      counts_BT = within.astype(jnp.float32)
      apply['segments'] = segments[:, :-1]
    x_BTD = model.apply(
      {'params': params},
      batch['source'],
      tokens[:, :-1],
      source_segments=batch.get('source_segments'),
      method='hidden',
      **apply,
    )
    return x_BTD, targets_BT, counts_BT


def tiny() -> tuple[Seq2Seq, nn.Module, Batch]:
  """Returns the objective in chunks, a model for it, and a padded batch."""

  class Bag(nn.Module):
    """Predicts a token from the one before it and the mean of the source."""

    vocab: int = 11
    length: int = 6

    def setup(self):
      self.embed = nn.Embed(self.vocab, 8)
      self.out = nn.Dense(self.vocab)

    def __call__(self, source_BS, tokens_BT, **kwargs):
      return self.logits(self.hidden(source_BS, tokens_BT, **kwargs))

    def hidden(
      self,
      source_BS,
      tokens_BT,
      source_segments=None,
      segments=None,
      deterministic=True,
    ):
      seen_BS = jnp.ones(source_BS.shape)
      if source_segments is not None:
        seen_BS = (source_segments != 0).astype(jnp.float32)
      mean_B1D = (
        jnp.einsum('BSD,BS->BD', self.embed(source_BS), seen_BS)[:, None]
        / jnp.maximum(seen_BS.sum(1), 1)[:, None, None]
      )
      return self.embed(tokens_BT) + mean_B1D

    def logits(self, x):
      return self.out(x)

  ones = jnp.ones((4, 5), jnp.int32)
  batch = {
    'source': jnp.arange(20, dtype=jnp.int32).reshape(4, 5) * 3 % 11,
    'source_segments': ones.at[2:, 3:].set(0),
    'tokens': jnp.arange(28, dtype=jnp.int32).reshape(4, 7) ** 2 % 11,
    'segments': jnp.ones((4, 7), jnp.int32).at[2:, 5:].set(0),
  }
  return Seq2Seq(chunk=4), Bag(), batch
