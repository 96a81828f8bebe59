"""Decoders against a torch class with shared random weights."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from bigdl import tree
from bigdl.interop import base

# Absolute in float32; in float64 a share of the largest entry of the array.
SINGLE, DOUBLE = 1e-4, 1e-8


def randomise(model, seed, scales=('ln_', 'norm')):
  """Moves every weight away from what initialisation makes of it."""
  torch.manual_seed(seed)
  with torch.no_grad():
    for key, value in model.named_parameters():
      value.copy_(torch.randn_like(value) * 0.3)
      if key.endswith('weight') and any(s in key for s in scales):
        value.add_(1)
  return model.eval()


def arrays_of(model):
  return {k: v.detach().numpy() for k, v in model.state_dict().items()}


def rows_of(model, seed, rows=3):
  """Returns tokens `[rows, T + 1]` and segments: rows are padded unequally."""
  rng = np.random.default_rng(seed)
  T = model.length
  # Tokens 0 to 2 may be special to the other side.
  tokens = rng.integers(3, model.vocab, (rows, T + 1), np.int32)
  lengths = np.array([T + 1, T - 1, T // 2 + 1])[:rows, None]
  return tokens, (np.arange(T + 1) < lengths).astype(np.int32)


def theirs(model, tokens, segments):
  """Returns logits, loss and its gradient by name, from torch."""
  inputs = torch.from_numpy(tokens[:, :-1]).long()
  mask = torch.from_numpy(segments[:, :-1]).long()
  targets = torch.from_numpy(np.where(segments, tokens, -100)[:, 1:]).long()
  logits = model(inputs, attention_mask=mask).logits
  loss = torch.nn.functional.cross_entropy(
    logits.flatten(0, 1), targets.flatten()
  )
  loss.backward()
  grads = {k: v.grad.numpy() for k, v in model.named_parameters()}
  return logits.detach().numpy(), loss.item(), grads


@functools.partial(jax.jit, static_argnums=0)
def plain(model, params, tokens, segments):
  """Returns the loss, its gradient and the logits, by the definition."""

  def loss(params):
    logits = model.apply({'params': params}, tokens[:, :-1], segments[:, :-1])
    losses = -jnp.take_along_axis(
      jax.nn.log_softmax(logits), tokens[:, 1:, None], -1
    )[..., 0]
    counts = segments[:, 1:] != 0
    return (losses * counts).sum() / counts.sum(), logits

  return jax.value_and_grad(loss, has_aux=True)(params)


def compare(family, peer, seed, *, scaled=(), **changes):
  """Returns the largest errors, absolute and relative to each array's size.

  Gradients go back by the family's own conversion; where that scales a tensor
  (`scaled`: parts of names, and the factor), its gradient is scaled the other
  way.
  """
  dtype = str(next(peer.parameters()).dtype).removeprefix('torch.')
  model = family.model_of(peer.config.to_dict()).clone(
    dtype=dtype, param_dtype=dtype, **changes
  )
  tokens, segments = rows_of(model, seed)
  params = base.from_hf(arrays_of(peer), model, family)
  params = jax.tree.map(jnp.asarray, params)
  (loss, logits), grads = plain(model, params, tokens, segments)
  grads = base.to_hf(grads, model, family)
  want_logits, want_loss, want_grads = theirs(peer, tokens, segments)
  if model.tied:
    grads.pop('lm_head.weight')
  assert set(grads) == set(want_grads)
  assert logits.dtype == np.dtype(dtype)
  seen = segments[:, :-1] != 0
  pairs: list[Any] = [(logits[seen], want_logits[seen]), (loss, want_loss)]
  for key, want in want_grads.items():
    got = grads[key]
    for part, factor in scaled:
      if part in key:
        got = got * factor
    # Softmax does not see what is added to all the scores of a query; any other
    # gradient of zeros would match whatever it stands for.
    if not key.endswith('k_proj.bias') or model.position == 'rotary':
      assert np.abs(want).max() > 1e-3, key
      pairs.append((got, want))
    else:
      assert np.abs(got).max() < 1e-6 > np.abs(want).max(), key
  absolute = max(float(np.abs(a - b).max()) for a, b in pairs)
  relative = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
  return absolute, relative


def round_trip(family, peer, *, exact=True, **changes):
  """Asserts that weights come back as they went, whatever the stack."""
  state = arrays_of(peer)
  model = family.model_of(peer.config.to_dict()).clone(**changes)
  assert family.model_of(family.config_of(model)) == model.clone(
    stack='auto', dropout=0.0
  )
  params = base.from_hf(state, model, family)
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32)
  )['params']
  described = jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
  assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == described
  back = base.to_hf(params, model, family)
  assert list(back) == list(state)
  for key, value in state.items():
    if exact:
      np.testing.assert_array_equal(back[key], value, key)
    else:
      np.testing.assert_allclose(back[key], value, rtol=1e-6, err_msg=key)
  # Torch takes it without complaint, every name accounted for.
  peer.load_state_dict({k: torch.tensor(v) for k, v in back.items()})
  assert tree.size(params) == sum(p.numel() for p in peer.parameters())
