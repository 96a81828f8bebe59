"""Rates by layer, gradual unfreezing, and which parameters train at all."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigdl import tree
from bigdl.layers import stack
from bigdl.models.transformer import Transformer
from bigdl.optim import depth
from bigdl.optim.adamw import AdamW
from bigdl.optim.schedule import Constant
from bigdl.optim.sgd import SGD

PLAIN = SGD(
  lr=0.5, schedule=Constant(), momentum=0.0, weight_decay=0.0, clip=0.0
)
DEPTH = 3


def block(seed):
  rng = np.random.default_rng(seed)
  return {'up': {'kernel': jnp.asarray(rng.normal(size=(2, 4)), jnp.float32)}}


LOOP = {
  'embed': {'embedding': jnp.linspace(1, 2, 6).reshape(3, 2)},
  **{f'blocks_{i}': block(i) for i in range(DEPTH)},
  'head': {'kernel': jnp.ones((2, 3))},
}
SCAN = stack.to_scan(LOOP)


def run(optimizer, params, updates, steps=10):
  tx = optimizer.make(steps)
  state, path = tx.init(params), []
  update = jax.jit(tx.update)
  for k in range(updates):
    grads = jax.tree.map(lambda x, k=k: jnp.cos((k + 1) * x), params)
    moves, state = update(grads, state, params)
    params = optax.apply_updates(params, moves)
    path.append(params)
  assert update._cache_size() == 1
  return path, state


def close(a, b):
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-6, 1e-7), a, b)


def test_layers_are_counted_from_the_embeddings_to_the_head():
  found, head = depth.layers({'body': LOOP, 'positions': {'embedding': 0}})
  assert head == DEPTH + 1
  assert dict(tree.items(found)) == {
    'body/embed/embedding': 0,
    'body/blocks_0/up/kernel': 1,
    'body/blocks_1/up/kernel': 2,
    'body/blocks_2/up/kernel': 3,
    'body/head/kernel': 4,
    'positions/embedding': 0,
  }


def test_stacks_of_two_depths_meet_at_the_top():
  model = Transformer(
    depth=3, decoder_depth=2, width=8, heads=2, vocab=11, length=6,
    embed_norm=True, block='pre', stack='loop',
  )  # fmt: skip
  tokens = jnp.zeros((1, 4), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens, tokens)
  found, head = depth.layers(shapes['params'])
  layers = {'/'.join(path.split('/')[:2]): n for path, n in tree.items(found)}
  assert head == 4
  assert [layers[f'encoder/blocks_{i}'] for i in range(3)] == [1, 2, 3]
  assert [layers[f'decoder/blocks_{i}'] for i in range(2)] == [2, 3]
  assert layers['embed/embedding'] == layers['encoder/input_norm'] == 0
  assert layers['decoder/output_norm'] == 4
  scanned = jax.eval_shape(
    model.clone(stack='scan').init, jax.random.key(0), tokens, tokens
  )
  found, head = depth.layers(scanned['params'])
  layers = dict(tree.items(found))
  assert head == 4
  for name, want in (('encoder', [1, 2, 3]), ('decoder', [2, 3])):
    kernel = layers[f'{name}/blocks/mlp/up/kernel']
    assert kernel.ravel().tolist() == want


def test_a_rate_decays_with_each_layer_below_the_head():
  decayed = dataclasses.replace(PLAIN, layer_decay=0.5)
  (after,), _ = run(decayed, LOOP, 1)
  (plain,), _ = run(PLAIN, LOOP, 1)
  for name, factor in (
    ('head', 1),
    ('blocks_2', 1 / 2),
    ('blocks_1', 1 / 4),
    ('blocks_0', 1 / 8),
    ('embed', 1 / 16),
  ):
    moved, whole = (
      jax.tree.map(jnp.subtract, x[name], LOOP[name]) for x in (after, plain)
    )
    jax.tree.map(
      lambda m, w, f=factor: np.testing.assert_allclose(m, f * w, rtol=1e-4),
      moved,
      whole,
    )


@pytest.mark.parametrize(
  'optimizer',
  [
    AdamW(lr=0.1, layer_decay=0.6, ema=0.5),
    AdamW(lr=0.1, unfreeze=0.6),
    AdamW(lr=0.1, unfreeze=0.6, layer_decay=0.8, train='blocks|head'),
  ],
)
def test_a_scan_moves_as_the_loop_does(optimizer):
  loop, loop_state = run(optimizer, LOOP, 7)
  scan, scan_state = run(optimizer, SCAN, 7)
  for one, many in zip(loop, scan, strict=True):
    close(stack.to_scan(one), many)
  if optimizer.ema:
    close(stack.to_scan(loop_state.average), scan_state.average)


@pytest.mark.parametrize('params', [LOOP, SCAN], ids=['loop', 'scan'])
def test_layers_are_freed_one_by_one_from_the_head(params):
  # 12 updates: the head moves from the first, each lower layer 2 later.
  gradual = AdamW(lr=0.1, schedule=Constant(), unfreeze=0.66, ema=0.9)
  path, state = run(gradual, params, 12, steps=12)
  names = ('head', 'blocks_2', 'blocks_1', 'blocks_0', 'embed')
  before = stack.to_loop(params) if params is SCAN else params
  for step, after in enumerate(path):
    after = stack.to_loop(after) if params is SCAN else after
    for number, name in enumerate(names):
      moved = any(
        np.any(a != b)
        for a, b in zip(
          jax.tree.leaves(after[name]),
          jax.tree.leaves(before[name]),
          strict=True,
        )
      )
      assert moved == (step >= 2 * number), (step, name)
    before = after
  # What has not moved has an average that has not drifted.
  tx = gradual.make(12)
  held = tx.init(params)
  _, held = tx.update(params, held, params)
  np.testing.assert_array_equal(
    held.average['embed']['embedding'], params['embed']['embedding']
  )
  assert int(state.step) == 12


def test_a_pattern_is_freed_at_a_share_of_its_own():
  own = dataclasses.replace(
    PLAIN, unfreeze_at=(('blocks_1', 0.5), ('blocks', 0.2))
  )
  path, _ = run(own, LOOP, 6, steps=10)
  begins = {}
  for name in LOOP:
    moved = [np.any(_flat(p)[name] != _flat(LOOP)[name]) for p in path]
    begins[name] = moved.index(True)
  assert begins == {
    'embed': 0,
    'blocks_0': 2,
    'blocks_1': 5,
    'blocks_2': 2,
    'head': 0,
  }


def _flat(params):
  return {k: jax.tree.leaves(v)[0] for k, v in params.items()}


def test_what_is_not_free_does_not_count_in_the_norm_that_clips():
  clipped = dataclasses.replace(PLAIN, clip=0.1, unfreeze_at=(('embed', 0.5),))
  tx = clipped.make(10)
  grads = jax.tree.map(lambda x: jnp.cos(x), LOOP)
  huge = {**grads, 'embed': {'embedding': jnp.full((3, 2), jnp.inf)}}
  updates, _ = tx.update(huge, tx.init(LOOP), LOOP)
  rest = {k: v for k, v in LOOP.items() if k != 'embed'}
  alone = dataclasses.replace(clipped, unfreeze_at=()).make(10)
  want, _ = alone.update(
    {k: v for k, v in grads.items() if k != 'embed'}, alone.init(rest), rest
  )
  close({k: updates[k] for k in rest}, want)
  assert not np.any(updates['embed']['embedding'])


def test_only_what_train_finds_moves_counts_and_takes_memory():
  optimizer = AdamW(weight_decay=0.3, clip=0.1, ema=0.5, train='^head/')
  path, state = run(optimizer, LOOP, 3)
  assert np.any(path[-1]['head']['kernel'] != LOOP['head']['kernel'])
  for name in ('embed', 'blocks_0', 'blocks_2'):
    jax.tree.map(np.testing.assert_array_equal, path[-1][name], LOOP[name])
    jax.tree.map(np.testing.assert_array_equal, state.average[name], LOOP[name])
  kept = sum(x.size for x in jax.tree.leaves(state.rule) if x.ndim)
  assert kept == 2 * LOOP['head']['kernel'].size
  assert optimizer.trained(LOOP) == LOOP['head']['kernel'].size
  assert AdamW().trained(LOOP) == tree.size(LOOP)


def test_of_what_train_finds_freeze_holds_some_back():
  optimizer = AdamW(train='blocks', freeze='blocks_1')
  (after,), _ = run(optimizer, LOOP, 1)
  moved = [k for k in LOOP if np.any(_flat(after)[k] != _flat(LOOP)[k])]
  assert moved == ['blocks_0', 'blocks_2']


def test_what_is_held_has_no_gradient():
  optimizer = AdamW(train='^head/')

  def loss(params):
    held = optimizer.hold(params)
    return sum(jnp.square(x).sum() for x in jax.tree.leaves(held))

  grads = _flat(jax.grad(loss)(LOOP))
  assert [k for k in LOOP if np.any(grads[k])] == ['head']
  # Nothing of the frozen weights is differentiated.
  work = str(jax.make_jaxpr(jax.grad(loss))(LOOP)).count(' = mul ')
  alone = jax.make_jaxpr(jax.grad(loss))({'head': LOOP['head']})
  assert work == str(alone).count(' = mul ') > 0
  assert AdamW().hold(LOOP) is LOOP


def test_runs_of_other_lengths_unfreeze_in_one_program():
  def program(steps):
    tx = AdamW(unfreeze=0.5).make(steps)
    return jax.jit(tx.update).lower(LOOP, tx.init(LOOP), LOOP).as_text()

  assert program(10) == program(99)


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: AdamW(layer_decay=0), r'layer_decay=0 must be in \(0, 1\]'),
    (lambda: AdamW(unfreeze=1.5), r'unfreeze=1.5 must be in \[0, 1\], .*'),
    (
      lambda: AdamW(unfreeze_at=(('x', -1),)),
      r'unfreeze_at=-1 must be in \[0, 1\], .*',
    ),
    (
      lambda: AdamW(train='haed').make(5).init(LOOP),
      "train='haed' must match a parameter, such as .*",
    ),
    (
      lambda: AdamW(train='head', freeze='head').make(5).init(LOOP),
      "freeze='head' and train='head' leave none of the 5 parameters to train",
    ),
    (
      lambda: AdamW(layer_decay=0.5, decay='').make(5).init({'x': jnp.ones(2)}),
      'layer_decay=0.5 needs layers named blocks_0 and so on; .* like x',
    ),
  ],
)
def test_a_bad_field_is_refused_by_name_and_value(make, message):
  with pytest.raises(ValueError, match=f'^{message}$'):
    make()


def test_a_layer_that_is_freed_moves_by_no_more_than_the_rate():
  gradual = AdamW(
    lr=0.1, b2=0.999, schedule=Constant(), unfreeze=0.9, weight_decay=0.0
  )
  tx = gradual.make(200)
  params, state = LOOP, tx.init(LOOP)
  step = jax.jit(tx.update)
  rng = np.random.default_rng(0)
  most = 0.0
  for _ in range(200):
    grads = jax.tree.map(lambda w: 1 + 0.1 * rng.normal(size=w.shape), params)
    updates, state = step(grads, state, params)
    params = optax.apply_updates(params, updates)
    most = max(
      most, *(float(jnp.abs(u).max()) for u in jax.tree.leaves(updates))
    )
  assert 0.09 < most < 0.12
