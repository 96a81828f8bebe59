"""What of a model the axes of a mesh must divide, said before it is traced.

Models are asked for the fields they have (`heads`, `mlp_width`, `width`, `patch`,
`pool`); what has none of them is let through.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax

Spec = Mapping[str, jax.ShapeDtypeStruct]


def check(model: Any, sizes: Mapping[str, int]) -> None:
  """Raises ValueError where `tensor` does not divide heads or features.

  Args:
    model: Of any kind.
    sizes: Those of the mesh, by axis.
  """
  parts = sizes['tensor']
  heads = getattr(model, 'heads', None)
  if isinstance(heads, int) and heads % parts:
    raise ValueError(f'layout.tensor={parts} must divide model.heads={heads}')
  hidden, name = getattr(model, 'mlp_width', None), 'model.mlp_width'
  width = getattr(model, 'width', None)
  if hidden == 0 and isinstance(width, int):
    hidden, name = 4 * width, '4 model.width'
  if isinstance(hidden, int) and hidden % parts:
    raise ValueError(f'layout.tensor={parts} must divide {name}={hidden}')


def check_length(
  model: Any, spec: Spec, targets: int, sizes: Mapping[str, int]
) -> None:
  """Raises ValueError where `context` does not divide the positions.

  Args:
    model: Of any kind.
    spec: Shape and dtype of one row of data, by field.
    targets: How many units of data a row holds.
    sizes: Those of the mesh, by axis.
  """
  length, said = _positions(model, spec, targets)
  parts = sizes['context']
  if length % parts:
    raise ValueError(
      f'layout.context={parts} must divide length={length}, {said}'
    )


def _positions(model, spec, targets):
  """Returns how many positions a row has in the model, and what they are."""
  if 'image' in spec and isinstance(getattr(model, 'patch', None), int):
    rows, columns = (n // model.patch for n in spec['image'].shape[:2])
    if getattr(model, 'pool', None) == 'token':
      return 1 + rows * columns, f'{rows} x {columns} patches and a class token'
    return rows * columns, f'{rows} x {columns} patches'
  if 'tokens' not in spec or not spec['tokens'].shape:
    return 0, ''
  tokens = spec['tokens'].shape[0]
  if targets == tokens - 1:
    return targets, f'the inputs of rows of {tokens} tokens'
  return tokens, 'the tokens of a row'
