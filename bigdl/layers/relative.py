"""Attention that knows how far apart two positions are: Transformer-XL's.

Dai et al., 2019, arXiv:1901.02860, section 3.3. The score of query i and key j is

  (q_i + u) k_j / sqrt(K) + (q_i + v) W_R R_{i - j} / sqrt(K),

where R_d is the sinusoid of distance d, W_R the kernel `relative`, u
`content_bias` and v `position_bias`. The second term is taken for every
distance, not for every pair, and then shifted into place (appendix B).
Differs from the paper: u and v are each layer's own, as in its code's `untie_r`;
projections may have biases; the stream has no recurrence, but decoding a cache.
"""

# Shapes: B batch, T query positions, S key positions, D width, H heads, K head
# width, N distances, C positions in the cache.
from __future__ import annotations

import functools
from typing import Literal

from flax import linen as nn
import jax
from jax.nn.initializers import Initializer
import jax.numpy as jnp
import numpy as np

from bigdl.layers import position, split, tiled
from bigdl.layers.attention import put
from bigdl.layers.dense import Dense
from bigdl.parallel import activations, target

RelativeKind = Literal['auto', 'xla', 'tiled']

_TILES = 4  # Most tiles that the queries are cut into.
_TILE = 64  # Fewest queries in a tile.


def sinusoids(
  first: int, count: int, width: int, *, dtype: str = 'float32'
) -> jax.Array:
  """Returns R `[count, width]` of the distances first, first - 1, ..."""
  distances = first - jnp.arange(count)
  return position.sinusoid(distances, width, dtype=dtype)


def shift(x: jax.Array, keys: int) -> jax.Array:
  """Returns `[..., T, keys]` scores by key of scores `[..., T, N]` by distance.

  Entry (t, s) is x[t, T - 1 - t + s]: where the columns of x stand for distances
  that fall by one from that between the last query and the first key, it is the
  score of s seen from t. Entries that lie beyond x are finite and mean nothing.
  """
  *lead, T, N = x.shape
  assert keys <= N, (keys, N)
  # One column more makes a row begin one place later in each line of a view.
  padded = jnp.pad(x, [(0, 0)] * (len(lead) + 1) + [(0, 1)])
  flat = padded.reshape(*lead, T * (N + 1))[..., T - 1 : T - 1 + T * N]
  return flat.reshape(*lead, T, N)[..., :keys]


def attend(
  q_BTHK: jax.Array,
  k_BTHK: jax.Array,
  v_BTHK: jax.Array,
  r_NHK: jax.Array,
  content_HK: jax.Array,
  position_HK: jax.Array,
  *,
  causal: bool = True,
  window: int = 0,
  segments_BT: jax.Array | None = None,
  kind: RelativeKind = 'auto',
) -> jax.Array:
  """Returns the mean of values that the scores above weigh, like `q_BTHK`.

  Args:
    q_BTHK: Queries.
    k_BTHK: Keys.
    v_BTHK: Values.
    r_NHK: W_R R of the distances T - 1 to 0 if causal, else to 1 - T.
    content_HK: u.
    position_HK: v.
    causal: Whether position t sees only positions up to t.
    window: Where above 0, t sees no position before t - window + 1.
    segments_BT: Attention stays between equal ids.
    kind: 'xla' computes all scores at once. 'tiled' leaves out tiles of scores,
      and distances, that no query of a tile has; 'auto' is that on CPU.
  """
  T, H, K = k_BTHK.shape[1:]
  if kind == 'auto':
    kind = 'tiled' if target.platform() == 'cpu' else 'xla'
  if window and not causal:
    raise ValueError(f'window={window} must be 0 where causal=False')
  with jax.named_scope(_scope(causal, window)):
    q_BTHK = q_BTHK * K**-0.5
    content = tiled.heads_lead(q_BTHK + content_HK * K**-0.5, H)
    places = tiled.heads_lead(q_BTHK + position_HK * K**-0.5, H)
    k_BHSK, v_BHSK = k_BTHK.swapaxes(1, 2), v_BTHK.swapaxes(1, 2)
    r_BHNK = _each_row(r_NHK, len(q_BTHK))
    outs = []
    for start, stop, first, end in _spans(T, causal, window, kind):
      tile, keys = np.s_[:, :, :, start:stop], np.s_[:, :, first:end]
      # From the greatest distance in the tile, to 0 or to the least.
      size, far = end - first, T - stop + first
      near = far + size + (0 if causal else stop - start - 1)
      # The FLOP ledger reads how many of the keys this tile is given.
      with jax.named_scope(f'keys_{near - far}_of_{T}'):
        by_distance = tiled.scores(places[tile], r_BHNK[:, :, far:near])
      with jax.named_scope(f'keys_{size}_of_{T}'):
        scores = tiled.scores(content[tile], k_BHSK[keys])
        scores += shift(by_distance, size)
        seen = tiled.visible(
          segments_BT, start, stop, end, causal, first=first, window=window
        )
        if seen is not None:
          scores = jnp.where(seen, scores, tiled.MASKED)
        weights = jax.nn.softmax(scores, axis=-1)
        outs.append(tiled.mix(weights, v_BHSK[keys]))
    return tiled.heads_last(jnp.concatenate(outs, axis=3))


def _each_row(r_NHK, B):
  """Returns `[B, H, N, K]`: as batch and head lead, products are plain ones."""
  r_HNK = r_NHK.swapaxes(0, 1)
  return jnp.broadcast_to(r_HNK, (B, *r_HNK.shape))


def _scope(causal, window):
  if window:
    return f'banded_attention_{window}'
  return 'causal_attention' if causal else 'full_attention'


def _spans(T, causal, window, kind):
  """Yields start and stop of each tile's queries, first and end of its keys."""
  if kind == 'xla':
    yield 0, T, 0, T
    return
  size = -(-T // min(_TILES, -(-T // _TILE)))
  if window:
    # A tile is given the window before it: it should not be much wider.
    size = min(size, max(_TILE, window))
  for start in range(0, T, size):
    stop = min(start + size, T)
    first = max(0, start - window + 1) if window else 0
    yield start, stop, first, stop if causal else T


class RelativeAttention(nn.Module):
  """Self-attention by content and distance, with its five projections.

  It is called as `attention.Attention` is. With `start`, it decodes: `x_BTD`
  continues a cached prefix of that length (a scalar, or `[B]` where rows
  differ), and `cache/keys` and `cache/values` grow by T positions;
  `cache/distances` keeps W_R R. With `window`, attention is banded.
  """

  heads: int
  head_width: int
  causal: bool = True
  bias: bool = True  # Of queries, keys and values.
  out_bias: bool | None = None  # None: as `bias`.
  kind: RelativeKind = 'auto'
  kernel_init: Initializer = nn.initializers.normal(0.02)
  out_init: Initializer = nn.initializers.normal(0.02)
  bias_init: Initializer = nn.initializers.normal(0.02)  # Of u and v.
  dtype: str = 'float32'
  param_dtype: str = 'float32'

  def __post_init__(self):
    super().__post_init__()
    if self.kind not in ('auto', 'xla', 'tiled'):
      raise ValueError(
        f'attention={self.kind} must be auto, xla or tiled for relative'
        ' positions'
      )

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
    assert rotary is None, 'relative positions take the place of rotary ones'
    B, T, D = x_BTD.shape
    H, K = self.heads, self.head_width
    x_BTD = activations.gathered(x_BTD)
    dense = functools.partial(
      Dense, dtype=self.dtype, param_dtype=self.param_dtype
    )

    def project(name, x, bias=self.bias):
      y = dense(H * K, use_bias=bias, kernel_init=self.kernel_init, name=name)
      return y(x).reshape(*x.shape[:-1], H, K)

    def relative(count, least=0):
      r_ND = sinusoids(count - 1, count - least, D, dtype=self.dtype)
      r_NHK = project('relative', r_ND, bias=False)
      return activations.constrain(r_NHK, None, 'spread', None)

    def bias(name):
      value_HK = self.param(name, self.bias_init, (H, K), self.param_dtype)
      return value_HK.astype(self.dtype)

    q_BTHK, k_BTHK, v_BTHK = (
      activations.kept(split.heads(project(name, x_BTD)))
      for name in ('query', 'key', 'value')
    )
    u_HK, v_HK = bias('content_bias'), bias('position_bias')
    if start is None and split.by_ring(q_BTHK):
      parts = activations.parts('tensor', 'context')
      raise ValueError(
        f'heads={H} must be divisible by layout.tensor x layout.context={parts}'
        ' for relative positions'
      )
    if start is None:
      o_BTHK = attend(
        split.spread(q_BTHK),
        split.spread(k_BTHK),
        split.spread(v_BTHK),
        relative(T, 0 if self.causal else 1 - T),
        u_HK,
        v_HK,
        causal=self.causal,
        window=window,
        segments_BT=segments_BT,
        kind=self.kind,
      )
      o_BTHK = split.heads(split.spread(o_BTHK))
    else:
      o_BTHK = self._decode(
        (q_BTHK, k_BTHK, v_BTHK, u_HK, v_HK), relative, start, capacity, window
      )
    out = dense(
      D,
      use_bias=self.bias if self.out_bias is None else self.out_bias,
      kernel_init=self.out_init,
      name='out',
    )
    return activations.scattered(out(o_BTHK.reshape(B, T, H * K)))

  def _decode(self, arrays, relative, start, C, window):
    """Appends keys and values to the cache and attends to all it holds."""
    q, k, v, content_HK, position_HK = arrays
    B, T, H, K = q.shape
    start = jnp.asarray(start)

    def append(name, new_BTHK):
      cache = self.variable(
        'cache', name, jnp.zeros, (B, H, C, K), new_BTHK.dtype
      )
      cache.value = put(cache.value, new_BTHK.swapaxes(1, 2), start)
      return cache.value

    k_BHCK, v_BHCK = append('keys', k), append('values', v)
    # A row has its own copy, so that rows of a cache can be taken and swapped.
    r_BHCK = self.variable(
      'cache', 'distances', lambda: _each_row(relative(C), B)
    ).value
    # One start for all rows, or one for each: [1] or [B].
    start_B = jnp.atleast_1d(start)
    t_BT = start_B[:, None] + jnp.arange(T)
    distance_BTC = t_BT[:, :, None] - jnp.arange(C)
    seen_BTC = distance_BTC >= 0
    if window:
      seen_BTC &= distance_BTC < window
    with jax.named_scope(_scope(True, window)):
      q = q * K**-0.5
      scores = tiled.scores(
        tiled.heads_lead(q + content_HK * K**-0.5, H), k_BHCK
      )
      by_distance = tiled.scores(
        tiled.heads_lead(q + position_HK * K**-0.5, H), r_BHCK
      )
      # As if the new tokens were the last that the cache has room for; then
      # to where they are. What comes round is beyond them, and hidden.
      ahead_B = jnp.broadcast_to(start_B + T - C, B)
      scores += jax.vmap(functools.partial(jnp.roll, axis=-1))(
        shift(by_distance, C), ahead_B
      )
      seen = seen_BTC[:, None, None]
      weights = jax.nn.softmax(jnp.where(seen, scores, tiled.MASKED), axis=-1)
      return tiled.heads_last(tiled.mix(weights, v_BHCK))
