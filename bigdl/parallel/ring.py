"""Attention over positions that are split: keys and values go round a ring.

Liu et al., 2023, arXiv:2310.01889, section 3: each device holds one part of the
positions; in as many steps as there are devices it sees the keys and values of
every part, which are handed on from neighbour to neighbour, and corrects its
softmax as they come. The backward pass computes the weights again from the logs
of the normalisers, while gradients of keys and values travel with them.
Differs from the paper: parts are in order, so that under a causal mask the first
devices wait for the last; within a device, scores of one pair of parts exist.
"""

# Shapes: B batch, T query positions, S key positions, H heads, G key-value
# heads, R = H / G heads a group, K head width; of T and S a device has a part.
from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

AXIS = 'context'

_MASKED = -1e30


class Mask(NamedTuple):
  """Which keys a query sees, as `layers.attention.attend` says."""

  causal: bool
  window: int
  softcap: float


def attend(
  q_BTHK: jax.Array,
  k_BTGK: jax.Array,
  v_BTGK: jax.Array,
  segments_BT: jax.Array | None = None,
  *,
  mask: Mask,
) -> jax.Array:
  """Returns softmax(q k^T / sqrt(K)) v, shaped like `q_BTHK`.

  It must be traced for a mesh whose `context` divides T; other axes of the mesh
  are left to the compiler.
  """
  if segments_BT is None:
    segments_BT = jnp.zeros(q_BTHK.shape[:2], jnp.int32)
  return _attend(mask, q_BTHK, k_BTGK, v_BTGK, segments_BT)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(mask, q_BTHK, k_BTGK, v_BTGK, segments_BT):
  return _forward(mask, q_BTHK, k_BTGK, v_BTGK, segments_BT)[0]


def _forward(mask, q_BTHK, k_BTGK, v_BTGK, segments_BT):
  o_BTHK, log_BTH = _split(_gather, mask, 2)(
    q_BTHK, k_BTGK, v_BTGK, segments_BT
  )
  return o_BTHK, (q_BTHK, k_BTGK, v_BTGK, segments_BT, o_BTHK, log_BTH)


def _backward(mask, saved, do_BTHK):
  return *_split(_scatter, mask, 3)(*saved, do_BTHK), None


_attend.defvjp(_forward, _backward)


def _split(local, mask, outputs):
  """Returns `local` of each device's part of arrays `[B, T, ...]`."""
  n = jax.sharding.get_abstract_mesh().shape[AXIS]
  part = jax.P(None, AXIS)

  def call(*arrays):
    mapped = jax.shard_map(
      functools.partial(local, mask, n),
      in_specs=(jax.P(AXIS), *[part] * len(arrays)),
      out_specs=(part,) * outputs,
      axis_names={AXIS},
      check_vma=False,
    )
    # Which part a device has: where other axes are the compiler's, it cannot
    # ask for its place on this one.
    return mapped(jnp.arange(n), *arrays)

  return call


def _lead(x_BTHK, G):
  """Returns `[B, G, R, T, K]`."""
  B, T, H, K = x_BTHK.shape
  return x_BTHK.reshape(B, T, G, H // G, K).transpose(0, 2, 3, 1, 4)


def _last(x_BGRTK):
  """Undoes `_lead`."""
  B, G, R, T, K = x_BGRTK.shape
  return x_BGRTK.transpose(0, 3, 1, 2, 4).reshape(B, T, G * R, K)


def _handed_on(tree, n):
  turns = [(i, (i + 1) % n) for i in range(n)]
  return jax.tree.map(lambda x: jax.lax.ppermute(x, AXIS, turns), tree)


def _scores(mask, q_BGRTK, k_BSGK, segments, parts):
  """Returns scores, the slope of their softcap, and which of them are seen."""
  wide = jnp.promote_types(q_BGRTK.dtype, jnp.float32)
  s_BGRTS = jnp.einsum(
    'BGRTK,BSGK->BGRTS', q_BGRTK, k_BSGK, preferred_element_type=wide
  )
  slope = None
  if mask.softcap:
    t = jnp.tanh(s_BGRTS / mask.softcap)
    s_BGRTS, slope = mask.softcap * t, 1 - jnp.square(t)
  (own_BT, others_BS), (own, other) = segments, parts
  T, S = own_BT.shape[1], others_BS.shape[1]
  seen = (own_BT[:, :, None] == others_BS[:, None])[:, None, None]
  if mask.causal:
    at_T, at_S = own * T + jnp.arange(T), other * S + jnp.arange(S)
    back_TS = at_T[:, None] - at_S
    seen &= back_TS >= 0
    if mask.window:
      seen &= back_TS < mask.window
  return s_BGRTS, slope, seen


def _gather(mask, n, index, q_BTHK, k_BSGK, v_BSGK, segments_BT):
  """Returns what a device's queries gather, and the logs of normalisers."""
  G, K = k_BSGK.shape[2:]
  q_BGRTK = _lead(q_BTHK * K**-0.5, G)
  own = index[0]

  def look(other, sums, k, v, segments_BS):
    s, _, seen = _scores(
      mask, q_BGRTK, k, (segments_BT, segments_BS), (own, other)
    )
    s = jnp.where(seen, s, _MASKED)
    top = s.max(-1, keepdims=True)
    if sums is not None:
      top = jnp.maximum(top, sums[0])
    e = jnp.exp(s - top)
    z = e.sum(-1, keepdims=True)
    o = jnp.einsum(
      'BGRTS,BSGK->BGRTK',
      e.astype(v.dtype),
      v,
      preferred_element_type=s.dtype,
    )
    if sums is not None:
      less = jnp.exp(sums[0] - top)
      z, o = z + less * sums[1], o + less * sums[2]
    return top, z, o

  def step(carry, turn):
    sums, moving = carry
    moving = _handed_on(moving, n)
    return (look((own - turn) % n, sums, *moving), moving), None

  # Every query sees itself, so that no row of the first scores is all masked.
  moving = k_BSGK, v_BSGK, segments_BT
  sums = look(own, None, *moving)
  (sums, _), _ = jax.lax.scan(step, (sums, moving), jnp.arange(1, n))
  top, z, o = sums
  log_BTH = _last(top + jnp.log(z))[..., 0]
  return _last(o / z).astype(q_BTHK.dtype), log_BTH


def _scatter(
  mask, n, index, q_BTHK, k_BSGK, v_BSGK, segments_BT, o_BTHK, log_BTH, do_BTHK
):
  """Returns gradients of a device's queries, keys and values."""
  G, K = k_BSGK.shape[2:]
  q_BGRTK = _lead(q_BTHK * K**-0.5, G)
  do, own, wide = _lead(do_BTHK, G), index[0], log_BTH.dtype
  log = _lead(log_BTH[..., None], G)
  delta = jnp.sum(
    o_BTHK.astype(wide) * do_BTHK.astype(wide), axis=-1, keepdims=True
  )
  delta = _lead(delta, G)
  product = functools.partial(jnp.einsum, preferred_element_type=wide)

  def look(other, dq, moving):
    k, v, segments_BS, dk, dv = moving
    s, slope, seen = _scores(
      mask, q_BGRTK, k, (segments_BT, segments_BS), (own, other)
    )
    p = jnp.where(seen, jnp.exp(s - log), 0)
    dp = product('BGRTK,BSGK->BGRTS', do, v)
    ds = p * (dp - delta)
    if slope is not None:
      ds *= slope
    p, ds = p.astype(v.dtype), ds.astype(k.dtype)
    dq += product('BGRTS,BSGK->BGRTK', ds, k)
    dk += product('BGRTS,BGRTK->BSGK', ds, q_BGRTK)
    dv += product('BGRTS,BGRTK->BSGK', p, do)
    return dq, (k, v, segments_BS, dk, dv)

  def step(carry, turn):
    dq, moving = carry
    return look((own - turn) % n, dq, _handed_on(moving, n)), None

  dk, dv = (jnp.zeros(x.shape, wide) for x in (k_BSGK, v_BSGK))
  start = k_BSGK, v_BSGK, segments_BT, dk, dv
  carry = look(own, jnp.zeros(q_BGRTK.shape, wide), start)
  (dq, moving), _ = jax.lax.scan(step, carry, jnp.arange(1, n))
  # Once more, and gradients are where their keys are.
  dk, dv = _handed_on(moving[3:], n)
  dq = _last(dq * K**-0.5).astype(q_BTHK.dtype)
  return dq, dk.astype(k_BSGK.dtype), dv.astype(v_BSGK.dtype)
