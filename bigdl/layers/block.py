"""A transformer block: attention and MLP around a residual stream.

Post-norm: Vaswani et al., 2017, arXiv:1706.03762, section 3.1. Pre-norm:
Radford et al., 2019 (GPT-2), section 2.3. Parallel: Wang and Komatsuzaki, 2021
(GPT-J); PaLM, Chowdhery et al., 2022, arXiv:2204.02311, section 2. Parallel with
a norm each: GPT-NeoX, Black et al., 2022, arXiv:2204.06745, section 2.1. With
adapters, A and M end in one each (bigdl/layers/adapter.py).
Differs from the papers: nothing.
"""

# Shapes: B batch, T positions, D width.
from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from flax import linen as nn
import jax

from bigdl.parallel import activations

BlockKind = Literal['pre', 'post', 'parallel', 'parallel_two_norms']
Make = Callable[..., nn.Module]


class Block(nn.Module):
  """Returns, for its kind, with residual stream x, attention A and MLP M,

  pre: y + M(norm y) where y = x + A(norm x);
  post: norm(y + M(y)) where y = norm(x + A(x));
  parallel: x + A(norm x) + M(norm x), one norm shared or two.
  """

  attention: Make
  mlp: Make
  norm: Make
  kind: BlockKind = 'pre'
  dropout: float = 0.0
  adapter: Make | None = None  # None: there are none.

  @nn.compact
  def __call__(
    self,
    x_BTD: jax.Array,
    *context: Any,
    deterministic: bool = True,
    **static: Any,
  ) -> jax.Array:
    x_BTD = activations.stream(x_BTD)
    attention = self.attention(name='attention')
    layer = self.mlp(name='mlp')
    attention_norm = self.norm(name='attention_norm')
    drop = nn.Dropout(self.dropout, deterministic=deterministic)

    def adapted(name, y):
      return y if self.adapter is None else self.adapter(name=name)(y)

    def attend(x):
      return adapted('attention_adapter', attention(x, *context, **static))

    def mlp(x):
      return adapted('mlp_adapter', layer(x))

    if self.kind == 'parallel':
      y_BTD = attention_norm(x_BTD)
      return x_BTD + drop(attend(y_BTD) + mlp(y_BTD))
    mlp_norm = self.norm(name='mlp_norm')
    if self.kind == 'parallel_two_norms':
      y_BTD = attend(attention_norm(x_BTD)) + mlp(mlp_norm(x_BTD))
      return x_BTD + drop(y_BTD)
    if self.kind == 'post':
      x_BTD = attention_norm(x_BTD + drop(attend(x_BTD)))
      return mlp_norm(x_BTD + drop(mlp(x_BTD)))
    x_BTD = x_BTD + drop(attend(attention_norm(x_BTD)))
    return x_BTD + drop(mlp(mlp_norm(x_BTD)))
