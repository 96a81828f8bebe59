"""BlenderBot 90M's weights under the names of Hugging Face.

Names and shapes are those of
`transformers.BlenderbotSmallForConditionalGeneration`: norms after each layer and
of the embeddings, learned positions.
Differs from it: dropout is left to the caller; torch gives the row of the padding
token no gradient from where it is looked up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bigdl.interop import _bart
from bigdl.interop.base import Family, Tensor
from bigdl.models.transformer import Transformer

_CLASS = 'BlenderbotSmallForConditionalGeneration'
_DEFAULTS = {
  'vocab_size': 50265,
  'max_position_embeddings': 512,
  'encoder_layers': 8,
  'encoder_ffn_dim': 2048,
  'encoder_attention_heads': 16,
  'decoder_layers': 8,
  'decoder_ffn_dim': 2048,
  'decoder_attention_heads': 16,
  'activation_function': 'gelu',
  'd_model': 512,
  'decoder_start_token_id': 1,
  'scale_embedding': False,
  'pad_token_id': 0,
  'eos_token_id': 2,
  'head_bias': True,
}
_FIXED = {
  'model_type': 'blenderbot-small',
  'tie_word_embeddings': True,
}
_FIELDS = {'block': 'post', 'position': 'learned', 'embed_norm': True}


def model_of(config: Mapping[str, Any]) -> Transformer:
  """Returns the Transformer that the `config.json` describes."""
  return _bart.model_of(config, defaults=_DEFAULTS, fixed=_FIXED, **_FIELDS)


def config_of(model: Transformer) -> dict[str, Any]:
  """Returns the `config.json` of a model."""
  return _bart.config_of(model, 'blenderbot-small', _CLASS, **_FIELDS)


def tensors(model: Transformer) -> Iterable[Tensor]:
  """Yields the tensors of `BlenderbotSmallForConditionalGeneration`."""
  return _bart.tensors(model, _CLASS, **_FIELDS)


FAMILY = Family(
  name='BlenderbotSmall',
  architectures=(_CLASS,),
  model_of=model_of,
  config_of=config_of,
  tensors=tensors,
  inputs=_bart.inputs,
  ignored=r'^final_logits_bias$',
)
