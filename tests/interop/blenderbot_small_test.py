"""BlenderBot 90M against `BlenderbotSmallForConditionalGeneration`."""

from __future__ import annotations

import bart_parity
import jax
import numpy as np
import pytest
import torch
import transformers

from bigdl.interop import base
from bigdl.interop.blenderbot_small import FAMILY
from bigdl.models.transformer import SIZES


def reference(seed, dtype=torch.float32):
  config = transformers.BlenderbotSmallConfig(**bart_parity.SMALL)
  make = transformers.BlenderbotSmallForConditionalGeneration
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


def test_the_round_trip_is_exact():
  bart_parity.round_trip(FAMILY, reference(0))


def test_the_config_comes_back():
  model = FAMILY.model_of(reference(0).config.to_dict())
  again = transformers.BlenderbotSmallConfig(**FAMILY.config_of(model))
  assert FAMILY.model_of(again.to_dict()) == model


def test_the_class_s_defaults_are_the_90m_but_for_its_vocabulary():
  model = FAMILY.model_of(transformers.BlenderbotSmallConfig().to_dict())
  assert model == FAMILY.model_of({})
  want = SIZES['blenderbot-90m']
  assert model == want.clone(vocab=50265, head_bias=True, embed_scale=False)


def test_the_90m_has_the_parameters_of_transformers():
  model = SIZES['blenderbot-90m']
  config = transformers.BlenderbotSmallConfig(**FAMILY.config_of(model))
  with torch.device('meta'):
    peer = transformers.BlenderbotSmallForConditionalGeneration(config)
  count = sum(p.numel() for p in peer.parameters())
  shapes, _ = base.shapes_of(model, FAMILY)
  assert sum(int(np.prod(x.shape)) for x in shapes.values()) == count


def test_models_without_the_norm_of_embeddings_are_refused():
  model = SIZES['blenderbot-90m'].clone(embed_norm=False)
  with pytest.raises(ValueError, match=r'^embed_norm=False must be True'):
    FAMILY.config_of(model)
