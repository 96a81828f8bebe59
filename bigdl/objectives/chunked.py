"""Cross-entropy in chunks of positions, so that no logits of a batch exist.

With logits z of V tokens, of which y is the target, a target costs
log(Z) - z_y nats, where Z normalises the softmax. To it may be added PaLM's
z_loss log(Z)^2 (Chowdhery et al., 2022, arXiv:2204.02311, section 5); under label
smoothing e, q(v) = (1 - e) [v = y] + e / V takes the place of the target (Szegedy
et al., 2015, arXiv:1512.00567, section 7).
"""

# Shapes: B rows, T positions, C positions of a chunk, D width, V vocabulary. Where
# the mesh splits positions into S parts, a chunk is of each, and C is S, C / S.
from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Literal, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from bigdl.objectives.base import Metrics, Params
from bigdl.parallel import activations, target

# A device computes logits of this size at once.
_SMALL_BYTES = 2**23
# It takes at least so many tokens at a time, since every chunk also reads and
# writes the whole gradient of the head.
_CPU_TOKENS, _ACCELERATOR_TOKENS = 128, 4096


class Work(NamedTuple):
  """What is done to each chunk of positions.

  Chunks are along positions, not rows, so that rows stay on their devices; where
  positions are split as well, each device takes chunks of its own.
  """

  head: Callable[[list[jax.Array], jax.Array], jax.Array]
  T: int  # Positions, of each part.
  C: int  # Those of them in a chunk.
  z_loss: float = 0.0
  smoothing: float = 0.0
  parts: int = 1  # S.
  dim: Literal['length', 'stream'] = 'length'  # How the mesh splits positions.

  def cut(self, *arrays):
    """Returns arrays `[B, S T, ...]` as `[B, S, T, ...]` if S is above 1."""
    if self.parts > 1:
      shape = self.parts, self.T
      arrays = tuple(a.reshape(len(a), *shape, *a.shape[2:]) for a in arrays)
    return tuple(self.split(a) for a in arrays)

  def split(self, x, last=None):
    """Returns `[B, T, ...]`, or `[B, S, T, ...]`, as the mesh splits it."""
    if x.ndim == 2:
      return activations.constrain(x, 'rows', self.dim)
    whole = [None] * (x.ndim - 3)
    return activations.constrain(x, 'rows', self.dim, *whole, last)

  @property
  def axis(self) -> int:
    """The dimension of positions in what `cut` returns."""
    return 1 if self.parts == 1 else 2

  def take(self, start, size, *arrays):
    """Returns `size` positions from `start` of each part."""
    if size == self.T:
      return arrays
    return tuple(
      jax.lax.dynamic_slice_in_dim(a, start, size, axis=self.axis)
      for a in arrays
    )

  def loop(self, step, carry):
    """Returns the carry after `step(carry, start, size)` for each chunk."""
    count, rest = divmod(self.T, self.C)
    if count == 1:
      carry = step(carry, 0, self.C)
    else:
      starts = self.C * jnp.arange(count)
      carry, _ = jax.lax.scan(
        lambda carry, start: (step(carry, start, self.C), None), carry, starts
      )
    return step(carry, self.T - rest, rest) if rest else carry


def prepare(
  model: nn.Module,
  params: Params,
  x_BTD: jax.Array,
  *,
  chunk: int = 0,
  z_loss: float = 0.0,
  smoothing: float = 0.0,
) -> tuple[Work, list[jax.Array]]:
  """Returns how the head's work on `x_BTD` is cut, and the head's parameters.

  Args:
    model: Its method `logits` is the head.
    params: All of its parameters.
    x_BTD: What the head reads.
    chunk: Positions whose logits exist at once; 0: by their size.
    z_loss: Weight of log(Z)^2.
    smoothing: e of label smoothing.
  """
  head, values, logits_BTV = _head(model, params, x_BTD)
  T, V = x_BTD.shape[1], logits_BTV.shape[-1]
  # A vocabulary that cannot be split leaves `tensor` to positions.
  dim: Literal['length', 'stream']
  dim = 'length' if activations.axes_of(V, 'vocab') else 'stream'
  parts = activations.parts(*activations.axes_of(T, dim))
  T //= parts
  C = min(T, -(-chunk // parts) or _chunk(logits_BTV, T))
  return Work(head, T, C, z_loss, smoothing, parts, dim), values


def mean(
  work: Work,
  values: list[jax.Array],
  x_BTD: jax.Array,
  targets_BT: jax.Array,
  share_BT: jax.Array,
) -> tuple[jax.Array, Metrics]:
  """Returns the loss to descend, and the metrics, which carry no gradient.

  The metrics `loss` and `accuracy` are of the targets themselves, without
  smoothing. `share_BT` weighs targets and sums to 1, or to 0.
  """
  whole = _mean if work.C == work.T else _mean_in_chunks
  arrays = work.cut(x_BTD, targets_BT, share_BT)
  loss, metrics = whole(work, values, *arrays)
  return loss, jax.lax.stop_gradient(metrics)


def sums(
  work: Work,
  values: list[jax.Array],
  x_BTD: jax.Array,
  targets_BT: jax.Array,
  counts_BT: jax.Array,
) -> tuple[jax.Array, jax.Array]:
  """Returns sums over each row, weighed by `counts_BT`, both float32 `[B]`.

  The first is of cross-entropy, the second of targets that rank first.
  """

  arrays = work.cut(x_BTD, targets_BT, counts_BT)
  B = len(counts_BT)

  def add(carry, start, size):
    x_BCD, targets_BC, counts_BC = work.take(start, size, *arrays)
    logits_BCV = _logits(work, values, x_BCD)
    losses_BC, _, first_BC = _entropies(logits_BCV, targets_BC)
    parts = losses_BC * counts_BC, first_BC * counts_BC
    return tuple(
      sum_B + part.reshape(B, -1).sum(1).astype(sum_B.dtype)
      for sum_B, part in zip(carry, parts, strict=True)
    )

  nothing_B = jnp.zeros(B, jnp.float32)
  return work.loop(add, (nothing_B, nothing_B))


def _head(model, params, x_BTD):
  """Returns `head(values, x)`, the parameters it reads, and logits' shape.

  Those alone need a gradient from the head; for all others of the model it
  would be an array of zeros.
  """
  leaves, treedef = jax.tree.flatten(params)

  def apply(leaves, x):
    variables = {'params': jax.tree.unflatten(treedef, leaves)}
    return model.apply(variables, x, method='logits')

  traced = jax.make_jaxpr(apply)(leaves, x_BTD)
  # What is computed on the way to the logits, from the end backwards: a model
  # may compute more of its parameters than its head reads.
  read = {id(v) for v in traced.jaxpr.outvars}
  for eqn in reversed(traced.eqns):
    if not read.isdisjoint(map(id, eqn.outvars)):
      read |= set(map(id, eqn.invars))
  used = [id(v) in read for v in traced.jaxpr.invars[: len(leaves)]]

  def head(values, x):
    kept = iter(values)
    return apply([next(kept) if u else None for u in used], x)

  values = [leaf for leaf, u in zip(leaves, used, strict=True) if u]
  return head, values, traced.out_avals[0]


def _logits(work, values, x_BCD):
  """Returns logits, split by vocabulary where `tensor` divides it."""
  return work.split(work.head(values, work.split(x_BCD)), 'vocab')


def _chunk(logits_BTV, T) -> int:
  """Returns how many positions a device should take the logits of at once.

  Args:
    logits_BTV: Their shape, over all devices.
    T: The positions that a device has.
  """
  B, _, V = logits_BTV.shape
  least = _CPU_TOKENS
  if target.platform() != 'cpu':
    least = _ACCELERATOR_TOKENS
  # The mesh in whose context this is traced splits rows and vocabulary.
  V //= activations.parts(*activations.axes_of(V, 'vocab'))
  most = max(least, _SMALL_BYTES // (V * logits_BTV.dtype.itemsize))
  rows = B // activations.parts(*activations.axes_of(B, 'rows'))
  parts = min(T, -(-rows * T // most))
  # Equal chunks run in one loop, but many more of them are not worth it.
  equal = [n for n in range(parts, 2 * parts) if T % n == 0]
  return T // min(equal, default=parts)


def _entropies(logits_BCV, targets_BC):
  """Returns cross-entropy, log Z, and whether the target ranks first."""
  top_BC = jax.lax.stop_gradient(logits_BCV.max(-1))
  shifted_BCV = logits_BCV - top_BC[..., None]
  log_z_BC = jnp.log(jnp.exp(shifted_BCV).sum(-1))
  # On CPU a comparison with every token took 1.2 to 1.6 times as long, the
  # products of the head included; elsewhere it is fused into the sum above.
  # Nor can it be taken from logits that are split.
  if target.platform() == 'cpu' and activations.parts('tensor') == 1:
    own_BC = jnp.take_along_axis(shifted_BCV, targets_BC[..., None], -1)[..., 0]
  else:
    same_BCV = targets_BC[..., None] == jnp.arange(logits_BCV.shape[-1])
    own_BC = jnp.where(same_BCV, shifted_BCV, 0).sum(-1)
  return log_z_BC - own_BC, log_z_BC + top_BC, own_BC >= 0


def _mean(work, values, x_BCD, targets_BC, share_BC):
  """Returns the loss to descend, and the metrics."""
  logits_BCV = _logits(work, values, x_BCD)
  losses_BC, log_z_BC, first_BC = _entropies(logits_BCV, targets_BC)
  loss = (losses_BC * share_BC).sum()
  metrics = {'loss': loss, 'accuracy': (first_BC * share_BC).sum()}
  if work.smoothing:
    spread_BC = log_z_BC - logits_BCV.mean(-1)
    even = (spread_BC * share_BC).sum()
    loss = (1 - work.smoothing) * loss + work.smoothing * even
  if not work.z_loss:
    return loss, metrics
  extra = work.z_loss * (jnp.square(log_z_BC) * share_BC).sum()
  return loss + extra, {**metrics, 'z_loss': extra}


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _mean_in_chunks(work, values, *arrays):
  """The sum of `_mean` over the chunks.

  Each chunk takes its gradient at once, while its logits exist; the backward
  pass would have to compute them again.
  """

  def add(sums, start, size):
    new = _mean(work, values, *work.take(start, size, *arrays))
    return jax.tree.map(jnp.add, sums, new)

  return work.loop(add, _no_sums(work, values, arrays))


def _forward(work, values, x_BTD, *arrays):
  step = jax.value_and_grad(_mean, argnums=(1, 2), has_aux=True)

  def add(carry, start, size):
    sums, grads, dx_BTD = carry
    x_BCD, *rest = work.take(start, size, x_BTD, *arrays)
    new, (own, dx_BCD) = step(work, values, x_BCD, *rest)
    sums, grads = jax.tree.map(jnp.add, (sums, grads), (new, own))
    dx_BTD = jax.lax.dynamic_update_slice_in_dim(
      dx_BTD, dx_BCD, start, axis=work.axis
    )
    return sums, grads, dx_BTD

  start = _no_sums(work, values, (x_BTD, *arrays))
  nothing = jax.tree.map(jnp.zeros_like, (values, x_BTD))
  sums, *grads = work.loop(add, (start, *nothing))
  return sums, grads


def _backward(work, grads, cotangents):
  scale, _ = cotangents
  values, dx_BTD = jax.tree.map(lambda g: (scale * g).astype(g.dtype), grads)
  return values, dx_BTD, None, None


_mean_in_chunks.defvjp(_forward, _backward)


def _no_sums(work, values, arrays):
  shapes = jax.eval_shape(functools.partial(_mean, work), values, *arrays)
  return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
