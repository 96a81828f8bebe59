"""XGLM's weights, which are InCoder's, under the names of Hugging Face.

Names and shapes are those of `transformers.XGLMForCausalLM` (Lin et al., 2021,
arXiv:2112.10668); InCoder (Fried et al., 2022, arXiv:2204.05999) is one. Its
positions are fairseq's sinusoids, which are computed, not stored.
Differs from it: nothing but dropout, which is left to the caller. A padding
token's vector is trained like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bigdl.interop import base
from bigdl.layers.mlp import Activation
from bigdl.models.gpt import GPT

_ACTIVATIONS: dict[str, Activation] = {
  'gelu': 'gelu_exact',
  'gelu_new': 'gelu',
  'gelu_pytorch_tanh': 'gelu',
  'relu': 'relu',
  'silu': 'silu',
  'swish': 'silu',
}
# XGLMConfig's defaults, which its JSON leaves out.
_DEFAULTS: dict[str, Any] = {
  'num_layers': 24,
  'd_model': 1024,
  'attention_heads': 16,
  'vocab_size': 256008,
  'max_position_embeddings': 2048,
  'ffn_dim': 4096,
  'activation_function': 'gelu',
  'scale_embedding': True,
  'tie_word_embeddings': True,
}
# What GPT cannot be, and so must have this value where it is given.
_FIXED = {'model_type': 'xglm', 'add_cross_attention': False}
# Fields that it has as well.
_FREE = (
  'depth',
  'width',
  'heads',
  'vocab',
  'length',
  'mlp_width',
  'activation',
  'embed_scale',
  'tied',
)


def model_of(config: Mapping[str, Any]) -> GPT:
  """Returns the GPT that a `config.json` of XGLM describes."""
  for name, value in _FIXED.items():
    if config.get(name, value) != value:
      raise ValueError(f'{name}={config[name]} must be {value} for a GPT')
  given = {k: config.get(k, v) for k, v in _DEFAULTS.items()}
  width, hidden = given['d_model'], given['ffn_dim']
  return GPT(
    depth=given['num_layers'],
    width=width,
    heads=given['attention_heads'],
    vocab=given['vocab_size'],
    length=given['max_position_embeddings'],
    mlp_width=0 if hidden == 4 * width else hidden,
    activation=base.one_of(
      'activation_function', given['activation_function'], _ACTIVATIONS
    ),
    position='fairseq',
    embed_scale=given['scale_embedding'],
    tied=given['tie_word_embeddings'],
  )


def config_of(model: GPT) -> dict[str, Any]:
  """Returns the content of XGLM's `config.json` for a GPT."""
  _check(model)
  return {
    'model_type': 'xglm',
    'num_layers': model.depth,
    'd_model': model.width,
    'attention_heads': model.heads,
    'vocab_size': model.vocab,
    'max_position_embeddings': model.length,
    'ffn_dim': model.mlp_width or 4 * model.width,
    'activation_function': next(
      k for k, v in _ACTIVATIONS.items() if v == model.activation
    ),
    'scale_embedding': model.embed_scale,
    'tie_word_embeddings': model.tied,
    'dropout': model.dropout,
    'attention_dropout': 0.0,
    'activation_dropout': 0.0,
  }


def _check(model: GPT) -> None:
  """Raises ValueError for a GPT that computes what XGLM cannot."""
  widths = {
    'kv_heads': model.heads,
    'head_width': model.width // model.heads,
  }
  base.check_widths(model, 'XGLM', **widths)
  base.one_of(
    'activation', model.activation, {v: v for v in _ACTIVATIONS.values()}
  )
  base.check_fields(model, 'XGLM', free=(*_FREE, *widths), position='fairseq')


def _tensors(model: GPT) -> Iterator[base.Tensor]:
  """Yields every tensor of the state dict, in its order."""
  _check(model)
  yield base.Tensor('model.embed_tokens.weight', ('embed/embedding',))
  norm = {'weight': 'scale', 'bias': 'bias'}
  dense = {'weight': 'kernel', 'bias': 'bias'}
  layers = (
    ('self_attn.k_proj', 'attention/key', dense),
    ('self_attn.v_proj', 'attention/value', dense),
    ('self_attn.q_proj', 'attention/query', dense),
    ('self_attn.out_proj', 'attention/out', dense),
    ('self_attn_layer_norm', 'attention_norm', norm),
    ('fc1', 'mlp/up', dense),
    ('fc2', 'mlp/down', dense),
    ('final_layer_norm', 'mlp_norm', norm),
  )
  for i in range(model.depth):
    for theirs, ours, leaves in layers:
      for leaf, own in leaves.items():
        yield base.Tensor(
          f'model.layers.{i}.{theirs}.{leaf}',
          (f'blocks_{i}/{ours}/{own}',),
          turned=own == 'kernel',
        )
  for leaf, own in norm.items():
    yield base.Tensor(f'model.layer_norm.{leaf}', (f'final_norm/{own}',))
  if model.tied:
    yield base.Tensor('lm_head.weight', ('embed/embedding',), copy=True)
  else:
    yield base.Tensor('lm_head.weight', ('head/kernel',), turned=True)


FAMILY = base.Family(
  name='XGLM',
  architectures=('XGLMForCausalLM', 'XGLMModel'),
  model_of=model_of,
  config_of=config_of,
  tensors=_tensors,
  # Older checkpoints carry the sinusoids.
  ignored=r'embed_positions\.weights$',
  prefix='model',
)
