"""The layout that BART's descendants in `transformers` share.

Marian, Blenderbot and BlenderbotSmall name their tensors and the fields of their
`config.json` alike; each of their files says what is its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigdl.interop.base import Tensor
from bigdl.models.transformer import Transformer

ACTIVATIONS = {
  'relu': 'relu',
  'gelu': 'gelu_exact',
  'gelu_new': 'gelu',
  'gelu_pytorch_tanh': 'gelu',
  'swish': 'silu',
  'silu': 'silu',
}
# The two stacks must agree in these.
_PAIRS = ('ffn_dim', 'attention_heads')
# What all of them are, and so a Transformer must be.
_FIELDS = {'norm': 'layernorm', 'norm_epsilon': 1e-5, 'bias': True}
_IDS = {
  'pad': 'pad_token_id',
  'begin': 'decoder_start_token_id',
  'end': 'eos_token_id',
}


def model_of(
  config: Mapping[str, Any],
  *,
  defaults: Mapping[str, Any],
  fixed: Mapping[str, Any],
  **fields: Any,
) -> Transformer:
  """Returns the Transformer that a `config.json` describes.

  Args:
    config: Its content.
    defaults: What a field is where the file leaves it out.
    fixed: What a Transformer cannot but have, by the file's names.
    **fields: What the family's Transformer has besides.
  """
  for name, value in fixed.items():
    if config.get(name, value) != value:
      raise ValueError(
        f'{name}={config[name]} must be {value} for a Transformer'
      )
  given = {k: config.get(k, v) for k, v in defaults.items()}
  for name in _PAIRS:
    one, other = given[f'encoder_{name}'], given[f'decoder_{name}']
    if one != other:
      raise ValueError(
        f'decoder_{name}={other} must be encoder_{name}={one} for a Transformer'
      )
  activation = given['activation_function']
  if activation not in ACTIVATIONS:
    raise ValueError(
      f'activation_function={activation} must be one of '
      f'{", ".join(ACTIVATIONS)}'
    )
  ids = {ours: given[theirs] for ours, theirs in _IDS.items()}
  for ours, value in ids.items():
    if not isinstance(value, int):
      raise ValueError(f'{_IDS[ours]}={value} must be one token')
  depths = given['encoder_layers'], given['decoder_layers']
  width, hidden = given['d_model'], given['encoder_ffn_dim']
  return Transformer(
    depth=depths[0],
    decoder_depth=0 if depths[0] == depths[1] else depths[1],
    width=width,
    heads=given['encoder_attention_heads'],
    vocab=given['vocab_size'],
    length=given['max_position_embeddings'],
    mlp_width=0 if hidden == 4 * width else hidden,
    activation=ACTIVATIONS[activation],  # type: ignore[arg-type]
    embed_scale=given['scale_embedding'],
    head_bias=given['head_bias'],
    **ids,
    **fields,
  )


def config_of(
  model: Transformer, name: str, architecture: str, **fields: Any
) -> dict[str, Any]:
  """Returns the `config.json` of a model.

  Args:
    model: The model.
    name: The family's, its `model_type` too.
    architecture: Its class.
    **fields: What the family's Transformer must be, by our names.
  """
  check(model, architecture, **fields)
  names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
  config: dict[str, Any] = {
    'architectures': [architecture],
    'model_type': name,
    'is_encoder_decoder': True,
    'vocab_size': model.vocab,
    'max_position_embeddings': model.length,
    'd_model': model.width,
    'encoder_layers': model.depth,
    'decoder_layers': model.decoder_depth or model.depth,
    'activation_function': names[model.activation],
    'scale_embedding': model.embed_scale,
    'dropout': model.dropout,
    'tie_word_embeddings': True,
    'bos_token_id': model.begin,
    'forced_eos_token_id': model.end,
    **{theirs: getattr(model, ours) for ours, theirs in _IDS.items()},
  }
  for stack in ('encoder', 'decoder'):
    config[f'{stack}_ffn_dim'] = model.mlp_width or 4 * model.width
    config[f'{stack}_attention_heads'] = model.heads
  if not model.head_bias:
    # Their classes always hold one; ours that have none are read back so.
    config['head_bias'] = False
  return config


def check(model: Transformer, architecture: str, **fields: Any) -> None:
  """Raises ValueError where the model is not what the family is."""
  for name, value in {**_FIELDS, **fields}.items():
    if getattr(model, name) != value:
      raise ValueError(
        f'{name}={getattr(model, name)} must be {value} for {architecture}'
      )
  if model.activation not in ACTIVATIONS.values():
    raise ValueError(
      f'activation={model.activation} must be one of '
      f'{", ".join(dict.fromkeys(ACTIVATIONS.values()))} for {architecture}'
    )


def tensors(
  model: Transformer, architecture: str, **fields: Any
) -> Iterator[Tensor]:
  """Yields every tensor of a family of which `fields` are true."""
  check(model, architecture, **fields)
  table = ('embed/embedding',)
  yield Tensor('model.shared.weight', table)
  for name in ('model.encoder.embed_tokens', 'model.decoder.embed_tokens'):
    yield Tensor(f'{name}.weight', table, copy=True)
  yield Tensor('lm_head.weight', table, copy=True)
  if model.head_bias:
    yield Tensor(
      'final_logits_bias', ('logit_bias',), read=np.ravel, write=_row
    )
  depths = {'encoder': model.depth, 'decoder': model.decoder_depth}
  for stack, depth in depths.items():
    theirs = f'model.{stack}'
    if model.position == 'learned':
      yield Tensor(
        f'{theirs}.embed_positions.weight', (f'{stack}/positions/embedding',)
      )
    if model.embed_norm:
      yield from _norm(f'{theirs}.layernorm_embedding', f'{stack}/input_norm')
    for i in range(depth or model.depth):
      yield from _layer(
        f'{theirs}.layers.{i}', f'{stack}/blocks_{i}', stack == 'decoder'
      )
    if model.block == 'pre':
      yield from _norm(f'{theirs}.layer_norm', f'{stack}/output_norm')


def _layer(theirs: str, ours: str, crosses: bool) -> Iterator[Tensor]:
  attentions = {'self_attn': 'attention'}
  if crosses:
    attentions['encoder_attn'] = 'cross'
  for name, own in attentions.items():
    for part in ('q', 'k', 'v', 'out'):
      to = {'q': 'query', 'k': 'key', 'v': 'value'}.get(part, part)
      yield from _dense(f'{theirs}.{name}.{part}_proj', f'{ours}/{own}/{to}')
    yield from _norm(f'{theirs}.{name}_layer_norm', f'{ours}/{own}_norm')
  yield from _dense(f'{theirs}.fc1', f'{ours}/mlp/up')
  yield from _dense(f'{theirs}.fc2', f'{ours}/mlp/down')
  yield from _norm(f'{theirs}.final_layer_norm', f'{ours}/mlp_norm')


def _dense(theirs: str, ours: str) -> Iterator[Tensor]:
  yield Tensor(f'{theirs}.weight', (f'{ours}/kernel',), turned=True)
  yield Tensor(f'{theirs}.bias', (f'{ours}/bias',))


def _norm(theirs: str, ours: str) -> Iterator[Tensor]:
  yield Tensor(f'{theirs}.weight', (f'{ours}/scale',))
  yield Tensor(f'{theirs}.bias', (f'{ours}/bias',))


def _row(x: np.ndarray) -> np.ndarray:
  return x[None]


@functools.cache
def inputs() -> tuple[jax.ShapeDtypeStruct, ...]:
  """Returns a source and a target, of a token each."""
  token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  return token, token
