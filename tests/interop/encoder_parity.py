"""A BERT against a torch class of its family, by shared random weights."""

# Shapes: B rows, T positions, V vocabulary, C classes of sentences.
from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers

from bigdl import tree
from bigdl.interop import base
from bigdl.layers import position

# Absolute in float32; in float64 a share of the largest entry of the array.
SINGLE, DOUBLE = 1e-4, 1e-8

SMALL: dict[str, Any] = dict(
  vocab_size=37,
  hidden_size=12,
  num_hidden_layers=2,
  num_attention_heads=3,
  intermediate_size=48,
  max_position_embeddings=13,
)
# Rows that are whole, padded, and packed.
PADDED = np.array([[1] * 11, [1] * 7 + [0] * 4, [1] * 2 + [0] * 9], np.int32)
PACKED = np.array(
  [[1] * 4 + [2] * 7, [3] * 5 + [1] * 3 + [0] * 3, [1] * 1 + [2] * 9 + [0] * 1],
  np.int32,
)


class Batch(NamedTuple):
  tokens: np.ndarray  # [B, T]
  segments: np.ndarray  # [B, T]
  types: np.ndarray  # [B, T]
  tasks: np.ndarray  # [B, T]
  targets: np.ndarray  # [B, T]
  weight: np.ndarray  # [B, T], 1 where a token is guessed
  label: np.ndarray  # [B]


def batch_of(model, seed, segments, pad) -> Batch:
  """Returns random rows whose padding, and it alone, is the token `pad`."""
  rng = np.random.default_rng(seed)

  def draw(stop, start=0):
    return rng.integers(start, max(stop, 1), segments.shape, np.int32)

  real = segments > 0
  tokens = np.where(real, draw(model.vocab, 2), pad)
  weight = real & (rng.random(segments.shape) < 0.5)
  weight[:, 0] = True
  return Batch(
    tokens=tokens.astype(np.int32),
    segments=segments,
    types=draw(model.types),
    tasks=draw(model.tasks),
    targets=draw(model.vocab),
    weight=weight.astype(np.float32),
    label=rng.integers(0, 2, len(segments), np.int32),
  )


def reference(architecture, config, seed, dtype=torch.float32):
  """Returns the torch model; no weight is what initialisation makes of it."""
  torch.manual_seed(seed)
  config._attn_implementation = 'eager'
  model = getattr(transformers, architecture)(config).to(dtype).eval()
  with torch.no_grad():
    for key, value in model.named_parameters():
      value.copy_(torch.randn_like(value) * 0.3)
      if 'norm' in key.lower() and key.endswith('weight'):
        value.add_(1)
  return model


def arrays_of(model):
  return {k: v.detach().numpy() for k, v in model.state_dict().items()}


def theirs(peer, batch: Batch, first_position: int, packed: bool):
  """Returns logits, loss and its gradient by name, from torch."""
  tensors = Batch(*map(torch.from_numpy, batch))
  segments = tensors.segments
  inputs = {'token_type_ids': tensors.types.long()}
  if packed:
    same = (segments[:, :, None] == segments[:, None])[:, None]
    dtype = next(peer.parameters()).dtype
    hidden = torch.zeros(same.shape, dtype=dtype)
    hidden.masked_fill_(~same, torch.finfo(dtype).min)
    inputs['attention_mask'] = hidden
    positions = np.array(position.segment_positions(batch.segments))
    inputs['position_ids'] = torch.from_numpy(positions).long() + first_position
  else:
    inputs['attention_mask'] = (segments > 0).long()
  if getattr(peer.config, 'use_task_id', False):
    inputs['task_type_ids'] = tensors.tasks.long()
  outputs = peer(tensors.tokens.long(), **inputs).to_tuple()
  at = tensors.weight > 0
  loss = torch.nn.functional.cross_entropy(
    outputs[0][at], tensors.targets[at].long()
  )
  if len(outputs) > 1:
    loss = loss + torch.nn.functional.cross_entropy(
      outputs[1], tensors.label.long()
    )
  peer.zero_grad()
  loss.backward()
  grads = {k: v.grad.numpy() for k, v in peer.named_parameters()}
  return [x.detach().numpy() for x in outputs], loss.item(), grads


def mean_loss(logits, targets, weight):
  chances = jax.nn.log_softmax(logits)
  losses = -jnp.take_along_axis(chances, targets[..., None], -1)[..., 0]
  return jnp.sum(losses * weight) / jnp.sum(weight)


@functools.partial(jax.jit, static_argnums=0)
def ours(model, params, batch: Batch):
  """Returns the loss, the outputs, and the gradient of the loss."""

  def loss(params):
    tasks = batch.tasks if model.tasks else None
    outputs = model.apply(
      {'params': params},
      batch.tokens,
      batch.segments,
      types=batch.types,
      tasks=tasks,
    )
    outputs = outputs if model.classes else (outputs,)
    total = mean_loss(outputs[0], batch.targets, batch.weight)
    if model.classes:
      total += mean_loss(outputs[1], batch.label, jnp.ones(len(batch.label)))
    return total, outputs

  (total, outputs), grads = jax.value_and_grad(loss, has_aux=True)(params)
  return total, outputs, grads


def compare(family, architecture, config, dtype, *, pad=0, **changes) -> float:
  """Returns the largest error of two seeds, padded and packed rows.

  It is absolute in float32, in float64 relative to each array's largest entry.
  """
  name = 'float32' if dtype == torch.float32 else 'float64'
  # The architecture stands in the file, and in no config without one.
  said = {**config.to_dict(), 'architectures': [architecture]}
  model = family.model_of(said).clone(dtype=name, param_dtype=name, **changes)
  worst = 0.0
  for seed in (0, 1):
    peer = reference(architecture, config, seed, dtype)
    params = base.from_hf(arrays_of(peer), model, family)
    for segments in (PADDED, PACKED):
      batch = batch_of(model, seed, segments, pad)
      pairs = _pairs(peer, model, params, family, batch, segments is PACKED)
      for got, want, scale in pairs:
        assert np.asarray(got).dtype == np.dtype(name)
        error = float(np.abs(got - want).max())
        worst = max(worst, error if name == 'float32' else error / scale)
  return worst


def _pairs(peer, model, params, family, batch, packed):
  """Yields what is ours, what is theirs, and how large it is."""
  loss, outputs, grads = ours(model, params, batch)
  first = model.first_position
  want_outputs, want_loss, want_grads = theirs(peer, batch, first, packed)
  # Rows of padding see other padding here, and all that is real there.
  real = batch.segments > 0
  assert len(outputs) == len(want_outputs)
  for got, want, at in zip(outputs, want_outputs, (real, ...), strict=False):
    yield np.asarray(got)[at], want[at], np.abs(want).max()
  yield np.asarray(loss), want_loss, want_loss
  grads = base.to_hf(grads, model, family)
  copies = {t.name for t in family.tensors(model) if t.copy}
  assert set(grads) - copies == set(want_grads)
  for key, want in want_grads.items():
    scale = np.abs(want).max()
    if key.endswith('key.bias'):
      # It moves all scores of a query alike, and so nothing: both are rounding.
      scale = np.abs(want_grads[key.replace('key', 'query')]).max()
    # A gradient of zeros would match whatever it stands for.
    assert scale > 1e-4, key
    yield grads[key], want, scale


def check_round_trip(family, architecture, config, **changes) -> None:
  """Names, shapes and values survive both ways, and torch takes them."""
  peer = reference(architecture, config, 0)
  state = arrays_of(peer)
  said = {**config.to_dict(), 'architectures': [architecture]}
  model = family.model_of(said).clone(**changes)
  params = base.from_hf(state, model, family)
  back = base.to_hf(params, model, family)
  assert set(back) == set(state)
  for key, value in state.items():
    np.testing.assert_array_equal(back[key], value, key)
  peer.load_state_dict({k: torch.tensor(v) for k, v in back.items()})
  written = family.config_of(model)
  assert written['architectures'] == [architecture]
  assert architecture in family.architectures
  assert family.model_of(written).clone(**changes) == model
  known = type(config)(**written)
  for key in written:
    assert getattr(known, key) == written[key], key
    if key != 'architectures':
      assert getattr(config, key) == written[key], key


def count(architecture, config) -> dict[str, int]:
  """Returns sizes by name of the torch class; nothing is allocated."""
  with torch.device('meta'):
    peer = getattr(transformers, architecture)(config)
  return {k: v.numel() for k, v in peer.named_parameters()}


def shapes_of(model):
  tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
  init = model.clone(stack='scan').init
  return jax.eval_shape(init, jax.random.key(0), tokens)['params']


def check_size(family, architecture, model) -> None:
  """A published size, written, has torch's parameters to the integer."""
  written = family.config_of(model)
  kind = getattr(transformers, architecture).config_class
  assert family.model_of(written) == model
  sizes = count(architecture, kind(**written))
  assert tree.size(shapes_of(model)) == sum(sizes.values())
