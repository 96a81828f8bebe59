"""Layer normalisation and its root-mean-square variant.

LayerNorm: Ba et al., 2016, arXiv:1607.06450, eq. 3-4.
RMSNorm: Zhang and Sennrich, 2019, arXiv:1910.07467, eq. 4.
Differs from the papers: nothing; epsilon stands under the root.
"""

from __future__ import annotations

from typing import Literal

from flax import linen as nn
import jax
import jax.numpy as jnp

from bigdl.parallel import activations

NormKind = Literal['layernorm', 'rmsnorm']


class Norm(nn.Module):
  """Normalises the last dimension; statistics in float32 or wider."""

  kind: NormKind = 'layernorm'
  bias: bool = True  # Of LayerNorm; RMSNorm has none.
  epsilon: float = 1e-5
  dtype: str = 'float32'
  param_dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    # A layer gathers it anyway; so its sums over the width are no messages.
    x = activations.whole_width(x)
    width = x.shape[-1]
    scale = self.param('scale', nn.initializers.ones, width, self.param_dtype)
    bias = None
    if self.kind == 'layernorm' and self.bias:
      bias = self.param('bias', nn.initializers.zeros, width, self.param_dtype)

    @jax.checkpoint
    def norm(x, scale, bias):
      x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
      if self.kind == 'layernorm':
        # Two passes over the row: the one-pass variance E[x^2] - E[x]^2 cancels
        # in float32, and a gradient that matches to 1e-4 cannot spare digits.
        x = x - jnp.mean(x, axis=-1, keepdims=True)
      power = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
      y = x * jax.lax.rsqrt(power + self.epsilon) * scale
      return y if bias is None else y + bias

    return norm(x, scale, bias).astype(self.dtype)
