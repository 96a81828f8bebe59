"""AdamW: steps by the ratio of a mean gradient to its root mean square.

Kingma and Ba, 2015, arXiv:1412.6980, algorithm 1; decay apart from it:
Loshchilov and Hutter, 2019, arXiv:1711.05101, algorithm 2.
Differs from the papers: b2 defaults to 0.95, as for GPT-3 (Brown et al., 2020,
arXiv:2005.14165, appendix B), and biases and norm scales do not decay.
"""

from __future__ import annotations

import dataclasses

import optax

from bigdl.optim.base import Optimizer
from bigdl.optim.schedule import WSD


@dataclasses.dataclass(frozen=True)
class AdamW(Optimizer):
  """Adam with decoupled weight decay."""

  b1: float = 0.9  # Memory of the mean gradient.
  b2: float = 0.95  # Memory of the mean squared gradient.
  eps: float = 1e-8

  def rule(self) -> optax.GradientTransformation:
    return optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps)


def tiny() -> AdamW:
  """Returns an AdamW for problems of a few parameters."""
  return AdamW(lr=0.1, schedule=WSD(decay=0.9), weight_decay=0.0)
