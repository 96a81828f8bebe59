"""BlenderBot's shapes against `BlenderbotForConditionalGeneration`."""

from __future__ import annotations

import bart_parity
import jax
import pytest
import torch
import transformers

from bigdl.interop.blenderbot import FAMILY
from bigdl.models.transformer import SIZES


def reference(seed, dtype=torch.float32):
  config = transformers.BlenderbotConfig(**bart_parity.SMALL)
  make = transformers.BlenderbotForConditionalGeneration
  return bart_parity.reference(make, config, seed, dtype)


@pytest.mark.parametrize('seed', [0, 1])
def test_logits_and_gradients_are_transformers_in_float32(seed):
  absolute, _ = bart_parity.compare(FAMILY, reference(seed), seed)
  assert absolute < bart_parity.SINGLE


def test_logits_and_gradients_are_transformers_in_float64():
  with jax.enable_x64(True):
    for seed in (0, 1):
      peer = reference(seed, torch.float64)
      _, relative = bart_parity.compare(FAMILY, peer, seed)
      assert relative < bart_parity.DOUBLE


@pytest.mark.parametrize('stack', ['loop', 'scan'])
def test_the_round_trip_is_exact(stack):
  bart_parity.round_trip(FAMILY, reference(0), stack=stack)


def test_the_config_comes_back():
  model = FAMILY.model_of(reference(0).config.to_dict())
  again = transformers.BlenderbotConfig(**FAMILY.config_of(model))
  assert FAMILY.model_of(again.to_dict()) == model
  assert again.encoder_no_repeat_ngram_size == 0


def test_the_class_s_defaults_are_the_2_7b():
  model = FAMILY.model_of(transformers.BlenderbotConfig().to_dict())
  assert model == FAMILY.model_of({})
  want = SIZES['blenderbot-2.7b']
  assert model == want.clone(head_bias=True, embed_scale=False)


def test_post_norm_models_are_refused():
  model = SIZES['blenderbot-90m']
  with pytest.raises(ValueError, match=r'^block=post must be pre for Blender'):
    FAMILY.config_of(model)
