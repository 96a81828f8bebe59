"""What holds for every optimizer; each check is given the `tiny` of its file."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bigdl import config, tree
from bigdl.optim.base import Optimizer
from bigdl.parallel import rules
from bigdl.parallel.layout import Layout

Tiny = Callable[[], Optimizer]

STEPS = 600
# Of the loss at the start, what may be left of it at the end.
LEFT = {'round': 1e-6, 'valley': 1e-6, 'banana': 1e-3, 'kink': 1e-3}
CLOSE = 1e-5

_GOAL = {
  'up': {'kernel': np.linspace(-1.0, 1.0, 12).reshape(4, 3)},
  'bias': np.array([0.5, -1.0, 1.5, 1.0]),
}
GOAL = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), _GOAL)
START = jax.tree.map(jnp.zeros_like, GOAL)


def _all(params: Any) -> jax.Array:
  return jnp.concatenate([x.ravel() for x in jax.tree.leaves(params)])


def _off(params: Any) -> jax.Array:
  return _all(params) - _all(GOAL)


def _round(params):
  return jnp.square(_off(params)).sum()


def _valley(params):
  """Thirty times as steep one way as another."""
  off = _off(params)
  return (jnp.geomspace(1, 30, off.size) * off**2).sum()


def _banana(params):
  """Rosenbrock's valley, its bend softened from 100 to 10, in each pair."""
  x, y = _all(params).reshape(2, -1)
  return ((1 - x) ** 2 + 10 * (y - x**2) ** 2).sum()


def _kink(params):
  return jnp.abs(_off(params)).sum()


BOWLS = {'round': _round, 'valley': _valley, 'banana': _banana, 'kink': _kink}


@functools.partial(jax.jit, static_argnums=(0, 1))
def _descend(optimizer: Optimizer, bowl: Callable) -> jax.Array:
  tx = optimizer.make(STEPS)

  def step(carry, _):
    params, state = carry
    loss, grads = jax.value_and_grad(bowl)(params)
    updates, state = tx.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), loss

  carry = START, tx.init(START)
  (params, _), losses = jax.lax.scan(step, carry, length=STEPS)
  return jnp.append(losses, bowl(params))


def check_four_bowls_are_descended(tiny: Tiny) -> None:
  for name, bowl in BOWLS.items():
    losses = _descend(tiny(), bowl)
    assert np.isfinite(losses).all(), name
    assert losses[-1] < LEFT[name] * losses[0], (name, losses[-1] / losses[0])


def check_rate_and_length_are_data_not_code(tiny: Tiny) -> None:
  """Two runs that differ in them alone compile once."""

  def program(optimizer: Optimizer, steps: int) -> str:
    tx = optimizer.make(steps)
    return jax.jit(tx.update).lower(START, tx.init(START), START).as_text()

  plain = program(tiny(), 100)
  faster = dataclasses.replace(tiny(), lr=tiny().lr / 3)
  assert program(faster, 100) == plain
  assert program(tiny(), 250) == plain
  other = dataclasses.replace(tiny(), clip=tiny().clip / 3 + 0.1)
  assert program(other, 100) != plain, 'the comparison sees nothing'
  # They act all the same.
  first = [
    o.make(100).update(GOAL, o.make(100).init(START), START)[0]
    for o in (tiny(), faster)
  ]
  close(jax.tree.map(lambda x: x / 3, first[0]), first[1])


def close(a: Any, b: Any, limit: float = CLOSE) -> None:
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=limit, atol=1e-7), a, b
  )


def check_state_lies_where_the_parameters_lie(tiny: Tiny) -> None:
  mesh = Layout(data=2, fsdp=4).mesh()
  params = {
    'up': {'kernel': jnp.ones((32, 64))},
    'down': {'kernel': jnp.ones((128, 32))},
    'bias': jnp.ones(64),
  }
  at = rules.state_shardings(mesh, params)
  assert not at['up']['kernel'].is_fully_replicated
  tx = tiny().make(10)
  shapes = jax.eval_shape(tx.init, params)
  places = rules.state_shardings(mesh, shapes)
  for (path, x), place in zip(
    tree.items(shapes), jax.tree.leaves(places), strict=True
  ):
    small = x.size < rules.SMALLEST
    assert place.is_fully_replicated == small, f'{path} takes its memory whole'
    for (name, weight), its in zip(
      tree.items(params), jax.tree.leaves(at), strict=True
    ):
      if path.endswith(name) and x.shape == weight.shape:
        assert place.spec == its.spec, path
  placed = jax.device_put(params, at)
  state = jax.jit(tx.init, out_shardings=places)(placed)
  step = jax.jit(tx.update, out_shardings=(at, places))
  updates, after = step(placed, state, placed)
  want, kept = tx.update(params, tx.init(params), params)
  close((jax.device_get(updates), jax.device_get(after)), (want, kept), 1e-4)


def check_an_update_keeps_shapes_and_dtypes(tiny: Tiny) -> None:
  tx = tiny().make(10)
  state = tx.init(START)
  update = jax.jit(tx.update)
  for _ in range(3):
    updates, after = update(GOAL, state, START)
    assert form(after) == form(state)
    assert form(updates) == form(START)
    state = after
  assert update._cache_size() == 1
  assert int(state.step) == 3


def form(values: Any) -> Any:
  return jax.tree.map(lambda x: (jnp.shape(x), jnp.asarray(x).dtype), values)


def check_jit_is_eager(tiny: Tiny) -> None:
  tx = tiny().make(10)
  state = tx.init(START)
  close(
    jax.jit(tx.update)(GOAL, state, START), tx.update(GOAL, state, START), 1e-4
  )


def check_gradients_of_zero_are_survived(tiny: Tiny) -> None:
  tx = tiny().make(10)
  state, params = tx.init(GOAL), GOAL
  for _ in range(3):
    updates, state = tx.update(START, state, params)
    params = optax.apply_updates(params, updates)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves((params, state)))


def check_frozen_parameters_stay(tiny: Tiny) -> None:
  frozen = dataclasses.replace(tiny(), freeze='^bias', weight_decay=0.1)
  tx = frozen.make(10)
  updates, _ = tx.update(GOAL, tx.init(GOAL), GOAL)
  assert not np.any(updates['bias'])
  assert np.all(updates['up']['kernel'] != 0)


def check_record_rebuilds_the_optimizer(tiny: Tiny) -> None:
  optimizer = tiny()
  text = json.dumps(config.to_json(optimizer))
  assert config.from_json(json.loads(text)) == optimizer == tiny()


CHECKS = [f for name, f in list(globals().items()) if name.startswith('check_')]
