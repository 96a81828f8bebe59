"""BERT against `transformers.BertForPreTraining`, with shared random weights."""

from __future__ import annotations

import encoder_parity as parity
import jax
import numpy as np
import pytest
import torch
import transformers

from bigdl.interop import base
from bigdl.interop.bert import FAMILY
from bigdl.models.bert import BERT, SIZES

CONFIGS = {
  'BertForPreTraining': transformers.BertConfig(**parity.SMALL),
  'BertForMaskedLM': transformers.BertConfig(
    **{
      **parity.SMALL,
      'hidden_size': 10,
      'num_attention_heads': 2,
      'intermediate_size': 14,
      'type_vocab_size': 3,
      'hidden_act': 'gelu_new',
      'layer_norm_eps': 1e-3,
    }
  ),
}


def test_outputs_and_gradients_are_transformers_in_float32():
  name = 'BertForPreTraining'
  error = parity.compare(FAMILY, name, CONFIGS[name], torch.float32)
  assert error < parity.SINGLE


@pytest.mark.parametrize(
  ('name', 'stack'),
  [
    ('BertForPreTraining', 'scan'),
    ('BertForMaskedLM', 'loop'),
  ],
)
def test_outputs_and_gradients_are_transformers_in_float64(name, stack):
  with jax.enable_x64(True):
    error = parity.compare(
      FAMILY, name, CONFIGS[name], torch.float64, stack=stack
    )
  assert error < parity.DOUBLE


@pytest.mark.parametrize('stack', ['loop', 'scan'])
@pytest.mark.parametrize('name', CONFIGS)
def test_the_round_trip_is_exact(name, stack):
  parity.check_round_trip(FAMILY, name, CONFIGS[name], stack=stack)


@pytest.mark.parametrize(
  'name', [name for name in SIZES if name.startswith('bert-')]
)
def test_published_sizes_have_the_parameters_of_transformers(name):
  parity.check_size(FAMILY, 'BertForPreTraining', SIZES[name])


def test_weights_of_heads_that_the_class_has_not_are_left_out():
  # As in the best known checkpoint of BertForMaskedLM.
  peer = parity.reference(
    'BertForPreTraining', CONFIGS['BertForPreTraining'], 0
  )
  state = parity.arrays_of(peer)
  state['bert.embeddings.position_ids'] = np.arange(13)[None]
  config = CONFIGS['BertForPreTraining'].to_dict()
  model = FAMILY.model_of({**config, 'architectures': ['BertForMaskedLM']})
  params = base.from_hf(state, model, FAMILY)
  assert not {'pooler', 'sentence_head'} & set(params)
  with_both = base.from_hf(state, model.clone(classes=2), FAMILY)
  assert {'pooler', 'sentence_head'} <= set(with_both)


def test_norms_of_old_checkpoints_are_known_by_their_old_names():
  # As in the first checkpoints of BERT, which are still the best known.
  name = 'BertForPreTraining'
  peer = parity.reference(name, CONFIGS[name], 0)
  model = FAMILY.model_of(peer.config.to_dict())
  now = {k: v.numpy() for k, v in peer.state_dict().items()}
  old = {
    k.replace('LayerNorm.weight', 'LayerNorm.gamma').replace(
      'LayerNorm.bias', 'LayerNorm.beta'
    ): v
    for k, v in now.items()
  }
  assert len(old.keys() - now.keys()) == 2 * (2 * model.depth + 2)
  one, two = (base.from_hf(weights, model, FAMILY) for weights in (now, old))
  jax.tree.map(np.testing.assert_array_equal, one, two)


def test_what_is_missing_and_what_is_unknown_is_said_by_both_names():
  peer = parity.reference(
    'BertForPreTraining', CONFIGS['BertForPreTraining'], 0
  )
  state = parity.arrays_of(peer)
  del state['bert.encoder.layer.1.output.LayerNorm.bias']
  del state['bert.pooler.dense.bias']
  state['bert.encoder.layer.2.output.dense.bias'] = np.zeros(12)
  model = FAMILY.model_of(CONFIGS['BertForPreTraining'].to_dict())
  with pytest.raises(ValueError) as caught:
    base.from_hf(state, model, FAMILY)
  assert str(caught.value) == (
    'BERT weights do not fit: missing '
    'bert.encoder.layer.1.output.LayerNorm.bias (blocks_1/mlp_norm/bias); '
    'missing bert.pooler.dense.bias (pooler/bias); '
    'unknown bert.encoder.layer.2.output.dense.bias'
  )


def test_the_config_of_the_hub_describes_the_default_bert():
  full = FAMILY.model_of(transformers.BertConfig().to_dict())
  assert full == FAMILY.model_of({'model_type': 'bert'}) == BERT()


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('model_type', 'roberta'),
    ('position_embedding_type', 'relative_key'),
    ('is_decoder', True),
    ('add_cross_attention', True),
    ('tie_word_embeddings', False),
    ('hidden_act', 'tanh'),
  ],
)
def test_configs_that_no_bert_has_are_refused(field, value):
  with pytest.raises(ValueError, match=f'^{field}={value} must be'):
    FAMILY.model_of({field: value})


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('block', 'pre'),
    ('norm', 'rmsnorm'),
    ('tasks', 3),
    ('types', 0),
    ('classes', 5),
    ('embed_width', 8),
    ('groups', 1),
    ('first_position', 2),
    ('activation', 'swiglu'),
  ],
)
def test_models_that_are_no_bert_are_refused(field, value):
  model = BERT(depth=1, width=16, heads=4, vocab=5, length=4)
  model = model.clone(**{field: value})
  for use in (FAMILY.config_of, lambda m: list(FAMILY.tensors(m))):
    with pytest.raises(ValueError, match=f'^{field}={value} must be .*BERT'):
      use(model)
