"""BERT: an encoder that sees both sides of a token that it is to guess.

Devlin et al., 2018, arXiv:1810.04805, sections 3 and A.2; the fields' defaults
are its smaller size. `SIZES` names models of this family and of those that
differ in its fields; `_bert_sizes` cites the paper of each.
Differs from the paper: no dropout of attention probabilities.
"""

# Shapes: B batch, T positions, D width, E width of embeddings, V vocabulary,
# C classes of the sentence head.
from __future__ import annotations

import functools
from typing import Any, Literal, get_args

from flax import linen as nn
import jax
import jax.numpy as jnp

from bigdl.layers import adapter, ladder
from bigdl.layers import position as positions_of
from bigdl.layers import stack as stacks
from bigdl.layers.attention import Attention, AttentionKind
from bigdl.layers.block import Block, BlockKind
from bigdl.layers.dense import Dense
from bigdl.layers.embed import Embed
from bigdl.layers.mlp import FUNCTIONS, GATED, MLP, Activation
from bigdl.layers.norm import Norm, NormKind
from bigdl.layers.stack import RematKind, StackKind
from bigdl.models import _bert_sizes

PositionKind = Literal['learned', 'rotary']
InitKind = Literal['normal', 'fan_in']
FloatKind = Literal['float32', 'bfloat16', 'float16', 'float64']

_KINDS = {
  'activation': Activation,
  'block': BlockKind,
  'norm': NormKind,
  'position': PositionKind,
  'weight_init': InitKind,
  'dtype': FloatKind,
  'param_dtype': FloatKind,
  'attention': AttentionKind,
  'stack': StackKind,
  'remat': RematKind,
}
_AT_LEAST = {
  'depth': 1,
  'width': 1,
  'heads': 1,
  'vocab': 1,
  'length': 1,
  'types': 0,
  'tasks': 0,
  'embed_width': 0,
  'mlp_width': 0,
  'groups': 0,
  'first_position': 0,
  'classes': 0,
  'adapter': 0,
}


class MaskedHead(nn.Module):
  """Returns logits of tokens: dense, activation, norm, tied table, bias."""

  vocab: int
  width: int  # Of the table's vectors.
  activation: Activation
  norm: Any
  dense: Any
  param_dtype: str = 'float32'

  def setup(self):
    self.transform = self.dense(self.width)
    self.transform_norm = self.norm()
    self.bias = self.param(
      'bias', nn.initializers.zeros, (self.vocab,), self.param_dtype
    )

  def __call__(self, x: jax.Array, embed: Embed) -> jax.Array:
    act = jax.checkpoint(FUNCTIONS[self.activation])
    logits = embed.logits(self.transform_norm(act(self.transform(x))))
    return logits + self.bias.astype(logits.dtype)


class BERT(nn.Module):
  """Reads whole sequences; guesses masked tokens and how sentences relate.

  The defaults are the 110 million parameters of BERT-base with both heads.
  """

  depth: int = 12  # Layers.
  width: int = 768  # Of the residual stream.
  heads: int = 12
  vocab: int = 30522
  length: int = 512  # Most positions in a sequence.
  types: int = 2  # Kinds of tokens, such as first and second sentence; 0: none.
  tasks: int = 0  # Kinds of tasks with a vector each (ERNIE); 0: none.
  embed_width: int = 0  # Of token vectors (ALBERT); 0: width.
  mlp_width: int = 0  # Hidden width of the MLP; 0: 4 width.
  groups: int = 0  # Of layers that share weights (ALBERT: 1); 0: none share.
  first_position: int = 0  # Row of a document's first token (RoBERTa: 2).
  classes: int = 2  # Of the sentence head; 0: there is none.
  activation: Activation = 'gelu_exact'
  block: BlockKind = 'post'
  norm: NormKind = 'layernorm'
  norm_epsilon: float = 1e-12
  position: PositionKind = 'learned'
  dropout: float = 0.0  # Of embeddings and of what each layer adds.
  adapter: int = 0  # Width of the adapters in each block; 0: none.
  weight_init: InitKind = 'normal'  # 'fan_in': weights ~ N(0, 1 / inputs).
  init_std: float = 0.02  # Of embeddings, and of weights under 'normal'.
  dtype: FloatKind = 'float32'  # Of compute; logits are float32 or wider.
  param_dtype: FloatKind = 'float32'  # Of the master weights.
  attention: AttentionKind = 'auto'  # What computes it; 'auto': by device.
  stack: StackKind = 'auto'  # 'auto': a loop on CPU, else a scan.
  remat: RematKind = 'none'  # What the backward pass recomputes.

  def __post_init__(self):
    super().__post_init__()
    for name, kind in _KINDS.items():
      value, allowed = getattr(self, name), get_args(kind)
      if value not in allowed:
        raise ValueError(f'{name}={value} must be one of {", ".join(allowed)}')
    for name, least in _AT_LEAST.items():
      if getattr(self, name) < least:
        raise ValueError(
          f'{name}={getattr(self, name)} must be at least {least}'
        )
    if self.width % self.heads:
      raise ValueError(f'heads={self.heads} must divide width={self.width}')
    if self.position == 'rotary' and self.width // self.heads % 2:
      raise ValueError(
        f'width={self.width} of heads={self.heads} must be even each to rotate'
      )
    if self.groups and self.depth % self.groups:
      raise ValueError(f'groups={self.groups} must divide depth={self.depth}')
    if not 0 <= self.dropout < 1:
      raise ValueError(f'dropout={self.dropout} must be in [0, 1)')
    if not self.init_std >= 0:
      raise ValueError(f'init_std={self.init_std} must not be negative')
    if not self.norm_epsilon > 0:
      raise ValueError(f'norm_epsilon={self.norm_epsilon} must be positive')

  @property
  def _embed_width(self) -> int:
    return self.embed_width or self.width

  @property
  def _own(self) -> int:
    """How many layers have weights of their own."""
    return self.groups or self.depth

  def setup(self):
    types: dict[str, Any] = {
      'dtype': self.dtype,
      'param_dtype': self.param_dtype,
    }
    init = small = nn.initializers.normal(self.init_std)
    if self.weight_init == 'fan_in':
      init = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
    norm = functools.partial(
      Norm, kind=self.norm, epsilon=self.norm_epsilon, **types
    )

    def dense(features):
      return Dense(features, kernel_init=init, **types)

    def table(rows):
      return Embed(rows, self._embed_width, table_init=small, **types)

    layer: dict[str, Any] = {'kernel_init': init, 'out_init': init, **types}
    block = functools.partial(
      Block,
      attention=functools.partial(
        Attention,
        heads=self.heads,
        kv_heads=self.heads,
        head_width=self.width // self.heads,
        causal=False,
        kind=self.attention,
        **layer,
      ),
      mlp=functools.partial(
        MLP,
        hidden=self.mlp_width or 4 * self.width,
        activation=self.activation,
        **layer,
      ),
      norm=norm,
      kind=self.block,
      dropout=self.dropout,
      adapter=adapter.maker(self.adapter, **types),
    )
    self.embed = table(self.vocab)
    if self.position == 'learned':
      self.positions = table(self.first_position + self.length)
    self.token_types = table(self.types) if self.types else None
    self.task_types = table(self.tasks) if self.tasks else None
    # A post-norm block expects, and gives, what is normalised.
    if self.block == 'post':
      self.embed_norm = norm()
    else:
      self.final_norm = norm()
    self.drop = nn.Dropout(self.dropout)
    if self.embed_width:
      self.embed_out = dense(self.width)
    self.blocks = stacks.build(block, self._own, kind=self.stack)
    self.head = MaskedHead(
      self.vocab,
      self._embed_width,
      self.activation,
      norm,
      dense,
      self.param_dtype,
    )
    if self.classes:
      self.pooler = dense(self.width)
      self.sentence_head = dense(self.classes)

  def __call__(
    self,
    tokens_BT: jax.Array,
    segments: jax.Array | None = None,
    types: jax.Array | None = None,
    positions: jax.Array | None = None,
    deterministic: bool = True,
    tasks: jax.Array | None = None,
  ) -> jax.Array | tuple[jax.Array, jax.Array]:
    """Returns logits `[B, T, V]`, and `[B, C]` of the sentence head if any.

    Both are float32 or wider.

    Args:
      tokens_BT: Token ids.
      segments: `[B, T]` ids of packed documents, 0 where there is padding:
        attention stays inside one, and positions restart with each.
      types: `[B, T]` ids below `types`; 0 where missing.
      positions: `[B, T]` positions from 0, where they are not 0 to T - 1.
      deterministic: Whether dropout is off; otherwise rngs need 'dropout'.
      tasks: `[B, T]` ids below `tasks`; 0 where missing.
    """
    x_BTD = self.hidden(
      tokens_BT, segments, types, positions, deterministic, tasks
    )
    logits_BTV = self.logits(x_BTD)
    return (logits_BTV, self.sentence(x_BTD)) if self.classes else logits_BTV

  def hidden(
    self,
    tokens_BT: jax.Array,
    segments: jax.Array | None = None,
    types: jax.Array | None = None,
    positions: jax.Array | None = None,
    deterministic: bool = True,
    tasks: jax.Array | None = None,
  ) -> jax.Array:
    """Returns the residual stream `[B, T, D]` after the last norm."""
    T = tokens_BT.shape[1]
    if T > self.length:
      raise ValueError(f'{T} tokens must fit in length={self.length}')
    if positions is None:
      positions = jnp.arange(T)[None]
      if segments is not None:
        positions = positions_of.segment_positions(segments)
    x, rotary = self.embed(tokens_BT), None
    if self.position == 'learned':
      x = x + self.positions(positions + self.first_position)
    else:
      head_width = self.width // self.heads
      rotary = positions_of.rotary(positions, head_width, dtype=self.dtype)
    for name, table, ids in (
      ('types', self.token_types, types),
      ('tasks', self.task_types, tasks),
    ):
      if table is not None:
        x = x + table(jnp.zeros_like(tokens_BT) if ids is None else ids)
      elif ids is not None:
        raise ValueError(f'{name} are given to a model of {name}=0')
    if self.block == 'post':
      x = self.embed_norm(x)
    x = self.drop(x, deterministic=deterministic)
    x_BTD = stacks.run(
      self.blocks,
      self.embed_out(x) if self.embed_width else x,
      segments,
      rotary,
      depth=self._own,
      times=self.depth // self._own,
      remat=self.remat,
      deterministic=deterministic,
    )
    return x_BTD if self.block == 'post' else self.final_norm(x_BTD)

  def logits(self, x: jax.Array) -> jax.Array:
    """Returns logits `[..., V]` of hidden states `[..., D]`."""
    return self.head(x, self.embed)

  def pooled(self, x_BTD: jax.Array) -> jax.Array:
    """Returns what `[B, D]` the sentence head reads of each first token."""
    if not self.classes:
      raise ValueError('classes=0: this model pools nothing')
    return jnp.tanh(self.pooler(x_BTD[:, 0]))

  def sentence(self, x_BTD: jax.Array) -> jax.Array:
    """Returns the sentence head's logits `[B, C]`, in float32 or wider."""
    pooled_BD = self.pooled(x_BTD)
    logits_BC = self.sentence_head(pooled_BD)
    return logits_BC.astype(jnp.promote_types(self.dtype, jnp.float32))

  def scale(self, factor: float) -> BERT:
    """Returns a model of about `factor` times the non-embedding parameters.

    The width of a head and of token vectors, and the ratio of MLP to width,
    stay; depth and width grow together, width in steps of a head. Weights that
    layers share count once, so that width alone makes such a model larger.
    """
    return ladder.rung(self, factor, size=_size, deepen=_deepen)


def _size(model: BERT) -> int:
  """Returns the weights of all matrices that are no tables."""
  width, embed = model.width, model._embed_width
  matrices = 3 if model.activation in GATED else 2
  layer = width * (4 * width + matrices * (model.mlp_width or 4 * width))
  once = width * embed
  if model.embed_width:
    once += width * embed
  if model.classes:
    once += width * (width + model.classes)
  return model._own * layer + once


def _deepen(model: BERT, depth: int) -> BERT:
  """Returns the same model of that depth, or the nearest its groups divide."""
  step = model.groups or 1
  return model.clone(depth=step * max(1, round(depth / step)))


# Published sizes by name, such as 'bert-base'; none is allocated.
SIZES: dict[str, BERT] = {
  name: BERT(**fields) for name, fields in _bert_sizes.BERT.items()
}


def tiny() -> tuple[BERT, tuple[jax.Array, ...]]:
  """Returns the smallest honest BERT and its inputs."""
  model = BERT(depth=2, width=16, heads=2, vocab=29, length=12)
  tokens_BT = jnp.arange(24, dtype=jnp.int32).reshape(2, 12) % model.vocab
  segments_BT = jnp.asarray([[1] * 12, [1] * 5 + [2] * 5 + [0] * 2], jnp.int32)
  types_BT = jnp.asarray([[0] * 7 + [1] * 5] * 2, jnp.int32)
  return model, (tokens_BT, segments_BT, types_BT)
