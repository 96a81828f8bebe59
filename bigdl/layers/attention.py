"""Multi-head attention: one mathematical function, four ways to compute it.

Vaswani et al., 2017, arXiv:1706.03762, eq. 1. Keys and values shared by all
heads: Shazeer, 2019, arXiv:1911.02150; by groups of heads: Ainslie et al.,
2023, arXiv:2305.13245. Query-key norm: Dehghani et al., 2023,
arXiv:2302.05442, eq. 4. Softcap of scores: Gemma team, 2024, arXiv:2408.00118.
Banded: Child et al., 2019, arXiv:1904.10509, section 4.2, of which GPT-3 and
GPT-Neo keep the local part, for all heads of a layer.
Differs from the papers: biases are optional; no dropout of probabilities,
which no fused kernel offers.
"""

# Shapes: B batch, T query positions, S key positions, D width, H heads,
# G key-value heads, R = H / G heads a group, K head width.
from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any, Literal

from flax import linen as nn
import jax
from jax.nn.initializers import Initializer
import jax.numpy as jnp

from bigdl.layers import position, split, tiled
from bigdl.layers.dense import Dense
from bigdl.parallel import activations, ring, target

AttentionKind = Literal['auto', 'xla', 'tiled', 'cudnn', 'pallas']


def choose(
  q_BTHK: jax.Array,
  *,
  causal: bool = True,
  packed: bool = False,
  softcap: float = 0.0,
) -> AttentionKind:
  """Returns what 'auto' means: the fastest kind that this device can run.

  Args:
    q_BTHK: Queries, of which shape and dtype matter.
    causal: Whether attention is causal.
    packed: Whether segments are given.
    softcap: The softcap of scores.
  """
  platform = target.platform()
  _, T, _, K = q_BTHK.shape
  if platform == 'cpu' and causal:
    return 'tiled'
  if platform == 'tpu' and T % 128 == 0:
    return 'pallas'
  # Newer cards take heads of 256 as well, to those who ask for 'cudnn'.
  fits = K % 8 == 0 and K <= 128 and not softcap and not (packed and T % 2)
  if platform == 'gpu' and fits and _half(q_BTHK):
    return 'cudnn'
  return 'xla'


def _half(x):
  return x.dtype in (jnp.bfloat16, jnp.float16)


def attend(
  q_BTHK: jax.Array,
  k_BTGK: jax.Array,
  v_BTGK: jax.Array,
  *,
  causal: bool = True,
  segments_BT: jax.Array | None = None,
  softcap: float = 0.0,
  window: int = 0,
  kind: AttentionKind = 'auto',
) -> jax.Array:
  """Returns softmax(q k^T / sqrt(K)) v, shaped like `q_BTHK`.

  Args:
    q_BTHK: Queries.
    k_BTGK: Keys; G divides H, and head h reads group h // (H / G).
    v_BTGK: Values.
    causal: Whether position t sees only positions up to t.
    segments_BT: Attention stays between equal ids.
    softcap: Scores s become softcap * tanh(s / softcap), where above 0.
    window: Position t sees t - window + 1 to t, where above 0; the attention
      must be causal.
    kind: 'xla' computes all scores. 'tiled' leaves out tiles of scores that
      the causal mask or the band hides, and keeps none for the backward pass.
      'cudnn' (GPU, 16 bits) and 'pallas' (TPU; T must be a multiple of 128)
      never store the scores. Only 'xla' has forward-mode derivatives.
      Positions that a mesh splits may ask for a ring of devices instead.
  """
  if window and not causal:
    raise ValueError(f'window={window} must be 0 where causal=False')
  if kind == 'auto':
    kind = choose(
      q_BTHK,
      causal=causal,
      packed=segments_BT is not None,
      softcap=softcap,
    )
  by_ring = split.by_ring(q_BTHK)
  k_BTGK, v_BTGK = (
    split.shared(x, q_BTHK.shape[2], ring=by_ring) for x in (k_BTGK, v_BTGK)
  )
  with jax.named_scope(_scope(causal, window)):
    if by_ring:
      mask = ring.Mask(causal, window, softcap)
      return ring.attend(q_BTHK, k_BTGK, v_BTGK, segments_BT, mask=mask)
    q, k, v = (split.spread(x) for x in (q_BTHK, k_BTGK, v_BTGK))
    o_BTHK = _attend(kind, q, k, v, segments_BT, causal, softcap, window)
    return split.heads(split.spread(o_BTHK))


def _attend(kind, q_BTHK, k_BTGK, v_BTGK, segments_BT, causal, softcap, window):
  """Attends where all positions of a head are on one device."""
  arrays = q_BTHK, k_BTGK, v_BTGK, segments_BT
  if kind == 'cudnn':
    return _cudnn(*arrays, causal, softcap, window)
  if kind == 'pallas':
    return _pallas(*arrays, causal, softcap, window=window)
  # Only a causal mask hides whole tiles.
  if kind == 'tiled' and causal:
    return tiled.attend(*arrays, softcap, window)
  T, G, K = k_BTGK.shape[1:]
  return tiled.heads_last(
    _weigh(
      tiled.heads_lead(q_BTHK * K**-0.5, G),
      k_BTGK.swapaxes(1, 2),
      v_BTGK.swapaxes(1, 2),
      tiled.visible(segments_BT, 0, T, T, causal, window=window),
      softcap,
    )
  )


def _scope(causal: bool, window: int) -> str:
  """Returns the name by which the FLOP ledger knows what the mask leaves."""
  if window:
    return f'banded_attention_{window}'
  return 'causal_attention' if causal else 'full_attention'


def _weigh(q_BGRTK, k_BGSK, v_BGSK, visible, softcap):
  """Softmax over visible keys in float32 or wider, then the mean of values."""
  scores = tiled.scores(q_BGRTK, k_BGSK)
  if softcap:
    scores = softcap * jnp.tanh(scores / softcap)
  if visible is not None:
    scores = jnp.where(visible, scores, tiled.MASKED)
  return tiled.mix(jax.nn.softmax(scores, axis=-1), v_BGSK)


def _cudnn(q_BTHK, k_BTGK, v_BTGK, segments_BT, causal, softcap, window):
  if softcap:
    raise ValueError(f'attention=cudnn has no softcap, got {softcap}')
  if not _half(q_BTHK):
    raise ValueError(f'attention=cudnn needs 16 bits, got dtype={q_BTHK.dtype}')
  if target.platform() != 'gpu':
    raise ValueError(
      f'attention=cudnn needs a GPU, this is a {target.platform()}'
    )
  mask = None
  if segments_BT is not None:
    mask = (segments_BT[:, :, None] == segments_BT[:, None])[:, None]
  return jax.nn.dot_product_attention(
    q_BTHK,
    k_BTGK,
    v_BTGK,
    mask=mask,
    is_causal=causal,
    # How far to the left and to the right.
    local_window_size=(window - 1, 0) if window else None,
    implementation='cudnn',
  )


def _pallas(
  q_BTHK,
  k_BTGK,
  v_BTGK,
  segments_BT,
  causal,
  softcap,
  *,
  window=0,
  interpret=False,
):
  """The splash kernel, split over the ambient mesh where there is one."""
  # Importing Pallas takes about a second, and only TPUs need it.
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  T, H, K = q_BTHK.shape[1:]
  if T % 128:
    raise ValueError(f'attention=pallas needs length={T} to be 128 n')

  def local(q_BTHK, k_BTGK, v_BTGK, segments_BT):
    mask: Any = splash.CausalMask((T, T)) if causal else splash.FullMask((T, T))
    if window:
      mask = splash.LocalMask((T, T), (window - 1, 0), 0)
    block = next(b for b in (512, 256, 128) if T % b == 0)
    kernel = splash.make_splash_mha(
      splash.MultiHeadMask([mask] * q_BTHK.shape[2]),
      block_sizes=splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
      ),
      attn_logits_soft_cap=softcap or None,
      head_shards=1,
      q_seq_shards=1,
      interpret=interpret,
    )
    q, k, v = (x.swapaxes(1, 2) for x in (q_BTHK * K**-0.5, k_BTGK, v_BTGK))
    if segments_BT is None:
      o_BHTK = jax.vmap(lambda q, k, v: kernel(q, k, v))(q, k, v)
    else:
      ids = splash.SegmentIds(segments_BT, segments_BT)
      o_BHTK = jax.vmap(kernel)(q, k, v, ids)
    return o_BHTK.swapaxes(1, 2)

  if jax.sharding.get_abstract_mesh().empty:
    return local(q_BTHK, k_BTGK, v_BTGK, segments_BT)
  # The compiler cannot split a kernel by itself.
  q, kv = (
    activations.spec(x.shape, 'rows', None, 'spread', None)
    for x in (q_BTHK, k_BTGK)
  )
  return jax.shard_map(
    local,
    in_specs=(q, kv, kv, None if segments_BT is None else jax.P(q[0])),
    out_specs=q,
    check_vma=False,
  )(q_BTHK, k_BTGK, v_BTGK, segments_BT)


def put(
  cache_BGSK: jax.Array, new_BGTK: jax.Array, start: jax.Array
) -> jax.Array:
  """Returns the cache with T new positions from `start`: one, or one a row."""
  if not start.ndim:
    return jax.lax.dynamic_update_slice(cache_BGSK, new_BGTK, (0, 0, start, 0))
  return jax.vmap(
    lambda row, new, at: jax.lax.dynamic_update_slice(row, new, (0, at, 0))
  )(cache_BGSK, new_BGTK, start)


class Attention(nn.Module):
  """Self-attention with its four projections.

  With `start`, it decodes: `x_BTD` continues a cached prefix of that length
  (a scalar, or `[B]` where rows differ), and the variables `cache/keys` and
  `cache/values` grow by T positions. With `window`, attention is banded.
  """

  heads: int
  kv_heads: int
  head_width: int
  causal: bool = True
  bias: bool = True
  qkv_bias: bool = True  # Of queries, keys, values, where there is `bias`.
  qk_norm: Callable[..., nn.Module] | None = None
  softcap: float = 0.0
  kind: AttentionKind = 'auto'
  kernel_init: Initializer = nn.initializers.normal(0.02)
  out_init: Initializer = nn.initializers.normal(0.02)
  dtype: str = 'float32'
  param_dtype: str = 'float32'

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    segments_BT: jax.Array | None = None,
    rotary: position.Rotary | None = None,
    start: jax.Array | None = None,
    *,
    capacity: int = 0,
    window: int = 0,
  ) -> jax.Array:
    B, T, D = x_BTD.shape
    x_BTD = activations.gathered(x_BTD)
    dense = functools.partial(
      Dense,
      use_bias=self.bias,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )

    def project(heads, name):
      y = dense(
        heads * self.head_width,
        use_bias=self.bias and self.qkv_bias,
        kernel_init=self.kernel_init,
        name=name,
      )
      y_BTHK = y(x_BTD).reshape(B, T, heads, self.head_width)
      return activations.kept(split.heads(y_BTHK))

    q_BTHK = project(self.heads, 'query')
    k_BTGK = project(self.kv_heads, 'key')
    v_BTGK = project(self.kv_heads, 'value')
    if self.qk_norm is not None:
      q_BTHK = self.qk_norm(name='query_norm')(q_BTHK)
      k_BTGK = self.qk_norm(name='key_norm')(k_BTGK)
    if rotary is not None:
      q_BTHK = position.rotate(q_BTHK, rotary)
      k_BTGK = position.rotate(k_BTGK, rotary)
    if start is None:
      o_BTHK = attend(
        q_BTHK,
        k_BTGK,
        v_BTGK,
        causal=self.causal,
        segments_BT=segments_BT,
        softcap=self.softcap,
        window=window,
        kind=self.kind,
      )
    else:
      o_BTHK = self._decode(q_BTHK, k_BTGK, v_BTGK, start, capacity, window)
    o_BTD = o_BTHK.reshape(B, T, self.heads * self.head_width)
    out = dense(D, kernel_init=self.out_init, name='out')
    return activations.scattered(out(o_BTD))

  def _decode(self, q_BTHK, k_BTGK, v_BTGK, start, capacity, window):
    """Appends keys and values to the cache and attends to all it holds."""
    B, T, H, K = q_BTHK.shape
    G = self.kv_heads
    # Heads lead, as the products want them: a step must not transpose a cache.
    shape = (B, G, capacity, K)

    def append(name, new_BTGK):
      cache = self.variable('cache', name, jnp.zeros, shape, new_BTGK.dtype)
      cache.value = put(cache.value, new_BTGK.swapaxes(1, 2), start)
      return cache.value

    k_BGSK, v_BGSK = append('keys', k_BTGK), append('values', v_BTGK)
    q_BGRTK = q_BTHK.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)
    # One start for all rows, or one for each: [T, 1] or [B, 1, 1, T, 1].
    t = start[..., None, None] + jnp.arange(T)[:, None]
    t = t[:, None, None] if start.ndim else t
    back_TS = t - jnp.arange(k_BGSK.shape[2])
    visible_TS = back_TS >= 0
    if window:
      visible_TS &= back_TS < window
    with jax.named_scope(_scope(True, window)):
      o_BGRTK = _weigh(
        q_BGRTK * K**-0.5, k_BGSK, v_BGSK, visible_TS, self.softcap
      )
    return o_BGRTK.transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)
