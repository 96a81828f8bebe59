"""RoBERTa against `transformers.RobertaForMaskedLM`, by shared weights."""

from __future__ import annotations

import encoder_parity as parity
import jax
import pytest
import torch
import transformers

from bigdl.interop.roberta import FAMILY
from bigdl.models.bert import BERT, SIZES

NAME = 'RobertaForMaskedLM'
CONFIG = transformers.RobertaConfig(
  **{**parity.SMALL, 'max_position_embeddings': 15, 'type_vocab_size': 1},
  pad_token_id=1,
)


def test_outputs_and_gradients_are_transformers_in_float32():
  error = parity.compare(FAMILY, NAME, CONFIG, torch.float32, pad=1)
  assert error < parity.SINGLE


def test_outputs_and_gradients_are_transformers_in_float64():
  with jax.enable_x64(True):
    error = parity.compare(FAMILY, NAME, CONFIG, torch.float64, pad=1)
  assert error < parity.DOUBLE


def test_the_round_trip_is_exact():
  parity.check_round_trip(FAMILY, NAME, CONFIG)


@pytest.mark.parametrize('name', ['roberta-base', 'roberta-large'])
def test_published_sizes_have_the_parameters_of_transformers(name):
  parity.check_size(FAMILY, NAME, SIZES[name])


def test_the_longest_row_is_what_the_table_leaves_for_tokens():
  model = FAMILY.model_of(CONFIG.to_dict())
  assert (model.length, model.first_position) == (13, 2)


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('first_position', 0),
    ('classes', 2),
    ('activation', 'relu'),
    ('tasks', 3),
    ('block', 'pre'),
  ],
)
def test_models_that_are_no_roberta_are_refused(field, value):
  model = SIZES['roberta-base'].clone(**{field: value})
  with pytest.raises(ValueError, match=f'^{field}={value} must be .*RoBERTa'):
    FAMILY.config_of(model)


def test_a_bert_is_no_roberta():
  with pytest.raises(ValueError, match='must be .*for RoBERTa weights'):
    FAMILY.config_of(BERT())


def test_another_activation_is_refused_since_the_head_has_its_own():
  with pytest.raises(ValueError, match='^hidden_act=relu must be gelu'):
    FAMILY.model_of({'hidden_act': 'relu'})
