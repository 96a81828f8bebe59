"""RoBERTa's weights under the names of Hugging Face, to and from parameters.

Names and shapes are those of `transformers.RobertaForMaskedLM`, whose table of
positions begins with rows that no token has: a document's first token has the
row after the padding token's id.
Differs from it: nothing but dropout, which is left to the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bigdl.interop import base, bert
from bigdl.models.bert import BERT


def _model_of(config: Mapping[str, Any]) -> BERT:
  fields = bert.fields_of(config, 'roberta')
  # The head's activation is that one, whatever the layers' is.
  if fields['activation'] != 'gelu_exact':
    raise ValueError(f'hidden_act={config["hidden_act"]} must be gelu')
  first = config.get('pad_token_id', 1) + 1
  fields['length'] -= first
  return BERT(**{**fields, 'classes': 0, 'first_position': first})


def _check(model: BERT) -> None:
  free = {*bert.FREE, 'first_position'} - {'activation', 'classes'}
  bert.check_model(
    model, 'RoBERTa', free=free, classes=0, activation='gelu_exact'
  )
  if model.first_position < 1:
    raise ValueError(
      f'first_position={model.first_position} must be at least 1 for RoBERTa '
      'weights'
    )


def _config_of(model: BERT) -> dict[str, Any]:
  _check(model)
  return {
    **bert.config_fields(model, 'Roberta'),
    'max_position_embeddings': model.first_position + model.length,
    'pad_token_id': model.first_position - 1,
  }


def _tensors(model: BERT) -> Iterator[base.Tensor]:
  _check(model)
  yield from bert.body(model, 'roberta')
  yield from bert.decoder('lm_head')
  yield from bert.dense('lm_head.dense', 'head/transform')
  yield from bert.norm('lm_head.layer_norm', 'head/transform_norm')


FAMILY = base.Family(
  name='RoBERTa',
  architectures=('RobertaForMaskedLM',),
  model_of=_model_of,
  config_of=_config_of,
  tensors=_tensors,
  ignored=bert.IGNORED,
  renamed=bert.RENAMED,
  prefix='roberta',
)
