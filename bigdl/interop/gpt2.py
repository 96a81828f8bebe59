"""GPT-2's weights under the names of Hugging Face, to and from parameters.

Names and shapes are those of `transformers.GPT2LMHeadModel`: kernels lie
`[inputs, outputs]` as ours do, queries, keys and values are one matrix, and the
tied head is listed beside the embedding. Checkpoints of the bare `GPT2Model`,
whose names lack `transformer.`, load as well.
Differs from it: nothing but dropout, which is left to the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bigdl.interop import base
from bigdl.layers.mlp import Activation
from bigdl.models.gpt import GPT

_ACTIVATIONS: dict[str, Activation] = {
  'gelu_new': 'gelu',
  'gelu_pytorch_tanh': 'gelu',
  'gelu': 'gelu_exact',
  'relu': 'relu',
}
# GPT2Config's defaults, which its JSON leaves out.
_DEFAULTS = {
  'n_layer': 12,
  'n_embd': 768,
  'n_head': 12,
  'vocab_size': 50257,
  'n_positions': 1024,
  'n_inner': None,
  'activation_function': 'gelu_new',
  'layer_norm_epsilon': 1e-5,
  'tie_word_embeddings': True,
}
# What GPT cannot be, and so must have this value where it is given.
_FIXED = {
  'model_type': 'gpt2',
  'scale_attn_weights': True,
  'scale_attn_by_inverse_layer_idx': False,
  'add_cross_attention': False,
}
# Fields that GPT-2 has as well.
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
  'activation',
  'tied',
)


def model_of(config: Mapping[str, Any]) -> GPT:
  """Returns the GPT that a Hugging Face `config.json` of GPT-2 describes."""
  for name, value in _FIXED.items():
    if config.get(name, value) != value:
      raise ValueError(f'{name}={config[name]} must be {value} for a GPT')
  given = {k: config.get(k, v) for k, v in _DEFAULTS.items()}
  return GPT(
    depth=given['n_layer'],
    width=given['n_embd'],
    heads=given['n_head'],
    vocab=given['vocab_size'],
    length=given['n_positions'],
    mlp_width=given['n_inner'] or 0,
    activation=base.one_of(
      'activation_function', given['activation_function'], _ACTIVATIONS
    ),
    norm_epsilon=given['layer_norm_epsilon'],
    tied=given['tie_word_embeddings'],
  )


def config_of(model: GPT) -> dict[str, Any]:
  """Returns the content of GPT-2's `config.json` for a GPT."""
  _check(model)
  return {
    'model_type': 'gpt2',
    'n_layer': model.depth,
    'n_embd': model.width,
    'n_head': model.heads,
    'vocab_size': model.vocab,
    'n_positions': model.length,
    'n_inner': model.mlp_width or None,
    'activation_function': next(
      k for k, v in _ACTIVATIONS.items() if v == model.activation
    ),
    'layer_norm_epsilon': model.norm_epsilon,
    'tie_word_embeddings': model.tied,
    'embd_pdrop': model.dropout,
    'resid_pdrop': model.dropout,
    'attn_pdrop': 0.0,
  }


def _check(model: GPT) -> None:
  """Raises ValueError for a GPT that computes what GPT-2 cannot."""
  base.check_fields(model, 'GPT-2', free=_FREE)
  if model.activation not in _ACTIVATIONS.values():
    raise ValueError(
      f'activation={model.activation} must be one of '
      f'{", ".join(sorted(set(_ACTIVATIONS.values())))} for GPT-2 weights'
    )
  if (model.kv_heads or model.heads) != model.heads:
    raise ValueError(
      f'kv_heads={model.kv_heads} must be heads={model.heads} for GPT-2 weights'
    )
  if model.head_width and model.head_width * model.heads != model.width:
    raise ValueError(
      f'head_width={model.head_width} must be width / heads for GPT-2 weights'
    )


_PARENTS = {'attn': 'attention/', 'mlp': 'mlp/'}


def _tensors(model: GPT) -> Iterator[base.Tensor]:
  """Yields every tensor of the state dict, in its order."""
  _check(model)
  yield base.Tensor('transformer.wte.weight', ('embed/embedding',))
  yield base.Tensor('transformer.wpe.weight', ('positions/embedding',))
  norm = {'weight': 'scale', 'bias': 'bias'}
  dense = {'weight': 'kernel', 'bias': 'bias'}
  layers = (
    ('ln_1', ('attention_norm',), norm),
    ('attn.c_attn', ('query', 'key', 'value'), dense),
    ('attn.c_proj', ('out',), dense),
    ('ln_2', ('mlp_norm',), norm),
    ('mlp.c_fc', ('up',), dense),
    ('mlp.c_proj', ('down',), dense),
  )
  for i in range(model.depth):
    for theirs, ours, leaves in layers:
      inside = _PARENTS.get(theirs.split('.')[0], '')
      for leaf, own in leaves.items():
        paths = tuple(f'blocks_{i}/{inside}{part}/{own}' for part in ours)
        yield base.Tensor(f'transformer.h.{i}.{theirs}.{leaf}', paths)
  for leaf, own in norm.items():
    yield base.Tensor(f'transformer.ln_f.{leaf}', (f'final_norm/{own}',))
  if model.tied:
    yield base.Tensor('lm_head.weight', ('embed/embedding',), copy=True)
  else:
    yield base.Tensor('lm_head.weight', ('head/kernel',), turned=True)


FAMILY = base.Family(
  name='GPT-2',
  architectures=('GPT2LMHeadModel', 'GPT2Model'),
  model_of=model_of,
  config_of=config_of,
  tensors=_tensors,
  # Older checkpoints carry the causal mask.
  ignored=r'\.attn\.(masked_)?bias$',
  prefix='transformer',
)
