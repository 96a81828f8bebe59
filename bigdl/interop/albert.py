"""ALBERT's weights under the names of Hugging Face, to and from parameters.

Names and shapes are those of `transformers.AlbertForPreTraining`, and of
`AlbertForMaskedLM` where a model has no sentence head.
Differs from it: a group of layers that share weights is one layer applied
several times (their `inner_group_num` is 1); dropout is left to the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bigdl.interop import base, bert
from bigdl.models.albert import ALBERT

# Defaults of AlbertConfig, those of its largest model, where BERT's differ.
_DEFAULTS = {
  'vocab_size': 30000,
  'hidden_size': 4096,
  'num_attention_heads': 64,
  'intermediate_size': 16384,
  'hidden_act': 'gelu_new',
}


def _model_of(config: Mapping[str, Any]) -> ALBERT:
  bert.check_config(config, 'albert', {**bert.FIXED, 'inner_group_num': 1})
  return ALBERT(
    **bert.fields_of({**_DEFAULTS, **config}, 'albert'),
    embed_width=config.get('embedding_size', 128),
    groups=config.get('num_hidden_groups', 1),
  )


def _check(model: ALBERT) -> None:
  bert.check_model(model, 'ALBERT', free=(*bert.FREE, 'embed_width', 'groups'))
  for name in ('embed_width', 'groups'):
    if getattr(model, name) < 1:
      raise ValueError(
        f'{name}={getattr(model, name)} must be at least 1 for ALBERT weights'
      )


def _config_of(model: ALBERT) -> dict[str, Any]:
  _check(model)
  return {
    **bert.config_fields(model, 'Albert'),
    'embedding_size': model.embed_width,
    'num_hidden_groups': model.groups,
    'inner_group_num': 1,
  }


def _tensors(model: ALBERT) -> Iterator[base.Tensor]:
  _check(model)
  yield from bert.embeddings(model, 'albert.embeddings')
  encoder = 'albert.encoder'
  yield from bert.dense(f'{encoder}.embedding_hidden_mapping_in', 'embed_out')
  for i in range(model.groups):
    theirs = f'{encoder}.albert_layer_groups.{i}.albert_layers.0'
    ours = f'blocks_{i}'
    yield from bert.norm(f'{theirs}.full_layer_layer_norm', f'{ours}/mlp_norm')
    attention = f'{theirs}.attention'
    for name in ('query', 'key', 'value'):
      yield from bert.dense(f'{attention}.{name}', f'{ours}/attention/{name}')
    yield from bert.dense(f'{attention}.dense', f'{ours}/attention/out')
    yield from bert.norm(f'{attention}.LayerNorm', f'{ours}/attention_norm')
    yield from bert.dense(f'{theirs}.ffn', f'{ours}/mlp/up')
    yield from bert.dense(f'{theirs}.ffn_output', f'{ours}/mlp/down')
  if model.classes:
    yield from bert.dense('albert.pooler', 'pooler')
  yield from bert.decoder('predictions')
  yield from bert.dense('predictions.dense', 'head/transform')
  yield from bert.norm('predictions.LayerNorm', 'head/transform_norm')
  if model.classes:
    yield from bert.dense('sop_classifier.classifier', 'sentence_head')


FAMILY = base.Family(
  name='ALBERT',
  architectures=('AlbertForPreTraining', 'AlbertForMaskedLM'),
  model_of=_model_of,
  config_of=_config_of,
  tensors=_tensors,
  ignored=bert.IGNORED,
  renamed=bert.RENAMED,
  prefix='albert',
)
