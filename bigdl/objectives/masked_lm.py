"""Predicts the tokens that are hidden, and how two sentences go together.

Devlin et al., 2018, arXiv:1810.04805, section 3.1 and appendix A.2: the mean
cross-entropy of hidden tokens, in nats, plus that of the sentence's label.
Differs from the paper: the sentence of a row counts as much as its hidden tokens
do, so that the mean over a batch is that over its parts, weighed.
"""

# Shapes: B rows, T positions, K places of what is predicted, D width,
# V vocabulary, S classes of a pair of sentences.
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

_FIELDS = ('tokens', 'targets', 'weight')


@dataclasses.dataclass(frozen=True)
class MaskedLM(Objective):
  """Cross-entropy of hidden tokens given what is left of a row.

  A row holds `tokens` [T], as the model reads them; `targets` [T], as they were;
  and `weight` [T], 0 where nothing is predicted. It may hold `places` [K], which
  must name each position of nonzero weight once: logits are taken there alone;
  without it, everywhere. It may hold `segments` (0 is
  padding), `types`, and `label`, the class of a pair of sentences.

  D counts tokens read, T a row, and FLOPs are per token read. Losses are nats
  per hidden token. Held-out rows are scored by their hidden tokens alone.
  """

  sentence_weight: float = 1.0  # Of the sentence's loss; 0 leaves it out.
  chunk: int = 0  # Places whose logits exist at once; 0: by their size.

  def __post_init__(self):
    for name in ('sentence_weight', 'chunk'):
      if not getattr(self, name) >= 0:
        raise ValueError(f'{name}={getattr(self, name)} must not be negative')

  def units(self, spec: dict[str, jax.ShapeDtypeStruct]) -> int:
    return spec['tokens'].shape[0]

  def check(
    self, model: nn.Module, spec: dict[str, jax.ShapeDtypeStruct], facts: dict
  ) -> None:
    absent = [name for name in _FIELDS if name not in spec]
    if absent:
      raise ValueError(
        f'data rows hold {", ".join(spec)}, expected {", ".join(_FIELDS)}: wrap'
        ' the text in data.masked.Masked'
      )
    _check_rows(spec)
    check_room(
      model,
      vocab=facts.get('vocab', 0),
      length=spec['tokens'].shape[0],
    )
    if not callable(getattr(model, 'hidden', None)):
      raise ValueError(
        f'model={type(model).__name__} has no hidden(tokens), expected an'
        ' encoder such as models.bert.BERT'
      )
    if self._pairs(spec):
      _check_sentence(model, spec)

  def init(
    self, model: nn.Module, key: jax.Array, batch: Batch
  ) -> tuple[Params, Any]:
    variables = model.init(key, batch['tokens'], **_context(batch))
    return variables['params'], {}

  def loss(
    self,
    model: nn.Module,
    params: Params,
    extra: Any,
    batch: Batch,
    key: jax.Array,
  ) -> tuple[jax.Array, tuple[Any, Metrics]]:
    work, values, x_BTD, places = self._prepare(
      model, params, batch, deterministic=False, rngs={'dropout': key}
    )
    x_BKD, targets_BK, weight_BK = places
    weight = weight_BK.sum()
    share_BK = weight_BK / jnp.maximum(weight, 1)
    loss, metrics = chunked.mean(work, values, x_BKD, targets_BK, share_BK)
    if self._pairs(batch):
      logits_BS: Any = model.apply({'params': params}, x_BTD, method='sentence')
      logs_BS = jax.nn.log_softmax(logits_BS)
      own_BS = batch['label'][:, None] == jnp.arange(logs_BS.shape[-1])
      share_B = share_BK.sum(1)
      # The mean over rows, each with the weight of its hidden tokens.
      own = -jnp.where(own_BS, logs_BS, 0).sum(1) @ share_B
      right_B = logs_BS.argmax(-1) == batch['label']
      loss = loss + self.sentence_weight * own
      more = {'sentence_loss': own, 'sentence_accuracy': right_B @ share_B}
      metrics |= jax.lax.stop_gradient(more)
    return loss, (extra, {**metrics, 'weight': weight})

  def score(
    self, model: nn.Module, params: Params, extra: Any, batch: Batch
  ) -> tuple[jax.Array, jax.Array]:
    work, values, _, places = self._prepare(
      model, params, batch, deterministic=True
    )
    losses_B, _ = chunked.sums(work, values, *places)
    return losses_B, places[-1].sum(1)

  def _prepare(self, model, params, batch, **options):
    """Runs the model up to its head; takes states, targets, weight at places."""
    x_BTD = model.apply(
      {'params': params},
      batch['tokens'],
      method='hidden',
      **_context(batch),
      **options,
    )
    weight = batch['weight']
    if 'segments' in batch:
      weight = weight * (batch['segments'] != 0)
    places = (x_BTD, batch['targets'], weight)
    if 'places' in batch:
      # A row at a time, so that rows stay on their devices.
      take = jax.vmap(lambda at, rows: jax.tree.map(lambda row: row[at], rows))
      places = take(batch['places'], places)
    work, values = chunked.prepare(model, params, places[0], chunk=self.chunk)
    return work, values, x_BTD, places

  def _pairs(self, fields) -> bool:
    return bool(self.sentence_weight) and 'label' in fields


def _check_rows(spec) -> None:
  """Raises ValueError where a row's fields are not of one row of tokens."""
  row = spec['tokens']
  for name in (*_FIELDS, 'segments', 'types'):
    if name not in spec:
      continue
    kind = jnp.floating if name == 'weight' else jnp.integer
    own = spec[name]
    if not jnp.issubdtype(own.dtype, kind) or own.shape != (row.shape[:1] or 1):
      what = 'numbers' if name == 'weight' else 'integers'
      raise ValueError(
        f'data {name}={own.dtype}{list(own.shape)} must be {what}'
        f' {list(row.shape[:1]) or "[T]"}, one a token'
      )
  places = spec.get('places')
  if places is not None and not (
    jnp.issubdtype(places.dtype, jnp.integer)
    and len(places.shape) == 1
    and places.shape[0] <= row.shape[0]
  ):
    raise ValueError(
      f'data places={places.dtype}{list(places.shape)} must be integers [K], at'
      f' most {row.shape[0]} of them'
    )


def _check_sentence(model, spec) -> None:
  """Raises ValueError where the model cannot tell pairs of sentences."""
  row = {
    k: jax.ShapeDtypeStruct((1, *v.shape), v.dtype) for k, v in spec.items()
  }
  method = getattr(type(model), 'sentence', None)

  def classes(row):
    key, context = jax.random.key(0), _context(row)
    variables = model.init(key, row['tokens'], **context)
    x_BTD = model.apply(variables, row['tokens'], method='hidden', **context)
    return model.apply(variables, x_BTD, method='sentence')

  try:
    found = jax.eval_shape(classes, row).shape if method else None
  except (ValueError, AttributeError):
    found = None
  if found is None or len(found) != 2 or found[-1] < 2:
    raise ValueError(
      f'data rows hold label, but model={type(model).__name__} has no head for'
      ' sentences: give it one, or set objective.sentence_weight=0'
    )


def _context(batch) -> dict[str, Any]:
  return {k: batch[k] for k in ('segments', 'types') if k in batch}


def tiny() -> tuple[MaskedLM, nn.Module, Batch]:
  """Returns the objective, an encoder for it, and pairs of sentences."""

  class Mixer(nn.Module):
    """Predicts a token from its neighbours, and a label from the first."""

    vocab: int = 11
    length: int = 6

    def setup(self):
      self.embed = nn.Embed(self.vocab, 8)
      self.mix = nn.Conv(8, (3,))
      self.out = nn.Dense(self.vocab)
      self.pair = nn.Dense(2)

    def __call__(self, tokens_BT, **context):
      x_BTD = self.hidden(tokens_BT, **context)
      return self.logits(x_BTD), self.sentence(x_BTD)

    def hidden(self, tokens_BT, segments=None, types=None, deterministic=True):
      return jnp.tanh(self.mix(self.embed(tokens_BT)))

    def logits(self, x):
      return self.out(x)

    def sentence(self, x_BTD):
      return self.pair(x_BTD[:, 0])

  targets = jnp.arange(24, dtype=jnp.int32).reshape(4, 6) ** 2 % 10
  places = jnp.array([[1, 4, 0]] * 2 + [[2, 3, 5]] * 2, jnp.int32)
  counts = jnp.array([[1, 1, 0]] * 2 + [[1, 1, 1]] * 2, jnp.float32)
  weight = jnp.zeros((4, 6)).at[jnp.arange(4)[:, None], places].set(counts)
  segments = jnp.array([[1] * 6] * 2 + [[1] * 5 + [0]] * 2, jnp.int32)
  batch = {
    'tokens': jnp.where(weight > 0, 10, targets),
    'targets': targets,
    'weight': weight,
    'places': places,
    'segments': segments,
    'types': (jnp.arange(24).reshape(4, 6) % 6 > 2).astype(jnp.int32),
    'label': jnp.array([0, 1, 1, 0], jnp.int32),
  }
  return MaskedLM(), Mixer(), batch
