"""What all optimizers share: rates, masks, clipping, averages."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigdl.optim.adamw import AdamW
from bigdl.optim.schedule import WSD, Constant, Cosine
from bigdl.optim.sgd import SGD

# Each update is then the learning rate times the gradient.
PLAIN = SGD(
  lr=0.5, schedule=Constant(), momentum=0.0, weight_decay=0.0, clip=0.0
)
PARAMS = {
  'embed': {'embedding': jnp.linspace(1, 2, 6).reshape(3, 2)},
  'blocks_0': {
    'norm': {'scale': jnp.ones(2)},
    'up': {'kernel': jnp.linspace(-1, 1, 4).reshape(2, 2), 'bias': jnp.ones(2)},
  },
}
GRADS = jax.tree.map(lambda x: jnp.cos(3 * x), PARAMS)


def replace(**changes):
  return dataclasses.replace(PLAIN, **changes)


def first_update(optimizer, params=PARAMS, grads=GRADS, steps=10):
  tx = optimizer.make(steps)
  return tx.update(grads, tx.init(params), params)[0]


def run(optimizer, count, steps=10):
  tx = optimizer.make(steps)
  params, state, path = PARAMS, tx.init(PARAMS), []
  for k in range(count):
    grads = jax.tree.map(lambda x, k=k: jnp.cos((k + 1) * x), params)
    updates, state = tx.update(grads, state, params)
    params = optax.apply_updates(params, updates)
    path.append(params)
  return path, state


def close(a, b, rtol=1e-6):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-7), a, b
  )


@pytest.mark.parametrize(
  'schedule', [WSD(warmup=3, decay=0.5), Cosine(warmup=0.2), Constant()]
)
def test_the_stated_learning_rate_is_the_one_applied(schedule):
  optimizer, steps = replace(schedule=schedule), 20
  tx = optimizer.make(steps)
  grads = {'x': jnp.ones(())}
  state = tx.init(grads)
  for step in range(steps):
    updates, state = tx.update(grads, state, grads)
    stated = optimizer.learning_rate(step, steps)
    np.testing.assert_allclose(-updates['x'], stated, rtol=1e-6)


def test_decay_moves_what_its_pattern_finds_and_nothing_else():
  zeros = jax.tree.map(jnp.zeros_like, PARAMS)
  updates = first_update(replace(weight_decay=0.1), grads=zeros)
  close(
    updates['blocks_0']['up']['kernel'],
    -0.05 * PARAMS['blocks_0']['up']['kernel'],
  )
  close(updates['embed'], jax.tree.map(lambda x: -0.05 * x, PARAMS['embed']))
  assert not updates['blocks_0']['up']['bias'].any()
  assert not updates['blocks_0']['norm']['scale'].any()


def test_the_first_multiplier_found_in_a_path_scales_its_rate():
  updates = first_update(
    replace(multipliers=(('up/kernel', 0.5), ('blocks', 3.0)))
  )
  plain = first_update(PLAIN)
  close(updates['embed'], plain['embed'])
  up, norm = updates['blocks_0']['up'], updates['blocks_0']['norm']
  close(up['kernel'], 0.5 * plain['blocks_0']['up']['kernel'])
  close(up['bias'], 3 * plain['blocks_0']['up']['bias'])
  close(norm['scale'], 3 * plain['blocks_0']['norm']['scale'])


@pytest.mark.parametrize(
  'frozen', [{'freeze': 'embed'}, {'multipliers': (('embed', 0.0),)}]
)
def test_frozen_parameters_neither_move_nor_count_nor_take_memory(frozen):
  optimizer = AdamW(weight_decay=0.3, clip=0.1, ema=0.5, **frozen)
  path, state = run(optimizer, 3)
  np.testing.assert_array_equal(
    path[-1]['embed']['embedding'], PARAMS['embed']['embedding']
  )
  np.testing.assert_array_equal(
    state.average['embed']['embedding'], PARAMS['embed']['embedding']
  )
  kept = sum(x.size for x in jax.tree.leaves(state.rule) if x.ndim)
  assert kept == 2 * sum(x.size for x in jax.tree.leaves(PARAMS['blocks_0']))
  # The norm that clips is that of the moving gradients alone.
  rest = {'blocks_0': PARAMS['blocks_0']}
  alone = first_update(
    AdamW(weight_decay=0.3, clip=0.1), rest, {'blocks_0': GRADS['blocks_0']}
  )
  close(first_update(optimizer)['blocks_0'], alone['blocks_0'])


def test_infinite_gradients_of_frozen_parameters_do_no_harm():
  grads = {**GRADS, 'embed': {'embedding': jnp.full((3, 2), jnp.inf)}}
  updates = first_update(replace(freeze='embed', clip=1.0), grads=grads)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(updates))


@pytest.mark.parametrize('share', [0.25, 4.0])
def test_gradients_are_scaled_down_to_the_norm_and_never_up(share):
  norm = float(optax.tree.norm(GRADS))
  updates = first_update(replace(clip=share * norm))
  scale = -0.5 * min(1, share)
  close(updates, jax.tree.map(lambda g: scale * g, GRADS))


def test_the_average_weighs_each_update_by_its_age_and_nothing_else():
  optimizer = replace(ema=0.8)
  path, state = run(optimizer, 6)
  ages = 0.8 ** np.arange(5, -1, -1)
  expected = jax.tree.map(
    lambda *xs: np.average(xs, axis=0, weights=ages), *path
  )
  close(optimizer.averaged(state, path[-1]), expected, rtol=1e-5)


def test_without_an_average_the_weights_themselves_are_evaluated():
  path, state = run(PLAIN, 2)
  assert PLAIN.averaged(state, path[-1]) is path[-1]
  assert not jax.tree.leaves(state.average)


def test_before_the_first_update_the_average_is_the_weights():
  optimizer = replace(ema=0.9)
  state = optimizer.make(10).init(PARAMS)
  close(optimizer.averaged(state, PARAMS), PARAMS)


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
def test_weights_keep_their_dtype(dtype):
  params = jax.tree.map(lambda x: x.astype(dtype), PARAMS)
  grads = jax.tree.map(lambda x: x.astype(dtype), GRADS)
  for x in jax.tree.leaves(first_update(AdamW(), params, grads)):
    assert x.dtype == dtype


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: AdamW(lr=-1.0), 'lr=-1.0 must not be negative'),
    (lambda: AdamW(clip=-1), 'clip=-1 must not be negative'),
    (lambda: AdamW(ema=1.0), r'ema=1.0 must be in \[0, 1\)'),
    (lambda: AdamW(b2=1.0), r'b2=1.0 must be in \[0, 1\)'),
    (
      lambda: AdamW(freeze='(embed'),
      r"freeze='\(embed' must be a regular expression: .*",
    ),
    (
      lambda: AdamW(freeze='embd').make(5).init(PARAMS),
      "freeze='embd' must match a parameter, such as blocks_0/norm/scale",
    ),
    (
      lambda: AdamW(decay='kernal').make(5).init(PARAMS),
      "decay='kernal' must match a parameter, such as blocks_0/norm/scale",
    ),
    (
      lambda: AdamW(multipliers=(('x', 2.0),)).make(5).init(PARAMS),
      "multipliers='x' must match a parameter, such as blocks_0/norm/scale",
    ),
    (
      lambda: AdamW(schedule=WSD(warmup=50)).make(20),
      'warmup=50 updates must fit in steps=20',
    ),
  ],
)
def test_a_bad_field_is_refused_by_name_and_value(make, message):
  with pytest.raises(ValueError, match=f'^{message}$'):
    make()
