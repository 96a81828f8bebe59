"""XLNet against `transformers.XLNetLMHeadModel`, with shared random weights."""

# Shapes: B batch, T positions, P predicted ones.
from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from bigdl import tree
from bigdl.interop import base
from bigdl.interop.xlnet import FAMILY
from bigdl.models.xlnet import SIZES, XLNet

# Absolute in float32; in float64 a share of the largest entry of the array.
SINGLE, DOUBLE = 1e-4, 1e-8
T = 11

CONFIGS: dict[str, dict[str, Any]] = {
  'bi': dict(n_layer=2, d_model=12, n_head=3, d_inner=48, vocab_size=37),
  'uni': dict(
    n_layer=2,
    d_model=8,
    n_head=2,
    d_inner=14,
    vocab_size=23,
    attn_type='uni',
    ff_activation='relu',
    layer_norm_eps=1e-3,
  ),
}


def sinusoids(model, length, dtype):
  """Theirs has float32 throughout, which float64 weights do not multiply."""
  least = -length if model.attn_type == 'bi' else -1
  distances = torch.arange(length, least, -1.0, dtype=dtype)
  rates = 10000 ** -(torch.arange(0, model.d_model, 2, dtype=dtype))
  angles = distances[:, None] * rates ** (1 / model.d_model)
  return torch.cat([angles.sin(), angles.cos()], dim=-1)[:, None]


def reference(name, seed, dtype):
  """Returns the torch model; no weight is what initialisation makes of it."""
  torch.manual_seed(seed)
  config = transformers.XLNetConfig(**CONFIGS[name], dropout=0.0)
  model = transformers.XLNetLMHeadModel(config).to(dtype).eval()
  with torch.no_grad():
    for key, value in model.named_parameters():
      value.copy_(torch.randn_like(value) * 0.3)
      if 'layer_norm' in key and key.endswith('weight'):
        value.add_(1)
  if dtype == torch.float64:
    body = model.transformer
    body.relative_positional_encoding = lambda qlen, klen, bsz, device: (
      sinusoids(body, klen, dtype).expand(-1, bsz, -1)
    )
  return model


def arrays_of(model):
  return {k: v.detach().numpy() for k, v in model.state_dict().items()}


def rows(model, seed, two_streams):
  """Two documents, the shorter one padded, in an order with ties.

  All context has rank 0; what is predicted comes after it, one by one.
  """
  rng = np.random.default_rng(seed)
  tokens = rng.integers(0, model.vocab, (2, T)).astype(np.int32)
  segments = np.where(np.arange(T) < np.array([[T], [T - 3]]), 1, 0)
  types = (np.arange(T) >= np.array([[4], [5]])).astype(np.int32)
  batch = {'tokens': tokens, 'segments': segments, 'types': types}
  if not two_streams:
    return batch
  # Every query sees the first token: of none, theirs takes the mean of all.
  at = np.stack([1 + rng.permutation(size - 1)[:3] for size in (T, T - 3)])
  order = np.zeros((2, T), np.int32)
  np.put_along_axis(order, at, rng.permuted([[1, 2, 3]] * 2, axis=1), 1)
  return {**batch, 'order': order, 'at': at}


def theirs(model, batch):
  """Returns logits, loss and its gradient by name, from torch."""
  dtype = next(model.parameters()).dtype
  given: dict[str, Any] = {
    'input_ids': torch.from_numpy(batch['tokens']).long(),
    'attention_mask': torch.from_numpy(batch['segments']).to(dtype),
    'token_type_ids': torch.from_numpy(batch['types']).long(),
  }
  if 'at' in batch:
    order = batch['order']
    hidden = order[:, None] > order[:, :, None]
    # No query may see its own token, which content sees all the same.
    hidden |= np.eye(T, dtype=bool)
    given['perm_mask'] = torch.from_numpy(hidden).to(dtype)
    given['target_mapping'] = torch.from_numpy(np.eye(T)[batch['at']]).to(dtype)
  # One row at a time: theirs cannot add a row's mask to a causal one of all.
  logits = torch.cat([
    model(**{k: v[b : b + 1] for k, v in given.items()}, use_mems=False).logits
    for b in range(len(batch['tokens']))
  ])  # fmt: skip
  targets, weight = targets_of(batch)
  losses = torch.nn.functional.cross_entropy(
    logits.flatten(0, 1), torch.from_numpy(targets).long().flatten(),
    reduction='none',
  )  # fmt: skip
  loss = (losses * torch.from_numpy(weight.flatten()).to(dtype)).mean()
  loss.backward()
  found = {k: v.grad for k, v in model.named_parameters()}
  grads = {k: v.numpy() for k, v in found.items() if v is not None}
  return logits.detach().numpy(), loss.item(), grads


def targets_of(batch):
  """What is predicted, and 0 where that is padding."""
  if 'at' in batch:
    targets = np.take_along_axis(batch['tokens'], batch['at'], 1)
    return targets, np.ones(targets.shape)
  return np.roll(batch['tokens'], -1, 1), batch['segments'] * 1.0


@functools.partial(jax.jit, static_argnums=0)
def ours(model, params, batch):
  """Returns the loss, its gradient and the logits, by the definition."""
  targets, weight = batch['targets'], batch['weight']

  def loss(params):
    logits = model.apply(
      {'params': params},
      batch['tokens'],
      batch['segments'],
      batch['types'],
      batch.get('order'),
      batch.get('at'),
    )
    logs = jax.nn.log_softmax(logits)
    own = jnp.take_along_axis(logs, targets[..., None], -1)[..., 0]
    return -(own * weight).mean(), logits

  return jax.value_and_grad(loss, has_aux=True)(params)


def compare(name, seed, dtype, *, two_streams, **changes):
  """Returns the largest errors, absolute and relative to each array's size."""
  kind = 'float32' if dtype == torch.float32 else 'float64'
  peer = reference(name, seed, dtype)
  model = FAMILY.model_of(peer.config.to_dict())
  model = model.clone(dtype=kind, param_dtype=kind, **changes)
  batch = rows(model, seed, two_streams)
  params = base.from_hf(arrays_of(peer), model, FAMILY)
  params = jax.tree.map(jnp.asarray, params)
  targets, weight = targets_of(batch)
  full = {**batch, 'targets': targets, 'weight': weight.astype(kind)}
  (loss, logits), grads = ours(model, params, full)
  grads = base.to_hf(grads, model, FAMILY)
  want_logits, want_loss, want_grads = theirs(peer, batch)
  assert logits.dtype == np.dtype(kind)
  # One tensor has both names, and without a query stream no query is drawn.
  lead = 'transformer.'
  np.testing.assert_array_equal(
    grads.pop('lm_loss.weight'), grads[f'{lead}word_embedding.weight']
  )
  if not two_streams:
    assert not np.any(grads.pop(f'{lead}mask_emb'))
  assert set(grads) == set(want_grads)
  real = np.broadcast_to(np.asarray(weight > 0)[..., None], logits.shape)
  pairs = [(np.asarray(logits)[real], want_logits[real]), (loss, want_loss)]
  for key, want in want_grads.items():
    # A gradient of zeros would match whatever it stands for.
    assert np.abs(want).max() > 1e-5, key
    pairs.append((grads[key], want))
  absolute = max(float(np.abs(a - b).max()) for a, b in pairs)
  relative = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
  return absolute, relative


@pytest.mark.parametrize('two_streams', [True, False])
@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('name', CONFIGS)
def test_logits_and_gradients_match_in_float64(name, seed, two_streams):
  with jax.enable_x64(True):
    _, relative = compare(name, seed, torch.float64, two_streams=two_streams)
  assert relative < DOUBLE


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('name', CONFIGS)
def test_logits_and_gradients_match_in_float32(name, seed):
  stack = 'scan' if seed else 'loop'
  absolute, _ = compare(
    name, seed, torch.float32, two_streams=True, stack=stack
  )
  assert absolute < SINGLE


@pytest.mark.parametrize('stack', ['loop', 'scan'])
def test_the_round_trip_is_exact(stack):
  peer = reference('uni', 0, torch.float32)
  state = arrays_of(peer)
  model = FAMILY.model_of(peer.config.to_dict()).clone(stack=stack)
  params = base.from_hf(state, model, FAMILY)
  back = base.to_hf(params, model, FAMILY)
  assert set(back) == set(state)
  for key, value in state.items():
    assert value.dtype == back[key].dtype
    np.testing.assert_array_equal(back[key], value, key)
  # Torch takes it without complaint, every name accounted for.
  peer.load_state_dict({k: torch.tensor(v) for k, v in back.items()})


@pytest.mark.parametrize('name', CONFIGS)
def test_its_config_makes_the_torch_model_that_it_came_from(name):
  model = FAMILY.model_of(transformers.XLNetConfig(**CONFIGS[name]).to_dict())
  again = transformers.XLNetConfig(**FAMILY.config_of(model))
  for key, value in CONFIGS[name].items():
    assert getattr(again, key) == value, key
  assert FAMILY.model_of(again.to_dict()) == model


def test_defaults_that_a_config_leaves_out_are_filled_in():
  assert FAMILY.model_of({'model_type': 'xlnet'}) == SIZES['xlnet-large']


@pytest.mark.parametrize('name', SIZES)
def test_published_sizes_have_the_published_numbers_of_parameters(name):
  model = SIZES[name]
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  params = jax.eval_shape(model.init, jax.random.key(0), tokens)['params']
  config = transformers.XLNetConfig(**FAMILY.config_of(model))
  with torch.device('meta'):
    peer = transformers.XLNetLMHeadModel(config)
  body = sum(p.numel() for p in peer.transformer.parameters())
  # What is published is the body: without the bias of the head.
  assert body == {'xlnet-base': 116718336, 'xlnet-large': 360268800}[name]
  assert tree.size(params) == body + model.vocab
  assert tree.size(params) == sum(p.numel() for p in peer.parameters())


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('model_type', 'bert'),
    ('clamp_len', 100),
    ('same_length', True),
    ('bi_data', True),
    ('tie_word_embeddings', False),
    ('ff_activation', 'tanh'),
    ('attn_type', 'both'),
    ('d_head', 7),
  ],
)
def test_configs_that_an_xlnet_cannot_be_are_refused(field, value):
  with pytest.raises(ValueError, match=f'^{field}={value} must be'):
    FAMILY.model_of({field: value})


def test_models_that_hugging_face_has_not_are_refused():
  model = XLNet(depth=1, width=4, heads=1, vocab=5, activation='swiglu')
  with pytest.raises(ValueError, match='^activation=swiglu must be one of'):
    FAMILY.config_of(model)
