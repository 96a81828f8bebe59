"""LLaMA's weights under the names of Hugging Face, to and from parameters.

Touvron et al., 2023, arXiv:2302.13971. Names and shapes are those of
`transformers.LlamaForCausalLM`, and of `MistralForCausalLM`, which lists the
same and may see a window only (Jiang et al., 2023, arXiv:2310.06825, section
2). Linear maps lie `[outputs, inputs]`.
Differs from it: positions must not be scaled (LLaMA 3.1's `rope_scaling` is
refused); biases are in all projections or in none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bigdl.interop import base
from bigdl.models.gpt import GPT

# The defaults of LlamaConfig and MistralConfig, which their JSON leaves out.
_LLAMA: dict[str, Any] = {
  'vocab_size': 32000,
  'hidden_size': 4096,
  'intermediate_size': 11008,
  'num_hidden_layers': 32,
  'num_attention_heads': 32,
  'num_key_value_heads': None,
  'head_dim': None,
  'hidden_act': 'silu',
  'max_position_embeddings': 2048,
  'rms_norm_eps': 1e-6,
  'tie_word_embeddings': False,
  'attention_bias': False,
  'mlp_bias': False,
  'sliding_window': None,
}
_MISTRAL = {
  **_LLAMA,
  'intermediate_size': 14336,
  'num_key_value_heads': 8,
  'max_position_embeddings': 131072,
  'sliding_window': 4096,
}
_KINDS = {'llama': _LLAMA, 'mistral': _MISTRAL}
_ACTIVATIONS: dict[str, Any] = {'silu': 'swiglu', 'gelu_pytorch_tanh': 'geglu'}
# Fields that LLaMA has as well.
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
  'bias',
  'tied',
  'window',
  'activation',
)


def model_of(config: Mapping[str, Any]) -> GPT:
  """Returns the GPT that a `config.json` of LLaMA or Mistral describes."""
  kind = config.get('model_type', 'llama')
  defaults = base.one_of('model_type', kind, _KINDS)
  given = {k: config.get(k, v) for k, v in defaults.items()}
  if given['attention_bias'] != given['mlp_bias']:
    raise ValueError(
      f'attention_bias={given["attention_bias"]} must be'
      f' mlp_bias={given["mlp_bias"]} for a GPT'
    )
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
    activation=base.one_of('hidden_act', given['hidden_act'], _ACTIVATIONS),
    norm='rmsnorm',
    norm_epsilon=given['rms_norm_eps'],
    bias=given['mlp_bias'],
    position='rotary',
    rotary_base=base.rotary_base(config, 1e4),
    tied=given['tie_word_embeddings'],
    window=given['sliding_window'] or 0,
  )


def config_of(model: GPT) -> dict[str, Any]:
  """Returns the content of `config.json`: Mistral's where there is a window."""
  _check(model)
  config = {
    'architectures': ['LlamaForCausalLM'],
    'model_type': 'llama',
    'vocab_size': model.vocab,
    'hidden_size': model.width,
    'intermediate_size': model.mlp_width or 4 * model.width,
    'num_hidden_layers': model.depth,
    'num_attention_heads': model.heads,
    'num_key_value_heads': model.kv_heads or model.heads,
    'head_dim': model.head_width or model.width // model.heads,
    'hidden_act': next(
      k for k, v in _ACTIVATIONS.items() if v == model.activation
    ),
    'max_position_embeddings': model.length,
    'rms_norm_eps': model.norm_epsilon,
    'tie_word_embeddings': model.tied,
    'rope_parameters': {
      'rope_theta': model.rotary_base,
      'rope_type': 'default',
    },
    # Read by transformers before version 5.
    'rope_theta': model.rotary_base,
    'attention_bias': model.bias,
    'mlp_bias': model.bias,
    'bos_token_id': None,
    'eos_token_id': None,
  }
  if model.window:
    if model.bias:
      raise ValueError(
        f'bias={model.bias} must be False for Mistral, which window='
        f'{model.window} makes of LLaMA'
      )
    config['architectures'] = ['MistralForCausalLM']
    config |= {'model_type': 'mistral', 'sliding_window': model.window}
    del config['attention_bias'], config['mlp_bias']
  return config


def _check(model: GPT) -> None:
  """Raises ValueError for a GPT that computes what LLaMA cannot."""
  base.check_fields(
    model, 'LLaMA', free=_FREE, norm='rmsnorm', position='rotary'
  )
  if model.activation not in _ACTIVATIONS.values():
    raise ValueError(
      f'activation={model.activation} must be one of '
      f'{", ".join(_ACTIVATIONS.values())} for LLaMA weights'
    )
  # LlamaConfig asks for it, even where heads have a width of their own.
  if model.width % model.heads:
    raise ValueError(
      f'heads={model.heads} must divide width={model.width} for LLaMA weights'
    )


def _tensors(model: GPT) -> Iterator[base.Tensor]:
  """Yields every tensor of the state dict, in its order."""
  _check(model)
  layers = {
    'self_attn.q_proj': 'attention/query',
    'self_attn.k_proj': 'attention/key',
    'self_attn.v_proj': 'attention/value',
    'self_attn.o_proj': 'attention/out',
    'mlp.gate_proj': 'mlp/gate',
    'mlp.up_proj': 'mlp/up',
    'mlp.down_proj': 'mlp/down',
  }
  norms = {
    'input_layernorm': 'attention_norm',
    'post_attention_layernorm': 'mlp_norm',
  }
  embedding = ('embed/embedding',)
  yield base.Tensor('model.embed_tokens.weight', embedding)
  for i in range(model.depth):
    theirs, ours = f'model.layers.{i}', f'blocks_{i}'
    for name, path in layers.items():
      kernel = (f'{ours}/{path}/kernel',)
      yield base.Tensor(f'{theirs}.{name}.weight', kernel, turned=True)
      if model.bias:
        yield base.Tensor(f'{theirs}.{name}.bias', (f'{ours}/{path}/bias',))
    for name, path in norms.items():
      yield base.Tensor(f'{theirs}.{name}.weight', (f'{ours}/{path}/scale',))
  yield base.Tensor('model.norm.weight', ('final_norm/scale',))
  if model.tied:
    yield base.Tensor('lm_head.weight', embedding, copy=True)
  else:
    yield base.Tensor('lm_head.weight', ('head/kernel',), turned=True)


FAMILY = base.Family(
  name='LLaMA',
  architectures=('LlamaForCausalLM', 'MistralForCausalLM'),
  model_of=model_of,
  config_of=config_of,
  tensors=_tensors,
  # Older checkpoints carry the rates of rotation.
  ignored=r'rotary_emb\.inv_freq$',
)
