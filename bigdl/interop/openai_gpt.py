"""The first GPT's weights under the names of Hugging Face.

Names and shapes are those of `transformers.OpenAIGPTLMHeadModel`: post-norm
blocks, kernels `[inputs, outputs]` as ours, queries, keys and values in one
matrix (Radford et al., 2018, "Improving Language Understanding by Generative
Pre-Training", section 4.1). Checkpoints of the bare `OpenAIGPTModel` load too.
Differs from it: nothing but dropout, which is left to the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bigdl.interop import base
from bigdl.layers.mlp import Activation
from bigdl.models.gpt import GPT

# What it calls gelu is the tanh approximation.
_ACTIVATIONS: dict[str, Activation] = {
  'gelu': 'gelu',
  'relu': 'relu',
  'silu': 'silu',
  'swish': 'silu',
}
# OpenAIGPTConfig's defaults, which its JSON leaves out.
_DEFAULTS = {
  'n_layer': 12,
  'n_embd': 768,
  'n_head': 12,
  'vocab_size': 40478,
  'n_positions': 512,
  'afn': 'gelu',
  'layer_norm_epsilon': 1e-5,
  'tie_word_embeddings': True,
}
# Fields that it has as well.
_FREE = (
  'depth',
  'width',
  'heads',
  'vocab',
  'length',
  'norm_epsilon',
  'activation',
  'tied',
)


def model_of(config: Mapping[str, Any]) -> GPT:
  """Returns the GPT that a `config.json` of OpenAI GPT describes."""
  if config.get('model_type', 'openai-gpt') != 'openai-gpt':
    raise ValueError(
      f'model_type={config["model_type"]} must be openai-gpt for a GPT'
    )
  given = {k: config.get(k, v) for k, v in _DEFAULTS.items()}
  return GPT(
    depth=given['n_layer'],
    width=given['n_embd'],
    heads=given['n_head'],
    vocab=given['vocab_size'],
    length=given['n_positions'],
    activation=base.one_of('afn', given['afn'], _ACTIVATIONS),
    block='post',
    norm_epsilon=given['layer_norm_epsilon'],
    tied=given['tie_word_embeddings'],
  )


def config_of(model: GPT) -> dict[str, Any]:
  """Returns the content of `config.json` for a GPT with post-norm blocks."""
  _check(model)
  return {
    'model_type': 'openai-gpt',
    'n_layer': model.depth,
    'n_embd': model.width,
    'n_head': model.heads,
    'vocab_size': model.vocab,
    'n_positions': model.length,
    'afn': base.one_of(
      'activation', model.activation, {v: v for v in _ACTIVATIONS.values()}
    ),
    'layer_norm_epsilon': model.norm_epsilon,
    'tie_word_embeddings': model.tied,
    'embd_pdrop': model.dropout,
    'resid_pdrop': model.dropout,
    'attn_pdrop': 0.0,
  }


def _check(model: GPT) -> None:
  """Raises ValueError for a GPT that computes what the first one cannot."""
  widths = {
    'kv_heads': model.heads,
    'head_width': model.width // model.heads,
    'mlp_width': 4 * model.width,
  }
  base.check_widths(model, 'OpenAI GPT', **widths)
  base.check_fields(model, 'OpenAI GPT', free=(*_FREE, *widths), block='post')


def _tensors(model: GPT) -> Iterator[base.Tensor]:
  """Yields every tensor of the state dict, in its order."""
  _check(model)
  yield base.Tensor('transformer.tokens_embed.weight', ('embed/embedding',))
  yield base.Tensor(
    'transformer.positions_embed.weight', ('positions/embedding',)
  )
  norm = {'weight': 'scale', 'bias': 'bias'}
  dense = {'weight': 'kernel', 'bias': 'bias'}
  layers = (
    ('attn.c_attn', 'attention/', ('query', 'key', 'value'), dense),
    ('attn.c_proj', 'attention/', ('out',), dense),
    ('ln_1', '', ('attention_norm',), norm),
    ('mlp.c_fc', 'mlp/', ('up',), dense),
    ('mlp.c_proj', 'mlp/', ('down',), dense),
    ('ln_2', '', ('mlp_norm',), norm),
  )
  for i in range(model.depth):
    for theirs, inside, ours, leaves in layers:
      for leaf, own in leaves.items():
        paths = tuple(f'blocks_{i}/{inside}{part}/{own}' for part in ours)
        yield base.Tensor(f'transformer.h.{i}.{theirs}.{leaf}', paths)
  if model.tied:
    yield base.Tensor('lm_head.weight', ('embed/embedding',), copy=True)
  else:
    yield base.Tensor('lm_head.weight', ('head/kernel',), turned=True)


FAMILY = base.Family(
  name='OpenAI GPT',
  architectures=('OpenAIGPTLMHeadModel', 'OpenAIGPTModel'),
  model_of=model_of,
  config_of=config_of,
  tensors=_tensors,
  # Older checkpoints carry the causal mask and the numbers of positions.
  ignored=r'\.attn\.bias$|position_ids$',
  prefix='transformer',
)
