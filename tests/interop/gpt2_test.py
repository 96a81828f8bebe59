"""GPT against `transformers.GPT2LMHeadModel`, with shared random weights."""

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
from bigdl.interop import base, gpt2
from bigdl.models.gpt import GPT
from bigdl.objectives.causal_lm import CausalLM

# Absolute in float32; in float64 a share of the largest entry of the array.
SINGLE, DOUBLE = 1e-4, 1e-8

from_hf = functools.partial(base.from_hf, family=gpt2.FAMILY)
to_hf = functools.partial(base.to_hf, family=gpt2.FAMILY)

SHAPES: dict[str, dict[str, Any]] = {
  'square': dict(n_layer=2, n_embd=12, n_head=3, vocab_size=37, n_positions=11),
  'narrow': dict(
    n_layer=2,
    n_embd=10,
    n_head=2,
    vocab_size=23,
    n_positions=9,
    n_inner=14,
    activation_function='relu',
    layer_norm_epsilon=1e-3,
    tie_word_embeddings=False,
  ),
}


def config_of(name, **changes):
  fields = {
    **SHAPES[name],
    'bos_token_id': 0,
    'eos_token_id': 0,
    'attn_implementation': 'eager',
  }
  return transformers.GPT2Config(**{**fields, **changes})


def reference(name, seed, dtype):
  """Returns the torch model; no weight is what initialisation makes of it."""
  torch.manual_seed(seed)
  model = transformers.GPT2LMHeadModel(config_of(name)).to(dtype).eval()
  with torch.no_grad():
    for key, value in model.named_parameters():
      value.copy_(torch.randn_like(value) * 0.3)
      if '.ln_' in key and key.endswith('weight'):
        value.add_(1)
  return model


def arrays_of(model):
  return {k: v.detach().numpy() for k, v in model.state_dict().items()}


def theirs(model, rows):
  """Returns logits, loss and its gradient by name, from torch."""
  inputs = torch.from_numpy(rows[:, :-1]).long()
  targets = torch.from_numpy(rows[:, 1:]).long()
  logits = model(inputs).logits
  loss = torch.nn.functional.cross_entropy(
    logits.flatten(0, 1), targets.flatten()
  )
  loss.backward()
  grads = {k: v.grad.numpy() for k, v in model.named_parameters()}
  return logits.detach().numpy(), loss.item(), grads


@functools.partial(jax.jit, static_argnums=0)
def plain(model, params, rows):
  """Returns the loss, its gradient and the logits, by the definition."""

  def loss(params):
    logits = model.apply({'params': params}, rows[:, :-1])
    losses = -jnp.take_along_axis(
      jax.nn.log_softmax(logits), rows[:, 1:, None], -1
    )
    return losses.mean(), logits

  return jax.value_and_grad(loss, has_aux=True)(params)


def ours(model, params, rows):
  """Returns the same from GPT, gradients converted back."""
  params = jax.tree.map(jnp.asarray, params)
  (loss, logits), grads = plain(model, params, rows)
  return np.asarray(logits), float(loss), to_hf(grads, model)


def compare(name, seed, dtype, **changes):
  """Returns the largest errors, absolute and relative to each array's size."""
  single = dtype == torch.float32
  param_dtype = 'float32' if single else 'float64'
  peer = reference(name, seed, dtype)
  model = gpt2.model_of(peer.config.to_dict()).clone(
    dtype=param_dtype, param_dtype=param_dtype, **changes
  )
  rows = np.random.default_rng(seed).integers(
    0, model.vocab, (3, model.length + 1), np.int32
  )
  params = from_hf(arrays_of(peer), model)
  logits, loss, grads = ours(model, params, rows)
  want_logits, want_loss, want_grads = theirs(peer, rows)
  if model.tied:
    assert np.array_equal(
      grads.pop('lm_head.weight'), grads['transformer.wte.weight']
    )
  assert set(grads) == set(want_grads)
  assert logits.dtype == np.dtype(param_dtype)
  pairs = [(logits, want_logits), (loss, want_loss)]
  for key, want in want_grads.items():
    # A gradient of zeros would match whatever it stands for.
    assert np.abs(want).max() > 1e-3, key
    pairs.append((grads[key], want))
  absolute = max(float(np.abs(a - b).max()) for a, b in pairs)
  relative = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
  return absolute, relative


@pytest.mark.parametrize(
  ('name', 'stack', 'attention'),
  [('square', 'loop', 'tiled'), ('narrow', 'scan', 'xla')],
)
def test_logits_loss_and_gradients_are_transformers_in_float32(
  name, stack, attention
):
  for seed in (0, 1):
    absolute, _ = compare(
      name, seed, torch.float32, stack=stack, attention=attention
    )
    assert absolute < SINGLE


@pytest.mark.parametrize(
  ('stack', 'attention'), [('loop', 'tiled'), ('scan', 'xla')]
)
@pytest.mark.parametrize('name', SHAPES)
def test_logits_loss_and_gradients_are_transformers_in_float64(
  name, stack, attention
):
  with jax.enable_x64(True):
    for seed in (0, 1):
      _, relative = compare(
        name, seed, torch.float64, stack=stack, attention=attention
      )
      assert relative < DOUBLE
  assert jnp.zeros(1).dtype == jnp.float32


def test_the_objective_has_the_gradients_of_transformers():
  peer = reference('square', 0, torch.float32)
  model = gpt2.model_of(peer.config.to_dict())
  rows = np.random.default_rng(0).integers(0, 37, (3, 12), np.int32)
  params = from_hf(arrays_of(peer), model)
  objective = CausalLM(chunk=4)

  @jax.jit
  @jax.value_and_grad
  def run(params):
    batch = {'tokens': jnp.asarray(rows)}
    return objective.loss(model, params, {}, batch, jax.random.key(0))[0]

  loss, grads = run(params)
  _, want_loss, want_grads = theirs(peer, rows)
  assert abs(loss - want_loss) < SINGLE
  grads = to_hf(grads, model)
  for key, want in want_grads.items():
    assert np.abs(grads[key] - want).max() < SINGLE, key


def test_tiles_of_attention_are_transformers_too():
  # Long enough for two tiles of queries, the second with rows to spare.
  config = config_of('square', n_layer=1, n_positions=67)
  torch.manual_seed(0)
  peer = transformers.GPT2LMHeadModel(config).eval()
  with torch.no_grad():
    for value in peer.parameters():
      value.copy_(torch.randn_like(value) * 0.3)
  model = gpt2.model_of(config.to_dict()).clone(attention='tiled')
  rows = np.random.default_rng(0).integers(0, 37, (2, 68), np.int32)
  params = from_hf(arrays_of(peer), model)
  logits, loss, grads = ours(model, params, rows)
  want_logits, want_loss, want_grads = theirs(peer, rows)
  assert np.abs(logits - want_logits).max() < SINGLE
  assert abs(loss - want_loss) < SINGLE
  for key, want in want_grads.items():
    assert np.abs(grads[key] - want).max() < SINGLE, key


@pytest.mark.parametrize('stack', ['loop', 'scan'])
@pytest.mark.parametrize('name', SHAPES)
def test_the_round_trip_is_exact(name, stack):
  peer = reference(name, 0, torch.float32)
  state = arrays_of(peer)
  model = gpt2.model_of(peer.config.to_dict()).clone(stack=stack)
  params = from_hf(state, model)
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32)
  )
  described = jax.tree.map(lambda x: (x.shape, x.dtype), shapes['params'])
  assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == described
  back = to_hf(params, model)
  assert list(back) == list(state)
  for key, value in state.items():
    assert value.dtype == back[key].dtype
    np.testing.assert_array_equal(back[key], value, key)
  again = from_hf(back, model)
  for (path, a), (_, b) in zip(
    tree.items(again), tree.items(params), strict=True
  ):
    np.testing.assert_array_equal(a, b, path)
  # Torch takes it without complaint, every name accounted for.
  peer.load_state_dict({k: torch.tensor(v) for k, v in back.items()})


def test_checkpoints_of_the_bare_model_load_as_they_lie_on_the_hub():
  peer = reference('square', 0, torch.float32)
  model = gpt2.model_of(peer.config.to_dict())
  state = arrays_of(peer)
  old = {
    k.removeprefix('transformer.'): v
    for k, v in state.items()
    if k != 'lm_head.weight'
  }
  old['h.0.attn.bias'] = np.tril(np.ones((1, 1, 11, 11), bool))
  old['h.0.attn.masked_bias'] = np.array(-1e4)
  new, bare = from_hf(state, model), from_hf(old, model)
  assert tree.paths(new) == tree.paths(bare)
  for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(bare), strict=True):
    np.testing.assert_array_equal(a, b)


def test_half_precision_checkpoints_become_master_weights():
  peer = reference('square', 0, torch.float16)
  model = gpt2.model_of(peer.config.to_dict())
  state = arrays_of(peer)
  for leaf in jax.tree.leaves(from_hf(state, model)):
    assert leaf.dtype == np.float32
  back = to_hf(from_hf(state, model), model)
  for key, value in state.items():
    np.testing.assert_array_equal(back[key].astype(np.float16), value, key)


def test_one_line_lists_every_tensor_that_does_not_fit_by_both_names():
  peer = reference('square', 0, torch.float32)
  model = gpt2.model_of(peer.config.to_dict())
  state = arrays_of(peer)
  del state['transformer.h.1.ln_2.bias']
  state['transformer.h.3.ln_1.bias'] = np.zeros(12, np.float32)
  state['transformer.h.0.attn.c_attn.weight'] = np.zeros((12, 35), np.float32)
  with pytest.raises(ValueError) as caught:
    from_hf(state, model)
  assert str(caught.value) == (
    'GPT-2 weights do not fit: '
    'missing transformer.h.1.ln_2.bias (blocks_1/mlp_norm/bias); '
    'unknown transformer.h.3.ln_1.bias; '
    'misshapen transformer.h.0.attn.c_attn.weight (blocks_0/attention/query/'
    'kernel, blocks_0/attention/key/kernel, blocks_0/attention/value/kernel) '
    '[12, 35], expected [12, 36]'
  )


def test_parameters_that_do_not_fit_are_listed_too():
  peer = reference('square', 0, torch.float32)
  model = gpt2.model_of(peer.config.to_dict())
  params = from_hf(arrays_of(peer), model)
  del params['blocks_0']['attention']['out']['bias']
  params['head'] = {'kernel': np.zeros((12, 37))}
  params['positions']['embedding'] = np.zeros((12, 12))
  with pytest.raises(ValueError) as caught:
    to_hf(params, model)
  assert str(caught.value) == (
    'GPT-2 weights do not fit: missing blocks_0/attention/out/bias '
    '(transformer.h.0.attn.c_proj.bias); unknown head/kernel; misshapen '
    'positions/embedding (transformer.wpe.weight) [12, 12], expected [11, 12]'
  )


def test_a_scan_of_another_depth_does_not_fit():
  peer = reference('narrow', 0, torch.float32)
  model = gpt2.model_of(peer.config.to_dict()).clone(stack='scan')
  params = from_hf(arrays_of(peer), model)
  with pytest.raises(ValueError, match='missing blocks_2/attention'):
    to_hf(params, model.clone(depth=3))
  with pytest.raises(ValueError, match='unknown blocks_1/attention'):
    to_hf(params, model.clone(depth=1))


def test_a_head_that_is_not_tied_is_not_taken_for_one_that_is():
  peer = reference('narrow', 0, torch.float32)
  model = gpt2.model_of(peer.config.to_dict())
  state = arrays_of(peer)
  with pytest.raises(ValueError, match='lm_head.weight must equal .*wte'):
    from_hf(state, model.clone(tied=True))
  del state['lm_head.weight']
  with pytest.raises(ValueError, match=r'missing lm_head.weight \(head/kernel'):
    from_hf(state, model)


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('block', 'parallel'),
    ('norm', 'rmsnorm'),
    ('bias', False),
    ('position', 'rotary'),
    ('qk_norm', True),
    ('embed_scale', True),
    ('softcap', 30.0),
    ('attention_softcap', 50.0),
    ('activation', 'swiglu'),
    ('kv_heads', 2),
    ('head_width', 8),
  ],
)
def test_models_that_gpt2_cannot_be_are_refused(field, value):
  model = GPT(depth=1, width=16, heads=4, vocab=5, length=4)
  model = model.clone(**{field: value})
  with pytest.raises(ValueError, match=f'^{field}={value} must be .*GPT-2'):
    to_hf({}, model)
  with pytest.raises(ValueError, match=f'^{field}={value} must be .*GPT-2'):
    from_hf({}, model)


def test_the_config_of_the_hub_describes_the_default_gpt():
  full = gpt2.model_of(transformers.GPT2Config().to_dict())
  assert full == gpt2.model_of({'model_type': 'gpt2'}) == GPT()


def test_every_field_of_the_config_is_read():
  config = config_of('narrow').to_dict()
  assert gpt2.model_of(config) == GPT(
    depth=2,
    width=10,
    heads=2,
    vocab=23,
    length=9,
    mlp_width=14,
    activation='relu',
    norm_epsilon=1e-3,
    tied=False,
  )


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('model_type', 'bert'),
    ('scale_attn_weights', False),
    ('scale_attn_by_inverse_layer_idx', True),
    ('add_cross_attention', True),
    ('activation_function', 'silu'),
  ],
)
def test_configs_that_a_gpt_cannot_be_are_refused(field, value):
  with pytest.raises(ValueError, match=f'^{field}={value} must be'):
    gpt2.model_of({field: value})
