"""ERNIE's weights under the names of Hugging Face, to and from parameters.

Names and shapes are those of `transformers.ErnieForPreTraining`, and of
`ErnieForMaskedLM` where a model has no sentence head: BERT's, and a table of
task types from ERNIE 2.0 on.
Differs from it: nothing but dropout, which is left to the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bigdl.interop import base, bert
from bigdl.models.bert import BERT


def _model_of(config: Mapping[str, Any]) -> BERT:
  fields = bert.fields_of(config, 'ernie')
  if config.get('use_task_id', False):
    fields['tasks'] = config.get('task_type_vocab_size', 3)
  return BERT(**fields)


def _check(model: BERT) -> None:
  bert.check_model(model, 'ERNIE', free=(*bert.FREE, 'tasks'))


def _config_of(model: BERT) -> dict[str, Any]:
  _check(model)
  config = {
    **bert.config_fields(model, 'Ernie'),
    'use_task_id': model.tasks > 0,
  }
  if model.tasks:
    config['task_type_vocab_size'] = model.tasks
  return config


def _tensors(model: BERT) -> Iterator[base.Tensor]:
  _check(model)
  yield from bert.body(model, 'ernie')
  yield from bert.heads(model)


FAMILY = base.Family(
  name='ERNIE',
  architectures=('ErnieForPreTraining', 'ErnieForMaskedLM'),
  model_of=_model_of,
  config_of=_config_of,
  tensors=_tensors,
  ignored=bert.IGNORED,
  renamed=bert.RENAMED,
  prefix='ernie',
)
