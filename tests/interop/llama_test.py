"""LLaMA and Mistral against `transformers`, with shared random weights."""

from __future__ import annotations

from decoder_parity import DOUBLE, SINGLE, compare, randomise, round_trip
import jax
import pytest
import torch
import transformers
from wide_torch import wide

from bigdl.interop import llama
from bigdl.interop.llama import FAMILY
from bigdl.models.gpt import GPT, SIZES

SHAPE = dict(
  num_hidden_layers=2,
  hidden_size=12,
  intermediate_size=20,
  num_attention_heads=3,
  vocab_size=37,
  max_position_embeddings=11,
  attn_implementation='eager',
  pad_token_id=None,
)
# Every head its own keys and values; in groups, with all that is optional.
PLAIN: dict = {}
GROUPED = dict(
  num_attention_heads=4,
  num_key_value_heads=2,
  head_dim=6,
  attention_bias=True,
  mlp_bias=True,
  tie_word_embeddings=True,
  hidden_act='gelu_pytorch_tanh',
  rms_norm_eps=1e-3,
  rope_parameters={'rope_type': 'default', 'rope_theta': 500.0},
)


def reference(seed, dtype=torch.float32, **changes):
  config = transformers.LlamaConfig(**{**SHAPE, **changes})
  return randomise(transformers.LlamaForCausalLM(config).to(dtype), seed)


def mistral(seed, dtype=torch.float32, **changes):
  shape = {**SHAPE, 'num_key_value_heads': 1, 'sliding_window': 4, **changes}
  model = transformers.MistralForCausalLM(transformers.MistralConfig(**shape))
  return randomise(model.to(dtype), seed)


@pytest.mark.parametrize(
  ('changes', 'stack', 'attention'),
  [(PLAIN, 'loop', 'tiled'), (GROUPED, 'scan', 'xla')],
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


def test_mistral_sees_the_window_that_transformers_has():
  with jax.enable_x64(True), wide():
    for seed in (0, 1):
      peer = mistral(seed, torch.float64)
      _, relative = compare(FAMILY, peer, seed)
      assert relative < DOUBLE


@pytest.mark.parametrize('stack', ['loop', 'scan'])
@pytest.mark.parametrize('changes', [PLAIN, GROUPED])
def test_the_round_trip_is_exact(changes, stack):
  round_trip(FAMILY, reference(0, **changes), stack=stack)


def test_mistral_comes_back_as_mistral():
  peer = mistral(0)
  round_trip(FAMILY, peer)
  config = llama.config_of(llama.model_of(peer.config.to_dict()))
  assert config['architectures'] == ['MistralForCausalLM']
  assert transformers.MistralConfig(**config).sliding_window == 4


def test_the_configs_of_the_hub_are_read():
  seven = llama.model_of(transformers.LlamaConfig().to_dict())
  assert seven == llama.model_of({}) == SIZES['llama-7b']
  mixed = llama.model_of(transformers.MistralConfig().to_dict())
  assert mixed == llama.model_of({'model_type': 'mistral'})
  assert (mixed.kv_heads, mixed.window, mixed.length) == (8, 4096, 131072)
  # Before transformers 5 the base of rotation stood by itself.
  old = {'rope_theta': 5e5, 'rope_scaling': None}
  assert llama.model_of(old).rotary_base == 5e5


@pytest.mark.parametrize(
  ('name', 'count'),
  [
    ('llama-7b', 6_738_415_616),
    ('llama-13b', 13_015_864_320),
    ('llama-33b', 32_528_943_616),
    ('llama-65b', 65_285_660_672),
    ('llama2-7b', 6_738_415_616),
    ('llama2-70b', 68_976_648_192),
    ('llama3-8b', 8_030_261_248),
    ('llama3-70b', 70_553_706_496),
    ('llama3-405b', 405_853_388_800),
  ],
)
def test_published_sizes_have_the_parameters_of_transformers(name, count):
  # One block of each, as torch's modules are slow to make; blocks are alike.
  model = SIZES[name]
  config = transformers.LlamaConfig(**llama.config_of(model))
  config.num_hidden_layers = 1
  with torch.device('meta'):
    peer = transformers.LlamaForCausalLM(config)
  sizes = {k: v.numel() for k, v in peer.named_parameters()}
  block = sum(v for k, v in sizes.items() if '.layers.' in k)
  assert sum(sizes.values()) + (model.depth - 1) * block == count
  assert parameters(model) == count


def parameters(model):
  shapes = jax.eval_shape(
    model.clone(stack='scan').init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, 1), 'int32'),
  )
  return sum(x.size for x in jax.tree.leaves(shapes))


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'model_type': 'qwen2'}, 'model_type=qwen2 must be one of llama, mistral'),
    ({'hidden_act': 'relu'}, 'hidden_act=relu must be one of silu'),
    ({'mlp_bias': True}, 'attention_bias=False must be mlp_bias=True'),
    (
      {'rope_parameters': {'rope_type': 'llama3', 'factor': 8.0}},
      'rope_type=llama3 must be default for a GPT',
    ),
    (
      {'rope_scaling': {'type': 'linear', 'factor': 2.0}},
      'rope_type=linear must be default for a GPT',
    ),
    ({'partial_rotary_factor': 0.5}, 'partial_rotary_factor=0.5 must be 1'),
  ],
)
def test_configs_that_a_gpt_cannot_be_are_refused(changes, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    llama.model_of(changes)


LLAMA = GPT(
  depth=1,
  width=16,
  heads=4,
  vocab=5,
  length=4,
  norm='rmsnorm',
  bias=False,
  position='rotary',
  activation='swiglu',
)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'norm': 'layernorm'}, 'norm=layernorm must be rmsnorm for LLaMA weights'),
    ({'position': 'none'}, 'position=none must be rotary for LLaMA weights'),
    ({'activation': 'relu'}, 'activation=relu must be one of swiglu, geglu'),
    ({'rotary_fraction': 0.5}, 'rotary_fraction=0.5 must be 1.0 for LLaMA'),
    ({'window': 2, 'dense_every': 2}, 'dense_every=2 must be 0 for LLaMA'),
    ({'window': 2, 'bias': True}, 'bias=True must be False for Mistral'),
    ({'width': 18, 'head_width': 4}, 'heads=4 must divide width=18 for LLaMA'),
    ({'embed_scale': True}, 'embed_scale=True must be False for LLaMA'),
  ],
)
def test_models_that_llama_cannot_be_are_refused(changes, message):
  llama.config_of(LLAMA)
  with pytest.raises(ValueError, match=f'^{message}'):
    llama.config_of(LLAMA.clone(**changes))
