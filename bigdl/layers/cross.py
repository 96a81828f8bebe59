"""Attention to another sequence, and the decoder block that it is a part of.

Vaswani et al., 2017, arXiv:1706.03762, section 3.1 and 3.2.3; norms before each
layer instead of after: Xiong et al., 2020, arXiv:2002.04745, section 3.
Differs from the papers: biases are optional; no dropout of attention
probabilities.
"""

# Shapes: B batch, T target positions, S source positions, D width, H heads,
# G = H key-value heads (groups of one), K head width.
from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Literal

from flax import linen as nn
import jax
from jax.nn.initializers import Initializer
import jax.numpy as jnp

from bigdl.layers import split, tiled
from bigdl.layers.attention import AttentionKind
from bigdl.layers.dense import Dense
from bigdl.parallel import activations, target

CrossBlockKind = Literal['pre', 'post']
Make = Callable[..., nn.Module]


def attend(
  q_BTHK: jax.Array,
  k_BHSK: jax.Array,
  v_BHSK: jax.Array,
  seen_BTS: jax.Array | None = None,
  *,
  kind: AttentionKind = 'auto',
) -> jax.Array:
  """Returns softmax(q k^T / sqrt(K)) v, shaped like `q_BTHK`.

  Args:
    q_BTHK: Queries of one sequence.
    k_BHSK: Keys of another; heads lead, as the products want them.
    v_BHSK: Values.
    seen_BTS: Which of the keys each query sees; None: all. T may be 1, where
      all queries see the same.
    kind: 'cudnn' (GPU, 16 bits) never stores the scores. Any other kind computes
      them all, in float32 or wider: no mask hides whole tiles of them.
  """
  with jax.named_scope('full_attention'):
    B, T, H, K = q_BTHK.shape
    S = k_BHSK.shape[2]
    masked = seen_BTS is not None
    fused = kind == 'auto' and _is_fused(q_BTHK, S, masked=masked)
    if kind == 'cudnn' or fused:
      mask = None
      if seen_BTS is not None:
        mask = jnp.broadcast_to(seen_BTS, (B, T, S))[:, None]
      return jax.nn.dot_product_attention(
        q_BTHK,
        k_BHSK.swapaxes(1, 2),
        v_BHSK.swapaxes(1, 2),
        mask=mask,
        implementation='cudnn',
      )
    scores = tiled.scores(tiled.heads_lead(q_BTHK * K**-0.5, H), k_BHSK)
    if seen_BTS is not None:
      scores = jnp.where(seen_BTS[:, None, None], scores, tiled.MASKED)
    return tiled.heads_last(tiled.mix(jax.nn.softmax(scores, -1), v_BHSK))


def _is_fused(q_BTHK, S, *, masked) -> bool:
  """Whether 'auto' means cuDNN's kernel here."""
  half = q_BTHK.dtype in (jnp.bfloat16, jnp.float16)
  T, _, K = q_BTHK.shape[1:]
  # Its gradients take a mask of even sides alone.
  even = T % 2 == 0 and S % 2 == 0
  fits = K % 8 == 0 and K <= 128 and T > 1 and (even or not masked)
  return target.platform() == 'gpu' and half and fits


class CrossAttention(nn.Module):
  """Queries of one sequence read keys and values of another.

  With `cached`, keys, values and what may be seen of them are variables
  `cache/keys`, `cache/values` and `cache/seen`: written where a memory is given,
  read where it is None.
  """

  heads: int
  head_width: int
  bias: bool = True
  kind: AttentionKind = 'auto'
  kernel_init: Initializer = nn.initializers.normal(0.02)
  out_init: Initializer = nn.initializers.normal(0.02)
  dtype: str = 'float32'
  param_dtype: str = 'float32'

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    memory_BSD: jax.Array | None,
    seen_BTS: jax.Array | None = None,
    *,
    cached: bool = False,
  ) -> jax.Array:
    B, T, D = x_BTD.shape
    x_BTD = activations.gathered(x_BTD)
    inner = self.heads * self.head_width
    dense = functools.partial(
      Dense,
      use_bias=self.bias,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )
    project = functools.partial(dense, inner, kernel_init=self.kernel_init)
    q_BTHK = project(name='query')(x_BTD).reshape(B, T, self.heads, -1)
    q_BTHK = activations.kept(split.heads(q_BTHK))
    if memory_BSD is None:
      k_BHSK, v_BHSK, seen_BTS = self._recall()
    else:
      S = memory_BSD.shape[1]
      memory_BSD = activations.gathered(memory_BSD)
      k_BSHK, v_BSHK = (
        project(name=name)(memory_BSD).reshape(B, S, self.heads, -1)
        for name in ('key', 'value')
      )
      # Queries stay where they are, and see all keys of their heads.
      k_BHSK, v_BHSK = (
        split.whole(activations.kept(split.heads(x))).swapaxes(1, 2)
        for x in (k_BSHK, v_BSHK)
      )
      if cached:
        seen_BTS = self._keep(k_BHSK, v_BHSK, seen_BTS)
    o_BTHK = attend(q_BTHK, k_BHSK, v_BHSK, seen_BTS, kind=self.kind)
    out = dense(D, kernel_init=self.out_init, name='out')
    o_BTHK = split.heads(o_BTHK)
    return activations.scattered(out(o_BTHK.reshape(B, T, inner)))

  def _keep(self, k_BHSK, v_BHSK, seen_BTS):
    """Caches a memory; the mask must be one for all queries, `[B, 1, S]`."""
    B, _, S, _ = k_BHSK.shape
    if seen_BTS is None:
      seen_BTS = jnp.ones((B, 1, S), bool)
    assert seen_BTS.shape == (B, 1, S), seen_BTS.shape
    for name, value in (
      ('keys', k_BHSK),
      ('values', v_BHSK),
      ('seen', seen_BTS),
    ):
      self.variable('cache', name, lambda value=value: value).value = value
    return seen_BTS

  def _recall(self):
    if not self.has_variable('cache', 'keys'):
      raise ValueError('memory_BSD=None: the first tokens must come with one')
    names = ('keys', 'values', 'seen')
    return (self.get_variable('cache', name) for name in names)


class CrossBlock(nn.Module):
  """A decoder block: self-attention A, cross-attention C to a memory, MLP M.

  post: norm(z + M(z)) where z = norm(y + C(y)) and y = norm(x + A(x));
  pre: z + M(norm z) where z = y + C(norm y) and y = x + A(norm x).
  """

  attention: Make
  cross: Make
  mlp: Make
  norm: Make
  kind: CrossBlockKind = 'post'
  dropout: float = 0.0

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    memory_BSD: jax.Array | None,
    segments_BT: jax.Array | None = None,
    seen_BTS: jax.Array | None = None,
    start: jax.Array | None = None,
    *,
    deterministic: bool = True,
    capacity: int = 0,
  ) -> jax.Array:
    attention = self.attention(name='attention')
    cross, mlp = self.cross(name='cross'), self.mlp(name='mlp')
    drop = nn.Dropout(self.dropout, deterministic=deterministic)

    def add(x, layer, name):
      norm = self.norm(name=name)
      if self.kind == 'post':
        return norm(x + drop(layer(x)))
      return x + drop(layer(norm(x)))

    def look_back(x):
      return attention(x, segments_BT, None, start, capacity=capacity)

    def look_across(x):
      return cross(x, memory_BSD, seen_BTS, cached=start is not None)

    x_BTD = add(x_BTD, look_back, 'attention_norm')
    x_BTD = add(x_BTD, look_across, 'cross_norm')
    return add(x_BTD, mlp, 'mlp_norm')
