"""ViT's weights under the names of Hugging Face, to and from parameters.

Names and shapes are those that `transformers.ViTForImageClassification` has in
its files: a convolution cuts the patches, and linear maps lie `[outputs,
inputs]`. `ViTModel`, whose pooler is our `representation`, is read as well.
Differs from it: nothing but dropout, which is left to the caller, and how pixels
are scaled, which theirs keeps beside the model.
"""

# Shapes: D width, C channels.
from __future__ import annotations

from collections.abc import Iterator, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bigdl.interop import base
from bigdl.layers.mlp import Activation
from bigdl.models.vit import ViT

_ACTIVATIONS: dict[str, Activation] = {
  'gelu': 'gelu_exact',
  'gelu_new': 'gelu',
  'gelu_pytorch_tanh': 'gelu',
  'relu': 'relu',
}
# ViTConfig's defaults, which its JSON may leave out.
_DEFAULTS = {
  'hidden_size': 768,
  'num_hidden_layers': 12,
  'num_attention_heads': 12,
  'intermediate_size': 3072,
  'hidden_act': 'gelu',
  'layer_norm_eps': 1e-12,
  'image_size': 224,
  'patch_size': 16,
  'num_channels': 3,
  'qkv_bias': True,
  'pooler_output_size': None,
}
# What ViT cannot be, and so must have this value where it is given.
_FIXED = {'model_type': 'vit', 'pooler_act': 'tanh'}
# Fields that theirs has as well, or keeps elsewhere.
_FREE = (
  'depth',
  'width',
  'heads',
  'patch',
  'image_size',
  'channels',
  'classes',
  'head_width',
  'mlp_width',
  'representation',
  'activation',
  'norm_epsilon',
  'qkv_bias',
  'mean',
  'std',
)


def model_of(config: Mapping[str, Any]) -> ViT:
  """Returns the ViT that a Hugging Face `config.json` describes."""
  for name, value in _FIXED.items():
    if config.get(name, value) != value:
      raise ValueError(f'{name}={config[name]} must be {value} for a ViT')
  given = {k: config.get(k, v) for k, v in _DEFAULTS.items()}
  bare = 'ViTModel' in (config.get('architectures') or ())
  width = given['hidden_size']
  pooled = given['pooler_output_size'] or width
  return ViT(
    depth=given['num_hidden_layers'],
    width=width,
    heads=given['num_attention_heads'],
    patch=_side('patch_size', given['patch_size']),
    image_size=_side('image_size', given['image_size']),
    channels=given['num_channels'],
    classes=0 if bare else _labels(config),
    mlp_width=given['intermediate_size'],
    representation=pooled if bare else 0,
    activation=base.one_of('hidden_act', given['hidden_act'], _ACTIVATIONS),
    norm_epsilon=given['layer_norm_eps'],
    qkv_bias=given['qkv_bias'],
  )


def _side(name: str, value: Any) -> int:
  """Returns the side of a square, which theirs may give twice."""
  sides = set(value) if isinstance(value, list | tuple) else {value}
  if len(sides) != 1:
    raise ValueError(f'{name}={value} must be a square for a ViT')
  return int(sides.pop())


def _labels(config: Mapping[str, Any]) -> int:
  if config.get('id2label'):
    return len(config['id2label'])
  return config.get('num_labels', 2)


def config_of(model: ViT) -> dict[str, Any]:
  """Returns the content of `config.json` for a ViT with a head."""
  _check(model)
  labels = {str(i): f'LABEL_{i}' for i in range(model.classes)}
  return {
    'model_type': 'vit',
    'num_hidden_layers': model.depth,
    'hidden_size': model.width,
    'num_attention_heads': model.heads,
    'intermediate_size': model.mlp_width or 4 * model.width,
    'hidden_act': next(
      k for k, v in _ACTIVATIONS.items() if v == model.activation
    ),
    'layer_norm_eps': model.norm_epsilon,
    'image_size': model.image_size,
    'patch_size': model.patch,
    'num_channels': model.channels,
    'qkv_bias': model.qkv_bias,
    'id2label': labels,
    'label2id': {name: int(i) for i, name in labels.items()},
    'hidden_dropout_prob': model.dropout,
    'attention_probs_dropout_prob': 0.0,
  }


def _check(model: ViT) -> None:
  """Raises ValueError for a ViT that computes what theirs cannot."""
  base.check_fields(model, 'ViT', free=_FREE)
  if model.activation not in _ACTIVATIONS.values():
    raise ValueError(
      f'activation={model.activation} must be one of'
      f' {", ".join(sorted(set(_ACTIVATIONS.values())))} for ViT weights'
    )
  if model.head_width and model.head_width * model.heads != model.width:
    raise ValueError(
      f'head_width={model.head_width} must be width / heads for ViT weights'
    )
  if model.representation or not model.classes:
    raise ValueError(
      f'representation={model.representation} must be 0 and'
      f' classes={model.classes} above 0 for ViT weights to be written'
    )


def tensors(model: ViT) -> Iterator[base.Tensor]:
  """Yields every tensor of theirs, and where it is kept here."""
  body = 'vit.embeddings'
  yield base.Tensor(
    f'{body}.cls_token', ('token/embedding',), read=_first, write=_rows
  )
  yield base.Tensor(
    f'{body}.position_embeddings',
    ('positions/embedding',),
    read=_first,
    write=_rows,
  )
  patches = f'{body}.patch_embeddings.projection'
  yield base.Tensor(
    f'{patches}.weight',
    ('patches/kernel',),
    read=_pixels,
    write=functools.partial(_windows, model.patch, model.channels),
  )
  yield base.Tensor(f'{patches}.bias', ('patches/bias',))
  for i in range(model.depth):
    own, block = f'vit.encoder.layer.{i}', f'blocks_{i}'
    yield from _norm(f'{own}.layernorm_before', f'{block}/attention_norm')
    yield from _norm(f'{own}.layernorm_after', f'{block}/mlp_norm')
    for name in ('query', 'key', 'value'):
      yield from _linear(
        f'{own}.attention.attention.{name}',
        f'{block}/attention/{name}',
        bias=model.qkv_bias,
      )
    yield from _linear(
      f'{own}.attention.output.dense', f'{block}/attention/out'
    )
    yield from _linear(f'{own}.intermediate.dense', f'{block}/mlp/up')
    yield from _linear(f'{own}.output.dense', f'{block}/mlp/down')
  yield from _norm('vit.layernorm', 'final_norm')
  if model.representation:
    yield from _linear('vit.pooler.dense', 'before_head')
  if model.classes:
    yield from _linear('classifier', 'head')


def _norm(name: str, path: str) -> Iterator[base.Tensor]:
  yield base.Tensor(f'{name}.weight', (f'{path}/scale',))
  yield base.Tensor(f'{name}.bias', (f'{path}/bias',))


def _linear(
  name: str, path: str, *, bias: bool = True
) -> Iterator[base.Tensor]:
  yield base.Tensor(f'{name}.weight', (f'{path}/kernel',), turned=True)
  if bias:
    yield base.Tensor(f'{name}.bias', (f'{path}/bias',))


def _first(value: np.ndarray) -> np.ndarray:
  """Leaves out leading dimensions of one row of images: `[rows, D]`."""
  return value.reshape(value.shape[-2:])


def _rows(value: np.ndarray) -> np.ndarray:
  return value[None]


def _pixels(kernel: np.ndarray) -> np.ndarray:
  """Turns a convolution `[D, C, patch, patch]` to `[patch² C, D]`."""
  return kernel.transpose(2, 3, 1, 0).reshape(-1, kernel.shape[0])


def _windows(patch: int, channels: int, kernel: np.ndarray) -> np.ndarray:
  return kernel.reshape(patch, patch, channels, -1).transpose(3, 2, 0, 1)


def _image(model: ViT) -> tuple[jax.ShapeDtypeStruct]:
  size = model.image_size
  return (jax.ShapeDtypeStruct((1, size, size, model.channels), jnp.float32),)


FAMILY = base.Family(
  name='ViT',
  architectures=('ViTForImageClassification', 'ViTModel'),
  model_of=model_of,
  config_of=config_of,
  tensors=tensors,
  inputs_of=_image,
  prefix='vit',
)
