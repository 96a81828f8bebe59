"""Lion: steps by the sign of a mean gradient.

Chen et al., 2023, arXiv:2302.06675, algorithm 2. The paper advises a learning
rate 3 to 10 times below that of AdamW, and as much more decay.
Differs from the paper: biases and norm scales do not decay.
"""

from __future__ import annotations

import dataclasses

import optax

from bigdl.optim.base import Optimizer
from bigdl.optim.schedule import WSD


@dataclasses.dataclass(frozen=True)
class Lion(Optimizer):
  """Every weight moves by the learning rate, one way or the other."""

  lr: float = 1e-4
  weight_decay: float = 1.0
  b1: float = 0.9  # Share of the old mean in the direction.
  b2: float = 0.99  # Memory of the mean gradient.

  def rule(self) -> optax.GradientTransformation:
    return optax.scale_by_lion(b1=self.b1, b2=self.b2)


def tiny() -> Lion:
  """Returns a Lion for problems of a few parameters."""
  return Lion(lr=0.03, schedule=WSD(decay=0.9), weight_decay=0.0)
