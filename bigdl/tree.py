"""Paths, masks, sizes and norms of pytrees.

A leaf's path is its keys joined by '/': `blocks_0/attention/query/kernel`.
Regular expressions over paths say which leaves decay, freeze or shard.
"""

from __future__ import annotations

from collections.abc import Callable
import math
import re
from typing import Any

import jax
import jax.numpy as jnp

Tree = Any


def path_of(keys: tuple[Any, ...]) -> str:
  """Returns the '/'-joined name of a jax key path; '' for a bare leaf."""
  return jax.tree_util.keystr(keys, simple=True, separator='/')


def map_with_path(
  fn: Callable[..., Any],
  tree: Tree,
  *rest: Tree,
  is_leaf: Callable[[Any], bool] | None = None,
) -> Tree:
  """Returns the tree of `fn(path, leaf, *leaves_of_rest)`."""

  def call(keys, *leaves):
    return fn(path_of(keys), *leaves)

  return jax.tree_util.tree_map_with_path(call, tree, *rest, is_leaf=is_leaf)


def items(tree: Tree) -> list[tuple[str, Any]]:
  """Returns `(path, leaf)` pairs in the order of `jax.tree.leaves`."""
  pairs, _ = jax.tree_util.tree_flatten_with_path(tree)
  return [(path_of(keys), leaf) for keys, leaf in pairs]


def paths(tree: Tree) -> list[str]:
  """Returns the path of every leaf, in the order of `jax.tree.leaves`."""
  return [path for path, _ in items(tree)]


def mask(tree: Tree, pattern: str) -> Tree:
  """Returns a tree of bools: whether `re.search(pattern, path)` finds."""
  found = re.compile(pattern).search
  return map_with_path(lambda path, _: found(path) is not None, tree)


def size(tree: Tree) -> int:
  """Returns the number of scalars; leaves may be `ShapeDtypeStruct`s."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def bytes_of(tree: Tree) -> int:
  """Returns the bytes the leaves take; they may be `ShapeDtypeStruct`s."""
  return sum(
    math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


def norm(tree: Tree) -> jax.Array:
  """Returns the Euclidean norm over all leaves, summed in float32 or wider."""

  def square(x):
    x = jnp.asarray(x)
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jnp.sum(jnp.real(x * jnp.conj(x)))

  leaves = jax.tree.leaves(tree)
  return jnp.sqrt(sum(map(square, leaves), start=jnp.zeros((), jnp.float32)))
