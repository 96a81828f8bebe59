"""Looking up rows of a table of which each device has a part.

Shoeybi et al., 2019, arXiv:1909.08053, section 3: a device looks up the ids that
are its own, takes zeros for all others, and sums over devices are what was asked.
Left to itself, the compiler gathers the table.
"""

# Shapes: B rows, T positions, D width, V vocabulary.
from __future__ import annotations

import jax
import jax.numpy as jnp

from bigdl.parallel import activations


def lookup(
  table_VD: jax.Array, ids: jax.Array, dtype: str = 'float32'
) -> jax.Array:
  """Returns the rows of those ids, `[..., D]`, split as activations are.

  Of ids `[B, T]`, where `tensor` divides V; otherwise the compiler decides. The
  gradient is summed in the dtype of the table.
  """
  axes = activations.axes_of(len(table_VD), 'vocab')
  if not axes or ids.ndim != 2:
    rows = jnp.take(table_VD, ids, axis=0).astype(dtype)
    return activations.stream(rows)
  rows, length = activations.spec(ids.shape, 'rows', 'length')
  _, stream = activations.spec(ids.shape, 'rows', 'stream')
  # Sums are scattered over positions where `tensor` divides them.
  scatters = stream != length

  def local(index, table_VD, ids_BT):
    V = len(table_VD)
    own_BT = ids_BT - index[0] * V
    mine_BT = (own_BT >= 0) & (own_BT < V)
    rows_BTD = jnp.take(table_VD, jnp.where(mine_BT, own_BT, 0), axis=0)
    rows_BTD = jnp.where(mine_BT[..., None], rows_BTD, 0).astype(dtype)
    if scatters:
      return jax.lax.psum_scatter(
        rows_BTD, axes, scatter_dimension=1, tiled=True
      )
    return jax.lax.psum(rows_BTD, axes)

  mapped = jax.shard_map(
    local,
    in_specs=(jax.P(axes), jax.P(axes), jax.P(rows, length)),
    out_specs=jax.P(rows, stream),
    axis_names={*axes, *activations.axes(rows), *activations.axes(length)},
    check_vma=False,
  )
  # Which part a device has: where other axes are the compiler's, it cannot
  # ask for its place on this one.
  parts = jnp.arange(activations.parts(*axes))
  return activations.stream(mapped(parts, table_VD, ids))
