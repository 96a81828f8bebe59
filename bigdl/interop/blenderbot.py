"""BlenderBot's weights, 400M to 9.4B, under the names of Hugging Face.

Names and shapes are those of `transformers.BlenderbotForConditionalGeneration`:
norms before each layer and at the end of each stack, learned positions.
Differs from it: dropout is left to the caller; torch gives the row of the padding
token no gradient from where it is looked up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bigdl.interop import _bart
from bigdl.interop.base import Family, Tensor
from bigdl.models.transformer import Transformer

_CLASS = 'BlenderbotForConditionalGeneration'
_DEFAULTS = {
  'vocab_size': 8008,
  'max_position_embeddings': 128,
  'encoder_layers': 2,
  'encoder_ffn_dim': 10240,
  'encoder_attention_heads': 32,
  'decoder_layers': 24,
  'decoder_ffn_dim': 10240,
  'decoder_attention_heads': 32,
  'activation_function': 'gelu',
  'd_model': 2560,
  'decoder_start_token_id': 1,
  'scale_embedding': False,
  'pad_token_id': 0,
  'eos_token_id': 2,
  'head_bias': True,
}
_FIXED = {
  'model_type': 'blenderbot',
  'tie_word_embeddings': True,
}
_FIELDS = {'block': 'pre', 'position': 'learned', 'embed_norm': False}


def model_of(config: Mapping[str, Any]) -> Transformer:
  """Returns the Transformer that BlenderBot's `config.json` describes."""
  return _bart.model_of(config, defaults=_DEFAULTS, fixed=_FIXED, **_FIELDS)


def config_of(model: Transformer) -> dict[str, Any]:
  """Returns BlenderBot's `config.json` of a model."""
  config = _bart.config_of(model, 'blenderbot', _CLASS, **_FIELDS)
  # Left out, this would be a rule of theirs for what they generate.
  return {**config, 'encoder_no_repeat_ngram_size': 0}


def tensors(model: Transformer) -> Iterable[Tensor]:
  """Yields the tensors of `BlenderbotForConditionalGeneration`."""
  return _bart.tensors(model, _CLASS, **_FIELDS)


FAMILY = Family(
  name='Blenderbot',
  architectures=(_CLASS,),
  model_of=model_of,
  config_of=config_of,
  tensors=tensors,
  inputs=_bart.inputs,
  ignored=r'^final_logits_bias$',
)
