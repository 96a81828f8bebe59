"""Adapters: small layers inside a trained block, which alone are trained.

Houlsby et al., 2019, arXiv:1902.00751, section 2.1 and figure 2: one after the
attention and one after the MLP, before each joins the residual stream.
Differs from the paper: the upper projection starts at zero, so that a block with
new adapters is exactly the block without them; dropout comes after the adapter.
"""

# Shapes: D width, F width of the bottleneck.
from __future__ import annotations

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import jax
from jax.nn.initializers import Initializer

from bigdl.layers.dense import Dense
from bigdl.layers.mlp import gelu


class Adapter(nn.Module):
  """x + up(gelu(down x)), where down has F outputs."""

  hidden: int  # F.
  kernel_init: Initializer = nn.initializers.normal(0.02)
  dtype: str = 'float32'
  param_dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns `[..., D]` of `[..., D]`."""
    dense = functools.partial(
      Dense, dtype=self.dtype, param_dtype=self.param_dtype
    )
    down = dense(self.hidden, kernel_init=self.kernel_init, name='down')
    up = dense(x.shape[-1], kernel_init=nn.initializers.zeros, name='up')
    return x + up(gelu(down(x)))


def maker(hidden: int, **types: Any) -> Callable[..., Adapter] | None:
  """Returns what `Block` makes its adapters by; None for a width of 0."""
  return functools.partial(Adapter, hidden, **types) if hidden else None
