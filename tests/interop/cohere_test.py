"""PaLM's shape against `transformers.CohereForCausalLM`."""

from __future__ import annotations

from decoder_parity import (
  DOUBLE,
  SINGLE,
  arrays_of,
  compare,
  randomise,
  round_trip,
)
import jax
import numpy as np
import pytest
import torch
import transformers
from wide_torch import wide

from bigdl.interop import base, cohere
from bigdl.interop.cohere import FAMILY
from bigdl.models.gpt import GPT, SIZES

SHAPE = dict(
  num_hidden_layers=2,
  hidden_size=12,
  intermediate_size=20,
  num_attention_heads=3,
  num_key_value_heads=1,
  vocab_size=37,
  max_position_embeddings=11,
  logit_scale=0.5,
  attn_implementation='eager',
  pad_token_id=None,
)
# One head of keys and values for all; in groups, of a width of their own.
MULTI_QUERY: dict = {}
GROUPED = dict(
  hidden_size=10,
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=6,
  logit_scale=1.0,
  layer_norm_eps=1e-3,
  rope_parameters={'rope_type': 'default', 'rope_theta': 100.0},
)
FULL = dict(num_key_value_heads=3)


def reference(seed, dtype=torch.float32, **changes):
  config = transformers.CohereConfig(**{**SHAPE, **changes})
  return randomise(transformers.CohereForCausalLM(config).to(dtype), seed)


@pytest.mark.parametrize(
  ('changes', 'stack', 'attention'),
  [
    (MULTI_QUERY, 'loop', 'tiled'),
    (GROUPED, 'scan', 'xla'),
  ],
)
def test_logits_loss_and_gradients_are_transformers(changes, stack, attention):
  for seed in (0, 1):
    peer = reference(seed, **changes)
    absolute, _ = compare(FAMILY, peer, seed, stack=stack, attention=attention)
    assert absolute < SINGLE
  with jax.enable_x64(True), wide():
    for seed in (0, 1):
      peer = reference(seed, torch.float64, **changes)
      _, relative = compare(
        FAMILY, peer, seed, stack=stack, attention=attention
      )
      assert relative < DOUBLE


@pytest.mark.parametrize('stack', ['loop', 'scan'])
@pytest.mark.parametrize('changes', [MULTI_QUERY, GROUPED, FULL])
def test_the_round_trip_is_exact(changes, stack):
  round_trip(FAMILY, reference(0, **changes), stack=stack)


def test_palm_which_scales_embeddings_computes_the_same_as_cohere():
  model = SIZES['palm-8b'].clone(
    depth=2, width=12, heads=3, head_width=6, vocab=37, length=11
  )
  tokens = np.arange(22, dtype=np.int32).reshape(2, 11)
  params = jax.jit(model.init)(jax.random.key(0), tokens)['params']
  # Initialisation leaves logits of this size nearly equal.
  rng = np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: x + rng.normal(0, 0.3, x.shape).astype(np.float32), params
  )
  want = jax.jit(model.apply)({'params': params}, tokens)
  state = base.to_hf(params, model, FAMILY)
  config = transformers.CohereConfig(**cohere.config_of(model))
  peer = transformers.CohereForCausalLM(config).eval()
  peer.load_state_dict({k: torch.tensor(v) for k, v in state.items()})
  with torch.no_grad():
    logits = peer(torch.from_numpy(tokens).long()).logits.numpy()
  assert np.ptp(logits) > 1
  np.testing.assert_allclose(logits, want, atol=1e-4)
  # It comes back as a GPT of larger embeddings.
  again = cohere.model_of(config.to_dict())
  assert not again.embed_scale
  back = base.from_hf(arrays_of(peer), again, FAMILY)
  logits = jax.jit(again.apply)({'params': back}, tokens)
  np.testing.assert_allclose(logits, want, atol=1e-4)


@pytest.mark.parametrize(
  ('name', 'parameters'),
  [
    ('palm-8b', 8_632_012_800),
    ('palm-62b', 62_495_662_080),
    ('palm-540b', 540_356_474_880),
  ],
)
def test_palm_has_the_parameters_of_cohere(name, parameters):
  # One block of each, as torch's modules are slow to make; blocks are alike.
  model = SIZES[name]
  config = transformers.CohereConfig(**cohere.config_of(model))
  config.num_hidden_layers = 1
  with torch.device('meta'):
    peer = transformers.CohereForCausalLM(config)
  sizes = {k: v.numel() for k, v in peer.named_parameters()}
  block = sum(v for k, v in sizes.items() if '.layers.' in k)
  shapes = jax.eval_shape(
    model.clone(stack='scan').init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, 1), 'int32'),
  )
  assert sum(x.size for x in jax.tree.leaves(shapes)) == parameters
  assert sum(sizes.values()) + (model.depth - 1) * block == parameters


def test_the_config_of_the_hub_is_read():
  model = cohere.model_of(transformers.CohereConfig().to_dict())
  assert model == cohere.model_of({})
  assert model == GPT(
    depth=40,
    width=8192,
    heads=64,
    vocab=256000,
    length=8192,
    mlp_width=22528,
    activation='swiglu',
    block='parallel',
    bias=False,
    position='rotary',
    rotary_base=5e5,
    logit_scale=0.0625,
  )


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('model_type', 'cohere2'),
    ('hidden_act', 'gelu'),
    ('tie_word_embeddings', False),
    ('attention_bias', True),
    ('use_qk_norm', True),
  ],
)
def test_configs_that_a_gpt_cannot_be_are_refused(field, value):
  with pytest.raises(ValueError, match=f'^{field}={value} must be'):
    cohere.model_of({field: value})


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('block', 'pre'),
    ('norm', 'rmsnorm'),
    ('bias', True),
    ('tied', False),
    ('qk_norm', True),
    ('softcap', 30.0),
    ('window', 2),
  ],
)
def test_models_that_cohere_cannot_be_are_refused(field, value):
  palm = SIZES['palm-8b']
  cohere.config_of(palm)
  with pytest.raises(ValueError, match=f'^{field}={value} must be .*Cohere'):
    cohere.config_of(palm.clone(**{field: value}))
