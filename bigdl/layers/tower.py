"""A stack of blocks over embeddings, with what stands before and after them.

Vaswani et al., 2017, arXiv:1706.03762, figure 1, left or right. The norm of the
embeddings is XLM's (Lample and Conneau, 2019, arXiv:1901.07291).
Differs from the papers: nothing.
"""

# Shapes: B batch, T positions, D width.
from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from flax import linen as nn
import jax
from jax.nn.initializers import Initializer

from bigdl.layers import position as positions_of
from bigdl.layers import stack as stacks
from bigdl.layers.embed import Embed
from bigdl.layers.stack import RematKind, StackKind

PositionKind = Literal['sinusoidal', 'learned']
EmbedNormKind = Literal['none', 'before', 'after']
Make = Callable[..., nn.Module]


class Tower(nn.Module):
  """An encoder or a decoder: positions and blocks over given embeddings.

  Called `(x_BTD, positions, *context, **static)`; each block is given the context
  and the static values, of which `deterministic` is one.
  """

  make: Make  # Of a block.
  norm: Make
  depth: int
  width: int
  length: int
  position: PositionKind
  embed_norm: EmbedNormKind  # Where positions are added.
  final_norm: bool
  dropout: float
  table_init: Initializer
  dtype: str
  param_dtype: str
  stack: StackKind
  remat: RematKind

  def setup(self):
    if self.position == 'learned':
      self.positions = Embed(
        self.length,
        self.width,
        table_init=self.table_init,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
      )
    if self.embed_norm != 'none':
      self.input_norm = self.norm()
    self.drop = nn.Dropout(self.dropout)
    self.blocks = stacks.build(self.make, self.depth, kind=self.stack)
    if self.final_norm:
      self.output_norm = self.norm()

  def __call__(
    self, x_BTD: jax.Array, positions: jax.Array, *context: Any, **static: Any
  ) -> jax.Array:
    if self.embed_norm == 'before':
      x_BTD = self.input_norm(x_BTD)
    if self.position == 'learned':
      x_BTD = x_BTD + self.positions(positions)
    else:
      x_BTD = x_BTD + positions_of.sinusoid(
        positions, self.width, dtype=self.dtype
      )
    if self.embed_norm == 'after':
      x_BTD = self.input_norm(x_BTD)
    x_BTD = self.drop(x_BTD, deterministic=static['deterministic'])
    x_BTD = stacks.run(
      self.blocks,
      x_BTD,
      *context,
      depth=self.depth,
      remat=self.remat,
      **static,
    )
    return self.output_norm(x_BTD) if self.final_norm else x_BTD
