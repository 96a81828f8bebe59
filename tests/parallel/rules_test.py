"""Where arrays lie: by rule, by size, and with what result."""

from __future__ import annotations

import functools

import finding
from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from bigdl import tree
from bigdl.models import bert, gpt, transformer, vit, xlnet
from bigdl.models.gpt import GPT
from bigdl.objectives.base import State
from bigdl.objectives.causal_lm import CausalLM
from bigdl.optim.adamw import AdamW
from bigdl.optim.sgd import SGD
from bigdl.parallel import rules
from bigdl.parallel.layout import AXES, Layout

SAME_LOSS = 1e-5  # Relative, in float32.
MESH = Layout(data=2, fsdp=4).mesh()
MODEL = GPT(
  depth=2, width=32, heads=2, vocab=64, length=8, stack='scan', bias=False
)
STEPS, ROWS = 5, 16


def shape(*dims):
  return jax.ShapeDtypeStruct(dims, jnp.float32)


def specs(shapes, *, mesh=MESH, table=()):
  found = rules.state_shardings(mesh, shapes, rules=table)
  return {path: s.spec for path, s in tree.items(found)}


@pytest.mark.parametrize(
  ('dims', 'spec'),
  [
    ((64, 32), P('fsdp')),
    ((32, 64), P(None, 'fsdp')),
    ((64, 64), P(None, 'fsdp')),
    # Of the last two dimensions the larger that four devices divide.
    ((63, 32), P(None, 'fsdp')),
    ((50, 30, 64), P(None, None, 'fsdp')),
    # A scan's leading dimension only where the others do not fit.
    ((1000, 4, 8), P(None, None, 'fsdp')),
    ((40, 33, 9), P('fsdp')),
    ((33, 51), P()),
    ((1024,), P('fsdp')),
    # Not worth the messages.
    ((31, 33), P()),
    ((8, 8), P()),
    ((), P()),
  ],
)
def test_arrays_are_split_along_a_large_dimension_that_divides(dims, spec):
  assert specs({'x': shape(*dims)}) == {'x': spec}


def test_without_fsdp_every_array_is_whole():
  table = {'x': shape(64, 64), 'y': shape(4096)}
  assert set(specs(table, mesh=Layout(8).mesh()).values()) == {P()}


def test_a_rule_is_read_from_the_right():
  table = (('kernel$', ('fsdp', None)),)
  flat = specs({'up': {'kernel': shape(4, 100)}}, table=table)
  assert flat == {'up/kernel': P('fsdp', None)}
  # The same kernels stacked by a scan, whose dimension stays whole.
  stacked = specs({'blocks': {'kernel': shape(12, 4, 100)}}, table=table)
  assert stacked == {'blocks/kernel': P(None, 'fsdp', None)}


def test_the_first_rule_that_fits_holds():
  table = (
    ('up/kernel', ('data', 'fsdp')),
    ('kernel', (None, 'data')),
    ('bias|kernel', ('fsdp', None, None)),
  )
  shapes = {
    'up': {'kernel': shape(8, 8), 'bias': shape(1024)},
    'down': {'kernel': shape(8, 8)},
  }
  assert specs(shapes, table=table) == {
    'up/kernel': P('data', 'fsdp'),
    'down/kernel': P(None, 'data'),
    # A rule of three dimensions does not hold for one: it goes by size.
    'up/bias': P('fsdp'),
  }


def test_a_rule_that_does_not_divide_names_path_shape_and_axis():
  table = (('kernel$', (None, 'fsdp')),)
  with pytest.raises(ValueError) as error:
    specs({'up': {'kernel': shape(64, 6)}}, table=table)
  assert str(error.value) == (
    'layout.fsdp=4 must divide 6 of up/kernel [64, 6], as layout.rules ask'
  )


def test_moments_lie_where_their_weights_do():
  params = jax.eval_shape(
    MODEL.init, jax.random.key(0), jnp.zeros((1, 4), jnp.int32)
  )['params']
  opt = jax.eval_shape(AdamW(ema=0.9).make(9).init, params)
  table = (('query/kernel', ('data', 'fsdp')),)
  weights, moments = (specs(x, table=table) for x in (params, opt))
  assert weights['blocks/attention/query/kernel'] == P(None, 'data', 'fsdp')
  for kind in ('rule/mu', 'rule/nu', 'average'):
    own = {
      path.partition(f'{kind}/')[2]: spec
      for path, spec in moments.items()
      if f'{kind}/' in path
    }
    assert own == weights


@pytest.mark.parametrize('layout', [Layout(8), Layout(2, 4), Layout(1, 8)])
def test_every_device_has_its_own_rows_of_the_batch(layout):
  mesh = layout.mesh()
  rows = jnp.arange(32).reshape(16, 2)
  placed = jax.device_put(rows, rules.batch_sharding(mesh))
  found = [s.data for s in placed.addressable_shards]
  assert [x.shape for x in found] == [(2, 2)] * 8
  np.testing.assert_array_equal(
    sorted(int(x[0, 0]) for x in found), rows[::2, 0]
  )


TX = SGD(lr=0.1).make(STEPS)


@functools.cache
def first_state() -> State:
  rows = {'tokens': jnp.zeros((1, 9), jnp.int32)}
  start = jax.jit(lambda key: CausalLM().init(MODEL, key, rows))
  params, extra = start(jax.random.key(0))
  return State(jnp.zeros((), jnp.int32), params, TX.init(params), extra)


def trained(layout: Layout, *, split: bool) -> tuple[list[float], State]:
  """Returns the losses of a few updates under a layout, and the state."""
  mesh, draw = layout.mesh(), np.random.default_rng(0)
  rows_at, key = rules.batch_sharding(mesh), jax.random.key(1)
  state, losses = first_state(), []
  at = rules.state_shardings(mesh, state, rules=layout.rules)
  state = jax.device_put(state, at)
  assert split == any(
    not x.is_fully_replicated for x in jax.tree.leaves(state.params)
  )
  step = jax.jit(
    lambda state, rows: CausalLM().update(MODEL, TX, state, rows, key),
    in_shardings=(at, rows_at),
    out_shardings=(at, None),
  )
  with jax.set_mesh(mesh):
    for _ in range(STEPS):
      tokens = draw.integers(0, 64, (ROWS, 9), np.int32)
      rows = jax.device_put({'tokens': tokens}, rows_at)
      state, metrics = step(state, rows)
      losses.append(float(metrics['loss']))
  return losses, jax.device_get(state)


@pytest.fixture(scope='module')
def alone():
  return trained(Layout(data=1), split=False)


@pytest.mark.parametrize(
  'layout',
  [
    Layout(data=1, fsdp=8),
    Layout(data=2, fsdp=2, rules=(('(query|up)/kernel', ('data', 'fsdp')),)),
  ],
  ids=['fsdp', 'rules'],
)
def test_any_layout_trains_a_gpt_as_one_device_does(alone, layout):
  losses, state = trained(layout, split=layout.fsdp > 1)
  np.testing.assert_allclose(losses, alone[0], rtol=SAME_LOSS)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=SAME_LOSS, atol=1e-6),
    state.params,
    alone[1].params,
  )


def test_fsdp_keeps_a_share_of_the_state_on_each_device():
  shapes = jax.eval_shape(
    lambda key: MODEL.init(key, jnp.zeros((1, 4), jnp.int32))['params'],
    jax.random.key(0),
  )

  def bytes_here(layout):
    at = rules.state_shardings(layout.mesh(), shapes)
    parts = jax.tree.map(
      lambda x, s: shape(*s.shard_shape(x.shape)), shapes, at
    )
    return tree.bytes_of(parts)

  whole, eighth = bytes_here(Layout(8)), bytes_here(Layout(1, 8))
  assert whole == tree.bytes_of(shapes)
  # Norms and biases are copied.
  assert eighth < whole / 4


# Bytes of parameters on a device beyond an even share of all: positions, norms
# and biases, which are copied over one axis or another.
MOST_COPIED = 2**21
# The share of them in a model of a few parameters.
MOST_COPIED_TINY = 0.15
PUBLISHED = {
  'gpt2-1.5b': (gpt.SIZES, 8, 5),
  'gpt3-175b': (gpt.SIZES, 128, 8),
  'palm-540b': (gpt.SIZES, 384, 12),
  'gopher-280b': (gpt.SIZES, 128, 8),
  'llama2-70b': (gpt.SIZES, 64, 16),
  'chinchilla-70b': (gpt.SIZES, 128, 4),
  'bert-large': (bert.SIZES, 8, 4),
  'vit-22b/14': (vit.SIZES, 64, 4),
  'transformer-big': (transformer.SIZES, 8, 4),
  'xlnet-large': (xlnet.SIZES, 8, 4),
}


def abstract(**sizes) -> AbstractMesh:
  """Returns a mesh of devices that are not here."""
  return AbstractMesh(
    tuple(sizes.get(axis, 1) for axis in AXES),
    AXES,
    axis_types=(AxisType.Auto,) * len(AXES),
  )


def copied(params, mesh) -> float:
  """Returns a device's bytes beyond an even share of all."""
  at = rules.state_shardings(mesh, params)
  parts = jax.tree.map(lambda x, s: shape(*s.shard_shape(x.shape)), params, at)
  return tree.bytes_of(parts) - tree.bytes_of(params) / mesh.size


def started(model, *inputs):
  rngs = {'params': jax.random.key(0), 'dropout': jax.random.key(1)}
  return jax.eval_shape(model.init, rngs, *inputs)['params']


@pytest.mark.parametrize('name', PUBLISHED)
def test_a_published_model_leaves_next_to_nothing_whole(name):
  sizes, fsdp, tensor = PUBLISHED[name]
  model = sizes[name].clone(stack='scan')
  inputs = [jax.ShapeDtypeStruct((1, 8), jnp.int32)]
  if sizes is vit.SIZES:
    side = model.image_size
    inputs = [jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)]
  if sizes is transformer.SIZES:
    inputs *= 2
  params = started(model, *inputs)
  assert copied(params, abstract(fsdp=fsdp, tensor=tensor)) < MOST_COPIED
  # The rules know their parts by name, not by size alone.
  by_size = rules.state_shardings(abstract(tensor=tensor), params)
  split = {p for p, s in tree.items(by_size) if not s.is_fully_replicated}
  matrices = {
    p
    for p, x in tree.items(params)
    if 'kernel' in p and 'blocks' in p.split('/') and x.ndim == 3
  }
  assert matrices and matrices <= split


TINIES = finding.tinies('bigdl.models', nn.Module)


@pytest.mark.parametrize('name', TINIES)
def test_the_smallest_of_each_model_is_split_too(name, monkeypatch):
  monkeypatch.setattr(rules, 'SMALLEST', 1)
  model, inputs = TINIES[name]()
  params = started(model, *inputs)
  mesh = abstract(fsdp=2, tensor=2)
  assert copied(params, mesh) < MOST_COPIED_TINY * tree.bytes_of(params)


SPLIT = abstract(fsdp=4, tensor=2)


@pytest.mark.parametrize(
  ('path', 'dims', 'spec'),
  [
    ('blocks_0/attention/query/kernel', (64, 32), P('fsdp', 'tensor')),
    ('blocks/attention/query/kernel', (3, 64, 32), P(None, 'fsdp', 'tensor')),
    ('decoder/blocks/cross/out/kernel', (3, 64, 32), P(None, 'tensor', 'fsdp')),
    ('body/blocks/mlp/gate/kernel', (3, 64, 32), P(None, 'fsdp', 'tensor')),
    ('blocks/mlp/down/kernel', (3, 64, 32), P(None, 'tensor', 'fsdp')),
    ('blocks/mlp/up/bias', (3, 64), P(None, 'tensor')),
    ('blocks/mlp/down/bias', (3, 64), P()),
    ('mu/blocks/mlp/up/kernel', (3, 64, 32), P(None, 'fsdp', 'tensor')),
    ('embed/embedding', (64, 32), P('tensor', 'fsdp')),
    # Of an odd vocabulary both split the width.
    ('embed/embedding', (65, 32), P(None, ('tensor', 'fsdp'))),
    ('head/kernel', (32, 65), P(('tensor', 'fsdp'))),
    # What fsdp does not divide, it splits beside tensor.
    ('blocks/mlp/up/kernel', (3, 33, 64), P(None, None, ('tensor', 'fsdp'))),
    # An adapter is small, and an optimizer's sums of rows are no matrix.
    ('blocks/mlp_adapter/up/kernel', (3, 32, 64), P(None, None, 'fsdp')),
    ('v_row/blocks/mlp/up/kernel', (3, 2048), P(None, 'fsdp')),
    ('v_col/blocks_0/mlp/up/kernel', (2048,), P('fsdp')),
    ('v/blocks/mlp/up/kernel', (1,), P()),
  ],
)
def test_columns_and_rows_are_told_by_path(path, dims, spec):
  [(_, found)] = specs({path: shape(*dims)}, mesh=SPLIT).items()
  assert found == spec


def test_a_given_rule_goes_before_all():
  table = (('up/kernel$', ('tensor', None)),)
  shapes = {'mlp': {'up': {'kernel': shape(64, 64)}}}
  assert specs(shapes, mesh=SPLIT, table=table) == {
    'mlp/up/kernel': P('tensor', None)
  }


def test_stages_have_blocks_of_their_own():
  mesh = abstract(pipeline=3, tensor=2)
  shapes = {'blocks': {'mlp': {'up': {'kernel': shape(6, 64, 64)}}}}
  assert specs(shapes, mesh=mesh) == {
    'blocks/mlp/up/kernel': P('pipeline', None, 'tensor')
  }
