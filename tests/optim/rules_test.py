"""Each rule against optax's own composition of it, or PyTorch's, or algebra."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from bigdl.optim.adafactor import Adafactor
from bigdl.optim.adamw import AdamW
from bigdl.optim.lion import Lion
from bigdl.optim.muon import Muon
from bigdl.optim.schedule import WSD, Cosine
from bigdl.optim.sgd import SGD

STEPS = 30
RTOL, ATOL = 1e-6, 1e-6
SHAPES = {'kernel': (4, 3), 'bias': (3,)}


def first(seed=0):
  rng = np.random.default_rng(seed)
  return {k: rng.normal(size=s).astype(np.float32) for k, s in SHAPES.items()}


def gradients(step):
  """Gradients of varied size, some above the clip and some below."""
  size = np.float32(3 * np.sin(step))
  return {k: size * v for k, v in first(step + 1).items()}


def ours(optimizer):
  return path_of(optimizer.make(STEPS))


def path_of(tx):
  params = first()
  state = tx.init(params)
  update, path = jax.jit(tx.update), []
  for step in range(STEPS):
    updates, state = update(gradients(step), state, params)
    params = optax.apply_updates(params, updates)
    path.append(params)
  return path


def agree(ours, theirs):
  for step, (a, b) in enumerate(zip(ours, theirs, strict=True)):
    for name in SHAPES:
      np.testing.assert_allclose(
        a[name], b[name], rtol=RTOL, atol=ATOL, err_msg=f'{name} at {step}'
      )


def reference(optimizer, make):
  """optax's optimizer under this one's clipping, mask and schedule."""
  tx = make(
    lambda step: optimizer.learning_rate(step, STEPS),
    weight_decay=optimizer.weight_decay,
    mask={'kernel': True, 'bias': False},
  )
  return optax.chain(optax.clip_by_global_norm(optimizer.clip), tx)


def test_adamw_equals_that_of_optax_step_by_step():
  optimizer = AdamW(lr=0.05, schedule=WSD(warmup=4, decay=0.5), b2=0.98)
  theirs = reference(
    optimizer, lambda lr, **kw: optax.adamw(lr, b1=0.9, b2=0.98, **kw)
  )
  agree(ours(optimizer), path_of(theirs))


def test_adamw_equals_that_of_torch_step_by_step():
  optimizer = AdamW(lr=0.05, schedule=Cosine(warmup=4), weight_decay=0.2)
  params = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in first().items()}
  groups = [
    {'params': [params['kernel']], 'weight_decay': 0.2},
    {'params': [params['bias']], 'weight_decay': 0.0},
  ]
  adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
  path = []
  for step in range(STEPS):
    for group in adamw.param_groups:
      group['lr'] = float(optimizer.learning_rate(step, STEPS))
    for name, g in gradients(step).items():
      params[name].grad = torch.tensor(g)
    torch.nn.utils.clip_grad_norm_(params.values(), optimizer.clip)
    adamw.step()
    path.append({k: v.detach().numpy().copy() for k, v in params.items()})
  agree(ours(optimizer), path)


def test_lion_equals_that_of_optax_step_by_step():
  optimizer = Lion(lr=0.01, b1=0.9, b2=0.95)
  theirs = reference(
    optimizer, lambda lr, **kw: optax.lion(lr, b1=0.9, b2=0.95, **kw)
  )
  agree(ours(optimizer), path_of(theirs))


@pytest.mark.parametrize('nesterov', [False, True])
def test_sgd_equals_that_of_torch_step_by_step(nesterov):
  optimizer = SGD(lr=0.1, clip=0.0, weight_decay=0.0, nesterov=nesterov)
  params = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in first().items()}
  sgd = torch.optim.SGD(params.values(), momentum=0.9, nesterov=nesterov)
  path = []
  for step in range(STEPS):
    sgd.param_groups[0]['lr'] = float(optimizer.learning_rate(step, STEPS))
    for name, g in gradients(step).items():
      params[name].grad = torch.tensor(g)
    sgd.step()
    path.append({k: v.detach().numpy().copy() for k, v in params.items()})
  agree(ours(optimizer), path)


@pytest.mark.parametrize('momentum', [0.0, 0.9])
def test_adafactor_equals_that_of_optax_step_by_step(momentum):
  # optax decays apart from the learning rate, so here nothing decays; it takes
  # momentum over steps with their rates, so the rate must not change.
  schedule = WSD(warmup=0, decay=0.0)
  optimizer = Adafactor(
    lr=0.05, schedule=schedule, clip=0.0, momentum=momentum, smallest=2
  )
  theirs = optax.adafactor(
    0.05, min_dim_size_to_factor=2, momentum=momentum or None
  )
  agree(ours(optimizer), path_of(theirs))


def test_adafactor_keeps_rows_and_columns_where_adamw_keeps_both_moments():
  params = {'kernel': jnp.ones((256, 512))}
  state = Adafactor().make(10).init(params)
  assert sum(x.size for x in jax.tree.leaves(state)) < 256 + 512 + 10


def test_muon_sets_the_singular_values_of_hidden_matrices_alone():
  shapes = {
    'up/kernel': (6, 9),
    'head/kernel': (6, 9),
    'embed/embedding': (9, 6),
  }
  params = {k: jnp.zeros(s) for k, s in shapes.items()}
  grads = {
    k: jax.random.normal(jax.random.key(i), s)
    for i, (k, s) in enumerate(shapes.items())
  }
  optimizer = Muon(lr=1.0, schedule=WSD(warmup=0), clip=0.0, rms=0.2)
  tx = optimizer.make(10)
  updates, _ = tx.update(grads, tx.init(params), params)
  before, after = grads['up/kernel'], -updates['up/kernel'] / (0.2 * 9**0.5)
  values = np.linalg.svd(after, compute_uv=False)
  assert np.linalg.cond(before) > 2
  assert values.max() < 1.3
  assert values.min() > 0.6
  # Its inner product with the gradient is nearly that of the polar factor.
  assert (before * after).sum() > 0.7 * np.linalg.norm(before, 'nuc')
  # A first step of Adam is the sign of the gradient.
  for name in ('head/kernel', 'embed/embedding'):
    np.testing.assert_allclose(updates[name], -jnp.sign(grads[name]), rtol=1e-5)


def test_muon_takes_matrices_stacked_by_a_scan_one_by_one():
  grads = jax.random.normal(jax.random.key(0), (3, 4, 6))
  tx = Muon(weight_decay=0.0, clip=0.0).make(10)

  def step(params):
    return tx.update(params, tx.init(params), params)[0]

  stacked = step({'blocks': {'kernel': grads}})['blocks']['kernel']
  for i in range(3):
    alone = step({f'blocks_{i}': {'kernel': grads[i]}})
    np.testing.assert_allclose(
      stacked[i], alone[f'blocks_{i}']['kernel'], rtol=1e-5, atol=1e-7
    )


def test_muons_steps_have_the_root_mean_square_that_adamws_have():
  grads = {'kernel': jax.random.normal(jax.random.key(0), (32, 48))}
  optimizer = Muon(lr=1.0, schedule=WSD(warmup=0), clip=0.0, weight_decay=0.0)
  tx = optimizer.make(10)
  updates, _ = tx.update(grads, tx.init(grads), grads)
  size = np.sqrt(np.mean(np.square(updates['kernel'])))
  assert 0.7 < size / 0.2 < 1.2
