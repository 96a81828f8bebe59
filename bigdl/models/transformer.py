"""The Transformer: an encoder reads a source, a decoder writes a target.

Vaswani et al., 2017, arXiv:1706.03762; the fields' defaults are its base model.
`SIZES` names that family and BlenderBot's (Roller et al., 2020,
arXiv:2004.13637), whose 90M model has the norm of embeddings of XLM (Lample and
Conneau, 2019, arXiv:1901.07291).
Differs from the paper: no dropout of attention probabilities; sines and cosines
stand in two halves, as in Marian, instead of alternating.
"""

# Shapes: B batch, S source positions, T target positions, D width,
# V vocabulary.
from __future__ import annotations

import functools
import math
from typing import Any, Literal, get_args

from flax import linen as nn
import jax
import jax.numpy as jnp

from bigdl.layers import ladder
from bigdl.layers import position as positions_of
from bigdl.layers.attention import Attention, AttentionKind
from bigdl.layers.block import Block
from bigdl.layers.cross import CrossAttention, CrossBlock, CrossBlockKind
from bigdl.layers.embed import Embed
from bigdl.layers.mlp import GATED, MLP, Activation
from bigdl.layers.norm import Norm, NormKind
from bigdl.layers.stack import RematKind, StackKind
from bigdl.layers.tower import PositionKind, Tower
from bigdl.models import _transformer_sizes

InitKind = Literal['fan_in', 'normal']
FloatKind = Literal['float32', 'bfloat16', 'float16', 'float64']

_KINDS = {
  'activation': Activation,
  'block': CrossBlockKind,
  'norm': NormKind,
  'position': PositionKind,
  'weight_init': InitKind,
  'dtype': FloatKind,
  'param_dtype': FloatKind,
  'attention': AttentionKind,
  'stack': StackKind,
  'remat': RematKind,
}


class Transformer(nn.Module):
  """Reads a source and predicts each next token of its target.

  One table embeds both and is the head. The defaults are the base model of 2017
  but for its dropout.
  """

  depth: int = 6  # Blocks of the encoder.
  decoder_depth: int = 0  # Blocks of the decoder; 0: as many.
  width: int = 512  # Of both residual streams.
  heads: int = 8
  vocab: int = 37000  # Of source and target together.
  length: int = 512  # Most positions in a source, and in a target.
  mlp_width: int = 0  # Hidden width of the MLP; 0: 4 width.
  activation: Activation = 'relu'
  block: CrossBlockKind = 'post'  # 'pre' ends each stack in a norm.
  norm: NormKind = 'layernorm'
  norm_epsilon: float = 1e-5
  bias: bool = True  # In projections and LayerNorms.
  position: PositionKind = 'sinusoidal'
  embed_scale: bool = True  # Multiply embeddings by sqrt(width).
  # The encoder's embeddings once positions are added, the decoder's before.
  embed_norm: bool = False
  head_bias: bool = False  # Of the logits.
  dropout: float = 0.0  # Of embeddings and of what each layer adds.
  # 'fan_in': weights ~ N(0, 1 / inputs), embeddings ~ N(0, 1 / width).
  weight_init: InitKind = 'fan_in'
  init_std: float = 0.02  # Of both under 'normal'.
  pad: int = 0  # Stands where a row is padded; segments tell where.
  begin: int = 1  # Opens what the decoder reads.
  end: int = 2  # Closes a target.
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
    for name in ('depth', 'width', 'heads', 'vocab', 'length'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}={getattr(self, name)} must be at least 1')
    for name in ('decoder_depth', 'mlp_width', 'init_std'):
      if not getattr(self, name) >= 0:
        raise ValueError(f'{name}={getattr(self, name)} must not be negative')
    if self.width % self.heads:
      raise ValueError(f'heads={self.heads} must divide width={self.width}')
    if self.position == 'sinusoidal' and self.width % 2:
      raise ValueError(f'width={self.width} must be even for sinusoids')
    if not 0 <= self.dropout < 1:
      raise ValueError(f'dropout={self.dropout} must be in [0, 1)')
    if not self.norm_epsilon > 0:
      raise ValueError(f'norm_epsilon={self.norm_epsilon} must be positive')
    for name in ('pad', 'begin', 'end'):
      if not 0 <= getattr(self, name) < self.vocab:
        raise ValueError(
          f'{name}={getattr(self, name)} must be in [0, {self.vocab})'
        )

  @property
  def _decoder_depth(self) -> int:
    return self.decoder_depth or self.depth

  @property
  def _mlp_width(self) -> int:
    return self.mlp_width or 4 * self.width

  def setup(self):
    types: dict[str, Any] = {
      'dtype': self.dtype,
      'param_dtype': self.param_dtype,
    }
    table_init = init = nn.initializers.normal(self.init_std)
    if self.weight_init == 'fan_in':
      init = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
      table_init = nn.initializers.normal(self.width**-0.5)
    norm = functools.partial(
      Norm, kind=self.norm, bias=self.bias, epsilon=self.norm_epsilon, **types
    )
    layer: dict[str, Any] = {
      'bias': self.bias,
      'kernel_init': init,
      'out_init': init,
      **types,
    }
    heads: dict[str, Any] = {
      'heads': self.heads,
      'head_width': self.width // self.heads,
      'kind': self.attention,
    }
    attention = functools.partial(
      Attention, kv_heads=self.heads, **heads, **layer
    )
    parts: dict[str, Any] = {
      'mlp': functools.partial(
        MLP, hidden=self._mlp_width, activation=self.activation, **layer
      ),
      'norm': norm,
      'kind': self.block,
      'dropout': self.dropout,
    }
    tower = functools.partial(
      Tower,
      norm=norm,
      width=self.width,
      length=self.length,
      position=self.position,
      # A post-norm block ends in a norm already.
      final_norm=self.block == 'pre',
      dropout=self.dropout,
      table_init=table_init,
      stack=self.stack,
      remat=self.remat,
      **types,
    )
    self.embed = Embed(self.vocab, self.width, table_init=table_init, **types)
    self.encoder = tower(
      make=functools.partial(
        Block, attention=functools.partial(attention, causal=False), **parts
      ),
      depth=self.depth,
      embed_norm='after' if self.embed_norm else 'none',
    )
    self.decoder = tower(
      make=functools.partial(
        CrossBlock,
        attention=attention,
        cross=functools.partial(CrossAttention, **heads, **layer),
        **parts,
      ),
      depth=self._decoder_depth,
      embed_norm='before' if self.embed_norm else 'none',
    )
    if self.head_bias:
      self.logit_bias = self.param(
        'logit_bias', nn.initializers.zeros, (self.vocab,), self.param_dtype
      )

  def __call__(
    self,
    source_BS: jax.Array,
    tokens_BT: jax.Array,
    source_segments: jax.Array | None = None,
    segments: jax.Array | None = None,
    positions: jax.Array | None = None,
    deterministic: bool = True,
  ) -> jax.Array:
    """Returns logits `[B, T, V]` of each next token, in float32 or wider.

    Args:
      source_BS: Token ids of the source.
      tokens_BT: Token ids of the target, opened by `begin`.
      source_segments: `[B, S]` ids of packed sources; 0 is padding.
      segments: `[B, T]` ids of packed targets. A target sees its own earlier
        tokens and the source of its id; without `segments`, all of the source
        that is no padding. Positions restart with each segment.
      positions: `[B, T]` positions in the target, where they are others.
      deterministic: Whether dropout is off; otherwise rngs need 'dropout'.
    """
    return self.logits(
      self.hidden(
        source_BS,
        tokens_BT,
        source_segments,
        segments,
        positions,
        deterministic,
      )
    )

  def encode(
    self,
    source_BS: jax.Array,
    source_segments: jax.Array | None = None,
    deterministic: bool = True,
  ) -> jax.Array:
    """Returns what the decoder reads of a source, `[B, S, D]`."""
    return self.encoder(
      self._embed(source_BS, 'source'),
      _positions(source_BS, source_segments),
      source_segments,
      deterministic=deterministic,
    )

  def hidden(
    self,
    source_BS: jax.Array,
    tokens_BT: jax.Array,
    source_segments: jax.Array | None = None,
    segments: jax.Array | None = None,
    positions: jax.Array | None = None,
    deterministic: bool = True,
  ) -> jax.Array:
    """Returns the decoder's residual stream `[B, T, D]` after its last norm."""
    x_BTD = self._embed(tokens_BT, 'target')
    memory_BSD = self.encode(source_BS, source_segments, deterministic)
    if positions is None:
      positions = _positions(tokens_BT, segments)
    return self.decoder(
      x_BTD,
      positions,
      memory_BSD,
      segments,
      _seen(source_segments, segments),
      deterministic=deterministic,
    )

  def decode(
    self,
    tokens_BT: jax.Array,
    start: jax.Array,
    *,
    capacity: int,
    memory_BSD: jax.Array | None = None,
    memory_segments: jax.Array | None = None,
  ) -> jax.Array:
    """Returns hidden states of tokens that continue a cached prefix.

    Apply with `mutable=['cache']`; the cache is made when there is none.

    Args:
      tokens_BT: The next T tokens of every row.
      start: How many positions the cache holds already: a scalar, or `[B]`
        where rows differ.
      capacity: Positions that the cache has room for.
      memory_BSD: What `encode` returned, with the first tokens; the cache keeps
        what later ones need of it.
      memory_segments: `[B, S]`; where 0, the memory is of padding.
    """
    T = tokens_BT.shape[1]
    if T > capacity:
      raise ValueError(f'{T} tokens must fit in capacity={capacity}')
    start = jnp.asarray(start)
    return self.decoder(
      self._embed(tokens_BT, 'target'),
      start[..., None] + jnp.arange(T),
      memory_BSD,
      None,
      _seen(memory_segments, None),
      start,
      deterministic=True,
      capacity=capacity,
    )

  def logits(self, x: jax.Array) -> jax.Array:
    """Returns logits `[..., V]` of hidden states `[..., D]`."""
    logits = self.embed.logits(x)
    return logits + self.logit_bias if self.head_bias else logits

  def scale(self, factor: float) -> Transformer:
    """Returns one of about `factor` times the non-embedding parameters.

    Head width, the MLP's ratio to width and the decoder's to the encoder stay.
    """
    ratio = self._decoder_depth / self.depth

    def size(model):
      encoder, decoder = _block_sizes(model)
      return model.depth * (encoder + ratio * decoder)

    def deepen(model, depth):
      own = self.decoder_depth and max(1, round(ratio * depth))
      return model.clone(depth=depth, decoder_depth=own)

    return ladder.rung(self, factor, size=size, deepen=deepen)

  def _embed(self, tokens_BT, what):
    if tokens_BT.shape[1] > self.length:
      raise ValueError(
        f'{what} of {tokens_BT.shape[1]} tokens must fit in'
        f' length={self.length}'
      )
    x_BTD = self.embed(tokens_BT)
    # The norm that follows undoes a scale, but for its epsilon.
    normed = self.embed_norm and what == 'target'
    scaled = self.embed_scale and not normed
    return x_BTD * math.sqrt(self.width) if scaled else x_BTD


def _positions(tokens_BT, segments):
  if segments is None:
    return jnp.arange(tokens_BT.shape[1])
  return positions_of.segment_positions(segments)


def _seen(source_segments, segments):
  """Returns which of the source each target position sees, or None for all."""
  if source_segments is None:
    return None
  if segments is None:
    return (source_segments != 0)[:, None]
  return segments[:, :, None] == source_segments[:, None]


def _block_sizes(model: Transformer) -> tuple[int, int]:
  """The weights of the matrices of one block: the encoder's, the decoder's."""
  attention = 4 * model.width**2
  matrices = 3 if model.activation in GATED else 2
  mlp = matrices * model.width * model._mlp_width
  return attention + mlp, 2 * attention + mlp


# Published sizes by name, such as 'transformer-base'; none is allocated.
SIZES: dict[str, Transformer] = {
  name: Transformer(**fields)
  for name, fields in _transformer_sizes.FIELDS.items()
}


def tiny() -> tuple[Transformer, tuple[jax.Array, ...]]:
  """Returns the smallest honest Transformer with a source and a target."""
  model = Transformer(depth=2, width=16, heads=2, vocab=29, length=12)
  source_BS = jnp.arange(18, dtype=jnp.int32).reshape(2, 9) * 7 % model.vocab
  tokens_BT = jnp.arange(24, dtype=jnp.int32).reshape(2, 12) % model.vocab
  return model, (source_BS, tokens_BT)
