"""What shared layers and a factorised table mean, for every ALBERT."""

# Shapes: B batch, T positions, D width.
from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import model_battery
import numpy as np
import pytest

from bigdl import tree
from bigdl.layers import stack
from bigdl.models.albert import ALBERT, SIZES
from bigdl.models.bert import BERT
from bigdl.scaling import count

SMALL = ALBERT(
  depth=4, width=12, heads=2, vocab=17, length=7, embed_width=5, groups=2
)
LIMIT = 1e-4  # Of the largest entry, in float32.

# Table 1 prints 12, 18, 60 and 235 million; to the integer without the heads of
# pretraining, pooler included.
BODIES = {
  'albert-base': 11_683_584,
  'albert-large': 17_683_968,
  'albert-xlarge': 58_724_864,
  'albert-xxlarge': 222_595_584,
}


def tokens_of(model):
  shape = (2, model.length)
  return np.random.default_rng(0).integers(0, model.vocab, shape, np.int32)


def shapes_of(model):
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  return jax.eval_shape(model.init, jax.random.key(0), tokens)['params']


@functools.partial(jax.jit, static_argnums=0)
def loss_and_grads(model, params):
  def loss(params):
    x_BTD = model.apply({'params': params}, tokens_of(model), method='hidden')
    weights = jax.random.normal(jax.random.key(1), x_BTD.shape)
    return (x_BTD * weights).mean()

  return jax.value_and_grad(loss)(params)


@pytest.mark.parametrize('name', SIZES)
def test_counts_are_the_published_integers(name):
  kept = [
    leaf
    for path, leaf in tree.items(shapes_of(SIZES[name]))
    if not path.startswith(('head/', 'sentence_head/'))
  ]
  assert tree.size(kept) == BODIES[name]


def test_the_default_is_the_smallest_albert():
  assert SIZES['albert-base'] == ALBERT()


@pytest.mark.parametrize('kind', ['loop', 'scan'])
def test_shared_layers_are_layers_with_equal_weights(kind):
  model = SMALL.clone(stack=kind)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes_of(model))
  params = jax.tree.map(
    lambda x: 8 * x, model_battery.move(zeros, jax.random.key(0))
  )
  looped = stack.to_loop(params) if kind == 'scan' else params
  free = {
    **{k: v for k, v in looped.items() if not k.startswith('blocks_')},
    **{f'blocks_{i}': looped[f'blocks_{i // 2}'] for i in range(4)},
  }
  loss, grads = loss_and_grads(model, params)
  grads = stack.to_loop(grads) if kind == 'scan' else grads
  want, each = loss_and_grads(model.clone(stack='loop', groups=0), free)
  np.testing.assert_allclose(loss, want, rtol=LIMIT)
  for i in range(2):
    own = grads[f'blocks_{i}']
    pair = each[f'blocks_{2 * i}'], each[f'blocks_{2 * i + 1}']
    model_battery.close(own, jax.tree.map(jnp.add, *pair), LIMIT)
    # The two do not happen to be alike.
    kernels = [x['mlp']['up']['kernel'] for x in pair]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-4
  assert set(grads) == {*looped}


def test_the_ledger_counts_parameters_once_and_products_each_time():
  spec = {'0': jax.ShapeDtypeStruct((SMALL.length,), jnp.int32)}

  def counts(model):
    rates = count.flops_per_unit(model, model_battery.Probe(), spec, xla=False)
    sizes = count.params(model, model_battery.Probe(), spec)
    return sizes['nonembedding'], rates['matmul_full']

  once, twice, thrice = (
    counts(SMALL.clone(groups=1, depth=depth)) for depth in (1, 2, 3)
  )
  assert once[0] == twice[0] == thrice[0]
  T, D = SMALL.length, SMALL.width
  # Four projections, the MLP's two, scores and sums; training is three times.
  layer = 3 * 2 * T * (4 * D * D + 8 * D * D + 2 * T * D)
  assert twice[1] - once[1] == thrice[1] - twice[1] == layer
  apart = counts(SMALL.clone(groups=0, depth=3))
  assert apart[1] == thrice[1]
  assert apart[0] > 2 * thrice[0]


@pytest.mark.parametrize('kind', ['loop', 'scan'])
def test_each_application_drops_its_own(kind):
  # Each application adds a constant, which its own mask drops or doubles.
  model = ALBERT(
    depth=2,
    width=64,
    heads=1,
    vocab=3,
    length=1,
    block='pre',
    dropout=0.5,
    stack=kind,
  )

  def constant(path, leaf):
    on = path.endswith(('mlp/down/bias', 'final_norm/scale'))
    return jnp.full(leaf.shape, on, leaf.dtype)

  @jax.jit
  def run(params):
    return model.apply(
      {'params': params},
      jnp.zeros((1, 1), jnp.int32),
      deterministic=False,
      rngs={'dropout': jax.random.key(1)},
      method='hidden',
    )

  x_BTD = run(tree.map_with_path(constant, shapes_of(model)))
  # Dropped twice, once or never: three levels; with one mask there are two.
  assert len(np.unique(np.round(x_BTD, 4))) == 3


def test_scale_widens_what_depth_cannot_make_larger():
  model = SIZES['albert-base']
  larger = model.scale(4.0)
  assert isinstance(larger, ALBERT)
  assert larger.width > 1.5 * model.width
  assert larger.depth > 1.5 * model.depth
  assert (larger.embed_width, larger.groups) == (128, 1)
  assert model.scale(1.0) == model
  grouped = SMALL.clone(depth=6, groups=3).scale(9.0)
  assert grouped.depth % 3 == 0


def test_an_albert_without_sharing_is_a_bert():
  plain = SMALL.clone(groups=0, embed_width=0)
  bert = BERT(depth=4, width=12, heads=2, vocab=17, length=7, activation='gelu')
  assert tree.paths(shapes_of(plain)) == tree.paths(shapes_of(bert))
