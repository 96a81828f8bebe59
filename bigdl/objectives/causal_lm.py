"""Predicts each next token; float32 logits of a whole batch never exist.

The loss is the mean cross-entropy in nats per target, to which the z-loss of
PaLM may be added (Chowdhery et al., 2022, arXiv:2204.02311, section 5): z_loss *
log(Z)^2 a target, where Z normalises the softmax; it keeps log(Z) near 0.
"""

# Shapes: B rows, T positions, C positions of a chunk, D width, V vocabulary.
from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

from bigdl.objectives.base import Batch, Metrics, Objective, Params

# A device computes logits of this size at once.
_SMALL_BYTES = 2**23
# It takes at least so many tokens at a time, since every chunk also reads and
# writes the whole gradient of the head.
_CPU_TOKENS, _ACCELERATOR_TOKENS = 128, 4096


@dataclasses.dataclass(frozen=True)
class CausalLM(Objective):
  """Cross-entropy of each token given those before it.

  A row holds `tokens`, one more than the model reads, and may hold `segments`,
  the document of each token, from 1: a target counts where it continues the
  document of the token before it. Segment 0 is padding.
  """

  z_loss: float = 0.0
  chunk: int = 0  # Positions whose logits exist at once; 0: by their size.

  def __post_init__(self):
    for name in ('z_loss', 'chunk'):
      if not getattr(self, name) >= 0:
        raise ValueError(f'{name}={getattr(self, name)} must not be negative')

  def units(self, spec: dict[str, jax.ShapeDtypeStruct]) -> int:
    return spec['tokens'].shape[0] - 1

  def check(
    self, model: nn.Module, spec: dict[str, jax.ShapeDtypeStruct], facts: dict
  ) -> None:
    row = spec.get('tokens')
    if row is None:
      raise ValueError(f'data rows hold {", ".join(spec)}, expected tokens')
    if not jnp.issubdtype(row.dtype, jnp.integer) or len(row.shape) != 1:
      raise ValueError(
        f'data tokens={row.dtype}{list(row.shape)} must be integers [T + 1]'
      )
    if row.shape[0] < 2:
      raise ValueError(f'data rows of {row.shape[0]} token hold no target')
    for name, value in (
      ('vocab', facts.get('vocab', 0)),
      ('length', row.shape[0] - 1),
    ):
      most = getattr(model, name, None)
      if most is not None and value > most:
        raise ValueError(
          f'data {name}={value} is larger than model.{name}={most}'
        )

  def init(
    self, model: nn.Module, key: jax.Array, batch: Batch
  ) -> tuple[Params, Any]:
    return model.init(key, batch['tokens'][:, :-1])['params'], {}

  def loss(
    self,
    model: nn.Module,
    params: Params,
    extra: Any,
    batch: Batch,
    key: jax.Array,
  ) -> tuple[jax.Array, tuple[Any, Metrics]]:
    work, values, x_BTD, targets_BT, counts_BT = self._prepare(
      model, params, batch, deterministic=False, rngs={'dropout': key}
    )
    weight = counts_BT.sum()
    share_BT = counts_BT / jnp.maximum(weight, 1)
    mean = _mean if work.C == work.T else _mean_in_chunks
    loss, metrics = mean(work, values, x_BTD, targets_BT, share_BT)
    metrics = jax.lax.stop_gradient(metrics)
    return loss, (extra, {**metrics, 'weight': weight})

  def score(
    self, model: nn.Module, params: Params, extra: Any, batch: Batch
  ) -> tuple[jax.Array, jax.Array]:
    work, values, *arrays = self._prepare(
      model, params, batch, deterministic=True
    )

    def add(sum_B, start, size):
      x_BCD, targets_BC, counts_BC = work.take(start, size, *arrays)
      losses_BC, _, _ = _entropies(work.head(values, x_BCD), targets_BC)
      return sum_B + (losses_BC * counts_BC).sum(1).astype(sum_B.dtype)

    counts_BT = arrays[-1]
    sum_B = work.loop(add, jnp.zeros(len(counts_BT), jnp.float32))
    return sum_B, counts_BT.sum(1)

  def _prepare(self, model, params, batch, **apply):
    """Runs the model up to its head, and says how the rest is cut."""
    tokens, segments = batch['tokens'], batch.get('segments')
    targets_BT = tokens[:, 1:]
    counts_BT = jnp.ones(targets_BT.shape, jnp.float32)
    if segments is not None:
      within = (segments[:, :-1] == segments[:, 1:]) & (segments[:, 1:] != 0)
      counts_BT = within.astype(jnp.float32)
      apply['segments'] = segments[:, :-1]
    x_BTD = model.apply(
      {'params': params}, tokens[:, :-1], method='hidden', **apply
    )
    head, values, logits_BTV = _head(model, params, x_BTD)
    T = x_BTD.shape[1]
    C = min(T, self.chunk or _chunk(logits_BTV))
    work = _Work(head, T, C, self.z_loss)
    return work, values, x_BTD, targets_BT, counts_BT


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
  read = {id(v) for eqn in traced.eqns for v in eqn.invars}
  used = [id(v) in read for v in traced.jaxpr.invars[: len(leaves)]]

  def head(values, x):
    kept = iter(values)
    return apply([next(kept) if u else None for u in used], x)

  values = [leaf for leaf, u in zip(leaves, used, strict=True) if u]
  return head, values, traced.out_avals[0]


def _chunk(logits_BTV) -> int:
  """Returns how many positions a device should take the logits of at once."""
  B, T, V = logits_BTV.shape
  least = _CPU_TOKENS
  if jax.default_backend() != 'cpu':
    least = _ACCELERATOR_TOKENS
  most = max(least, _SMALL_BYTES // (V * logits_BTV.dtype.itemsize))
  # The mesh in whose context this is traced splits the rows.
  rows = -(-B // max(1, jax.sharding.get_abstract_mesh().size))
  parts = min(T, -(-rows * T // most))
  # Equal chunks run in one loop, but many more of them are not worth it.
  equal = [n for n in range(parts, 2 * parts) if T % n == 0]
  return T // min(equal, default=parts)


class _Work(NamedTuple):
  """What is done to each chunk of positions.

  Chunks are along positions, not rows, so that rows stay on their devices.
  """

  head: Callable[[list[jax.Array], jax.Array], jax.Array]
  T: int
  C: int
  z_loss: float

  def take(self, start, size, *arrays):
    """Returns `size` positions from `start` of arrays `[B, T, ...]`."""
    if size == self.T:
      return arrays
    return tuple(
      jax.lax.dynamic_slice_in_dim(a, start, size, axis=1) for a in arrays
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


def _entropies(logits_BCV, targets_BC):
  """Returns cross-entropy, log Z, and whether the target ranks first."""
  top_BC = jax.lax.stop_gradient(logits_BCV.max(-1))
  shifted_BCV = logits_BCV - top_BC[..., None]
  log_z_BC = jnp.log(jnp.exp(shifted_BCV).sum(-1))
  # On CPU a comparison with every token took 1.2 to 1.6 times as long, the
  # products of the head included; elsewhere it is fused into the sum above.
  if jax.default_backend() == 'cpu':
    own_BC = jnp.take_along_axis(shifted_BCV, targets_BC[..., None], -1)[..., 0]
  else:
    same_BCV = targets_BC[..., None] == jnp.arange(logits_BCV.shape[-1])
    own_BC = jnp.where(same_BCV, shifted_BCV, 0).sum(-1)
  return log_z_BC - own_BC, log_z_BC + top_BC, own_BC >= 0


def _mean(work, values, x_BCD, targets_BC, share_BC):
  """Returns the loss to descend, and the metrics."""
  logits_BCV = work.head(values, x_BCD)
  losses_BC, log_z_BC, first_BC = _entropies(logits_BCV, targets_BC)
  loss = (losses_BC * share_BC).sum()
  metrics = {'loss': loss, 'accuracy': (first_BC * share_BC).sum()}
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
    dx_BTD = jax.lax.dynamic_update_slice_in_dim(dx_BTD, dx_BCD, start, axis=1)
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


def tiny() -> tuple[CausalLM, nn.Module, Batch]:
  """Returns the objective in chunks, a model for it, and a packed batch."""

  class Bigram(nn.Module):
    """Predicts a token from the one before it."""

    vocab: int = 11
    length: int = 6

    def setup(self):
      self.embed = nn.Embed(self.vocab, 8)
      self.out = nn.Dense(self.vocab)

    def __call__(self, tokens_BT, **kwargs):
      return self.logits(self.hidden(tokens_BT, **kwargs))

    def hidden(self, tokens_BT, segments=None, deterministic=True):
      return self.embed(tokens_BT)

    def logits(self, x):
      return self.out(x)

  tokens = jnp.arange(28, dtype=jnp.int32).reshape(4, 7) ** 2 % 11
  segments = jnp.array([[1, 1, 1, 2, 2, 2, 2]] * 2 + [[1] * 5 + [0] * 2] * 2)
  batch = {'tokens': tokens, 'segments': segments.astype(jnp.int32)}
  return CausalLM(chunk=4), Bigram(), batch
