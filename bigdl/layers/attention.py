"""Multi-head attention: one mathematical function, four ways to compute it.

Vaswani et al., 2017, arXiv:1706.03762, eq. 1. Keys and values shared by all
heads: Shazeer, 2019, arXiv:1911.02150; by groups of heads: Ainslie et al.,
2023, arXiv:2305.13245. Query-key norm: Dehghani et al., 2023,
arXiv:2302.05442, eq. 4. Softcap of scores: Gemma team, 2024, arXiv:2408.00118.
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
import numpy as np

from bigdl.layers import position

AttentionKind = Literal['auto', 'xla', 'tiled', 'cudnn', 'pallas']

# Of a masked score: finite, so that no row can become nan; its exponential is
# exactly zero in every dtype.
_MASKED = -1e30
_TILES = 4  # Most tiles that 'tiled' cuts the queries into.
_TILE = 64  # Fewest queries in a tile.


def choose(
  kind: AttentionKind, *, causal: bool, dtype: Any, length: int, softcap: float
) -> str:
  """Returns what computes attention here; 'auto' picks by device."""
  if kind != 'auto':
    return kind
  platform = jax.default_backend()
  if platform == 'cpu':
    return 'tiled' if causal else 'xla'
  half = jnp.dtype(dtype) in (jnp.bfloat16, jnp.float16)
  if platform == 'gpu' and half and not softcap:
    return 'cudnn'
  if platform == 'tpu' and length % 128 == 0:
    return 'pallas'
  return 'xla'


def attend(
  q_BTHK: jax.Array,
  k_BTGK: jax.Array,
  v_BTGK: jax.Array,
  *,
  causal: bool = True,
  segments_BT: jax.Array | None = None,
  softcap: float = 0.0,
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
    kind: 'xla' computes all scores. 'tiled' leaves out tiles of scores that
      the causal mask hides. 'cudnn' (GPU, 16 bits) and 'pallas' (TPU; T must
      be a multiple of 128) never store the scores.
  """
  kind = choose(
    kind,
    causal=causal,
    dtype=q_BTHK.dtype,
    length=q_BTHK.shape[1],
    softcap=softcap,
  )
  scope = 'causal_attention' if causal else 'full_attention'
  with jax.named_scope(scope):
    if kind == 'cudnn':
      if softcap:
        raise ValueError(f'attention=cudnn has no softcap, got {softcap}')
      mask = None
      if segments_BT is not None:
        mask = (segments_BT[:, :, None] == segments_BT[:, None])[:, None]
      return jax.nn.dot_product_attention(
        q_BTHK,
        k_BTGK,
        v_BTGK,
        mask=mask,
        is_causal=causal,
        implementation='cudnn',
      )
    if kind == 'pallas':
      return _pallas(q_BTHK, k_BTGK, v_BTGK, segments_BT, causal, softcap)
    if kind == 'tiled':
      return _tiled(q_BTHK, k_BTGK, v_BTGK, segments_BT)
    return _plain(q_BTHK, k_BTGK, v_BTGK, segments_BT, causal, softcap)


def _heads_lead(q_BTHK, k_BTGK, v_BTGK):
  # On CPU, jax.nn.dot_product_attention took 1.5-1.8 times as long as '_plain',
  # forward and backward (B=16, T=128, H=4, K=16 to 64): with batch and head
  # leading in both products, XLA calls plain matrix multiplications.
  B, T, H, K = q_BTHK.shape
  G = k_BTGK.shape[2]
  q_BGRTK = q_BTHK.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)
  return q_BGRTK * K**-0.5, k_BTGK.swapaxes(1, 2), v_BTGK.swapaxes(1, 2)


def _heads_last(o_BGRTK):
  B, G, R, T, K = o_BGRTK.shape
  return o_BGRTK.transpose(0, 3, 1, 2, 4).reshape(B, T, G * R, K)


def _visible(segments_BT, start, stop, end, causal):
  """Returns which of the first `end` keys queries start to stop see, or None."""
  visible = None
  if causal:
    visible = np.arange(start, stop)[:, None] >= np.arange(end)
  if segments_BT is not None:
    same = segments_BT[:, start:stop, None] == segments_BT[:, None, :end]
    same = same[:, None, None]
    visible = same if visible is None else same & visible
  return visible


def _plain(q_BTHK, k_BTGK, v_BTGK, segments_BT, causal, softcap):
  T = q_BTHK.shape[1]
  q_BGRTK, k_BGSK, v_BGSK = _heads_lead(q_BTHK, k_BTGK, v_BTGK)
  visible = _visible(segments_BT, 0, T, T, causal)
  return _heads_last(_weigh(q_BGRTK, k_BGSK, v_BGSK, visible, softcap))


def _tiled(q_BTHK, k_BTGK, v_BTGK, segments_BT):
  q_BGRTK, k_BGSK, v_BGSK = _heads_lead(q_BTHK, k_BTGK, v_BTGK)
  B = q_BTHK.shape[0]
  rows = int(__import__('os').environ.get('ROWS', 0))
  if rows:
    assert segments_BT is None

    def sp(x):
      return x.reshape(B // rows, rows, *x.shape[1:])

    o = jax.lax.map(
      lambda a: _flash(*a, None), (sp(q_BGRTK), sp(k_BGSK), sp(v_BGSK))
    )
    return _heads_last(o.reshape(q_BGRTK.shape))
  return _heads_last(_flash(q_BGRTK, k_BGSK, v_BGSK, segments_BT))


def _tiles(T):
  tiles = int(__import__('os').environ.get('TILES', 0)) or min(
    _TILES, -(-T // _TILE)
  )
  size = -(-T // tiles)
  return [(t, min(t + size, T)) for t in range(0, T, size)]


@jax.custom_vjp
def _flash(q_BGRTK, k_BGSK, v_BGSK, segments_BT):
  return _flash_forward(q_BGRTK, k_BGSK, v_BGSK, segments_BT)[0]


def _scores(q_BGRTK, k_BGSK):
  # The heads of a group are rows of one product with its keys.
  B, G, R, T, K = q_BGRTK.shape
  return jnp.einsum(
    'BGNK,BGSK->BGNS',
    q_BGRTK.reshape(B, G, R * T, K),
    k_BGSK,
    preferred_element_type=jnp.promote_types(q_BGRTK.dtype, jnp.float32),
  ).reshape(B, G, R, T, -1)


def _mix(p_BGRTS, v_BGSK):
  B, G, R, T, S = p_BGRTS.shape
  return jnp.einsum(
    'BGNS,BGSK->BGNK',
    p_BGRTS.astype(v_BGSK.dtype).reshape(B, G, R * T, S),
    v_BGSK,
  ).reshape(B, G, R, T, -1)


def _back(p_BGRTS, x_BGRTK):
  B, G, R, T, S = p_BGRTS.shape
  return jnp.einsum(
    'BGNS,BGNK->BGSK',
    p_BGRTS.astype(x_BGRTK.dtype).reshape(B, G, R * T, S),
    x_BGRTK.reshape(B, G, R * T, -1),
  )


def _flash_forward(q_BGRTK, k_BGSK, v_BGSK, segments_BT):
  T = q_BGRTK.shape[3]
  outs, sums = [], []
  for start, stop in _tiles(T):
    with jax.named_scope(f'keys_{stop}_of_{T}'):
      s = _scores(q_BGRTK[:, :, :, start:stop], k_BGSK[:, :, :stop])
      s = jnp.where(_visible(segments_BT, start, stop, stop, True), s, _MASKED)
      top = jnp.max(s, axis=-1, keepdims=True)
      e = jnp.exp(s - top)
      z = jnp.sum(e, axis=-1, keepdims=True)
      o = _mix(e, v_BGSK[:, :, :stop])
      outs.append((o / z).astype(o.dtype))
      sums.append(top + jnp.log(z))
  o, lse = (jnp.concatenate(x, axis=3) for x in (outs, sums))
  return o, (q_BGRTK, k_BGSK, v_BGSK, segments_BT, o, lse)


def _flash_backward(saved, do):
  q, k, v, segments_BT, o, lse = saved
  T = q.shape[3]
  delta = jnp.sum((o * do).astype(lse.dtype), axis=-1, keepdims=True)
  dqs, dk, dv = [], jnp.zeros_like(k), jnp.zeros_like(v)
  for start, stop in _tiles(T):
    tile = np.s_[:, :, :, start:stop]
    keys = np.s_[:, :, :stop]
    s = _scores(q[tile], k[keys])
    p = jnp.exp(s - lse[tile])
    p = jnp.where(_visible(segments_BT, start, stop, stop, True), p, 0)
    dp = _scores(do[tile], v[keys])
    ds = p * (dp - delta[tile])
    dqs.append(_mix(ds, k[keys]))
    dk = dk.at[keys].add(_back(ds, q[tile]))
    dv = dv.at[keys].add(_back(p, do[tile]))
  return jnp.concatenate(dqs, axis=3), dk, dv, None


_flash.defvjp(_flash_forward, _flash_backward)


def _weigh(q_BGRTK, k_BGSK, v_BGSK, visible, softcap):
  """Softmax over visible keys in float32 or wider, then the mean of values."""
  B, G, R, T, K = q_BGRTK.shape
  wide = jnp.promote_types(q_BGRTK.dtype, jnp.float32)
  # The heads of a group are rows of one product with its keys.
  scores = jnp.einsum(
    'BGNK,BGSK->BGNS',
    q_BGRTK.reshape(B, G, R * T, K),
    k_BGSK,
    preferred_element_type=wide,
  ).reshape(B, G, R, T, -1)
  if softcap:
    scores = softcap * jnp.tanh(scores / softcap)
  if visible is not None:
    scores = jnp.where(visible, scores, _MASKED)
  weights = jax.nn.softmax(scores, axis=-1).astype(v_BGSK.dtype)
  o_BGNK = jnp.einsum(
    'BGNS,BGSK->BGNK', weights.reshape(B, G, R * T, -1), v_BGSK
  )
  return o_BGNK.reshape(B, G, R, T, K)


def _pallas(
  q_BTHK, k_BTGK, v_BTGK, segments_BT, causal, softcap, interpret=False
):
  """The splash kernel, split over the ambient mesh where there is one."""
  # Importing Pallas takes about a second, and only TPUs need it.
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  T, H, K = q_BTHK.shape[1:]
  if T % 128:
    raise ValueError(f'attention=pallas needs length={T} to be 128 n')

  def local(q_BTHK, k_BTGK, v_BTGK, segments_BT):
    mask = splash.CausalMask((T, T)) if causal else splash.FullMask((T, T))
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

  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return local(q_BTHK, k_BTGK, v_BTGK, segments_BT)
  # The compiler cannot split a kernel by itself: rows go to all the axes that
  # split rows, heads to 'tensor'.
  rows = tuple(a for a in mesh.axis_names if a != 'tensor')
  heads = 'tensor' if 'tensor' in mesh.axis_names else None
  spec = jax.P(rows, None, heads, None)
  return jax.shard_map(
    local,
    in_specs=(spec, spec, spec, None if segments_BT is None else jax.P(rows)),
    out_specs=spec,
    check_vma=False,
  )(q_BTHK, k_BTGK, v_BTGK, segments_BT)


class Attention(nn.Module):
  """Self-attention with its four projections.

  With `start`, it decodes: `x_BTD` continues a cached prefix of that length,
  and the variables `cache/keys` and `cache/values` grow by T positions.
  """

  heads: int
  kv_heads: int
  head_width: int
  causal: bool = True
  bias: bool = True
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
  ) -> jax.Array:
    B, T, D = x_BTD.shape
    dense = functools.partial(
      nn.Dense,
      use_bias=self.bias,
      dtype=self.dtype,
      param_dtype=self.param_dtype,
    )

    def project(heads, name):
      y = dense(
        heads * self.head_width, kernel_init=self.kernel_init, name=name
      )
      return y(x_BTD).reshape(B, T, heads, self.head_width)

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
        kind=self.kind,
      )
    else:
      o_BTHK = self._decode(q_BTHK, k_BTGK, v_BTGK, start, capacity)
    o_BTD = o_BTHK.reshape(B, T, self.heads * self.head_width)
    return dense(D, kernel_init=self.out_init, name='out')(o_BTD)

  def _decode(self, q_BTHK, k_BTGK, v_BTGK, start, capacity):
    """Appends keys and values to the cache and attends to all it holds."""
    B, T, H, K = q_BTHK.shape
    G = self.kv_heads
    # Heads lead, as the products want them: a step must not transpose a cache.
    shape = (B, G, capacity, K)

    def append(name, new_BTGK):
      cache = self.variable('cache', name, jnp.zeros, shape, new_BTGK.dtype)
      cache.value = jax.lax.dynamic_update_slice(
        cache.value, new_BTGK.swapaxes(1, 2), (0, 0, start, 0)
      )
      return cache.value

    k_BGSK, v_BGSK = append('keys', k_BTGK), append('values', v_BTGK)
    q_BGRTK = q_BTHK.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)
    s = jnp.arange(k_BGSK.shape[2])
    visible_TS = start + jnp.arange(T)[:, None] >= s
    with jax.named_scope('causal_attention'):
      o_BGRTK = _weigh(
        q_BGRTK * K**-0.5, k_BGSK, v_BGSK, visible_TS, self.softcap
      )
    return o_BGRTK.transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)
