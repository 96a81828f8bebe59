"""Heads on a pretrained encoder or decoder: classes, or numbers.

From an encoder's first token: Devlin et al., 2018, arXiv:1810.04805, section 4.1.
From a decoder's last one: Radford et al., 2018, "Improving Language Understanding
by Generative Pre-Training", section 3.2. Parameters are those of the body under
`body/`, and `head/`: with a frozen body, `AdamW(train='^head')`, its features
alone are used.
Differs from the papers: the tanh layer under the head, BERT's pooler, is an
option and starts afresh.
"""

# Shapes: B batch, T positions (or patches), D width, N classes or outputs.
from __future__ import annotations

import inspect
from typing import Any, Literal, get_args

from flax import linen as nn
import jax
import jax.numpy as jnp

from bigdl.layers.dense import Dense
from bigdl.layers.wrapper import Wrapper
from bigdl.models.bert import BERT

PoolKind = Literal['first', 'mean', 'last']


class _Head(Wrapper):
  """Pools the hidden states of `body` and maps them to N numbers."""

  pool: PoolKind = 'first'  # 'last' is the last token that is no padding.
  hidden_width: int = 0  # Of a tanh layer under the head; 0: none.
  head_dropout: float = 0.0  # Of what the head is given.
  init_std: float = 0.02

  def __post_init__(self):
    super().__post_init__()
    if self.pool not in get_args(PoolKind):
      raise ValueError(f'pool={self.pool} must be first, mean or last')
    if self.hidden_width < 0:
      raise ValueError(f'hidden_width={self.hidden_width} must not be negative')
    if not 0 <= self.head_dropout < 1:
      raise ValueError(f'head_dropout={self.head_dropout} must be in [0, 1)')
    if self._outputs < 1:
      raise ValueError(f'{self._counted}={self._outputs} must be at least 1')
    kind = type(self.innermost).__name__
    if not hasattr(self.body, 'hidden'):
      raise ValueError(f'body={kind} has no hidden()')
    if hasattr(self.innermost, 'encode'):
      raise ValueError(f'body={kind} must read one sequence, not two')
    if self.pool == 'first' and hasattr(self.innermost, 'decode'):
      raise ValueError(
        f'pool=first must be mean or last for {kind}, whose first token sees no'
        ' other'
      )

  _counted = ''  # The field that says how many numbers there are.

  @property
  def _outputs(self) -> int:
    return getattr(self, self._counted)

  def setup(self):
    dense: dict[str, Any] = {
      'kernel_init': nn.initializers.normal(self.init_std),
      'param_dtype': getattr(self.body, 'param_dtype', 'float32'),
    }
    self.drop = nn.Dropout(self.head_dropout)
    if self.hidden_width:
      self.head_hidden = Dense(self.hidden_width, **dense)
    self.head = Dense(self._outputs, **dense)

  def __call__(
    self,
    inputs: jax.Array,
    segments: jax.Array | None = None,
    types: jax.Array | None = None,
    positions: jax.Array | None = None,
    deterministic: bool = True,
  ) -> jax.Array:
    """Returns `[B, N]`, in float32 or wider.

    Args:
      inputs: Token ids `[B, T]`, or images `[B, H, W, C]`.
      segments: `[B, T]` ids of documents, 0 where there is padding.
      types: `[B, T]` kinds of tokens, for a body that knows them.
      positions: `[B, T]`, where they are not 0 to T - 1.
      deterministic: Whether dropout is off; otherwise rngs need 'dropout'.
    """
    context = {'segments': segments, 'types': types, 'positions': positions}
    context = {k: v for k, v in context.items() if v is not None}
    known = inspect.signature(self.body.hidden).parameters
    for name in context:
      if name not in known:
        raise ValueError(
          f'{name} are given, and {type(self.body).__name__} has none'
        )
    x_BTD = self.body.hidden(inputs, deterministic=deterministic, **context)
    x = pool(x_BTD, segments, self.pool)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if self.hidden_width:
      x = jnp.tanh(self.head_hidden(self.drop(x, deterministic=deterministic)))
    return self.head(self.drop(x, deterministic=deterministic))


class Classifier(_Head):
  """Gives each text or image one logit a class."""

  classes: int = 2

  _counted = 'classes'


class Regressor(_Head):
  """Gives each text or image numbers."""

  outputs: int = 1

  _counted = 'outputs'


def pool(
  x_BTD: jax.Array, segments_BT: jax.Array | None, kind: PoolKind
) -> jax.Array:
  """Returns one vector `[B, D]` a row, of what is no padding."""
  if kind == 'first':
    return x_BTD[:, 0]
  if segments_BT is None:
    return x_BTD[:, -1] if kind == 'last' else x_BTD.mean(1)
  real_BT = segments_BT != 0
  if kind == 'mean':
    share_BT = real_BT / jnp.maximum(real_BT.sum(1, keepdims=True), 1)
    return jnp.einsum('BTD,BT->BD', x_BTD, share_BT.astype(x_BTD.dtype))
  T = x_BTD.shape[1]
  last_B = T - 1 - jnp.argmax(real_BT[:, ::-1], axis=1)
  return jnp.take_along_axis(x_BTD, last_B[:, None, None], axis=1)[:, 0]


def tiny() -> tuple[Classifier, tuple[jax.Array, ...]]:
  """Returns a classifier on the smallest BERT, and its inputs."""
  body = BERT(depth=2, width=16, heads=2, vocab=29, length=12)
  model = Classifier(body, classes=3, pool='mean')
  tokens_BT = jnp.arange(24, dtype=jnp.int32).reshape(2, 12) % body.vocab
  segments_BT = jnp.asarray([[1] * 12, [1] * 9 + [0] * 3], jnp.int32)
  return model, (tokens_BT, segments_BT)
