"""The contract of an optimizer: from a frozen value to an optax transform.

All optimizers are one update around a rule of their own. For gradients g and
weights w, update t of T (steps), with f the schedule and m the multiplier of a
weight's path:

  g <- g min(1, clip / |g|)
  u <- rule(g, w) + weight_decay w        (decay only where `decay` matches)
  w <- w - m lr f(t, T) u

Decay is decoupled from the rule and scaled by the learning rate (Loshchilov and
Hutter, 2019, arXiv:1711.05101, as in their published code). `depth` cites what
rates by layer and gradual unfreezing are from.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bigdl import tree
from bigdl.optim import depth
from bigdl.optim.schedule import WSD, Schedule


class OptimizerState(NamedTuple):
  """What evolves. The peak and the length of the run are data, not code."""

  step: jax.Array  # int32: updates done.
  steps: jax.Array  # int32: updates in the run.
  lr: jax.Array  # Peak learning rate.
  rule: optax.OptState
  average: Any  # Averaged weights; () where none are kept.


@dataclasses.dataclass(frozen=True)
class Optimizer:
  """How parameters move; a subclass defines `rule`.

  `make(steps)` keeps the peak learning rate and the number of steps in its
  state, not in its code: two runs that differ only in those compile once.
  Regular expressions are searched for in paths: 'blocks_0/mlp/up/kernel'.
  """

  lr: float = 1e-3  # Peak learning rate.
  schedule: Schedule = WSD()
  weight_decay: float = 0.1
  decay: str = r'(kernel|embedding)$'  # Paths that decay.
  clip: float = 1.0  # Most global norm of the gradient; 0: any.
  freeze: str = ''  # Paths that stay as they are; '': none.
  train: str = ''  # Only these paths move, less those of `freeze`; '': all.
  # Factors on the learning rate; the first pattern found in a path holds.
  multipliers: tuple[tuple[str, float], ...] = ()
  # Factor on the rate from each layer to the one below it, the head's being 1.
  layer_decay: float = 1.0
  # Share of the run after which all layers move: they are freed one by one from
  # the head, which moves at once, to the embeddings.
  unfreeze: float = 0.0
  # Paths that are freed at a share of the run of their own; the first found.
  unfreeze_at: tuple[tuple[str, float], ...] = ()
  ema: float = 0.0  # Decay of the averaged weights; 0: none are kept.

  def __post_init__(self):
    for name in ('lr', 'weight_decay', 'clip'):
      if not getattr(self, name) >= 0:
        raise ValueError(f'{name}={getattr(self, name)} must not be negative')
    for name in ('ema', 'b1', 'b2', 'momentum'):
      # Each is the share of an average that one update leaves as it was.
      if not 0 <= getattr(self, name, 0.0) < 1:
        raise ValueError(f'{name}={getattr(self, name)} must be in [0, 1)')
    if not 0 < self.layer_decay <= 1:
      raise ValueError(f'layer_decay={self.layer_decay} must be in (0, 1]')
    shares = [('unfreeze_at', share) for _, share in self.unfreeze_at]
    for name, share in [('unfreeze', self.unfreeze), *shares]:
      if not 0 <= share <= 1:
        raise ValueError(f'{name}={share} must be in [0, 1], shares of a run')
    for name, pattern in self._patterns():
      try:
        re.compile(pattern)
      except re.error as error:
        raise ValueError(
          f'{name}={pattern!r} must be a regular expression: {error}'
        ) from error

  def rule(self) -> optax.GradientTransformation:
    """Returns what turns gradients into directions, before any rate."""
    raise NotImplementedError

  def check(self, steps: int) -> None:
    """Raises ValueError where a run of `steps` does not suit."""
    self.schedule.check(steps)

  def make(self, steps: int) -> optax.GradientTransformation:
    """Returns the transform for a run of `steps` updates."""
    self.check(steps)
    rule = self.rule()
    if self.is_partial:
      # What never moves needs no moments.
      rule = optax.masked(rule, self._moves)

    def init(params):
      self._check_params(params)
      return OptimizerState(
        step=jnp.zeros((), jnp.int32),
        steps=jnp.asarray(steps, jnp.int32),
        lr=jnp.asarray(self.lr, float),
        rule=rule.init(params),
        average=jax.tree.map(jnp.copy, params) if self.ema else (),
      )

    def update(grads, state, params=None):
      assert params is not None
      free = self._free(params, state.step, state.steps)
      # Moments take in gradients before a layer moves, or the first steps of
      # its own would be the longer for all that they had not seen.
      grads = self._clip(grads, free)
      directions, inner = rule.update(grads, state.rule, params)
      rate = state.lr * self.schedule(state.step, state.steps)
      updates = jax.tree.map(
        lambda path, factor, u, w: self._step(path, factor, u, w, rate),
        tree.map_with_path(lambda path, _: path, params),
        self._factors(params),
        directions,
        params,
      )
      updates = _where(free, updates)
      average = self._average(state, params, updates)
      state = state._replace(step=state.step + 1, rule=inner, average=average)
      return updates, state

    return optax.GradientTransformation(init, update)

  def learning_rate(self, step: int | jax.Array, steps: int) -> jax.Array:
    """Returns the learning rate of update `step` (from 0) of `steps`."""
    return jnp.asarray(self.lr, float) * self.schedule(step, steps)

  def averaged(self, opt: optax.OptState, params: Any) -> Any:
    """Returns the weights to evaluate: an average where one is kept."""
    return opt.average if self.ema else params

  def multiplier(self, path: str) -> float:
    """Returns the factor on the learning rate of the parameter at `path`."""
    if self.freeze and re.search(self.freeze, path):
      return 0.0
    if self.train and not re.search(self.train, path):
      return 0.0
    for pattern, factor in self.multipliers:
      if re.search(pattern, path):
        return factor
    return 1.0

  def trained(self, params: Any) -> int:
    """Returns how many scalars ever move; leaves may be shapes."""
    moves = jax.tree.leaves(self._moves(params))
    sizes = [tree.size(x) for x in jax.tree.leaves(params)]
    return sum(n for n, own in zip(sizes, moves, strict=True) if own)

  def hold(self, params: Any) -> Any:
    """Returns the parameters, of which those that never move have no gradient.

    What is not differentiated is not computed either.
    """
    if not self.is_partial:
      return params
    return tree.map_with_path(
      lambda p, x: x if self.multiplier(p) else jax.lax.stop_gradient(x), params
    )

  @property
  def is_partial(self) -> bool:
    """Whether some parameters may never move."""
    return bool(self.freeze or self.train or self.multipliers)

  def _moves(self, params):
    return tree.map_with_path(lambda p, _: self.multiplier(p) != 0, params)

  def _factors(self, params):
    """Returns the factor on the rate of each parameter, or of its slices."""
    factors = tree.map_with_path(lambda p, _: self.multiplier(p), params)
    if self.layer_decay == 1:
      return factors
    layers, head = depth.layers(params)
    return jax.tree.map(
      lambda factor, layer: factor * self.layer_decay ** (head - layer),
      factors,
      layers,
    )

  def _free(self, params, step, steps):
    """Returns whether each parameter, or slice of it, moves by now.

    None where all do from the first update on.
    """
    if not self.unfreeze and not self.unfreeze_at:
      return None
    layers, head = depth.layers(params)

    def free(path, _, layer):
      start = self.unfreeze * (head - layer) / head
      for pattern, share in self.unfreeze_at:
        if re.search(pattern, path):
          start = share
          break
      return jnp.asarray(step >= jnp.asarray(start, float) * steps)

    return tree.map_with_path(free, params, layers)

  def _clip(self, grads, free):
    if self.is_partial:
      # Gradients of what is frozen must not count in the norm.
      grads = jax.tree.map(
        lambda g, moves: g if moves else jnp.zeros_like(g),
        grads,
        self._moves(grads),
      )
    if not self.clip:
      return grads
    norm = optax.tree.norm(_where(free, grads))
    scale = self.clip / jnp.maximum(norm, self.clip)
    return jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads)

  def _step(self, path, factor, direction, weight, rate):
    if self.multiplier(path) == 0:
      return jnp.zeros_like(weight)
    if self.weight_decay and re.search(self.decay, path):
      direction = direction + self.weight_decay * weight
    return (-factor * rate * direction).astype(weight.dtype)

  def _average(self, state, params, updates):
    if not self.ema:
      return state.average
    # Without bias: after t updates, weights of update s have a share
    # proportional to ema^(t - s), and those before the first have none.
    share = (1 - self.ema) / (1 - self.ema ** (state.step + 1.0))
    return jax.tree.map(
      lambda a, w, u: (a + share * (w + u - a)).astype(a.dtype),
      state.average,
      params,
      updates,
    )

  def _patterns(self) -> list[tuple[str, str]]:
    return [
      ('decay', self.decay),
      ('freeze', self.freeze),
      ('train', self.train),
      *(('multipliers', p) for p, _ in self.multipliers),
      *(('unfreeze_at', p) for p, _ in self.unfreeze_at),
    ]

  def _check_params(self, params):
    paths = tree.paths(params)
    defaults = {f.default for f in dataclasses.fields(self)}
    for name, pattern in self._patterns():
      # The default suits most models; another value was meant for this one.
      if pattern in defaults or any(re.search(pattern, p) for p in paths):
        continue
      raise ValueError(
        f'{name}={pattern!r} must match a parameter, such as {paths[0]}'
      )
    if not any(self.multiplier(p) for p in paths):
      raise ValueError(
        f'freeze={self.freeze!r} and train={self.train!r} leave none of the'
        f' {len(paths)} parameters to train'
      )
    for name, off in (('layer_decay', 1), ('unfreeze', 0)):
      if getattr(self, name) != off and depth.layers(params)[1] == 1:
        raise ValueError(
          f'{name}={getattr(self, name)} needs layers named blocks_0 and so on;'
          f' the parameters are named like {paths[0]}'
        )


def _where(free, values):
  """Returns the values, zero where they are not free yet."""
  if free is None:
    return values
  return jax.tree.map(lambda f, x: jnp.where(f, x, 0), free, values)
