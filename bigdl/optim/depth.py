"""How high in a network each parameter stands, told by its path.

Layer 0 are the embeddings, layer i + 1 is block i of a stack of L, and layer
L + 1 is whatever comes after. Rates that differ by layer: Howard and Ruder,
2018, arXiv:1801.06146, section 3.2; decayed from the top as here: Clark et al.,
2020, arXiv:2003.10555, appendix B, and Bao et al., 2021, arXiv:2106.08254,
appendix. Gradual unfreezing: Howard and Ruder, section 3.3.
Differs from the papers: norms and heads above the blocks are one layer. Stacks
beside each other (an encoder, a decoder) are counted from the top, each.
"""

# Shapes: L layers of a stack.
from __future__ import annotations

import re
from typing import Any

import numpy as np

from bigdl import tree

# A loop names its blocks `blocks_0/...`; a scan names them all `blocks/...` and
# stacks them along the first dimension.
_STACK = re.compile(r'(?:^|/)(blocks)(?:_(\d+))?/')
_LOWEST = re.compile(
  r'(^|/)(embed|position|token|task|patch|prompt|input_norm)[^/]*/|embedding$'
)


def layers(params: Any) -> tuple[Any, int]:
  """Returns the layer of each parameter, and that of the head, L + 1.

  Args:
    params: Arrays or shapes, by path.

  Returns:
    A tree of ints; of what a scan has stacked an int array that broadcasts with
    the parameter, `[L, 1, ...]`. And L + 1, which is 1 where there is no stack.
  """
  depths: dict[str, int] = {}
  for path, leaf in tree.items(params):
    name, index = _block(path)
    if name:
      count = leaf.shape[0] if index is None else index + 1
      depths[name] = max(depths.get(name, 0), count)
  most = max(depths.values(), default=0)

  def layer(path, leaf):
    name, index = _block(path)
    if not name:
      return 0 if _LOWEST.search(path) else most + 1
    first = most - depths[name] + 1
    if index is not None:
      return first + index
    each_L = first + np.arange(leaf.shape[0])
    return each_L.reshape(-1, *[1] * (len(leaf.shape) - 1))

  return tree.map_with_path(layer, params), most + 1


def _block(path: str) -> tuple[str, int | None]:
  """Returns the stack a path is in, '' for none, and which of its blocks."""
  found = _STACK.search(path)
  if found is None:
    return '', None
  # What stands before tells one stack from another of its name.
  name = path[: found.end(1)]
  return name, None if found[2] is None else int(found[2])
