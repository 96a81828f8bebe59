"""BERT's weights under the names of Hugging Face, to and from parameters.

Names and shapes are those of `transformers.BertForPreTraining`, and of
`BertForMaskedLM` where a model has no sentence head: weights of one that the
file has beside are left out.
Differs from it: nothing but dropout, which is left to the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bigdl.interop import base
from bigdl.layers.mlp import Activation
from bigdl.models.bert import BERT

ACTIVATIONS: dict[str, Activation] = {
  'gelu': 'gelu_exact',
  'gelu_new': 'gelu',
  'gelu_pytorch_tanh': 'gelu',
  'relu': 'relu',
  'silu': 'silu',
}
# Defaults of BertConfig, RobertaConfig and ErnieConfig, which JSON leaves out,
# and the fields of BERT that they are.
_FIELDS: dict[str, tuple[str, Any]] = {
  'vocab_size': ('vocab', 30522),
  'hidden_size': ('width', 768),
  'num_hidden_layers': ('depth', 12),
  'num_attention_heads': ('heads', 12),
  'intermediate_size': ('mlp_width', 3072),
  'max_position_embeddings': ('length', 512),
  'type_vocab_size': ('types', 2),
  'layer_norm_eps': ('norm_epsilon', 1e-12),
}
# What no BERT is, and so must have this value where it is given.
FIXED = {
  'position_embedding_type': 'absolute',
  'is_decoder': False,
  'add_cross_attention': False,
  'tie_word_embeddings': True,
}
FREE = (
  *(field for field, _ in _FIELDS.values()),
  'activation',
  'classes',
)
# Position ids that old checkpoints carry, and heads that a class has not.
IGNORED = r'position_ids$|(^|\.)pooler\.|seq_relationship\.|sop_classifier\.'
# What old checkpoints, `bert-base-uncased` among them, call weight and bias.
RENAMED = ((r'\.gamma$', '.weight'), (r'\.beta$', '.bias'))


def check_config(
  config: Mapping[str, Any], model_type: str, fixed: Mapping[str, Any] = FIXED
) -> None:
  """Raises ValueError for a field of `config.json` that no BERT can have."""
  for name, value in {'model_type': model_type, **fixed}.items():
    if config.get(name, value) != value:
      raise ValueError(f'{name}={config[name]} must be {value} for a BERT')


def fields_of(config: Mapping[str, Any], model_type: str) -> dict[str, Any]:
  """Returns the fields of BERT that such a `config.json` describes."""
  check_config(config, model_type)
  fields = {
    field: config.get(name, default)
    for name, (field, default) in _FIELDS.items()
  }
  # 4 width need not be said, and then follows when a model is scaled.
  if fields['mlp_width'] == 4 * fields['width']:
    fields['mlp_width'] = 0
  act = config.get('hidden_act', 'gelu')
  fields['activation'] = base.one_of('hidden_act', act, ACTIVATIONS)
  fields['classes'] = 2 * pretrains(config)
  return fields


def pretrains(config: Mapping[str, Any]) -> bool:
  """Whether the architecture has a sentence head, as it has where not said."""
  names = config.get('architectures') or ['ForPreTraining']
  return names[0].endswith('ForPreTraining')


def check_model(model: BERT, family: str, *, free=FREE, **fixed: Any) -> None:
  """Raises ValueError for a field by which a model is none of a family."""
  plain = {
    'block': 'post',
    'norm': 'layernorm',
    'tasks': 0,
    'embed_width': 0,
    'groups': 0,
    'first_position': 0,
  }
  base.check_fields(model, family, free=free, **{**plain, **fixed})
  if 'classes' in free and model.classes not in (0, 2):
    raise ValueError(
      f'classes={model.classes} must be 0 or 2 for {family} weights'
    )
  if model.types < 1:
    raise ValueError(
      f'types={model.types} must be at least 1 for {family} weights'
    )
  if model.activation not in ACTIVATIONS.values():
    raise ValueError(
      f'activation={model.activation} must be one of '
      f'{", ".join(sorted(set(ACTIVATIONS.values())))} for {family} weights'
    )


def config_fields(model: BERT, kind: str) -> dict[str, Any]:
  """Returns the content of `config.json`, of the classes named `kind`."""
  names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
  config = {k: getattr(model, field) for k, (field, _) in _FIELDS.items()}
  return {
    'architectures': [
      f'{kind}For{"PreTraining" if model.classes else "MaskedLM"}'
    ],
    'model_type': kind.lower(),
    **config,
    'intermediate_size': model.mlp_width or 4 * model.width,
    'hidden_act': names[model.activation],
    'tie_word_embeddings': True,
  }


def dense(theirs: str, ours: str) -> Iterator[base.Tensor]:
  """Yields the tensors of torch's Linear, whose weight is our transpose."""
  yield base.Tensor(f'{theirs}.weight', (f'{ours}/kernel',), turned=True)
  yield base.Tensor(f'{theirs}.bias', (f'{ours}/bias',))


def norm(theirs: str, ours: str) -> Iterator[base.Tensor]:
  """Yields the tensors of torch's LayerNorm."""
  yield base.Tensor(f'{theirs}.weight', (f'{ours}/scale',))
  yield base.Tensor(f'{theirs}.bias', (f'{ours}/bias',))


def table(theirs: str, ours: str) -> base.Tensor:
  """Returns the tensor of torch's Embedding."""
  return base.Tensor(f'{theirs}.weight', (f'{ours}/embedding',))


def embeddings(model: BERT, prefix: str) -> Iterator[base.Tensor]:
  """Yields the tables below `prefix`, and the norm after them."""
  yield table(f'{prefix}.word_embeddings', 'embed')
  yield table(f'{prefix}.position_embeddings', 'positions')
  yield table(f'{prefix}.token_type_embeddings', 'token_types')
  if model.tasks:
    yield table(f'{prefix}.task_type_embeddings', 'task_types')
  yield from norm(f'{prefix}.LayerNorm', 'embed_norm')


def body(model: BERT, prefix: str) -> Iterator[base.Tensor]:
  """Yields what BertModel and its kin hold, the pooler where there is one."""
  yield from embeddings(model, f'{prefix}.embeddings')
  for i in range(model.depth):
    theirs, ours = f'{prefix}.encoder.layer.{i}', f'blocks_{i}'
    for name in ('query', 'key', 'value'):
      yield from dense(
        f'{theirs}.attention.self.{name}', f'{ours}/attention/{name}'
      )
    yield from dense(
      f'{theirs}.attention.output.dense', f'{ours}/attention/out'
    )
    yield from norm(
      f'{theirs}.attention.output.LayerNorm', f'{ours}/attention_norm'
    )
    yield from dense(f'{theirs}.intermediate.dense', f'{ours}/mlp/up')
    yield from dense(f'{theirs}.output.dense', f'{ours}/mlp/down')
    yield from norm(f'{theirs}.output.LayerNorm', f'{ours}/mlp_norm')
  if model.classes:
    yield from dense(f'{prefix}.pooler.dense', 'pooler')


def decoder(prefix: str) -> Iterator[base.Tensor]:
  """Yields the head's bias, and what the head's Linear repeats."""
  yield base.Tensor(f'{prefix}.bias', ('head/bias',))
  yield base.Tensor(f'{prefix}.decoder.weight', ('embed/embedding',), copy=True)
  yield base.Tensor(f'{prefix}.decoder.bias', ('head/bias',), copy=True)


def heads(model: BERT) -> Iterator[base.Tensor]:
  """Yields what stands on top of BertModel and ErnieModel."""
  yield from decoder('cls.predictions')
  transform = 'cls.predictions.transform'
  yield from dense(f'{transform}.dense', 'head/transform')
  yield from norm(f'{transform}.LayerNorm', 'head/transform_norm')
  if model.classes:
    yield from dense('cls.seq_relationship', 'sentence_head')


def _model_of(config: Mapping[str, Any]) -> BERT:
  return BERT(**fields_of(config, 'bert'))


def _config_of(model: BERT) -> dict[str, Any]:
  check_model(model, 'BERT')
  return config_fields(model, 'Bert')


def _tensors(model: BERT) -> Iterator[base.Tensor]:
  check_model(model, 'BERT')
  yield from body(model, 'bert')
  yield from heads(model)


FAMILY = base.Family(
  name='BERT',
  architectures=('BertForPreTraining', 'BertForMaskedLM'),
  model_of=_model_of,
  config_of=_config_of,
  tensors=_tensors,
  ignored=IGNORED,
  renamed=RENAMED,
  prefix='bert',
)
