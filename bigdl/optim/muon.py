"""Muon: moves a matrix by its momentum with all singular values set near 1.

Jordan et al., 2024, "Muon: An optimizer for hidden layers in neural networks".
Steps have the root mean square of AdamW's, 0.2 by measurement (Liu et al., 2025,
arXiv:2502.16982, eq. 4), so both share one learning rate and decay.
Differs from the paper: nothing. Embeddings, the head, biases and norms are
AdamW's, as there.
"""

from __future__ import annotations

import dataclasses
import math
import re

import jax
import optax
from optax import contrib

from bigdl import tree
from bigdl.optim.base import Optimizer
from bigdl.optim.schedule import WSD


@dataclasses.dataclass(frozen=True)
class Muon(Optimizer):
  """Orthogonal steps for hidden matrices, AdamW for all else."""

  matrices: str = r'^(?!(.*/)?head/).*kernel$'  # Paths that Muon moves.
  momentum: float = 0.95
  nesterov: bool = True
  iterations: int = 5  # Of Newton and Schulz.
  rms: float = 0.2  # Root mean square of a matrix's step, before the rate.
  b1: float = 0.9  # These three are AdamW's.
  b2: float = 0.95
  eps: float = 1e-8

  def rule(self) -> optax.GradientTransformation:
    muon = optax.chain(
      contrib.scale_by_muon(
        beta=self.momentum,
        nesterov=self.nesterov,
        ns_steps=self.iterations,
        weight_dimension_numbers=_dimensions,
      ),
      optax.stateless(lambda steps, _: jax.tree.map(self._scale, steps)),
    )
    adam = optax.scale_by_adam(b1=self.b1, b2=self.b2, eps=self.eps)
    return optax.partition({'muon': muon, 'adam': adam}, self._labels)

  def _scale(self, step):
    # All singular values of an orthogonal matrix are 1, so that the mean
    # square of its entries is 1 / max(shape).
    return step * (self.rms * math.sqrt(max(step.shape[-2:])))

  def _labels(self, params):
    def label(path, x):
      matrix = re.search(self.matrices, path) and x.ndim >= 2
      return 'muon' if matrix else 'adam'

    return tree.map_with_path(label, params)


def _dimensions(params):
  # Matrices are the last two dimensions, of which a scan may stack many.
  numbers = contrib.MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
  return jax.tree.map(lambda _: numbers, params)


def tiny() -> Muon:
  """Returns a Muon for problems of a few parameters."""
  return Muon(lr=0.1, schedule=WSD(decay=0.9), weight_decay=0.0)
