"""GPT with fairseq's sinusoids against `transformers.XGLMForCausalLM`."""

from __future__ import annotations

import decoder_parity
import jax
import numpy as np
import pytest
import torch
import transformers

from bigdl.interop.xglm import FAMILY
from bigdl.models.gpt import GPT, SIZES

SHAPE = dict(
  num_layers=2,
  d_model=12,
  attention_heads=3,
  ffn_dim=20,
  vocab_size=37,
  max_position_embeddings=11,
  attn_implementation='eager',
)


def reference(seed, dtype=torch.float32, **changes):
  config = transformers.XGLMConfig(**{**SHAPE, **changes})
  model = transformers.XGLMForCausalLM(config).to(dtype)
  if dtype == torch.float64:
    # It computes its sinusoids in float32.
    positions = model.model.embed_positions
    rates = 10000 ** -(np.arange(6) / 5)
    angles = np.arange(len(positions.weights))[:, None] * rates
    exact = np.concatenate([np.sin(angles), np.cos(angles)], -1)
    # Position p of a row reads row p + 2; row 1 is of padding.
    rounded = positions.weights[2:].numpy()
    np.testing.assert_allclose(exact[2:], rounded, atol=1e-5)
    positions.weights = torch.from_numpy(exact)
  return decoder_parity.randomise(model, seed)


@pytest.mark.parametrize('seed', [0, 1])
def test_logits_loss_and_gradients_are_transformers_in_float32(seed):
  absolute, _ = decoder_parity.compare(FAMILY, reference(seed), seed)
  assert absolute < decoder_parity.SINGLE


@pytest.mark.parametrize(
  ('stack', 'changes'),
  [
    ('loop', {}),
    (
      'scan',
      dict(
        activation_function='relu',
        scale_embedding=False,
        max_position_embeddings=9,
      ),
    ),
  ],
)
def test_logits_loss_and_gradients_are_transformers_in_float64(
  stack, changes, request
):
  # Its masks are of torch's default dtype.
  torch.set_default_dtype(torch.float64)
  request.addfinalizer(lambda: torch.set_default_dtype(torch.float32))
  with jax.enable_x64(True):
    for seed in (0, 1):
      peer = reference(seed, torch.float64, **changes)
      _, relative = decoder_parity.compare(FAMILY, peer, seed, stack=stack)
      assert relative < decoder_parity.DOUBLE


@pytest.mark.parametrize('stack', ['loop', 'scan'])
def test_the_round_trip_is_exact(stack):
  decoder_parity.round_trip(FAMILY, reference(0), stack=stack)


@pytest.mark.parametrize('name', ['incoder-1.3b', 'incoder-6.7b'])
def test_incoders_sizes_are_xglms_with_as_many_parameters(name):
  model = SIZES[name]
  config = FAMILY.config_of(model)
  assert FAMILY.model_of(config) == model
  with torch.device('meta'):
    peer = transformers.XGLMForCausalLM(transformers.XGLMConfig(**config))
  count = sum(p.numel() for p in peer.parameters())
  assert (
    count
    == {'1.3b': 1_312_063_488, '6.7b': 6_651_084_800}[name.partition('-')[2]]
  )


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'position': 'sinusoidal'}, 'position=sinusoidal must be fairseq'),
    ({'norm_epsilon': 1e-6}, 'norm_epsilon=1e-06 must be 1e-05'),
    ({'kv_heads': 1}, 'kv_heads=1 must be 4 for XGLM weights'),
    ({'activation': 'geglu'}, 'activation=geglu must be one of gelu_exact'),
  ],
)
def test_models_that_it_cannot_be_are_refused(changes, message):
  model = GPT(depth=1, width=16, heads=4, vocab=5, length=4, position='fairseq')
  with pytest.raises(ValueError, match=f'^{message}'):
    FAMILY.config_of(model.clone(**changes))


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('model_type', 'bert'),
    ('add_cross_attention', True),
    ('activation_function', 'tanh'),
  ],
)
def test_configs_that_a_gpt_cannot_be_are_refused(field, value):
  with pytest.raises(ValueError, match=f'^{field}={value} must be'):
    FAMILY.model_of({field: value})
