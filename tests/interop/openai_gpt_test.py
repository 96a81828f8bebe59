"""GPT with post-norm blocks against `transformers.OpenAIGPTLMHeadModel`."""

from __future__ import annotations

import decoder_parity
import jax
import pytest
import torch
import transformers

from bigdl.interop import base
from bigdl.interop.openai_gpt import FAMILY
from bigdl.models.gpt import GPT, SIZES

SHAPE = dict(n_layer=2, n_embd=12, n_head=3, vocab_size=37, n_positions=11)


def reference(seed, dtype=torch.float32, **changes):
  config = transformers.OpenAIGPTConfig(**{**SHAPE, **changes})
  model = transformers.OpenAIGPTLMHeadModel(config).to(dtype)
  return decoder_parity.randomise(model, seed)


@pytest.mark.parametrize('seed', [0, 1])
def test_logits_loss_and_gradients_are_transformers_in_float32(seed):
  absolute, _ = decoder_parity.compare(FAMILY, reference(seed), seed)
  assert absolute < decoder_parity.SINGLE


@pytest.mark.parametrize(
  ('stack', 'changes'),
  [
    ('loop', {}),
    ('scan', dict(afn='silu', layer_norm_epsilon=1e-3, n_positions=9)),
  ],
)
def test_logits_loss_and_gradients_are_transformers_in_float64(stack, changes):
  with jax.enable_x64(True):
    for seed in (0, 1):
      peer = reference(seed, torch.float64, **changes)
      _, relative = decoder_parity.compare(FAMILY, peer, seed, stack=stack)
      assert relative < decoder_parity.DOUBLE


@pytest.mark.parametrize('stack', ['loop', 'scan'])
def test_the_round_trip_is_exact(stack):
  decoder_parity.round_trip(FAMILY, reference(0), stack=stack)


def test_the_config_of_the_hub_describes_the_published_size():
  full = FAMILY.model_of(transformers.OpenAIGPTConfig().to_dict())
  assert full == FAMILY.model_of({}) == SIZES['gpt-117m']


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'block': 'pre'}, 'block=pre must be post for OpenAI GPT weights'),
    ({'mlp_width': 20}, 'mlp_width=20 must be 64 for OpenAI GPT weights'),
    ({'kv_heads': 2}, 'kv_heads=2 must be 4 for OpenAI GPT weights'),
    ({'window': 3}, 'window=3 must be 0 for OpenAI GPT weights'),
    ({'position': 'rotary'}, 'position=rotary must be learned'),
    ({'activation': 'gelu_exact'}, 'activation=gelu_exact must be one of gelu'),
  ],
)
def test_models_that_it_cannot_be_are_refused(changes, message):
  model = GPT(depth=1, width=16, heads=4, vocab=5, length=4, block='post')
  with pytest.raises(ValueError, match=f'^{message}'):
    FAMILY.config_of(model.clone(**changes))


@pytest.mark.parametrize(
  ('field', 'value'), [('model_type', 'bert'), ('afn', 'gelu_exact')]
)
def test_configs_that_a_gpt_cannot_be_are_refused(field, value):
  with pytest.raises(ValueError, match=f'^{field}={value} must be'):
    FAMILY.model_of({field: value})


def test_checkpoints_of_the_bare_model_load():
  peer = reference(0)
  state = decoder_parity.arrays_of(peer)
  model = FAMILY.model_of(peer.config.to_dict())
  bare = {
    k.removeprefix('transformer.'): v
    for k, v in state.items()
    if k != 'lm_head.weight'
  }
  one, two = (base.from_hf(s, model, FAMILY) for s in (state, bare))
  assert jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), one, two))
