"""What each primitive does: its FLOPs, and what is known of its output.

A rule takes `(eqn, inputs, work, times, name)`: the equation, what is known of
its inputs, the tally to add to, how often the equation runs, and its full name
stack. It returns what is known of its (first) output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
from fractions import Fraction
import math
import re

import jax.numpy as jnp

# Bits of an axis: it runs along the row, or along a parameter's own entries.
ROW, OWN = 1, 2

ATTENTION = re.compile(
  r'(?:^|[/(])(causal_attention|full_attention|banded_attention_(\d+))(?=$|[/)])'
)
# Attention in tiles names how many of how many keys a tile's queries are given.
TILE = re.compile(r'(?:^|[/(])keys_(\d+)_of_(\d+)(?=$|[/)])')
LOOKUP = re.compile(r'(?:^|[/(])embedding_lookup(?=$|[/)])')

# These give whole numbers that count positions, whatever the tokens are.
_COUNTERS = ('iota', 'cumsum')


@dataclasses.dataclass(frozen=True)
class Fact:
  """What is known of one array.

  axes: ROW and OWN bits of each axis.
  row: It depends on the row of data.
  views: Parameters it is a view of; empty where it depends on the row.
  products: Parameters of the latest products on the way here.
  count: It numbers positions, so it is no token.
  one_hot: Each vector along its last axis has a single 1, at a token.
  """

  axes: tuple[int, ...] = ()
  row: bool = False
  views: frozenset[str] = frozenset()
  products: frozenset[str] = frozenset()
  count: bool = False
  one_hot: bool = False


@dataclasses.dataclass
class Work:
  """Forward multiply-adds of one row, doubled, and the roles of parameters."""

  full: int = 0  # FLOPs of products and convolutions.
  causal: Fraction = Fraction(0)  # The same, masked attention at its share.
  softmax: int = 0  # Entries of attention matrices that are exponentiated.
  lookup: int = 0  # FLOPs that token lookups would be as one-hot products.
  tables: set[str] = dataclasses.field(default_factory=set)
  products: set[str] = dataclasses.field(default_factory=set)
  heads: set[str] = dataclasses.field(default_factory=set)
  vocab: set[int] = dataclasses.field(default_factory=set)
  lengths: dict[str, int] = dataclasses.field(default_factory=dict)

  def add(self, other: Work) -> None:
    """Adds the work of `other`."""
    self.full += other.full
    self.causal += other.causal
    self.softmax += other.softmax
    self.lookup += other.lookup

  def note(self, other: Work) -> None:
    """Takes over what `other` learnt of parameters, not its work."""
    self.tables |= other.tables
    self.products |= other.products
    self.vocab |= other.vocab
    self.lengths = other.lengths | self.lengths


def pairs(length: int, window: int | None = None) -> int:
  """Returns how many (query, key) pairs a causal mask of that band leaves."""
  window = length if window is None else min(window, length)
  return window * (window + 1) // 2 + (length - window) * window


def merge(inputs: Sequence[Fact], axes: tuple[int, ...], **changes) -> Fact:
  row = any(f.row for f in inputs)
  empty: frozenset[str] = frozenset()
  views = empty if row else empty.union(*(f.views for f in inputs))
  return Fact(
    **{
      'axes': axes,
      'row': row,
      'views': views,
      'products': empty.union(*(f.products for f in inputs)),
      **changes,
    }
  )


def default(eqn, inputs, work) -> list[Fact]:
  """Axis by axis, as elementwise operations, sorts, slices and pads do."""
  primitive = eqn.primitive.name
  if primitive in ('add', 'sub', 'add_any'):
    _find_positions(inputs, work)
  one_hot = _is_one_hot(eqn, inputs)
  outs = []
  for out in eqn.outvars:
    shape = getattr(out.aval, 'shape', ())
    axes = [0] * len(shape)
    for fact in inputs:
      if len(fact.axes) == len(shape):
        axes = [a | b for a, b in zip(axes, fact.axes, strict=True)]
    whole = jnp.issubdtype(getattr(out.aval, 'dtype', jnp.float32), jnp.integer)
    count = whole and (primitive in _COUNTERS or any(f.count for f in inputs))
    outs.append(merge(inputs, tuple(axes), count=count, one_hot=one_hot))
  return outs


def _is_one_hot(eqn, inputs) -> bool:
  if eqn.primitive.name == 'eq' and len(inputs) == 2:
    left, right = inputs
    return (left.count and not left.row and right.row and not right.count) or (
      right.count and not right.row and left.row and not left.count
    )
  same = ('convert_element_type', 'copy', 'broadcast_in_dim')
  return eqn.primitive.name in same and inputs[0].one_hot


def _find_positions(inputs, work):
  """A parameter added along an axis of the row is a table of positions."""
  for one in inputs:
    for other in inputs:
      if one.row and other.views and len(one.axes) == len(other.axes):
        both = zip(one.axes, other.axes, strict=True)
        if any(a & ROW and b & OWN for a, b in both):
          work.tables |= other.views


def note_length(eqn, inputs, work, key):
  """Keeps the length of the row as attention is entered, before reshapes."""
  if key in work.lengths:
    return
  sizes = [
    size
    for atom, fact in zip(eqn.invars, inputs, strict=True)
    for size, bits in zip(
      getattr(atom.aval, 'shape', ()), fact.axes, strict=True
    )
    if bits & ROW
  ]
  if max(sizes, default=0) > 1:
    work.lengths[key] = max(sizes)


def fused_attention(eqn, inputs, work, times, name):
  """A kernel of queries, keys, values: counted as if it did all the pairs."""
  operands = [
    (atom.aval.shape, fact.axes)
    for atom, fact in zip(eqn.invars, inputs, strict=True)
    if fact.row and jnp.issubdtype(atom.aval.dtype, jnp.inexact)
  ]
  (query, _), (key, axes) = operands[:2]
  keys = max(n for n, bits in zip(key, axes, strict=True) if bits & ROW)
  entries = times * math.prod(query) // query[-1] * keys
  _count(work, 4 * entries * query[-1], name)
  work.softmax += entries


def whole(amount, name):
  """Returns the work without tiles that does what the tile's `amount` does."""
  tile = TILE.search(name)
  return amount * int(tile[2]) // int(tile[1]) if tile else amount


def _count(work, flops, name):
  # Passes that only settle what is known of a loop's carry count nothing.
  if not flops:
    return
  scope = ATTENTION.search(name)
  if scope:
    flops = whole(flops, name)
  work.full += flops
  if scope is None or scope[1] == 'full_attention':
    work.causal += flops
    return
  length = work.lengths.get(name[: scope.end()])
  if not length:
    raise ValueError(
      f'no operand at {name!r} runs along the row of data, so the share that'
      ' its causal mask leaves is unknown'
    )
  window = int(scope[2]) if scope[2] else None
  work.causal += flops * Fraction(pairs(length, window), length**2)


def _dot(eqn, inputs, work, times, name):
  left, right = inputs
  (lc, rc), (lb, rb) = eqn.params['dimension_numbers'][:2]
  shapes = [atom.aval.shape for atom in eqn.invars]
  free = [
    [i for i in range(len(shape)) if i not in (*contracted, *batched)]
    for shape, contracted, batched in zip(
      shapes, (lc, rc), (lb, rb), strict=True
    )
  ]
  axes = [left.axes[i] | right.axes[j] for i, j in zip(lb, rb, strict=True)]
  axes += [left.axes[i] for i in free[0]] + [right.axes[i] for i in free[1]]
  terms = math.prod(shapes[0][i] for i in lc)
  flops = 2 * terms * math.prod(eqn.outvars[0].aval.shape)
  views = left.views | right.views
  looked = left.one_hot or right.one_hot or LOOKUP.search(name)
  out = merge(inputs, tuple(axes))
  if views and looked:
    work.tables |= views
    work.vocab.add(terms)
    work.lookup += times * flops
    return out
  _count(work, times * flops, name)
  work.products |= views
  return dataclasses.replace(out, products=views) if views and out.row else out


def _ragged_dot(eqn, inputs, work, times, name):
  rows, terms = eqn.invars[0].aval.shape[-2:]
  flops = 2 * rows * terms * eqn.invars[1].aval.shape[-1]
  _count(work, times * flops, name)
  views = inputs[1].views
  work.products |= views
  out = merge(inputs, (*inputs[0].axes[:-1], 0))
  return dataclasses.replace(out, products=views or out.products)


def _conv(eqn, inputs, work, times, name):
  numbers = eqn.params['dimension_numbers']
  kernel = eqn.invars[1].aval.shape
  out_shape = eqn.outvars[0].aval.shape
  features = kernel[numbers.rhs_spec[0]]
  flops = 2 * math.prod(out_shape) * math.prod(kernel) // features
  # A dilated input is mostly zeros, which no one multiplies.
  flops //= math.prod(eqn.params['lhs_dilation'])
  _count(work, times * flops, name)
  axes = [0] * len(out_shape)
  for k, (i, o) in enumerate(
    zip(numbers.lhs_spec, numbers.out_spec, strict=True)
  ):
    axes[o] = 0 if k == 1 else inputs[0].axes[i]
  out = merge(inputs, tuple(axes))
  views = inputs[0].views | inputs[1].views
  work.products |= views
  return dataclasses.replace(out, products=views) if views and out.row else out


def _gather(eqn, inputs, work, times, name):
  table, index = inputs
  numbers = eqn.params['dimension_numbers']
  shape = eqn.outvars[0].aval.shape
  operand = eqn.invars[0].aval.shape
  dropped = {*numbers.collapsed_slice_dims, *numbers.operand_batching_dims}
  kept = iter(i for i in range(len(operand)) if i not in dropped)
  picked = iter(index.axes[:-1])
  axes = []
  for dim in range(len(shape)):
    if dim in numbers.offset_dims:
      axes.append(table.axes[next(kept)])
    else:
      # Rows picked from a parameter differ along the axes of the index.
      axes.append(next(picked) | (OWN if table.views else 0))
  if table.views and index.row:
    work.tables |= table.views
    if not index.count:
      rows = math.prod(operand[i] for i in numbers.start_index_map)
      work.vocab.add(rows)
      work.lookup += times * 2 * rows * math.prod(shape)
  return merge(inputs, tuple(axes))


def _dynamic_slice(eqn, inputs, work, times, name):
  table, *index = inputs
  if table.views and any(i.row for i in index):
    work.tables |= table.views
  return merge(inputs, table.axes)


def _broadcast(eqn, inputs, work, times, name):
  shape = eqn.params['shape']
  axes = [0] * len(shape)
  before = getattr(eqn.invars[0].aval, 'shape', ())
  for i, dim in enumerate(eqn.params['broadcast_dimensions']):
    if before[i] == shape[dim]:
      axes[dim] = inputs[0].axes[i]
  one_hot = inputs[0].one_hot
  return merge(inputs, tuple(axes), count=inputs[0].count, one_hot=one_hot)


def _reshape(eqn, inputs, work, times, name):
  old, new = eqn.invars[0].aval.shape, eqn.outvars[0].aval.shape
  axes, i, j = [0] * len(new), 0, 0
  while i < len(old) or j < len(new):
    # The smallest groups of axes, old and new, that hold equally much.
    first, start = i, j
    before, after = (old[i] if i < len(old) else 1), 1
    i += 1
    while before != after or (j == start and j < len(new)):
      if before < after and i < len(old):
        before, i = before * old[i], i + 1
      elif j < len(new):
        after, j = after * new[j], j + 1
      else:
        break
    bits = 0
    for k in range(first, min(i, len(old))):
      bits |= inputs[0].axes[k]
    for k in range(start, j):
      axes[k] = bits if new[k] > 1 else 0
  return merge(inputs, tuple(axes), count=inputs[0].count)


def _transpose(eqn, inputs, work, times, name):
  axes = tuple(inputs[0].axes[i] for i in eqn.params['permutation'])
  return merge(inputs, axes, count=inputs[0].count)


def _squeeze(eqn, inputs, work, times, name):
  gone = eqn.params['dimensions']
  axes = tuple(a for i, a in enumerate(inputs[0].axes) if i not in gone)
  return merge(inputs, axes, count=inputs[0].count)


def _reduce(eqn, inputs, work, times, name):
  gone = eqn.params['axes']
  axes = tuple(a for i, a in enumerate(inputs[0].axes) if i not in gone)
  return merge(inputs, axes)


RULES: dict[str, Callable[..., Fact]] = {
  'dot_general': _dot,
  'ragged_dot': _ragged_dot,
  'ragged_dot_general': _ragged_dot,
  'conv_general_dilated': _conv,
  'gather': _gather,
  'dynamic_slice': _dynamic_slice,
  'broadcast_in_dim': _broadcast,
  'reshape': _reshape,
  'transpose': _transpose,
  'squeeze': _squeeze,
  **{
    f'reduce_{kind}': _reduce
    for kind in ('sum', 'max', 'min', 'prod', 'and', 'or', 'xor')
  },
  'argmax': _reduce,
  'argmin': _reduce,
}
