"""The contract of an optimizer: from a frozen value to an optax transform.

All optimizers are one update around a rule of their own. For gradients g and
weights w, update t of T (steps), with f the schedule and m the multiplier of a
weight's path:

  g <- g min(1, clip / |g|)
  u <- rule(g, w) + weight_decay w        (decay only where `decay` matches)
  w <- w - m lr f(t, T) u

Decay is decoupled from the rule and scaled by the learning rate (Loshchilov and
Hutter, 2019, arXiv:1711.05101, as in their published code).
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bigdl import tree
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
  # Factors on the learning rate; the first pattern found in a path holds.
  multipliers: tuple[tuple[str, float], ...] = ()
  ema: float = 0.0  # Decay of the averaged weights; 0: none are kept.

  def __post_init__(self):
    for name in ('lr', 'weight_decay', 'clip'):
      if not getattr(self, name) >= 0:
        raise ValueError(f'{name}={getattr(self, name)} must not be negative')
    for name in ('ema', 'b1', 'b2', 'momentum'):
      # Each is the share of an average that one update leaves as it was.
      if not 0 <= getattr(self, name, 0.0) < 1:
        raise ValueError(f'{name}={getattr(self, name)} must be in [0, 1)')
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
    if self.freeze or self.multipliers:
      # What never moves needs no moments.
      rule = optax.masked(rule, self._moves)

    def init(params):
      self._check_patterns(params)
      return OptimizerState(
        step=jnp.zeros((), jnp.int32),
        steps=jnp.asarray(steps, jnp.int32),
        lr=jnp.asarray(self.lr, float),
        rule=rule.init(params),
        average=jax.tree.map(jnp.copy, params) if self.ema else (),
      )

    def update(grads, state, params=None):
      assert params is not None
      directions, inner = rule.update(self._clip(grads), state.rule, params)
      rate = state.lr * self.schedule(state.step, state.steps)
      updates = tree.map_with_path(
        lambda path, u, w: self._step(path, u, w, rate), directions, params
      )
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
    for pattern, factor in self.multipliers:
      if re.search(pattern, path):
        return factor
    return 1.0

  def _moves(self, params):
    return tree.map_with_path(lambda p, _: self.multiplier(p) != 0, params)

  def _clip(self, grads):
    if self.freeze or self.multipliers:
      # Gradients of what is frozen must not count in the norm.
      grads = jax.tree.map(
        lambda g, moves: g if moves else jnp.zeros_like(g),
        grads,
        self._moves(grads),
      )
    if not self.clip:
      return grads
    norm = optax.tree.norm(grads)
    scale = self.clip / jnp.maximum(norm, self.clip)
    return jax.tree.map(lambda g: (g * scale).astype(g.dtype), grads)

  def _step(self, path, direction, weight, rate):
    factor = self.multiplier(path)
    if factor == 0:
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
    patterns = [('decay', self.decay), ('freeze', self.freeze)]
    return patterns + [('multipliers', p) for p, _ in self.multipliers]

  def _check_patterns(self, params):
    paths = tree.paths(params)
    defaults = {f.default for f in dataclasses.fields(self)}
    for name, pattern in self._patterns():
      # The default suits most models; another value was meant for this one.
      if pattern in defaults or any(re.search(pattern, p) for p in paths):
        continue
      raise ValueError(
        f'{name}={pattern!r} must match a parameter, such as {paths[0]}'
      )
