"""Marian's weights, the 2017 Transformer, under the names of Hugging Face.

Names and shapes are those of `transformers.MarianMTModel`, and so is the order of
sines before cosines. Its tables of positions hold no weights and are left out, as
its own files leave them out. One vocabulary must serve both languages.
Differs from it: dropout is left to the caller; torch gives the row of the padding
token no gradient from where it is looked up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from bigdl.interop import _bart
from bigdl.interop.base import Family, Tensor
from bigdl.models.transformer import Transformer

_CLASS = 'MarianMTModel'
_DEFAULTS = {
  'vocab_size': 58101,
  'max_position_embeddings': 1024,
  'encoder_layers': 12,
  'encoder_ffn_dim': 4096,
  'encoder_attention_heads': 16,
  'decoder_layers': 12,
  'decoder_ffn_dim': 4096,
  'decoder_attention_heads': 16,
  'activation_function': 'gelu',
  'd_model': 1024,
  'decoder_start_token_id': 58100,
  'scale_embedding': False,
  'pad_token_id': 58100,
  'eos_token_id': 0,
  'head_bias': True,
}
_FIXED = {
  'model_type': 'marian',
  'share_encoder_decoder_embeddings': True,
  'tie_word_embeddings': True,
}
_FIELDS = {'block': 'post', 'position': 'sinusoidal', 'embed_norm': False}


def model_of(config: Mapping[str, Any]) -> Transformer:
  """Returns the Transformer that Marian's `config.json` describes."""
  vocab = config.get('vocab_size', _DEFAULTS['vocab_size'])
  if (config.get('decoder_vocab_size') or vocab) != vocab:
    raise ValueError(
      f'decoder_vocab_size={config["decoder_vocab_size"]} must be '
      f'vocab_size={vocab} for a Transformer'
    )
  return _bart.model_of(config, defaults=_DEFAULTS, fixed=_FIXED, **_FIELDS)


def config_of(model: Transformer) -> dict[str, Any]:
  """Returns Marian's `config.json` of a model."""
  config = _bart.config_of(model, 'marian', _CLASS, **_FIELDS)
  return {**config, 'share_encoder_decoder_embeddings': True}


def tensors(model: Transformer) -> Iterable[Tensor]:
  """Yields the tensors of `MarianMTModel`."""
  return _bart.tensors(model, _CLASS, **_FIELDS)


FAMILY = Family(
  name='Marian',
  architectures=(_CLASS,),
  model_of=model_of,
  config_of=config_of,
  tensors=tensors,
  inputs=_bart.inputs,
  ignored=r'embed_positions\.weight$|^final_logits_bias$',
)
