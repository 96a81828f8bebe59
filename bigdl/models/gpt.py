"""GPT: a decoder with what the decoder families of 2018-2024 differ in.

GPT-2: Radford et al., 2019, "Language Models are Unsupervised Multitask
Learners"; the fields' defaults are its smallest size. `SIZES` names models of
this and other families; `_gpt_sizes` cites the paper of each.
Differs from the paper: no dropout of attention probabilities. Of GPT-3, whose
paper (Brown et al., 2020, arXiv:2005.14165) names no window, the banded layers
see 256 positions, as in GPT-Neo.
"""

# Shapes: B batch, T positions, D width, V vocabulary, S new positions.
from __future__ import annotations

from collections.abc import Mapping, Sequence
import functools
import math
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from bigdl.layers import adapter, ladder
from bigdl.layers import position as positions_of
from bigdl.layers import stack as stacks
from bigdl.layers.attention import Attention, AttentionKind
from bigdl.layers.block import Block, BlockKind
from bigdl.layers.embed import Embed, Head
from bigdl.layers.mlp import GATED, MLP, Activation
from bigdl.layers.norm import Norm, NormKind
from bigdl.layers.relative import RelativeAttention
from bigdl.layers.stack import RematKind, StackKind
from bigdl.models import _gpt_fields, _gpt_sizes
from bigdl.models._gpt_fields import FloatKind, InitKind, PositionKind

# fairseq counts positions from there, two ids of padding and its like apart.
_FAIRSEQ_FIRST = 2


class GPT(nn.Module):
  """Reads tokens and predicts each next one.

  The defaults are GPT-2's 124 million parameters.
  """

  depth: int = 12  # Blocks.
  width: int = 768  # Of the residual stream.
  heads: int = 12
  vocab: int = 50257
  length: int = 1024  # Most positions in a sequence.
  kv_heads: int = 0  # Heads of keys and values; 0: as many as heads.
  head_width: int = 0  # 0: width / heads.
  mlp_width: int = 0  # Hidden width of the MLP; 0: 4 width.
  activation: Activation = 'gelu'  # 'gelu' is the tanh approximation.
  block: BlockKind = 'pre'
  norm: NormKind = 'layernorm'
  norm_epsilon: float = 1e-5
  bias: bool = True  # In projections and LayerNorms.
  qkv_bias: bool = True  # In queries, keys, values, where there is `bias`.
  qk_norm: bool = False  # Normalise queries and keys, head by head.
  window: int = 0  # Positions that banded attention sees; 0: all are dense.
  dense_every: int = 0  # Blocks 0, n, 2 n, ... stay dense; 0: no block does.
  position: PositionKind = 'learned'
  rotary_fraction: float = 1.0  # Share of a head's coordinates that rotate.
  rotary_base: float = 10000.0
  tied: bool = True  # The head is the transposed embedding.
  embed_scale: bool = False  # Multiply embeddings by sqrt(width).
  logit_scale: float = 1.0  # Logits are multiplied by it.
  softcap: float = 0.0  # Logits become c tanh(logits / c); 0: off.
  attention_softcap: float = 0.0  # The same for attention scores.
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
    _gpt_fields.check(self)

  @property
  def _head_width(self) -> int:
    return self.head_width or self.width // self.heads

  @property
  def _kv_heads(self) -> int:
    return self.kv_heads or self.heads

  @property
  def _mlp_width(self) -> int:
    return self.mlp_width or 4 * self.width

  @property
  def _rotated(self) -> int:
    return int(self.rotary_fraction * self._head_width)

  def setup(self):
    types: dict[str, Any] = {
      'dtype': self.dtype,
      'param_dtype': self.param_dtype,
    }
    norm = functools.partial(
      Norm, kind=self.norm, bias=self.bias, epsilon=self.norm_epsilon, **types
    )
    small = nn.initializers.normal(self.init_std)
    init, out_init = small, nn.initializers.normal(self.init_std * self._damp)
    if self.weight_init == 'fan_in':
      scaled = nn.initializers.variance_scaling
      init = scaled(1.0, 'fan_in', 'normal')
      out_init = scaled(self._damp**2, 'fan_in', 'normal')
    layer: dict[str, Any] = {'kernel_init': init, 'out_init': out_init, **types}
    block = functools.partial(
      Block,
      attention=self._attention(norm, layer),
      mlp=functools.partial(
        MLP,
        hidden=self._mlp_width,
        activation=self.activation,
        bias=self.bias,
        **layer,
      ),
      norm=norm,
      kind=self.block,
      dropout=self.dropout,
      adapter=adapter.maker(self.adapter, **types),
    )
    self.embed = Embed(self.vocab, self.width, table_init=small, **types)
    if self.position == 'learned':
      self.positions = Embed(self.length, self.width, table_init=small, **types)
    self.drop = nn.Dropout(self.dropout)
    self.blocks = stacks.build(block, self.depth, kind=self.stack)
    # A post-norm block ends in a norm already.
    if self.block != 'post':
      self.final_norm = norm()
    if not self.tied:
      self.head = Head(self.vocab, table_init=init, **types)

  def _attention(self, norm, layer):
    """Returns what makes the attention of a block."""
    own: dict[str, Any] = {
      'heads': self.heads,
      'head_width': self._head_width,
      'kind': self.attention,
      **layer,
    }
    if self.position == 'relative':
      bias = self.bias and self.qkv_bias
      return functools.partial(
        RelativeAttention, bias=bias, out_bias=self.bias, **own
      )
    return functools.partial(
      Attention,
      kv_heads=self._kv_heads,
      bias=self.bias,
      qkv_bias=self.qkv_bias,
      qk_norm=norm if self.qk_norm else None,
      softcap=self.attention_softcap,
      **own,
    )

  @property
  def _turns(self) -> Sequence[Mapping[str, Any]]:
    """What blocks are told in turn: the windows of their attention."""
    if not self.window or self.dense_every == 1:
      return ({},)
    banded = {'window': self.window}
    if not self.dense_every:
      return (banded,)
    return ({}, *[banded] * (self.dense_every - 1))

  @property
  def _damp(self) -> float:
    """GPT-2's factor on what is added to the stream 2 depth times."""
    return 1 / math.sqrt(2 * self.depth)

  def __call__(
    self,
    tokens_BT: jax.Array,
    segments: jax.Array | None = None,
    positions: jax.Array | None = None,
    deterministic: bool = True,
  ) -> jax.Array:
    """Returns logits `[B, T, V]` of each next token, in float32 or wider.

    Args:
      tokens_BT: Token ids.
      segments: `[B, T]` ids of packed documents: attention stays inside one,
        and positions restart with each.
      positions: `[B, T]` positions, where they are not 0 to T - 1.
      deterministic: Whether dropout is off; otherwise rngs need 'dropout'.
    """
    return self.logits(
      self.hidden(tokens_BT, segments, positions, deterministic)
    )

  def hidden(
    self,
    tokens_BT: jax.Array,
    segments: jax.Array | None = None,
    positions: jax.Array | None = None,
    deterministic: bool = True,
  ) -> jax.Array:
    """Returns the residual stream `[B, T, D]` after the last norm."""
    T = tokens_BT.shape[1]
    if T > self.length:
      raise ValueError(f'{T} tokens must fit in length={self.length}')
    if positions is None:
      positions = jnp.arange(T)[None]
      if segments is not None and self.position not in ('relative', 'none'):
        positions = positions_of.segment_positions(segments)
    return self._blocks(tokens_BT, positions, segments, None, deterministic)

  def decode(
    self, tokens_BS: jax.Array, start: jax.Array, *, capacity: int
  ) -> jax.Array:
    """Returns hidden states of tokens that continue a cached prefix.

    Apply with `mutable=['cache']`; the cache is made when there is none.

    Args:
      tokens_BS: The next S tokens of every row.
      start: How many positions the cache holds already: a scalar, or `[B]`
        where rows differ.
      capacity: Positions that the cache has room for.
    """
    S = tokens_BS.shape[1]
    if S > capacity:
      raise ValueError(f'{S} tokens must fit in capacity={capacity}')
    positions = jnp.asarray(start)[..., None] + jnp.arange(S)
    return self._blocks(
      tokens_BS, positions, None, start, True, capacity=capacity
    )

  def _blocks(
    self, tokens_BT, positions, segments, start, deterministic, **static
  ):
    x_BTD = self.embed(tokens_BT)
    if self.embed_scale:
      x_BTD = x_BTD * math.sqrt(self.width)
    rotary = None
    if self.position == 'learned':
      x_BTD = x_BTD + self.positions(positions)
    elif self.position == 'sinusoidal':
      x_BTD = x_BTD + positions_of.sinusoid(
        positions, self.width, dtype=self.dtype
      )
    elif self.position == 'fairseq':
      x_BTD = x_BTD + positions_of.sinusoid(
        positions + _FAIRSEQ_FIRST, self.width, closed=True, dtype=self.dtype
      )
    elif self.position == 'rotary':
      rotary = positions_of.rotary(
        positions, self._rotated, base=self.rotary_base, dtype=self.dtype
      )
    x_BTD = self.drop(x_BTD, deterministic=deterministic)
    x_BTD = stacks.run(
      self.blocks,
      x_BTD,
      segments,
      rotary,
      start,
      depth=self.depth,
      remat=self.remat,
      turns=self._turns,
      deterministic=deterministic,
      **static,
    )
    return x_BTD if self.block == 'post' else self.final_norm(x_BTD)

  def logits(self, x: jax.Array) -> jax.Array:
    """Returns logits `[..., V]` of hidden states `[..., D]`."""
    logits = self.embed.logits(x) if self.tied else self.head(x)
    if self.logit_scale != 1:
      logits = self.logit_scale * logits
    if self.softcap:
      logits = self.softcap * jnp.tanh(logits / self.softcap)
    return logits

  def scale(self, factor: float) -> GPT:
    """Returns a GPT of about `factor` times the non-embedding parameters.

    Head width, heads per key-value head, and the ratios of MLP to width stay;
    depth and width grow together, width in steps of a head.
    """
    step = self.heads // self._kv_heads if self._kv_heads > 1 else 1
    return ladder.rung(self, factor, size=_block_sizes, widen=_widen, step=step)


def _block_sizes(model: GPT) -> int:
  """The weights of all blocks' matrices."""
  heads = 2 * model.heads + 2 * model._kv_heads
  if model.position == 'relative':
    heads += model.heads
  matrices = 3 if model.activation in GATED else 2
  attention = model.width * heads * model._head_width
  return model.depth * (attention + matrices * model.width * model._mlp_width)


def _widen(model: GPT, heads: int) -> GPT:
  """The same model with other heads; each key-value head serves as many."""
  shared = model.heads // model._kv_heads
  wide = ladder.widen(model.clone(kv_heads=0), heads)
  own = heads // shared if model._kv_heads > 1 else 1
  return wide.clone(kv_heads=own if model.kv_heads else 0)


# Published sizes by name, such as 'gpt2-124m'; none is allocated.
SIZES: dict[str, GPT] = {
  name: GPT(**fields) for name, fields in _gpt_sizes.FIELDS.items()
}


def tiny() -> tuple[GPT, tuple[jax.Array, ...]]:
  """Returns the smallest honest GPT and its inputs."""
  model = GPT(depth=2, width=16, heads=2, vocab=29, length=12)
  tokens_BT = jnp.arange(24, dtype=jnp.int32).reshape(2, 12) % model.vocab
  return model, (tokens_BT,)
