"""What holds for every objective; each check is given the `tiny` of its file.

`tiny()` returns the objective, a module for it to train, and a batch. Rows of
the batch that count nothing are told by one of the fields in `MASKS`.
"""

from __future__ import annotations

from collections.abc import Callable
import functools
import json
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigdl import config
from bigdl.objectives.base import Batch, Objective, State
from bigdl.parallel import rules
from bigdl.parallel.layout import Layout

Tiny = Callable[[], tuple[Objective, nn.Module, Batch]]

CLOSE = 1e-5  # Relative, in float32, against the largest entry.
UPDATES = 60
FALL = 0.8  # Of the loss that those updates leave.
# A row counts nothing where this field of it is zero throughout.
MASKS = ('segments', 'mask', 'weight')
KEY = jax.random.key(7)


class Ready(NamedTuple):
  objective: Objective
  model: nn.Module
  batch: Batch
  params: Any
  extra: Any


@functools.cache
def ready(tiny: Tiny) -> Ready:
  objective, model, batch = tiny()
  start = jax.jit(lambda key, batch: objective.init(model, key, batch))
  return Ready(objective, model, batch, *start(jax.random.key(0), batch))


@functools.cache
def updater(tiny: Tiny) -> tuple[Callable, State]:
  own = ready(tiny)
  tx = optax.adam(3e-2)
  step = jnp.zeros((), jnp.int32)

  @jax.jit
  def update(state, batch, key):
    return own.objective.update(own.model, tx, state, batch, key)

  return update, State(step, own.params, tx.init(own.params), own.extra)


@functools.cache
def grader(tiny: Tiny) -> Callable:
  own = ready(tiny)
  grad = jax.value_and_grad(own.objective.loss, argnums=1, has_aux=True)
  return jax.jit(
    lambda params, batch, key: grad(own.model, params, own.extra, batch, key)
  )


@functools.cache
def scorer(tiny: Tiny) -> Callable:
  own = ready(tiny)
  return jax.jit(
    lambda batch: own.objective.score(own.model, own.params, own.extra, batch)
  )


def close(a: Any, b: Any) -> None:
  def leaf(x, y):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    most = max(np.abs(y).max(), 1e-3) if y.size else 0
    np.testing.assert_allclose(x, y, rtol=0, atol=CLOSE * most)

  jax.tree.map(leaf, a, b)


def steps_itself(objective: Objective) -> bool:
  """Whether it is more than one gradient step on one loss, like a GAN."""
  return type(objective).update is not Objective.update


def check_loss_and_metrics_are_finite_scalars(tiny: Tiny) -> None:
  own = ready(tiny)
  (loss, (extra, metrics)), grads = grader(tiny)(own.params, own.batch, KEY)
  assert {'loss', 'weight'} <= metrics.keys()
  for name, x in {'the loss': loss, **metrics}.items():
    assert x.shape == () and np.isfinite(x), name
    assert jnp.issubdtype(x.dtype, jnp.floating), name
  assert metrics['weight'] > 0
  assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
  assert any(np.any(g) for g in jax.tree.leaves(grads)), 'nothing is learned'
  same_shapes(extra, own.extra)


def check_one_key_is_one_loss(tiny: Tiny) -> None:
  own = ready(tiny)
  again = [grader(tiny)(own.params, own.batch, KEY) for _ in range(2)]
  jax.tree.map(np.testing.assert_array_equal, *again)


def check_loss_falls_on_a_fixed_batch(tiny: Tiny) -> None:
  """For one that steps itself: its numbers stay finite and all of it moves."""
  own = ready(tiny)
  update, state = updater(tiny)
  losses, first = [], jax.tree.map(np.asarray, state.params)
  for step in range(UPDATES):
    state, metrics = update(state, own.batch, jax.random.fold_in(KEY, step))
    assert all(np.isfinite(x) for x in metrics.values()), (step, metrics)
    losses.append(float(metrics['loss']))
  assert int(state.step) == UPDATES
  moved = [
    np.any(a != b)
    for a, b in zip(
      jax.tree.leaves(first), jax.tree.leaves(state.params), strict=True
    )
  ]
  assert all(moved)
  if not steps_itself(own.objective):
    assert np.mean(losses[-3:]) < FALL * np.mean(losses[:3]), losses


def check_masked_rows_change_nothing(tiny: Tiny) -> None:
  own = ready(tiny)
  fields = [name for name in MASKS if name in own.batch]
  assert fields, f'the tiny batch should hold one of {", ".join(MASKS)}'
  # Rows that would move the loss if they counted: those there are, turned.
  others = jax.tree.map(lambda x: jnp.roll(x[::-1], 1, -1), own.batch)

  def with_others(value):
    rows = {**others, fields[0]: jnp.full_like(others[fields[0]], value)}
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), own.batch, rows)

  plain = grader(tiny)(own.params, own.batch, KEY)
  longer = grader(tiny)(own.params, with_others(0), KEY)
  close(longer, plain)
  counted = grader(tiny)(own.params, with_others(1), KEY)
  assert not np.allclose(counted[0][0], plain[0][0]), 'no row counts'
  losses, weights = scorer(tiny)(with_others(0))
  size = len(losses) // 2
  assert not np.any(losses[size:]) and not np.any(weights[size:])


def check_scores_are_a_loss_and_a_weight_a_row(tiny: Tiny) -> None:
  own = ready(tiny)
  losses, weights = scorer(tiny)(own.batch)
  rows = len(next(iter(own.batch.values())))
  for x in (losses, weights):
    assert x.shape == (rows,) and x.dtype == jnp.float32
    assert np.isfinite(x).all()
  (_, (_, metrics)), _ = grader(tiny)(own.params, own.batch, KEY)
  close(weights.sum(), metrics['weight'])
  # A row has the score that it has alone.
  one = jax.tree.map(lambda x: x[:1], own.batch)
  close(
    scorer(tiny)(one),
    (losses[:1], weights[:1]),
  )


def check_one_update_does_not_recompile(tiny: Tiny) -> None:
  own = ready(tiny)
  update, state = updater(tiny)
  after, _ = jax.eval_shape(update, state, own.batch, KEY)
  same_shapes(after, jax.eval_shape(lambda s: s, state))
  for step in range(3):
    state, _ = update(state, own.batch, jax.random.fold_in(KEY, step))
  assert update._cache_size() == 1


def same_shapes(a: Any, b: Any) -> None:
  a, b = (jax.tree.map(lambda x: (x.shape, x.dtype), t) for t in (a, b))
  assert a == b


def check_sharded_update_is_that_of_one_device(tiny: Tiny) -> None:
  own = ready(tiny)
  rows = jax.tree.map(
    lambda x: jnp.concatenate([jnp.roll(x, i, 0) for i in range(8)]), own.batch
  )
  want = grader(tiny)(own.params, rows, KEY)
  mesh = Layout(data=8).mesh()
  with jax.set_mesh(mesh):
    placed = jax.device_put(rows, rules.batch_sharding(mesh))
    got = grader(tiny)(own.params, placed, KEY)
  close(jax.device_get(got), jax.device_get(want))


def check_data_that_does_not_fit_is_refused(tiny: Tiny) -> None:
  own = ready(tiny)
  spec = {
    k: jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for k, x in own.batch.items()
  }
  own.objective.check(own.model, spec, {})
  units = own.objective.units(spec)
  assert isinstance(units, int) and units > 0
  other = {'weather': jax.ShapeDtypeStruct((3,), jnp.float32)}
  with pytest.raises(ValueError) as error:
    own.objective.check(own.model, other, {})
  assert '\n' not in str(error.value)


def check_record_rebuilds_the_objective(tiny: Tiny) -> None:
  objective = ready(tiny).objective
  text = json.dumps(config.to_json(objective))
  assert config.from_json(json.loads(text)) == objective == tiny()[0]
  assert objective.unit and objective.unit == objective.unit.lower()


CHECKS = [f for name, f in list(globals().items()) if name.startswith('check_')]
