"""GPT with alternating attention against `transformers.GPTNeoForCausalLM`."""

from __future__ import annotations

import decoder_parity
import jax
import pytest
import torch
import transformers
from transformers.models.gpt_neo import modeling_gpt_neo

from bigdl.interop.gpt_neo import FAMILY
from bigdl.models.gpt import GPT

# Odd lengths, a window shorter than they are, and a third layer left over.
SHAPE = dict(
  num_layers=3,
  hidden_size=12,
  num_heads=2,
  vocab_size=37,
  max_position_embeddings=11,
  window_size=4,
  attention_types=[[['global', 'local'], 1], [['global'], 1]],
  bos_token_id=0,
  eos_token_id=0,
)
ROOT = (12 / 2) ** 0.5


def reference(seed, dtype=torch.float32, **changes):
  config = transformers.GPTNeoConfig(**{**SHAPE, **changes})
  model = transformers.GPTNeoForCausalLM(config).to(dtype)
  return decoder_parity.randomise(model, seed)


def compare(*args, **kwargs):
  # d loss / d theirs = root x d loss / d ours, and conversion divides by it.
  factor = ROOT * ROOT
  return decoder_parity.compare(
    FAMILY, *args, scaled=[('q_proj', factor)], **kwargs
  )


class Wide:
  """Torch, but with float64 where the reference rounds scores to float32."""

  float32 = torch.float64

  def __getattr__(self, name):
    return getattr(torch, name)


@pytest.mark.parametrize(
  ('stack', 'attention'), [('loop', 'xla'), ('scan', 'tiled')]
)
def test_logits_loss_and_gradients_are_transformers_in_float32(
  stack, attention
):
  for seed in (0, 1):
    absolute, _ = compare(
      reference(seed), seed, stack=stack, attention=attention
    )
    assert absolute < decoder_parity.SINGLE


@pytest.mark.parametrize(
  ('stack', 'attention', 'changes'),
  [
    ('loop', 'tiled', {}),
    ('scan', 'xla', {}),
    (
      'scan',
      'tiled',
      # Two tiles of queries, and keys that the second is not given.
      dict(
        max_position_embeddings=131,
        window_size=65,
        num_layers=2,
        attention_types=[[['global', 'local'], 1]],
      ),
    ),
    ('loop', 'tiled', dict(attention_types=[[['local'], 3]])),
    (
      'loop',
      'xla',
      dict(
        attention_types=[[['global'], 3]],
        activation_function='relu',
        intermediate_size=20,
        layer_norm_epsilon=1e-3,
      ),
    ),
  ],
)
def test_logits_loss_and_gradients_are_transformers_in_float64(
  stack, attention, changes, monkeypatch
):
  monkeypatch.setattr(modeling_gpt_neo, 'torch', Wide())
  with jax.enable_x64(True):
    for seed in (0, 1):
      peer = reference(seed, torch.float64, **changes)
      _, relative = compare(peer, seed, stack=stack, attention=attention)
      assert relative < decoder_parity.DOUBLE


@pytest.mark.parametrize('stack', ['loop', 'scan'])
def test_the_round_trip_is_exact_where_the_root_of_a_heads_width_is(stack):
  # Heads of 4, and of 6, whose root rounds.
  whole = reference(0, hidden_size=8)
  decoder_parity.round_trip(FAMILY, whole, stack=stack)
  decoder_parity.round_trip(FAMILY, reference(0), stack=stack, exact=False)


def test_the_config_of_the_hub_is_read():
  model = FAMILY.model_of(transformers.GPTNeoConfig().to_dict())
  assert model == GPT(
    depth=24,
    width=2048,
    heads=16,
    length=2048,
    qkv_bias=False,
    window=256,
    dense_every=2,
  )
  assert model == FAMILY.model_of({})


@pytest.mark.parametrize(
  ('layers', 'window', 'every'),
  [
    (['global', 'local', 'local', 'global'], 256, 3),
    (['global', 'local', 'local'], 256, 3),
    (['local', 'local'], 256, 0),
    (['global', 'global'], 0, 0),
  ],
)
def test_patterns_of_layers_become_a_window_and_a_period(layers, window, every):
  types = [[layers, 1]]
  config = {'num_layers': len(layers), 'attention_types': types}
  model = FAMILY.model_of(config)
  assert (model.window, model.dense_every) == (window, every)
  assert FAMILY.config_of(model)['attention_layers'] == layers


@pytest.mark.parametrize(
  ('types', 'message'),
  [
    ([[['local', 'global'], 1]], 'must be all local, or global'),
    ([[['global', 'strided'], 1]], 'must be all local, or global'),
    ([[['global', 'local'], 2]], 'must be of num_layers=2 layers'),
  ],
)
def test_patterns_that_a_gpt_cannot_be_are_refused(types, message):
  with pytest.raises(ValueError, match=f'^attention_types=.* {message}'):
    FAMILY.model_of({'num_layers': 2, 'attention_types': types})


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'qkv_bias': True}, 'qkv_bias=True must be False for GPT-Neo weights'),
    ({'head_width': 8}, 'head_width=8 must be 4 for GPT-Neo weights'),
    ({'block': 'post'}, 'block=post must be pre for GPT-Neo weights'),
    ({'activation': 'swiglu'}, 'activation=swiglu must be one of gelu'),
  ],
)
def test_models_that_it_cannot_be_are_refused(changes, message):
  model = GPT(depth=1, width=16, heads=4, vocab=5, length=4, qkv_bias=False)
  with pytest.raises(ValueError, match=f'^{message}'):
    FAMILY.config_of(model.clone(**changes))
