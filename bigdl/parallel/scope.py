"""The mesh and the layout in whose context a program is traced.

Layers that act otherwise under some layout (attention over split positions,
a pipeline of blocks) ask here; models hold neither mesh nor layout.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib

import jax
from jax.sharding import Mesh

from bigdl.parallel.layout import Layout

# Part of the key of JAX's caches of traced and compiled programs.
_layout = jax.make_user_context(None)


@contextlib.contextmanager
def entered(layout: Layout, mesh: Mesh) -> Iterator[Mesh]:
  """Sets the mesh, as `jax.set_mesh` does, and the layout that made it."""
  with jax.set_mesh(mesh), _layout(layout):
    yield mesh


def layout() -> Layout | None:
  """Returns the layout of the program that is being traced, if it has one."""
  return _layout.value
