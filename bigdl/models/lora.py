"""LoRA: trains the difference to given weights, as a product of low rank.

Hu et al., 2021, arXiv:2106.09685, section 4.1: W + (alpha / r) A B of each weight
that a pattern finds, B starting at zero, so that a model is at first what it was.
With `AdamW(train='^lora/')` nothing else moves.
Differs from the paper: the sum is formed before the product with x, so that no
layer has to know of it, and there is no dropout on that way. Training so still
takes the gradient of each such W for a moment, which A and B take theirs from.
"""

# Shapes: M inputs, N outputs, R rank; a scan has a dimension before them.
from __future__ import annotations

import math
import re
from typing import Any
import zlib

import jax
import jax.numpy as jnp

from bigdl import tree
from bigdl.layers.wrapper import Outermost
from bigdl.models.gpt import GPT

NAME = 'lora'


class LoRA(Outermost):
  """`body` with pairs of small matrices beside some of its weights.

  Its parameters are those of the body, by the same paths, and
  `lora/PATH/a`, `lora/PATH/b`. It stands outside of other wrappers, and its
  methods are reached through `apply` alone.
  """

  rank: int = 8
  alpha: float = 16.0  # The product counts alpha / rank times.
  paths: str = r'attention/(query|value)/kernel$'  # What is adapted.

  def __post_init__(self):
    super().__post_init__()
    if self.rank < 1:
      raise ValueError(f'rank={self.rank} must be at least 1')
    if not self.alpha > 0:
      raise ValueError(f'alpha={self.alpha} must be positive')
    try:
      re.compile(self.paths)
    except re.error as error:
      raise ValueError(
        f'paths={self.paths!r} must be a regular expression: {error}'
      ) from error

  def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
    """Returns the body's variables with the pairs of matrices among them."""
    variables = dict(self.body.init(rngs, *args, **kwargs))
    key = rngs['params'] if isinstance(rngs, dict) else rngs
    params = dict(variables['params'])
    params[NAME] = self._pairs(params, key)
    return {**variables, 'params': params}

  def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
    """Applies the body with the products added to its weights."""
    merged = self.merge(variables['params'])
    return self.body.apply({**variables, 'params': merged}, *args, **kwargs)

  def merge(self, params: Any) -> Any:
    """Returns plain weights of the body, to be used without LoRA."""
    rest = {k: v for k, v in params.items() if k != NAME}
    pairs: dict[str, dict[str, jax.Array]] = {}
    for path, x in tree.items(params.get(NAME, {})):
      place, _, side = path.rpartition('/')
      pairs.setdefault(place, {})[side] = x

    def add(path, w_MN):
      # An objective that reads few parameters leaves the others out.
      if path not in pairs:
        return w_MN
      a_MR, b_RN = pairs[path]['a'], pairs[path]['b']
      change_MN = (self.alpha / self.rank) * (a_MR @ b_RN)
      return w_MN + change_MN.astype(w_MN.dtype)

    return tree.map_with_path(add, rest)

  def _pairs(self, params, key):
    found: dict[str, Any] = {}
    for path, w in tree.items(params):
      if not re.search(self.paths, path):
        continue
      # Blocks of a scan lie along an axis of their own.
      stacked = 'blocks' in path.split('/')
      if w.ndim < 2 + stacked:
        raise ValueError(
          f'paths={self.paths!r} finds {path} {list(w.shape)}, which is no'
          ' matrix'
        )
      *first, M, N = w.shape
      own = jax.random.fold_in(key, zlib.crc32(path.encode()))
      a = jax.random.normal(own, (*first, M, self.rank), w.dtype)
      node = found
      for part in path.split('/'):
        node = node.setdefault(part, {})
      node |= {
        'a': a / math.sqrt(M),
        'b': jnp.zeros((*first, self.rank, N), w.dtype),
      }
    if not found:
      raise ValueError(
        f'paths={self.paths!r} must match a parameter, such as'
        f' {tree.paths(params)[0]}'
      )
    return found


def tiny() -> tuple[LoRA, tuple[jax.Array, ...]]:
  """Returns the smallest GPT with LoRA, and its inputs."""
  body = GPT(depth=2, width=16, heads=2, vocab=29, length=12)
  tokens_BT = jnp.arange(24, dtype=jnp.int32).reshape(2, 12) % body.vocab
  return LoRA(body, rank=2), (tokens_BT,)
