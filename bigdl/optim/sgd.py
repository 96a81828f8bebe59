"""Stochastic gradient descent with momentum.

Polyak, 1964, "Some methods of speeding up the convergence of iteration
methods"; Nesterov's form as in Sutskever et al., 2013, "On the importance of
initialization and momentum in deep learning", eq. 3-4.
Differs from the papers: momentum sums gradients before the learning rate is
applied, so that a schedule acts on the whole sum at once.
"""

from __future__ import annotations

import dataclasses

import optax

from bigdl.optim.base import Optimizer
from bigdl.optim.schedule import WSD


@dataclasses.dataclass(frozen=True)
class SGD(Optimizer):
  """Steps along a sum of gradients, of which older ones fade."""

  lr: float = 0.1
  weight_decay: float = 1e-4
  momentum: float = 0.9  # Share of the sum that stays; 0: the gradient alone.
  nesterov: bool = False  # Look ahead along the sum.

  def rule(self) -> optax.GradientTransformation:
    if not self.momentum:
      return optax.identity()
    return optax.trace(decay=self.momentum, nesterov=self.nesterov)


def tiny() -> SGD:
  """Returns an SGD for problems of a few parameters."""
  return SGD(lr=0.02, schedule=WSD(decay=0.9), weight_decay=0.0, nesterov=True)
