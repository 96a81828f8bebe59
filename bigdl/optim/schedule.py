"""How the learning rate moves over a run, as a share of its peak.

With t updates done, of T in all, and w of warmup, every schedule opens with
min(1, (t + 1) / w): the first update is taken at 1/w of the peak and update w
at the peak. `t` and `T` may be traced, so that compiled code holds neither.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

Shape = Literal['linear', '1-sqrt', 'cosine']


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Warms up; what follows is for a subclass to say in `after`.

  warmup: Below 1 a share of the run, otherwise a number of updates.
  """

  warmup: float = 0.0

  def __post_init__(self):
    if not self.warmup >= 0:
      raise ValueError(f'warmup={self.warmup} must not be negative')

  def check(self, steps: int) -> None:
    """Raises ValueError where a run of `steps` has no room for this."""
    if self.warmup > 1 and self.warmup > steps:
      raise ValueError(
        f'warmup={self.warmup:g} updates must fit in steps={steps}'
      )

  def __call__(
    self, step: int | jax.Array, steps: int | jax.Array
  ) -> jax.Array:
    """Returns the share of the peak for update `step`, from 0, of `steps`."""
    t, total = jnp.asarray(step, float), jnp.asarray(steps, float)
    warm = self.warmup if self.warmup >= 1 else self.warmup * total
    warm = jnp.maximum(warm, 1)
    return jnp.minimum(1, (t + 1) / warm) * self.after(t, total, warm)

  def after(self, t: jax.Array, total: jax.Array, warm: jax.Array) -> jax.Array:
    """Returns the share of the peak, were it not for the warmup."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class WSD(Schedule):
  """Warmup, a stable peak, and a decay over the last `decay` of the run.

  Hu et al., 2024, arXiv:2404.06395, section 4; the shape '1-sqrt' is that of
  Hägele et al., 2024, arXiv:2405.18392, section 3. The last update is taken
  one update short of the floor.
  """

  warmup: float = 0.02
  decay: float = 0.2  # Share of the run that decays.
  shape: Shape = 'linear'  # Of the decay.
  floor: float = 0.0  # Share of the peak that the decay ends in.

  def __post_init__(self):
    super().__post_init__()
    if not 0 <= self.decay <= 1:
      raise ValueError(f'decay={self.decay} must be in [0, 1]')
    _check_floor(self.floor)
    if self.warmup < 1 < self.warmup + self.decay:
      raise ValueError(
        f'warmup={self.warmup} and decay={self.decay} must fit in one run'
      )

  def check(self, steps: int) -> None:
    super().check(steps)
    if self.warmup >= 1 and self.warmup + self.decay * steps > max(steps, 1):
      raise ValueError(
        f'warmup={self.warmup:g} updates and decay={self.decay} of them must'
        f' fit in steps={steps}'
      )

  def after(self, t, total, warm):
    start = (1 - self.decay) * total
    # Where nothing decays, the division must still be one by something.
    x = jnp.clip((t - start) / jnp.maximum(total - start, 1), 0, 1)
    fall = {
      'linear': lambda: 1 - x,
      '1-sqrt': lambda: 1 - jnp.sqrt(x),
      'cosine': lambda: (1 + jnp.cos(jnp.pi * x)) / 2,
    }
    return self.floor + (1 - self.floor) * fall[self.shape]()


@dataclasses.dataclass(frozen=True)
class Cosine(Schedule):
  """Warmup, then half a cosine from the peak to the floor.

  Loshchilov and Hutter, 2017, arXiv:1608.03983, eq. 5, without restarts.
  """

  warmup: float = 0.02
  floor: float = 0.1  # Share of the peak at the end.

  def __post_init__(self):
    super().__post_init__()
    _check_floor(self.floor)

  def after(self, t, total, warm):
    x = jnp.clip((t - warm) / jnp.maximum(total - warm, 1), 0, 1)
    return self.floor + (1 - self.floor) * (1 + jnp.cos(jnp.pi * x)) / 2


@dataclasses.dataclass(frozen=True)
class InverseSquareRoot(Schedule):
  """Warmup, then a decay with the square root of the updates done.

  Vaswani et al., 2017, arXiv:1706.03762, eq. 3, whose peak is at step w.
  """

  warmup: float = 0.02

  def after(self, t, total, warm):
    return jnp.minimum(1, jnp.sqrt(warm / (t + 1)))


@dataclasses.dataclass(frozen=True)
class Constant(Schedule):
  """Warmup, then the peak to the end."""

  def after(self, t, total, warm):
    return jnp.ones_like(t)


def _check_floor(floor: float) -> None:
  if not 0 <= floor <= 1:
    raise ValueError(f'floor={floor} must be in [0, 1]')
