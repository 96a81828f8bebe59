"""Causal attention in tiles of queries that skip the keys no query sees.

Those are the keys after a tile and, where attention is banded, those before the
band of its first query. The forward pass keeps only the log of each row's normaliser, from which the
backward pass computes the tile's weights again (Dao et al., 2022,
arXiv:2205.14135, algorithms 2 and 4; for CPUs, where XLA has no such kernel).
Differs from the paper: a tile is given all of its keys at once, so that its
softmax needs no correction; a fixed few tiles keep the products large.
"""

# Shapes: B batch, T query positions, S key positions, H heads, G key-value
# heads, R = H / G heads a group, K head width, N = R T rows of one product.
from __future__ import annotations

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigdl.layers import dense

# Of a masked score: finite, so that no row can become nan; its exponential is
# exactly zero in every dtype.
MASKED = -1e30
_TILES = 4  # Most tiles that the queries are cut into.
_BANDED_TILES = 16  # The same, of a band narrower than those.
_TILE = 64  # Fewest queries in a tile.


def visible(
  segments_BT: jax.Array | None,
  start: int,
  stop: int,
  end: int,
  causal: bool,
  *,
  first: int = 0,
  window: int = 0,
) -> Any:
  """Returns which of keys first to end queries start to stop see, or None.

  Query t sees up to t where attention is causal, and from t - window + 1 where
  it is banded, `window` above 0.
  """
  seen: Any = None
  if causal:
    back = np.arange(start, stop)[:, None] - np.arange(first, end)
    seen = (back >= 0) & (back < window) if window else back >= 0
  if segments_BT is not None:
    same = segments_BT[:, start:stop, None] == segments_BT[:, None, first:end]
    same = same[:, None, None]
    seen = same if seen is None else same & seen
  return seen


def scores(x_BGRTK: jax.Array, y_BGSK: jax.Array) -> jax.Array:
  """Returns the products `[B, G, R, T, S]`, in float32 or wider."""
  # The heads of a group are rows of one product with its keys.
  B, G, R, T, K = x_BGRTK.shape
  return jnp.einsum(
    'BGNK,BGSK->BGNS',
    x_BGRTK.reshape(B, G, R * T, K),
    y_BGSK,
    preferred_element_type=jnp.promote_types(x_BGRTK.dtype, jnp.float32),
  ).reshape(B, G, R, T, -1)


def mix(p_BGRTS: jax.Array, v_BGSK: jax.Array) -> jax.Array:
  """Returns the sums `[B, G, R, T, K]` of values, weighted by p."""
  B, G, R, T, S = p_BGRTS.shape
  return jnp.einsum(
    'BGNS,BGSK->BGNK',
    p_BGRTS.astype(v_BGSK.dtype).reshape(B, G, R * T, S),
    v_BGSK,
  ).reshape(B, G, R, T, -1)


def _collect(p_BGRTS, x_BGRTK):
  """Returns the sums `[B, G, K, S]` of what queries say to each key."""
  B, G, R, T, S = p_BGRTS.shape
  p_BGNS = p_BGRTS.astype(x_BGRTK.dtype).reshape(B, G, R * T, S)
  return dense.product(x_BGRTK.reshape(B, G, R * T, -1).mT, p_BGNS)


def _tiles(T, window=0):
  size = -(-T // min(_TILES, -(-T // _TILE)))
  if window:
    # A tile is given window - 1 keys beside its own: it should not be wider.
    size = min(size, max(_TILE, window, -(-T // _BANDED_TILES)))
  return [(t, min(t + size, T)) for t in range(0, T, size)]


def _spans(T, window):
  """Yields start and stop of each tile's queries, and its first key."""
  for start, stop in _tiles(T, window):
    yield start, stop, max(0, start - window + 1) if window else 0


def heads_lead(x_BTHK: jax.Array, groups: int) -> jax.Array:
  """Returns `[B, G, R, T, K]`, with positions and head width last."""
  # On CPU, jax.nn.dot_product_attention took 1.5-1.8 times as long as 'xla',
  # forward and backward (B=16, T=128, H=4, K=16 to 64): with batch and head
  # leading in both products, XLA calls plain matrix multiplications.
  B, T, H, K = x_BTHK.shape
  x_BTGRK = x_BTHK.reshape(B, T, groups, H // groups, K)
  return x_BTGRK.transpose(0, 2, 3, 1, 4)


def heads_last(x_BGRTK: jax.Array) -> jax.Array:
  """Undoes `heads_lead`."""
  B, G, R, T, K = x_BGRTK.shape
  return x_BGRTK.transpose(0, 3, 1, 2, 4).reshape(B, T, G * R, K)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def attend(
  q_BTHK: jax.Array,
  k_BTGK: jax.Array,
  v_BTGK: jax.Array,
  segments_BT: jax.Array | None,
  softcap: float,
  window: int,
) -> jax.Array:
  """Returns causal softmax(q k^T / sqrt(K)) v; banded where window is not 0."""
  return _forward(q_BTHK, k_BTGK, v_BTGK, segments_BT, softcap, window)[0]


def _forward(q_BTHK, k_BTGK, v_BTGK, segments_BT, softcap, window):
  T, G = k_BTGK.shape[1:3]
  q_BGRTK = heads_lead(q_BTHK, G) * q_BTHK.shape[-1] ** -0.5
  k_BGSK, v_BGSK = k_BTGK.swapaxes(1, 2), v_BTGK.swapaxes(1, 2)
  outs, logs = [], []
  for start, stop, first in _spans(T, window):
    # The FLOP ledger reads how many of the keys this tile is given.
    with jax.named_scope(f'keys_{stop - first}_of_{T}'):
      s = scores(q_BGRTK[:, :, :, start:stop], k_BGSK[:, :, first:stop])
      if softcap:
        s = softcap * jnp.tanh(s / softcap)
      seen = visible(
        segments_BT, start, stop, stop, True, first=first, window=window
      )
      s = jnp.where(seen, s, MASKED)
      top = jnp.max(s, axis=-1, keepdims=True)
      e = jnp.exp(s - top)
      z = jnp.sum(e, axis=-1, keepdims=True)
      o = mix(e, v_BGSK[:, :, first:stop])
      outs.append((o / z).astype(o.dtype))
      logs.append(top + jnp.log(z))
  o_BTHK = heads_last(jnp.concatenate(outs, axis=3))
  saved = q_BGRTK, k_BGSK, v_BGSK, segments_BT, o_BTHK, logs
  return o_BTHK, saved


def _backward(softcap, window, saved, do_BTHK):
  q, k, v, segments_BT, o_BTHK, logs = saved
  G, T = k.shape[1:3]
  wide = logs[0].dtype
  # Summed where heads are last, as both lie there.
  delta_BTH1 = jnp.sum(o_BTHK.astype(wide) * do_BTHK, axis=-1, keepdims=True)
  delta, do = heads_lead(delta_BTH1, G), heads_lead(do_BTHK, G)
  dqs, dks, dvs = [], [], []
  spans = list(_spans(T, window))
  for (start, stop, first), log_z in zip(spans, logs, strict=True):
    tile = np.s_[:, :, :, start:stop]
    keys = np.s_[:, :, first:stop]
    s = scores(q[tile], k[keys])
    slope: Any = 1
    if softcap:
      t = jnp.tanh(s / softcap)
      s, slope = softcap * t, 1 - jnp.square(t)
    seen = visible(
      segments_BT, start, stop, stop, True, first=first, window=window
    )
    p = jnp.where(seen, jnp.exp(s - log_z), 0)
    dp = scores(do[tile], v[keys])
    ds = p * (dp - delta[tile]) * slope
    dqs.append(mix(ds, k[keys]))
    dks.append(_collect(ds, q[tile]))
    dvs.append(_collect(p, do[tile]))
  dq = jnp.concatenate(dqs, axis=3) * q.shape[-1] ** -0.5
  given = [(first, stop) for _, stop, first in spans]
  dk, dv = _total(dks, given, wide), _total(dvs, given, wide)
  return heads_last(dq), dk, dv, None


def _total(parts, keys, wide):
  """Returns the sum `[B, T, G, K]` of `[B, G, K, S]`, each of keys S."""
  ends = sorted({end for span in keys for end in span})
  blocks = [
    sum(
      x[..., start - first : stop - first].astype(wide)
      for x, (first, last) in zip(parts, keys, strict=True)
      if first <= start and stop <= last
    )
    for start, stop in itertools.pairwise(ends)
  ]
  total_BGKT = jnp.concatenate(blocks, axis=3).astype(parts[0].dtype)
  # One copy in place of one a tile.
  return jax.lax.optimization_barrier(total_BGKT).transpose(0, 3, 1, 2)


attend.defvjp(_forward, _backward)
