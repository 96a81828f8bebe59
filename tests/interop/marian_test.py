"""Marian's shapes against `transformers.MarianMTModel`."""

from __future__ import annotations

import bart_parity
import jax
import numpy as np
import pytest
import torch
import transformers

from bigdl.interop import base
from bigdl.interop.marian import FAMILY
from bigdl.models.transformer import SIZES, Transformer

SHAPES = {
  'relu': {'activation_function': 'relu', 'decoder_start_token_id': 1},
  'swish': {
    'activation_function': 'swish',
    'scale_embedding': False,
    'decoder_layers': 2,
    'encoder_ffn_dim': 48,
    'decoder_ffn_dim': 48,
  },
}


def config_of(name='relu', **changes):
  return transformers.MarianConfig(
    **{**bart_parity.SMALL, **SHAPES[name], **changes}
  )


def reference(name, seed, dtype=torch.float32):
  return bart_parity.reference(
    transformers.MarianMTModel, config_of(name), seed, dtype
  )


@pytest.mark.parametrize('seed', [0, 1])
def test_logits_and_gradients_are_transformers_in_float32(seed):
  absolute, _ = bart_parity.compare(FAMILY, reference('relu', seed), seed)
  assert absolute < bart_parity.SINGLE


@pytest.mark.parametrize(
  ('name', 'stack'), [('relu', 'loop'), ('swish', 'scan')]
)
def test_logits_and_gradients_are_transformers_in_float64(name, stack):
  with jax.enable_x64(True):
    for seed in (0, 1):
      peer = reference(name, seed, torch.float64)
      _, relative = bart_parity.compare(FAMILY, peer, seed, stack=stack)
      assert relative < bart_parity.DOUBLE


def test_torch_computes_its_own_sinusoids_like_ours():
  peer = transformers.MarianMTModel(config_of())
  table = peer.model.encoder.embed_positions.weight.detach().numpy().copy()
  with torch.no_grad():
    bart_parity.exact_positions(peer)
  ours = peer.model.encoder.embed_positions.weight.detach().numpy()
  np.testing.assert_allclose(table, ours, atol=1e-6)


@pytest.mark.parametrize('stack', ['loop', 'scan'])
def test_the_round_trip_is_exact(stack):
  bart_parity.round_trip(FAMILY, reference('relu', 0), stack=stack)


@pytest.mark.parametrize('name', SHAPES)
def test_the_config_comes_back(name):
  config = config_of(name)
  model = FAMILY.model_of(config.to_dict())
  again = transformers.MarianConfig(**FAMILY.config_of(model))
  assert FAMILY.model_of(again.to_dict()) == model
  for field in bart_parity.SMALL:
    if field != 'attn_implementation':
      assert getattr(again, field) == getattr(config, field), field


def test_models_without_a_bias_of_logits_go_there_and_back(tmp_path):
  small = Transformer(depth=1, width=8, heads=2, vocab=13, length=6)
  params = small.init(jax.random.key(0), *zeros())['params']
  config = transformers.MarianConfig(**FAMILY.config_of(small))
  peer = transformers.MarianMTModel(config)
  state = base.to_hf(params, small, FAMILY)
  peer.load_state_dict(
    {k: torch.tensor(v) for k, v in state.items()}, strict=False
  )
  peer.save_pretrained(tmp_path)
  read = transformers.MarianConfig.from_pretrained(tmp_path).to_dict()
  assert FAMILY.model_of(read) == small
  back = base.from_hf(bart_parity.arrays_of(peer), small, FAMILY)
  jax.tree.map(np.testing.assert_array_equal, back, jax.device_get(params))


def zeros():
  token = np.zeros((1, 1), np.int32)
  return token, token


def test_the_base_model_has_the_parameters_of_transformers():
  model = SIZES['transformer-base']
  config = transformers.MarianConfig(**FAMILY.config_of(model))
  with torch.device('meta'):
    peer = transformers.MarianMTModel(config)
  count = sum(p.numel() for p in peer.parameters() if p.requires_grad)
  shapes, _ = base.shapes_of(model, FAMILY)
  assert sum(int(np.prod(x.shape)) for x in shapes.values()) == count


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model_type': 'bart'}, 'model_type=bart must be marian'),
    (
      {'share_encoder_decoder_embeddings': False},
      'share_encoder_decoder_embeddings=False must be True',
    ),
    ({'decoder_vocab_size': 7}, 'decoder_vocab_size=7 must be vocab_size=31'),
    (
      {'decoder_ffn_dim': 9},
      'decoder_ffn_dim=9 must be encoder_ffn_dim=14',
    ),
    ({'activation_function': 'tanh'}, 'activation_function=tanh must be one'),
    ({'eos_token_id': [1, 2]}, r'eos_token_id=\[1, 2\] must be one token'),
  ],
)
def test_configs_that_a_transformer_cannot_be_are_refused(changes, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    FAMILY.model_of({**config_of().to_dict(), **changes})


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('block', 'pre'),
    ('position', 'learned'),
    ('embed_norm', True),
    ('norm', 'rmsnorm'),
    ('norm_epsilon', 1e-3),
    ('bias', False),
    ('activation', 'swiglu'),
  ],
)
def test_models_that_marian_cannot_be_are_refused(field, value):
  model = Transformer(depth=1, width=8, heads=2, vocab=13, length=6)
  model = model.clone(**{field: value})
  for refuse in (FAMILY.config_of, lambda m: list(FAMILY.tensors(m))):
    with pytest.raises(ValueError, match=f'^{field}={value} must be .*Marian'):
      refuse(model)


def test_one_line_lists_what_does_not_fit_by_both_names():
  peer = reference('relu', 0)
  model = FAMILY.model_of(peer.config.to_dict())
  state = bart_parity.arrays_of(peer)
  del state['model.decoder.layers.0.encoder_attn.k_proj.bias']
  state['model.encoder.layer_norm.bias'] = np.zeros(12, np.float32)
  with pytest.raises(ValueError) as caught:
    base.from_hf(state, model, FAMILY)
  assert str(caught.value) == (
    'Marian weights do not fit: missing '
    'model.decoder.layers.0.encoder_attn.k_proj.bias '
    '(decoder/blocks_0/cross/key/bias); unknown model.encoder.layer_norm.bias'
  )
