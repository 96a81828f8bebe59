"""Predicts each next token; float32 logits of a whole batch never exist.

The loss is the mean cross-entropy in nats per target, to which the z-loss of
PaLM may be added (Chowdhery et al., 2022, arXiv:2204.02311, section 5): z_loss *
log(Z)^2 a target, where Z normalises the softmax; it keeps log(Z) near 0.
"""

# Shapes: B rows, T positions, D width.
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


@dataclasses.dataclass(frozen=True)
class CausalLM(Objective):
  """Cross-entropy of each token given those before it.

  A row holds `tokens`, one more than the model reads, and may hold `segments`,
  the document of each token, from 1: a target counts where it continues the
  document of the token before it. Segment 0 is padding. It may hold `weight`, one
  a token as well: a token counts so much where it is a target.
  """

  z_loss: float = 0.0
  chunk: int = 0  # Positions whose logits exist at once; 0: by their size.

  def __post_init__(self):
    for name in ('z_loss', 'chunk'):
      if not getattr(self, name) >= 0:
        raise ValueError(f'{name}={getattr(self, name)} must not be negative')

  def units(self, spec: dict[str, jax.ShapeDtypeStruct]) -> int:
    return spec['tokens'].shape[0] - 1

  def check(
    self, model: nn.Module, spec: dict[str, jax.ShapeDtypeStruct], facts: dict
  ) -> None:
    row = spec.get('tokens')
    if row is None:
      raise ValueError(f'data rows hold {", ".join(spec)}, expected tokens')
    if not jnp.issubdtype(row.dtype, jnp.integer) or len(row.shape) != 1:
      raise ValueError(
        f'data tokens={row.dtype}{list(row.shape)} must be integers [T + 1]'
      )
    if row.shape[0] < 2:
      raise ValueError(f'data rows of {row.shape[0]} token hold no target')
    check_room(
      model,
      vocab=facts.get('vocab', 0),
      length=row.shape[0] - 1,
    )

  def init(
    self, model: nn.Module, key: jax.Array, batch: Batch
  ) -> tuple[Params, Any]:
    return model.init(key, batch['tokens'][:, :-1])['params'], {}

  def loss(
    self,
    model: nn.Module,
    params: Params,
    extra: Any,
    batch: Batch,
    key: jax.Array,
  ) -> tuple[jax.Array, tuple[Any, Metrics]]:
    work, values, x_BTD, targets_BT, counts_BT = self._prepare(
      model, params, batch, deterministic=False, rngs={'dropout': key}
    )
    weight = counts_BT.sum()
    share_BT = counts_BT / jnp.maximum(weight, 1)
    loss, metrics = chunked.mean(work, values, x_BTD, targets_BT, share_BT)
    return loss, (extra, {**metrics, 'weight': weight})

  def score(
    self, model: nn.Module, params: Params, extra: Any, batch: Batch
  ) -> tuple[jax.Array, jax.Array]:
    work, values, *arrays = self._prepare(
      model, params, batch, deterministic=True
    )
    losses_B, _ = chunked.sums(work, values, *arrays)
    return losses_B, arrays[-1].sum(1)

  def _prepare(self, model, params, batch, **apply):
    """Runs the model up to its head, and says how the rest is cut."""
    tokens, segments = batch['tokens'], batch.get('segments')
    targets_BT = tokens[:, 1:]
    counts_BT = jnp.ones(targets_BT.shape, jnp.float32)
    if segments is not None:
      within = (segments[:, :-1] == segments[:, 1:]) & (segments[:, 1:] != 0)
      counts_BT = within.astype(jnp.float32)
      apply['segments'] = segments[:, :-1]
    if 'weight' in batch:
      counts_BT = counts_BT * batch['weight'][:, 1:]
    x_BTD = model.apply(
      {'params': params}, tokens[:, :-1], method='hidden', **apply
    )
    work, values = chunked.prepare(
      model, params, x_BTD, chunk=self.chunk, z_loss=self.z_loss
    )
    return work, values, x_BTD, targets_BT, counts_BT


def tiny() -> tuple[CausalLM, nn.Module, Batch]:
  """Returns the objective in chunks, a model for it, and a packed batch."""

  class Bigram(nn.Module):
    """Predicts a token from the one before it."""

    vocab: int = 11
    length: int = 6

    def setup(self):
      self.embed = nn.Embed(self.vocab, 8)
      self.out = nn.Dense(self.vocab)

    def __call__(self, tokens_BT, **kwargs):
      return self.logits(self.hidden(tokens_BT, **kwargs))

    def hidden(self, tokens_BT, segments=None, deterministic=True):
      return self.embed(tokens_BT)

    def logits(self, x):
      return self.out(x)

  tokens = jnp.arange(28, dtype=jnp.int32).reshape(4, 7) ** 2 % 11
  segments = jnp.array([[1, 1, 1, 2, 2, 2, 2]] * 2 + [[1] * 5 + [0] * 2] * 2)
  batch = {'tokens': tokens, 'segments': segments.astype(jnp.int32)}
  return CausalLM(chunk=4), Bigram(), batch
