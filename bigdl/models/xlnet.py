"""XLNet: predicts tokens in any order of their positions, in two streams.

Yang et al., 2019, arXiv:1906.08237. A token's content stream has read the token
itself, its query stream only where it stands (eq. 3-5); both go through the same
parameters. Positions are relative (bigdl/layers/relative.py), and so are the two
types of text, by whether two tokens are of the same (section 2.5).
Differs from the paper: no memory of the segment before (section 2.4); no dropout
of attention probabilities, of sinusoids, or inside the MLP; a query that may see
no token adds nothing, where its code averages over all of them.
"""

# Shapes: B batch, T positions, P predicted ones, N = T + P, S keys, D width, H
# heads, K head width, V vocabulary.
from __future__ import annotations

import functools
from typing import Any, Literal, get_args

from flax import linen as nn
import jax
from jax.nn.initializers import Initializer
import jax.numpy as jnp

from bigdl.layers import ladder, relative, tiled
from bigdl.layers import stack as stacks
from bigdl.layers.block import Block
from bigdl.layers.dense import Dense
from bigdl.layers.embed import Embed
from bigdl.layers.mlp import GATED, MLP, Activation
from bigdl.layers.norm import Norm
from bigdl.layers.stack import RematKind, StackKind

FloatKind = Literal['float32', 'bfloat16', 'float16', 'float64']
AttentionKind = Literal['auto', 'xla']

_KINDS = {
  'activation': Activation,
  'dtype': FloatKind,
  'param_dtype': FloatKind,
  'attention': AttentionKind,
  'stack': StackKind,
  'remat': RematKind,
}


class TwoStreamAttention(nn.Module):
  """Attention of content and, behind it, of queries to the content.

  The scores are Transformer-XL's and, where types are given, the product of
  query + `type_bias` with one of two vectors: of same types, or of different.
  """

  heads: int
  head_width: int
  causal: bool = False
  kernel_init: Initializer = nn.initializers.normal(0.02)
  dtype: str = 'float32'
  param_dtype: str = 'float32'

  @nn.compact
  def __call__(
    self,
    x_BND: jax.Array,
    segments_BT: jax.Array | None,
    types_BT: jax.Array | None,
    order_BT: jax.Array | None,
    at_BP: jax.Array | None,
  ) -> jax.Array:
    B, N, D = x_BND.shape
    T = N if at_BP is None else N - at_BP.shape[1]
    H, K = self.heads, self.head_width
    dense = functools.partial(
      Dense,
      use_bias=False,
      kernel_init=self.kernel_init,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )

    def project(name, x):
      return dense(H * K, name=name)(x).reshape(*x.shape[:-1], H, K)

    def vectors(name, *shape):
      value = self.param(
        name, self.kernel_init, (*shape, H, K), self.param_dtype
      )
      return value.astype(self.dtype)

    # Keys and values are of the content alone.
    k_BHSK = project('key', x_BND[:, :T]).swapaxes(1, 2)
    v_BHSK = project('value', x_BND[:, :T]).swapaxes(1, 2)
    # Of the distances T - 1 to 0, where causal, or on to 1 - T.
    count = T if self.causal else 2 * T - 1
    r_MD = relative.sinusoids(T - 1, count, D, dtype=self.dtype)
    r_HMK = project('relative', r_MD).swapaxes(0, 1)
    r_BHMK = jnp.broadcast_to(r_HMK, (B, *r_HMK.shape))
    u_HK, v_HK = vectors('content_bias'), vectors('position_bias')
    s_HK, types_2HK = vectors('type_bias'), vectors('type_embedding', 2)

    def attend(q_BTHK, at_BP, seen_BTS, scope):
      """Returns what queries gather, of all positions or of those `at`."""
      q_BTHK = q_BTHK * K**-0.5
      scale = K**-0.5
      with jax.named_scope(scope):
        # The FLOP ledger counts the distance of each pair once.
        with jax.named_scope(f'keys_{count}_of_{T}'):
          scores = tiled.scores(
            tiled.heads_lead(q_BTHK + v_HK * scale, H), r_BHMK
          )
        if at_BP is None:
          scores = relative.shift(scores, T)
        else:
          scores = _place(scores, at_BP, T)
        scores += tiled.scores(
          tiled.heads_lead(q_BTHK + u_HK * scale, H), k_BHSK
        )
      if types_BT is not None:
        by_type = jnp.einsum(
          'BTHK,YHK->BHTY',
          q_BTHK + s_HK * scale,
          types_2HK,
          preferred_element_type=scores.dtype,
        )[:, :, None]
        own_BT = _take(types_BT, at_BP)
        same_BTS = (own_BT[:, :, None] == types_BT[:, None])[:, None, None]
        scores += jnp.where(same_BTS, by_type[..., :1], by_type[..., 1:])
      seen = seen_BTS[:, None, None]
      with jax.named_scope(scope):
        weights = jax.nn.softmax(jnp.where(seen, scores, tiled.MASKED), -1)
        if at_BP is not None:
          # The first in order sees nothing, and must not see all there is.
          weights = jnp.where(seen, weights, 0)
        return tiled.heads_last(tiled.mix(weights, v_BHSK))

    q_BNHK = project('query', x_BND)
    masks = functools.partial(_seen, segments_BT, order_BT, self.causal, (B, T))
    scope = 'causal_attention' if self.causal else 'full_attention'
    outs = [attend(q_BNHK[:, :T], None, masks(None), scope)]
    if at_BP is not None:
      outs.append(attend(q_BNHK[:, T:], at_BP, masks(at_BP), 'full_attention'))
    o_BND = jnp.concatenate(outs, axis=1).reshape(B, N, H * K)
    return dense(D, name='out')(o_BND)


def _take(x_BT, at_BP):
  return x_BT if at_BP is None else jnp.take_along_axis(x_BT, at_BP, axis=1)


def _place(x, at_BP, T):
  """Returns `[B, H, 1, P, T]` scores by key of those by distance from `at`."""
  B, H, _, P, M = x.shape
  # A causal table ends at distance 0; keys behind that are hidden.
  x_BHPM = jnp.pad(x[:, :, 0], [(0, 0)] * 3 + [(0, 2 * T - 1 - M)])

  def row(x_HM, at):
    return jax.lax.dynamic_slice(x_HM, (0, T - 1 - at), (H, T))

  rows = jax.vmap(jax.vmap(row, in_axes=(1, 0), out_axes=1))
  return rows(x_BHPM, at_BP)[:, :, None]


def _seen(segments_BT, order_BT, causal, shape, at_BP):
  """Returns which tokens the content of each, or the queries at some, see."""
  B, T = shape
  t_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
  if order_BT is None and causal:
    order_BT = t_BT
  q_BT = _take(t_BT, at_BP)
  seen = jnp.ones((B, q_BT.shape[1], T), bool)
  if causal:
    seen &= q_BT[:, :, None] >= t_BT[:, None]
  if order_BT is not None:
    own, others = _take(order_BT, at_BP)[:, :, None], order_BT[:, None]
    seen &= own >= others if at_BP is None else own > others
  if segments_BT is not None:
    own, others = _take(segments_BT, at_BP)[:, :, None], segments_BT[:, None]
    seen &= own == others
  return seen


class XLNet(nn.Module):
  """Reads tokens both ways, or predicts some of them in a given order.

  The defaults are XLNet-Base's 117 million parameters.
  """

  depth: int = 12  # Blocks.
  width: int = 768  # Of both streams.
  heads: int = 12
  vocab: int = 32000
  mlp_width: int = 0  # Hidden width of the MLP; 0: 4 width.
  activation: Activation = 'gelu_exact'
  causal: bool = False  # Whether content sees no later position.
  norm_epsilon: float = 1e-12
  dropout: float = 0.0  # Of embeddings, outputs, and what each layer adds.
  init_std: float = 0.02  # Of all weights.
  dtype: FloatKind = 'float32'  # Of compute; logits are float32 or wider.
  param_dtype: FloatKind = 'float32'  # Of the master weights.
  attention: AttentionKind = 'auto'  # What computes it: one way so far.
  stack: StackKind = 'auto'  # 'auto': a loop on CPU, else a scan.
  remat: RematKind = 'none'  # What the backward pass recomputes.

  def __post_init__(self):
    super().__post_init__()
    for name, kind in _KINDS.items():
      value, allowed = getattr(self, name), get_args(kind)
      if value not in allowed:
        raise ValueError(f'{name}={value} must be one of {", ".join(allowed)}')
    for name in ('depth', 'width', 'heads', 'vocab'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}={getattr(self, name)} must be at least 1')
    if self.width % self.heads:
      raise ValueError(f'heads={self.heads} must divide width={self.width}')
    if self.width % 2:
      raise ValueError(f'width={self.width} must be even for sinusoids')
    if not 0 <= self.dropout < 1:
      raise ValueError(f'dropout={self.dropout} must be in [0, 1)')
    for name in ('mlp_width', 'init_std'):
      if not getattr(self, name) >= 0:
        raise ValueError(f'{name}={getattr(self, name)} must not be negative')
    if not self.norm_epsilon > 0:
      raise ValueError(f'norm_epsilon={self.norm_epsilon} must be positive')

  def setup(self):
    types: dict[str, Any] = {
      'dtype': self.dtype,
      'param_dtype': self.param_dtype,
    }
    init = nn.initializers.normal(self.init_std)
    block = functools.partial(
      Block,
      attention=functools.partial(
        TwoStreamAttention,
        heads=self.heads,
        head_width=self.width // self.heads,
        causal=self.causal,
        kernel_init=init,
        **types,
      ),
      mlp=functools.partial(
        MLP,
        hidden=self.mlp_width or 4 * self.width,
        activation=self.activation,
        kernel_init=init,
        out_init=init,
        **types,
      ),
      norm=functools.partial(Norm, epsilon=self.norm_epsilon, **types),
      kind='post',
      dropout=self.dropout,
    )
    self.embed = Embed(self.vocab, self.width, table_init=init, **types)
    self.query_embedding = self.param(
      'query_embedding', init, (self.width,), self.param_dtype
    )
    self.drop = nn.Dropout(self.dropout)
    self.blocks = stacks.build(block, self.depth, kind=self.stack)
    self.head_bias = self.param(
      'head_bias', nn.initializers.zeros, (self.vocab,), self.param_dtype
    )

  def __call__(
    self,
    tokens_BT: jax.Array,
    segments: jax.Array | None = None,
    types: jax.Array | None = None,
    order: jax.Array | None = None,
    targets_at: jax.Array | None = None,
    deterministic: bool = True,
  ) -> jax.Array:
    """Returns logits `[B, P, V]` of the tokens at `targets_at`.

    Without those, `[B, T, V]` of the content stream. In float32 or wider.

    Args:
      tokens_BT: Token ids.
      segments: `[B, T]` ids of packed documents: attention stays inside one.
      types: `[B, T]` of two texts in one document: attention knows whether two
        tokens have the same.
      order: `[B, T]` ranks in which tokens are read: a query sees tokens of
        lower rank, content those of its own rank too. None: all is seen, or
        what comes before where the model is causal.
      targets_at: `[B, P]` positions to predict, each from a query stream.
      deterministic: Whether dropout is off; otherwise rngs need 'dropout'.

    Raises:
      ValueError: Tokens are to be predicted in no order.
    """
    return self.logits(
      self.hidden(tokens_BT, segments, types, order, targets_at, deterministic)
    )

  def hidden(
    self,
    tokens_BT: jax.Array,
    segments: jax.Array | None = None,
    types: jax.Array | None = None,
    order: jax.Array | None = None,
    targets_at: jax.Array | None = None,
    deterministic: bool = True,
  ) -> jax.Array:
    """Returns the query stream `[B, P, D]`, or content `[B, T, D]` without."""
    B, T = tokens_BT.shape
    if targets_at is not None and order is None and not self.causal:
      raise ValueError('targets_at needs an order, or a model of causal=True')
    x_BND = self.embed(tokens_BT)
    if targets_at is not None:
      g_D = self.query_embedding.astype(self.dtype)
      g_BPD = jnp.broadcast_to(g_D, (*targets_at.shape, self.width))
      x_BND = jnp.concatenate([x_BND, g_BPD], axis=1)
    x_BND = self.drop(x_BND, deterministic=deterministic)
    x_BND = stacks.run(
      self.blocks,
      x_BND,
      segments,
      types,
      order,
      targets_at,
      depth=self.depth,
      remat=self.remat,
      deterministic=deterministic,
    )
    x_BND = self.drop(x_BND, deterministic=deterministic)
    return x_BND if targets_at is None else x_BND[:, T:]

  def logits(self, x: jax.Array) -> jax.Array:
    """Returns logits `[..., V]` of hidden states `[..., D]`."""
    logits = self.embed.logits(x)
    return logits + self.head_bias.astype(logits.dtype)

  def scale(self, factor: float) -> XLNet:
    """Returns an XLNet of about `factor` times the non-embedding parameters.

    Head width and the ratio of MLP to width stay; depth and width grow
    together, width in steps of a head.
    """
    return ladder.rung(self, factor, size=_size)


def _size(model: XLNet) -> int:
  """The weights of all blocks' matrices."""
  matrices = 3 if model.activation in GATED else 2
  mlp = matrices * (model.mlp_width or 4 * model.width)
  return model.depth * model.width * (5 * model.width + mlp)


# Yang et al., 2019, appendix A.4 and the published checkpoints.
SIZES: dict[str, XLNet] = {
  'xlnet-base': XLNet(),
  'xlnet-large': XLNet(depth=24, width=1024, heads=16),
}


def tiny() -> tuple[XLNet, tuple[jax.Array, ...]]:
  """Returns the smallest honest XLNet, and text with tokens to predict."""
  model = XLNet(depth=2, width=16, heads=2, vocab=29)
  t_BT = jnp.arange(24, dtype=jnp.int32).reshape(2, 12)
  segments_BT = jnp.where(t_BT % 12 < 10, 1, 0)
  types_BT = jnp.where(t_BT % 12 < 5, 0, 1)
  order_BT = t_BT * 5 % 12
  targets_at_BP = jnp.array([[1, 9, 4], [3, 5, 8]], jnp.int32)
  tokens_BT = t_BT % model.vocab
  return model, (tokens_BT, segments_BT, types_BT, order_BT, targets_at_BP)
