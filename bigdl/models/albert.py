"""ALBERT: a BERT whose layers share weights and whose table is factorised.

Lan et al., 2019, arXiv:1909.11942, section 3.1; the fields' defaults are its
smallest size, and `SIZES` names the others.
Differs from the paper: no dropout of attention probabilities.
"""

# Shapes: B batch, T positions.
from __future__ import annotations

import jax
import jax.numpy as jnp

from bigdl.layers.mlp import Activation
from bigdl.models import _bert_sizes
from bigdl.models.bert import BERT


class ALBERT(BERT):
  """Reads whole sequences, one layer's weights applied `depth` times.

  The sentence head says whether two sentences stand in order. The defaults are
  the 12 million parameters of ALBERT-base.
  """

  vocab: int = 30000
  embed_width: int = 128
  groups: int = 1
  activation: Activation = 'gelu'


# Published sizes by name, such as 'albert-base'; none is allocated.
SIZES: dict[str, ALBERT] = {
  name: ALBERT(**fields) for name, fields in _bert_sizes.ALBERT.items()
}


def tiny() -> tuple[ALBERT, tuple[jax.Array, ...]]:
  """Returns the smallest honest ALBERT and its inputs."""
  model = ALBERT(depth=2, width=16, heads=2, vocab=29, length=12, embed_width=8)
  tokens_BT = jnp.arange(24, dtype=jnp.int32).reshape(2, 12) % model.vocab
  return model, (tokens_BT,)
