"""A family's ladder: its shapes at any size, depth and width growing together.

Kaplan et al., 2020, arXiv:2001.08361, section 3.1: what a loss owes to a
transformer's size depends little on the ratio of width to depth, which
therefore stays near that of the model that is scaled.
"""

from __future__ import annotations

from collections.abc import Callable
import math
from typing import Any, TypeVar

from flax import linen as nn

# A module with the fields depth, width and heads.
Model = TypeVar('Model', bound=nn.Module)

# What a depth off the aspect ratio weighs against a size off the target.
_BEND = 0.03


def deepen(model: Any, depth: int) -> Any:
  """Returns the same model of that depth."""
  return model.clone(depth=depth)


def widen(model: Any, heads: int) -> Any:
  """Returns the same model with that many heads, and width in proportion.

  The width of a head stays. The width of the MLP keeps its ratio, where the
  model names it (field `mlp_width`; 0 means that it follows by itself); a width
  that heads do not set (field `head_width` above 0) keeps its own.
  """
  head_width = getattr(model, 'head_width', 0)
  width = heads * (model.width // model.heads)
  if head_width:
    width = max(2, 2 * round(model.width * heads / model.heads / 2))
  changes: dict[str, Any] = {}
  mlp_width = getattr(model, 'mlp_width', 0)
  if mlp_width:
    unit = 8 if mlp_width % 8 == 0 else 1
    ratio = mlp_width / model.width
    changes['mlp_width'] = max(unit, unit * round(ratio * width / unit))
  return model.clone(heads=heads, width=width, **changes)


def rung(
  model: Model,
  factor: float,
  *,
  size: Callable[[Any], int],
  widen: Callable[[Any, int], Any] = widen,
  deepen: Callable[[Any, int], Any] = deepen,
  step: int = 1,
) -> Model:
  """Returns the shape that is closest to `factor` times the size.

  Of the shapes with whole heads and layers, the one whose size, and then whose
  width / depth, are nearest to what is asked; `factor` 1 gives the same model.

  Args:
    model: Where the ladder starts.
    factor: What its size is multiplied by.
    size: Counts a model's parameters that are no embeddings; the weights of its
      matrices suffice. Linear in depth, or free of it where layers are shared.
    widen: Returns a model with that many heads.
    deepen: Returns a model of that depth.
    step: Heads come in multiples of it.

  Raises:
    ValueError: The factor is not positive.
  """
  if not factor > 0:
    raise ValueError(f'factor={factor} must be positive')
  aspect = model.width / model.depth  # type: ignore[attr-defined]
  heads = model.heads  # type: ignore[attr-defined]
  target = factor * size(model)
  # Width and depth each grow by about the cube root; four times that is ample,
  # and where depth does not count the square root is needed.
  most = max(math.ceil(4 * max(factor ** (1 / 3), factor**0.5 / 2) * heads), 4)
  rungs = []
  for count in range(step, max(most, 4 * step) + 1, step):
    wide = widen(model, count)
    once, layer = _split(wide, size, deepen)
    near = (target - once) / layer if layer else wide.width / aspect
    for depth in {max(1, math.floor(near)), max(1, math.ceil(near))}:
      miss = math.log((once + depth * layer) / target)
      bend = math.log(wide.width / depth / aspect)
      rungs.append((miss**2 + _BEND * bend**2, depth, wide))
  _, depth, wide = min(rungs, key=lambda rung: rung[0])
  return deepen(wide, depth)


def _split(model, size, deepen) -> tuple[int, int]:
  """Returns the size that depth does not change, and that of a layer."""
  one, two = size(deepen(model, 1)), size(deepen(model, 2))
  return 2 * one - two, two - one
