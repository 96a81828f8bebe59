"""Texts that are too long, or of too many tokens, for what is to read them."""

from __future__ import annotations

from flax import linen as nn
import jax
import jax.numpy as jnp
import pytest

from bigdl.objectives.classify import Classify
from bigdl.objectives.regress import Regress

LABEL = {'label': jax.ShapeDtypeStruct((), jnp.int32)}
TARGET = {'target': jax.ShapeDtypeStruct((2,), jnp.float32)}


class Body(nn.Module):
  vocab: int = 11
  length: int = 6

  @nn.compact
  def __call__(self, tokens_BT, deterministic=True):
    return nn.Dense(2)(nn.Embed(self.vocab, 3)(tokens_BT).mean(1))


@pytest.mark.parametrize(
  ('objective', 'answer'), [(Classify(), LABEL), (Regress(), TARGET)]
)
@pytest.mark.parametrize(
  ('vocab', 'length', 'told'),
  [
    (500, 4, 'data vocab=500 is larger than model.vocab=11'),
    (11, 9, 'data length=9 is larger than model.length=6'),
  ],
)
def test_texts_that_a_model_has_no_room_for_are_refused(
  objective, answer, vocab, length, told
):
  spec = {'tokens': jax.ShapeDtypeStruct((length,), jnp.int32), **answer}
  with pytest.raises(ValueError, match=f'^{told}$'):
    objective.check(Body(), spec, {'vocab': vocab})
