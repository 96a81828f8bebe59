"""The position-wise feed-forward layer, plain or gated.

Plain: Vaswani et al., 2017, arXiv:1706.03762, eq. 2. GELU: Hendrycks and
Gimpel, 2016, arXiv:1606.08415. Gated (SwiGLU, GeGLU): Shazeer, 2020,
arXiv:2002.05202, eq. 5-6.
Differs from the papers: biases are optional in all of them.
"""

# Shapes: B batch, T positions, D width, F hidden width.
from __future__ import annotations

from typing import Literal

from flax import linen as nn
import jax
from jax.nn.initializers import Initializer

from bigdl.layers.dense import Dense
from bigdl.parallel import activations

Activation = Literal['gelu', 'gelu_exact', 'relu', 'silu', 'swiglu', 'geglu']


def gelu(x: jax.Array) -> jax.Array:
  """The tanh approximation of GELU, as GPT-2 has it."""
  return jax.nn.gelu(x, approximate=True)


def gelu_exact(x: jax.Array) -> jax.Array:
  """x times the normal distribution function, by erf."""
  return jax.nn.gelu(x, approximate=False)


FUNCTIONS = {
  'gelu': gelu,
  'gelu_exact': gelu_exact,
  'relu': jax.nn.relu,
  'silu': jax.nn.silu,
  'swiglu': jax.nn.silu,
  'geglu': gelu,
}
GATED = ('swiglu', 'geglu')


class MLP(nn.Module):
  """down(act(up x)), or down(act(gate x) * up x) where gated."""

  hidden: int  # F.
  activation: Activation = 'gelu'
  bias: bool = True
  kernel_init: Initializer = nn.initializers.normal(0.02)
  out_init: Initializer = nn.initializers.normal(0.02)
  dtype: str = 'float32'
  param_dtype: str = 'float32'

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    def dense(features, init, name):
      return Dense(
        features,
        use_bias=self.bias,
        kernel_init=init,
        dtype=self.dtype,
        param_dtype=self.param_dtype,
        name=name,
      )

    act = FUNCTIONS[self.activation]
    x_BTD = activations.gathered(x_BTD)
    h_BTF = activations.kept(dense(self.hidden, self.kernel_init, 'up')(x_BTD))
    if self.activation in GATED:
      g_BTF = dense(self.hidden, self.kernel_init, 'gate')(x_BTD)
      g_BTF = activations.kept(g_BTF)
      h_BTF = jax.checkpoint(lambda g, h: act(g) * h)(g_BTF, h_BTF)
    else:
      h_BTF = jax.checkpoint(act)(h_BTF)
    h_BTF = activations.constrain(h_BTF, 'rows', 'length', 'features')
    down = dense(x_BTD.shape[-1], self.out_init, 'down')
    return activations.scattered(down(h_BTF))
