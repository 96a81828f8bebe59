"""Causal attention in tiles of queries that skip the keys no query sees.

The forward pass keeps only the log of each row's normaliser, from which the
backward pass computes the tile's weights again (Dao et al., 2022,
arXiv:2205.14135, algorithms 2 and 4; for CPUs, where XLA has no such kernel).
Differs from the paper: a tile is given all of its keys at once, so that its
softmax needs no correction; a fixed few tiles keep the products large.
"""

# Shapes: B batch, T query positions, S key positions, H heads, G key-value
# heads, R = H / G heads a group, K head width, N = R T rows of one product.
from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Of a masked score: finite, so that no row can become nan; its exponential is
# exactly zero in every dtype.
MASKED = -1e30
_TILES = 4  # Most tiles that the queries are cut into.
_TILE = 64  # Fewest queries in a tile.


def visible(
  segments_BT: jax.Array | None, start: int, stop: int, end: int, causal: bool
) -> Any:
  """Returns which of the first `end` keys queries start to stop see, or None."""
  seen: Any = None
  if causal:
    seen = np.arange(start, stop)[:, None] >= np.arange(end)
  if segments_BT is not None:
    same = segments_BT[:, start:stop, None] == segments_BT[:, None, :end]
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
  """Returns the sums `[B, G, S, K]` of what queries say to each key."""
  B, G, R, T, S = p_BGRTS.shape
  return jnp.einsum(
    'BGNS,BGNK->BGSK',
    p_BGRTS.astype(x_BGRTK.dtype).reshape(B, G, R * T, S),
    x_BGRTK.reshape(B, G, R * T, -1),
  )


def _tiles(T):
  size = -(-T // min(_TILES, -(-T // _TILE)))
  return [(t, min(t + size, T)) for t in range(0, T, size)]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def attend(
  q_BGRTK: jax.Array,
  k_BGSK: jax.Array,
  v_BGSK: jax.Array,
  segments_BT: jax.Array | None,
  softcap: float,
) -> jax.Array:
  """Returns causal softmax(q k^T) v; q is scaled already, S equals T."""
  return _forward(q_BGRTK, k_BGSK, v_BGSK, segments_BT, softcap)[0]


def _forward(q_BGRTK, k_BGSK, v_BGSK, segments_BT, softcap):
  T = q_BGRTK.shape[3]
  outs, logs = [], []
  for start, stop in _tiles(T):
    # The FLOP ledger reads how many of the keys this tile is given.
    with jax.named_scope(f'keys_{stop}_of_{T}'):
      s = scores(q_BGRTK[:, :, :, start:stop], k_BGSK[:, :, :stop])
      if softcap:
        s = softcap * jnp.tanh(s / softcap)
      s = jnp.where(visible(segments_BT, start, stop, stop, True), s, MASKED)
      top = jnp.max(s, axis=-1, keepdims=True)
      e = jnp.exp(s - top)
      z = jnp.sum(e, axis=-1, keepdims=True)
      o = mix(e, v_BGSK[:, :, :stop])
      outs.append((o / z).astype(o.dtype))
      logs.append(top + jnp.log(z))
  o_BGRTK, log_z_BGRT1 = (jnp.concatenate(x, axis=3) for x in (outs, logs))
  saved = q_BGRTK, k_BGSK, v_BGSK, segments_BT, o_BGRTK, log_z_BGRT1
  return o_BGRTK, saved


def _backward(softcap, saved, do_BGRTK):
  q, k, v, segments_BT, o, log_z = saved
  wide = log_z.dtype
  delta = jnp.sum(o.astype(wide) * do_BGRTK, axis=-1, keepdims=True)
  dqs, dk, dv = [], jnp.zeros_like(k, wide), jnp.zeros_like(v, wide)
  for start, stop in _tiles(q.shape[3]):
    tile = np.s_[:, :, :, start:stop]
    keys = np.s_[:, :, :stop]
    s = scores(q[tile], k[keys])
    slope: Any = 1
    if softcap:
      t = jnp.tanh(s / softcap)
      s, slope = softcap * t, 1 - jnp.square(t)
    seen = visible(segments_BT, start, stop, stop, True)
    p = jnp.where(seen, jnp.exp(s - log_z[tile]), 0)
    dp = scores(do_BGRTK[tile], v[keys])
    ds = p * (dp - delta[tile]) * slope
    dqs.append(mix(ds, k[keys]))
    dk = dk.at[keys].add(_collect(ds, q[tile]))
    dv = dv.at[keys].add(_collect(p, do_BGRTK[tile]))
  dq = jnp.concatenate(dqs, axis=3)
  return dq, dk.astype(k.dtype), dv.astype(v.dtype), None


attend.defvjp(_forward, _backward)
