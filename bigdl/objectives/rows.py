"""What an image or a text with an answer gives the model, and what it counts."""

from __future__ import annotations

from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from bigdl.objectives.base import Batch, check_room


def inputs(batch: Batch) -> tuple[tuple[jax.Array, ...], dict[str, Any]]:
  """Returns what the model is given, by place and by name."""
  if 'image' in batch:
    return (batch['image'],), {}
  context: dict[str, Any] = {
    k: batch[k] for k in ('segments', 'types') if k in batch
  }
  return (batch['tokens'],), context


def first_output(
  model: nn.Module, spec: dict[str, jax.ShapeDtypeStruct], facts: dict
) -> jax.ShapeDtypeStruct:
  """Returns the shape of what a model that is not trained says of one row.

  Raises ValueError for texts that the model has no room for; the model raises
  whatever else it has against such images or texts.
  """
  if 'image' not in spec:
    length = spec['tokens'].shape[0]
    check_room(model, vocab=facts.get('vocab', 0), length=length)

  def run():
    row = {k: jnp.zeros((1, *v.shape), v.dtype) for k, v in spec.items()}
    arrays, context = inputs(row)
    return model.init_with_output(jax.random.key(0), *arrays, **context)[0]

  return jax.eval_shape(run)


def weights(batch: Batch, answer: str) -> jax.Array:
  """Returns what each row counts, float32 `[B]`.

  Args:
    batch: Of which `weight` is what a row counts, where it is there; a row of
      `segments` 0 alone, which are padding, counts nothing.
    answer: A field that every row has.
  """
  weight_B = jnp.ones(batch[answer].shape[:1], jnp.float32)
  if 'weight' in batch:
    weight_B = batch['weight'].astype(jnp.float32)
  if 'segments' in batch:
    weight_B = weight_B * (batch['segments'] != 0).any(axis=1)
  return weight_B
