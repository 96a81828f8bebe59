"""Adafactor: Adam's second moment, kept as one vector a row and a column.

Shazeer and Stern, 2018, arXiv:1804.04235, algorithms 4 (factored second
moments) and 5 (update clipping, steps relative to a parameter's own size).
Differs from the paper: the schedule is the one asked for, `lr` times it is the
relative step; the weights of a scanned stack count as one parameter.
"""

from __future__ import annotations

import dataclasses

import optax

from bigdl.optim.base import Optimizer
from bigdl.optim.schedule import WSD


@dataclasses.dataclass(frozen=True)
class Adafactor(Optimizer):
  """Adaptive steps with memory for rows and columns only."""

  lr: float = 1e-2
  weight_decay: float = 0.0
  decay_exponent: float = 0.8  # Memory at update t is 1 - t^-decay_exponent.
  threshold: float = 1.0  # Most root mean square of an update; 0: any.
  relative: bool = True  # Steps are in units of a parameter's own size.
  momentum: float = 0.0  # Memory of the mean update; 0: none is kept.
  smallest: int = 128  # A smaller dimension is not factored.

  def rule(self) -> optax.GradientTransformation:
    parts = [
      optax.scale_by_factored_rms(
        decay_rate=self.decay_exponent, min_dim_size_to_factor=self.smallest
      )
    ]
    if self.threshold:
      parts.append(optax.clip_by_block_rms(self.threshold))
    if self.relative:
      parts.append(optax.scale_by_param_block_rms())
    if self.momentum:
      parts.append(optax.ema(self.momentum, debias=False))
    return optax.chain(*parts)


def tiny() -> Adafactor:
  """Returns an Adafactor for problems of a few parameters."""
  return Adafactor(lr=0.1, schedule=WSD(decay=0.9), smallest=2)
