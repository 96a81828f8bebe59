"""Token vectors, and their transpose as the head."""

# Shapes: B batch, T positions, D width, V vocabulary.
from __future__ import annotations

from flax import linen as nn
import jax
from jax.nn.initializers import Initializer
import jax.numpy as jnp

from bigdl.layers import dense
from bigdl.parallel import activations, rules, vocabulary


class Embed(nn.Module):
  """A table of one vector per token."""

  vocab: int
  width: int
  table_init: Initializer = nn.initializers.normal(0.02)
  dtype: str = 'float32'
  param_dtype: str = 'float32'

  def setup(self):
    self.embedding = self.param(
      'embedding', self.table_init, (self.vocab, self.width), self.param_dtype
    )

  def __call__(self, ids: jax.Array) -> jax.Array:
    if rules.splits_vocabulary('/'.join((*self.path, 'embedding'))):
      return vocabulary.lookup(self.embedding, ids, self.dtype)
    vectors = jnp.take(self.embedding, ids, axis=0).astype(self.dtype)
    return activations.stream(vectors)

  def logits(self, x: jax.Array) -> jax.Array:
    """Returns the product with every vector, in float32 or wider."""
    table_VD = self.embedding.astype(self.dtype)
    return dense.logits(x.astype(self.dtype), table_VD, turned=True)


class Head(nn.Module):
  """A linear map to one logit per token, without bias."""

  vocab: int
  table_init: Initializer = nn.initializers.normal(0.02)
  dtype: str = 'float32'
  param_dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    kernel_DV = self.param(
      'kernel', self.table_init, (x.shape[-1], self.vocab), self.param_dtype
    )
    kernel_DV = kernel_DV.astype(self.dtype)
    return dense.logits(x.astype(self.dtype), kernel_DV, turned=False)
