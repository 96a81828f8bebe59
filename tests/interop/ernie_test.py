"""ERNIE against `transformers.ErnieForPreTraining`, by shared weights."""

from __future__ import annotations

import encoder_parity as parity
import jax
import pytest
import torch
import transformers

from bigdl.interop.ernie import FAMILY
from bigdl.models.bert import SIZES

CONFIGS = {
  'ErnieForPreTraining': transformers.ErnieConfig(
    **{**parity.SMALL, 'hidden_act': 'relu'}
  ),
  'ErnieForMaskedLM': transformers.ErnieConfig(
    **{**parity.SMALL, 'type_vocab_size': 4}, use_task_id=True
  ),
}


def test_outputs_and_gradients_are_transformers_in_float32():
  name = 'ErnieForMaskedLM'
  error = parity.compare(FAMILY, name, CONFIGS[name], torch.float32)
  assert error < parity.SINGLE


@pytest.mark.parametrize('name', CONFIGS)
def test_outputs_and_gradients_are_transformers_in_float64(name):
  with jax.enable_x64(True):
    error = parity.compare(FAMILY, name, CONFIGS[name], torch.float64)
  assert error < parity.DOUBLE


@pytest.mark.parametrize('name', CONFIGS)
def test_the_round_trip_is_exact(name):
  parity.check_round_trip(FAMILY, name, CONFIGS[name])


@pytest.mark.parametrize('name', ['ernie-1.0-zh', 'ernie-3.0-base-zh'])
def test_published_sizes_have_the_parameters_of_transformers(name):
  parity.check_size(FAMILY, 'ErnieForPreTraining', SIZES[name])


@pytest.mark.parametrize(
  ('field', 'value'), [('first_position', 2), ('groups', 1), ('types', 0)]
)
def test_models_that_are_no_ernie_are_refused(field, value):
  model = SIZES['ernie-3.0-base-zh'].clone(**{field: value})
  with pytest.raises(ValueError, match=f'^{field}={value} must be .*ERNIE'):
    FAMILY.config_of(model)
