"""XLNet's weights under the names of Hugging Face, to and from parameters.

Names and shapes are those of `transformers.XLNetLMHeadModel`, whose head is tied
and has a bias; its projections keep heads and head width apart.
Differs from it: no memory (`mems`), which a model may be configured to have but
is not given; where a query may see no token it adds nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from bigdl.interop import base
from bigdl.layers.mlp import Activation
from bigdl.models.xlnet import XLNet

_ACTIVATIONS: dict[str, Activation] = {
  'gelu': 'gelu_exact',
  'gelu_new': 'gelu',
  'relu': 'relu',
  'silu': 'silu',
}
# XLNetConfig's defaults, which its JSON leaves out.
_DEFAULTS = {
  'n_layer': 24,
  'd_model': 1024,
  'n_head': 16,
  'vocab_size': 32000,
  'd_inner': 4096,
  'ff_activation': 'gelu',
  'attn_type': 'bi',
  'layer_norm_eps': 1e-12,
}
# What XLNet cannot be here, and so must have this value where it is given.
_FIXED = {
  'model_type': 'xlnet',
  'bi_data': False,
  'clamp_len': -1,
  'same_length': False,
  'tie_word_embeddings': True,
}
# Fields that the family has as well.
_FREE = (
  'depth',
  'width',
  'heads',
  'vocab',
  'mlp_width',
  'activation',
  'causal',
  'norm_epsilon',
)


def model_of(config: Mapping[str, Any]) -> XLNet:
  """Returns the XLNet that a Hugging Face `config.json` describes."""
  for name, value in _FIXED.items():
    if config.get(name, value) != value:
      raise ValueError(f'{name}={config[name]} must be {value} for an XLNet')
  given = {k: config.get(k, v) for k, v in _DEFAULTS.items()}
  width = given['d_model']
  if (config.get('d_head') or width // given['n_head']) * given[
    'n_head'
  ] != width:
    raise ValueError(
      f'd_head={config.get("d_head")} must be d_model / n_head for an XLNet'
    )
  return XLNet(
    depth=given['n_layer'],
    width=width,
    heads=given['n_head'],
    vocab=given['vocab_size'],
    mlp_width=0 if given['d_inner'] == 4 * width else given['d_inner'],
    activation=base.one_of(
      'ff_activation', given['ff_activation'], _ACTIVATIONS
    ),
    causal=base.one_of(
      'attn_type', given['attn_type'], {'bi': False, 'uni': True}
    ),
    norm_epsilon=given['layer_norm_eps'],
  )


def config_of(model: XLNet) -> dict[str, Any]:
  """Returns the content of XLNet's `config.json`."""
  _check(model)
  return {
    'model_type': 'xlnet',
    'n_layer': model.depth,
    'd_model': model.width,
    'n_head': model.heads,
    'd_head': model.width // model.heads,
    'vocab_size': model.vocab,
    'd_inner': model.mlp_width or 4 * model.width,
    'ff_activation': next(
      k for k, v in _ACTIVATIONS.items() if v == model.activation
    ),
    'attn_type': 'uni' if model.causal else 'bi',
    'layer_norm_eps': model.norm_epsilon,
    'dropout': model.dropout,
    # Ours has none, so that none is kept between calls.
    'mem_len': None,
    'use_mems_eval': False,
    'use_mems_train': False,
    'tie_word_embeddings': True,
  }


def _check(model: XLNet) -> None:
  """Raises ValueError for an XLNet that Hugging Face's cannot be."""
  base.check_fields(model, 'XLNet', free=_FREE)
  if model.activation not in _ACTIVATIONS.values():
    raise ValueError(
      f'activation={model.activation} must be one of '
      f'{", ".join(sorted(_ACTIVATIONS.values()))} for XLNet weights'
    )


def _tensors(model: XLNet) -> Iterator[base.Tensor]:
  """Yields every tensor of the state dict, in its order."""
  _check(model)
  D, H = model.width, model.heads

  def flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(D, D)

  def by_head(x: np.ndarray) -> np.ndarray:
    return x.reshape(D, H, D // H)

  yield base.Tensor(
    'transformer.mask_emb',
    ('query_embedding',),
    read=lambda x: x.reshape(D),
    write=lambda x: x.reshape(1, 1, D),
  )
  yield base.Tensor('transformer.word_embedding.weight', ('embed/embedding',))
  kernels = {
    'q': 'query',
    'k': 'key',
    'v': 'value',
    'o': 'out',
    'r': 'relative',
  }
  vectors = {
    'r_r_bias': 'position_bias',
    'r_s_bias': 'type_bias',
    'r_w_bias': 'content_bias',
    'seg_embed': 'type_embedding',
  }
  norm = {'weight': 'scale', 'bias': 'bias'}
  dense = {'weight': 'kernel', 'bias': 'bias'}
  layers = (
    ('rel_attn.layer_norm', 'attention_norm', norm),
    ('ff.layer_norm', 'mlp_norm', norm),
    ('ff.layer_1', 'mlp/up', dense),
    ('ff.layer_2', 'mlp/down', dense),
  )
  for i in range(model.depth):
    theirs, ours = f'transformer.layer.{i}', f'blocks_{i}'
    for name, own in kernels.items():
      yield base.Tensor(
        f'{theirs}.rel_attn.{name}',
        (f'{ours}/attention/{own}/kernel',),
        turned=name == 'o',
        read=flat,
        write=by_head,
      )
    for name, own in vectors.items():
      yield base.Tensor(
        f'{theirs}.rel_attn.{name}', (f'{ours}/attention/{own}',)
      )
    for name, own, leaves in layers:
      for leaf, part in leaves.items():
        yield base.Tensor(
          f'{theirs}.{name}.{leaf}',
          (f'{ours}/{own}/{part}',),
          turned=part == 'kernel',
        )
  yield base.Tensor('lm_loss.weight', ('embed/embedding',), copy=True)
  yield base.Tensor('lm_loss.bias', ('head_bias',))


FAMILY = base.Family(
  name='XLNet',
  architectures=('XLNetLMHeadModel',),
  model_of=model_of,
  config_of=config_of,
  tensors=_tensors,
)
