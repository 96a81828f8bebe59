"""PaLM-shaped weights under Cohere's names, to and from parameters.

Chowdhery et al., 2022, arXiv:2204.02311, section 2: one norm, then attention
and SwiGLU side by side, no biases, a tied head, keys and values that heads may
share. `transformers.CohereForCausalLM` lists the same parameters. It rotates
coordinates 2 i and 2 i + 1 of a head where we rotate i and i + K / 2, so that
rows of queries and keys are permuted.
Differs from it: query-key norm, which Cohere has for each head by itself, and
biases of attention are refused. A GPT that multiplies embeddings by sqrt(D), as
PaLM does, is written with larger embeddings and a logit scale smaller by the
same factor, which computes the same; it is read back as that.
"""

# Shapes: D width.
from __future__ import annotations

from collections.abc import Iterator, Mapping
import functools
import math
from typing import Any

import numpy as np

from bigdl.interop import base
from bigdl.models.gpt import GPT

# CohereConfig's defaults, which its JSON leaves out.
_DEFAULTS: dict[str, Any] = {
  'vocab_size': 256000,
  'hidden_size': 8192,
  'intermediate_size': 22528,
  'logit_scale': 0.0625,
  'num_hidden_layers': 40,
  'num_attention_heads': 64,
  'num_key_value_heads': None,
  'head_dim': None,
  'max_position_embeddings': 8192,
  'layer_norm_eps': 1e-5,
}
# What GPT cannot be, and so must have this value where it is given.
_FIXED = {
  'model_type': 'cohere',
  'hidden_act': 'silu',
  'tie_word_embeddings': True,
  'attention_bias': False,
  'use_qk_norm': False,
}
# Fields that Cohere has as well.
_FREE = (
  'depth',
  'width',
  'heads',
  'kv_heads',
  'head_width',
  'vocab',
  'length',
  'mlp_width',
  'norm_epsilon',
  'rotary_base',
  'embed_scale',
  'logit_scale',
)


def model_of(config: Mapping[str, Any]) -> GPT:
  """Returns the GPT that a `config.json` of Cohere describes."""
  for name, value in _FIXED.items():
    if config.get(name, value) != value:
      raise ValueError(f'{name}={config[name]} must be {value} for a GPT')
  given = {k: config.get(k, v) for k, v in _DEFAULTS.items()}
  heads, width = given['num_attention_heads'], given['hidden_size']
  kv_heads = given['num_key_value_heads'] or heads
  head_width = given['head_dim'] or width // heads
  return GPT(
    depth=given['num_hidden_layers'],
    width=width,
    heads=heads,
    kv_heads=0 if kv_heads == heads else kv_heads,
    head_width=0 if head_width * heads == width else head_width,
    vocab=given['vocab_size'],
    length=given['max_position_embeddings'],
    mlp_width=given['intermediate_size'],
    activation='swiglu',
    block='parallel',
    norm_epsilon=given['layer_norm_eps'],
    bias=False,
    position='rotary',
    rotary_base=base.rotary_base(config, 5e5),
    logit_scale=given['logit_scale'],
  )


def config_of(model: GPT) -> dict[str, Any]:
  """Returns the content of Cohere's `config.json` for a GPT."""
  _check(model)
  return {
    'model_type': 'cohere',
    'vocab_size': model.vocab,
    'hidden_size': model.width,
    'intermediate_size': model.mlp_width or 4 * model.width,
    'logit_scale': model.logit_scale / _enlarged(model),
    'num_hidden_layers': model.depth,
    'num_attention_heads': model.heads,
    'num_key_value_heads': model.kv_heads or model.heads,
    'head_dim': model.head_width or model.width // model.heads,
    'hidden_act': 'silu',
    'max_position_embeddings': model.length,
    'layer_norm_eps': model.norm_epsilon,
    'tie_word_embeddings': True,
    'rope_parameters': {
      'rope_theta': model.rotary_base,
      'rope_type': 'default',
    },
    # Read by transformers before version 5.
    'rope_theta': model.rotary_base,
    'attention_bias': False,
    'use_qk_norm': False,
    'pad_token_id': None,
    'bos_token_id': None,
    'eos_token_id': None,
  }


def _check(model: GPT) -> None:
  """Raises ValueError for a GPT that computes what Cohere cannot."""
  base.check_fields(
    model,
    'Cohere',
    free=_FREE,
    activation='swiglu',
    block='parallel',
    bias=False,
    position='rotary',
  )


def _enlarged(model: GPT) -> float:
  """What embeddings are multiplied by when they are written."""
  return math.sqrt(model.width) if model.embed_scale else 1.0


def _halves(value: np.ndarray, *, heads: int) -> np.ndarray:
  """Puts the first of each rotated pair of rows into the head's first half."""
  pairs = value.reshape(heads, -1, 2, value.shape[-1])
  return pairs.swapaxes(1, 2).reshape(value.shape)


def _pairs(value: np.ndarray, *, heads: int) -> np.ndarray:
  """Undoes `_halves`."""
  halves = value.reshape(heads, 2, -1, value.shape[-1])
  return halves.swapaxes(1, 2).reshape(value.shape)


def _tensors(model: GPT) -> Iterator[base.Tensor]:
  """Yields every tensor of the state dict, in its order."""
  _check(model)
  scale = _enlarged(model)
  embed: dict[str, Any] = {'paths': ('embed/embedding',)}
  if scale != 1:
    embed |= {'read': lambda x: x / scale, 'write': lambda x: x * scale}
  layers = {
    'self_attn.q_proj': ('attention/query', model.heads),
    'self_attn.k_proj': ('attention/key', model.kv_heads or model.heads),
    'self_attn.v_proj': ('attention/value', 0),
    'self_attn.o_proj': ('attention/out', 0),
    'mlp.gate_proj': ('mlp/gate', 0),
    'mlp.up_proj': ('mlp/up', 0),
    'mlp.down_proj': ('mlp/down', 0),
  }
  yield base.Tensor('model.embed_tokens.weight', **embed)
  for i in range(model.depth):
    for name, (path, rotated) in layers.items():
      turns: dict[str, Any] = {}
      if rotated:
        turns['read'] = functools.partial(_halves, heads=rotated)
        turns['write'] = functools.partial(_pairs, heads=rotated)
      yield base.Tensor(
        f'model.layers.{i}.{name}.weight',
        (f'blocks_{i}/{path}/kernel',),
        turned=True,
        **turns,
      )
    yield base.Tensor(
      f'model.layers.{i}.input_layernorm.weight',
      (f'blocks_{i}/attention_norm/scale',),
    )
  yield base.Tensor('model.norm.weight', ('final_norm/scale',))
  yield base.Tensor('lm_head.weight', copy=True, **embed)


FAMILY = base.Family(
  name='Cohere',
  architectures=('CohereForCausalLM',),
  model_of=model_of,
  config_of=config_of,
  tensors=_tensors,
  ignored=r'rotary_emb\.inv_freq$',
)
