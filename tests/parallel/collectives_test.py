"""What passes between devices, read from compiled programs."""

# Shapes: B rows, T positions, D width, F hidden width, V vocabulary.
from __future__ import annotations

import collections
import functools
import re

import exactness
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl import tree
from bigdl.models.gpt import GPT
from bigdl.parallel import rules, scope
from bigdl.parallel.layout import Layout
from bigdl.train.program import Program

ROWS, LENGTH = 16, 16
# No two of these are equal, nor are their parts.
WIDTH, HIDDEN, VOCAB = 64, 224, 96
KERNELS = 6  # Of a block.
KINDS = (
  'all-gather',
  'all-reduce',
  'reduce-scatter',
  'all-to-all',
  'collective-permute',
)


def model(depth=2, **changes):
  fields = {
    'width': WIDTH,
    'heads': 8,
    'mlp_width': HIDDEN,
    'vocab': VOCAB,
    'length': LENGTH,
    'stack': 'loop',
  }
  return GPT(depth=depth, **{**fields, **changes})


@functools.cache
def forward(layout: Layout, depth: int, length: int, **changes) -> str:
  """Returns the compiled text of what runs up to the head."""
  net, mesh = model(depth, **changes), layout.mesh()
  tokens_BT = jax.ShapeDtypeStruct(
    (ROWS, length), jnp.int32, sharding=rules.batch_sharding(mesh)
  )
  with scope.entered(layout, mesh):
    shapes = jax.eval_shape(net.init, jax.random.key(0), tokens_BT)
    params = jax.tree.map(
      lambda s, at: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=at),
      shapes,
      rules.state_shardings(mesh, shapes),
    )
    run = jax.jit(functools.partial(net.apply, method='hidden'))
    return run.lower(params, tokens_BT).compile().as_text()


def collectives(text: str) -> collections.Counter:
  """Returns how many there are of each kind and result, by name and shape."""
  pattern = rf'= \(?(\w+\[[\d,]*\])\S* .*?({"|".join(KINDS)})(?:-start)?\('
  return collections.Counter(
    (kind, shape) for shape, kind in re.findall(pattern, text)
  )


def of_a_layer(layout: Layout, length: int = LENGTH, **changes):
  """Returns what one layer adds to the collectives of the forward pass."""
  one, two = (
    collectives(forward(layout, depth, length, **changes)) for depth in (1, 2)
  )
  assert not one - two
  return two - one


def kinds(found) -> dict[str, int]:
  counts = collections.Counter()
  for (kind, _), count in found.items():
    # This compiler leaves it at the sum, of which each device then takes its
    # part.
    counts['sum' if kind in ('all-reduce', 'reduce-scatter') else kind] += count
  return dict(counts)


@pytest.mark.parametrize('block', ['pre', 'post'])
def test_a_layer_of_split_heads_gathers_and_sums_twice(block):
  found = of_a_layer(Layout(data=2, tensor=4), block=block)
  assert kinds(found) == {'all-gather': 2, 'sum': 2}
  # They are of the residual stream of a device's rows.
  assert {shape for _, shape in found} == {f'f32[{ROWS // 2},{LENGTH},{WIDTH}]'}


def test_where_positions_cannot_be_split_a_layer_does_no_more():
  found = of_a_layer(Layout(data=2, tensor=4), LENGTH - 1)
  assert kinds(found) == {'all-gather': 2, 'sum': 2}
  stream = f'f32[{ROWS // 2},{LENGTH - 1},{WIDTH}]'
  assert {shape for _, shape in found} == {stream}


def test_few_key_heads_cost_no_more_than_their_copies():
  found = of_a_layer(Layout(data=2, tensor=4), kv_heads=1)
  streams = {
    key: n
    for key, n in found.items()
    if key[1] == f'f32[{ROWS // 2},{LENGTH},{WIDTH}]'
  }
  assert kinds(streams) == {'all-gather': 2, 'sum': 2}
  # A head of keys and one of values.
  rest = {
    shape: n
    for (kind, shape), n in found.items()
    if (kind, shape) not in streams
  }
  assert sum(rest.values()) <= 2
  for shape in rest:
    dims = np.array(re.findall(r'\d+', shape.partition('[')[2]), int)
    assert dims.prod() == ROWS // 2 * LENGTH * WIDTH // 8


def test_fsdp_gathers_each_weight_once_forward():
  found = of_a_layer(Layout(data=1, fsdp=8))
  assert kinds(found) == {'all-gather': KERNELS}
  sizes = sorted(
    int(np.prod([int(n) for n in re.findall(r'\d+', shape[3:])]))
    for (_, shape), count in found.items()
    for _ in range(count)
  )
  assert sizes == sorted([WIDTH * WIDTH] * 4 + [WIDTH * HIDDEN] * 2), (
    'each is a kernel'
  )


def test_fsdp_and_split_heads_gather_a_part_of_each_weight():
  found = of_a_layer(Layout(data=1, fsdp=2, tensor=4))
  assert kinds(found) == {'all-gather': 2 + KERNELS, 'sum': 2}


def test_split_positions_are_exchanged_for_heads_four_times_a_layer():
  found = of_a_layer(Layout(data=2, context=4))
  assert kinds(found) == {'all-to-all': 4}


@pytest.mark.parametrize(
  'layout', [Layout(data=2, tensor=4), Layout(data=1, fsdp=2, tensor=4)]
)
def test_the_table_of_tokens_is_whole_on_no_device(layout):
  text = forward(layout, 1, LENGTH)
  assert f'f32[{VOCAB // 4},{WIDTH}]' in text
  assert f'[{VOCAB},{WIDTH}]' not in text


@functools.cache
def update(layout: Layout) -> tuple[jax.stages.Compiled, Program]:
  """Returns the compiled update of a small run, its blocks in a scan."""
  e = exactness.experiment(
    'gpt',
    layout,
    model={'width': WIDTH, 'mlp_width': HIDDEN, 'vocab': VOCAB, 'depth': 3},
  )
  plan = Program(e, layout.mesh())
  return plan.update(plan.state_shapes())[0], plan


def test_split_positions_are_gathered_by_no_gradient():
  text = update(Layout(data=2, context=4))[0].as_text()
  assert 'all-to-all' in text
  assert 'all-gather' not in text


SPLIT = Layout(data=1, fsdp=4, tensor=2)


def test_no_device_has_a_weight_of_all_layers_whole():
  text = update(SPLIT)[0].as_text()
  # A device has its share of the columns and rows of all layers.
  assert f'[3,{WIDTH // 4},{HIDDEN // 2}]' in text
  for dims in (
    (3, WIDTH, HIDDEN),
    (3, WIDTH, HIDDEN // 2),
    (3, WIDTH // 4, HIDDEN),
    (3, HIDDEN, WIDTH),
    (3, HIDDEN // 2, WIDTH),
    (3, HIDDEN, WIDTH // 4),
  ):
    assert f'[{",".join(map(str, dims))}]' not in text


def test_a_device_is_given_its_share_of_the_state_and_of_the_rows():
  compiled, plan = update(SPLIT)
  shapes = plan.state_shapes(), plan.batch_shapes()
  parts = jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(s.sharding.shard_shape(s.shape), s.dtype),
    shapes,
  )
  own = tree.bytes_of(parts)
  # Beside them, the key.
  assert 0 <= compiled.memory_analysis().argument_size_in_bytes - own <= 64
  # Biases and norms are copied over one axis or both.
  assert own < tree.bytes_of(shapes) / 6


def test_logits_of_the_whole_vocabulary_are_on_no_device():
  text = update(SPLIT)[0].as_text()
  assert re.search(rf'f32\[[\d,]+,{VOCAB // 2}\]', text)
  assert not re.search(rf'f32\[[\d,]+,{VOCAB}\]', text)
