"""ALBERT against `transformers.AlbertForPreTraining`, by shared weights."""

from __future__ import annotations

import encoder_parity as parity
import jax
import pytest
import torch
import transformers

from bigdl.interop.albert import FAMILY
from bigdl.models.albert import ALBERT, SIZES

CONFIGS = {
  'AlbertForPreTraining': transformers.AlbertConfig(
    **{**parity.SMALL, 'num_hidden_layers': 3}, embedding_size=7
  ),
  # Two groups of two layers each.
  'AlbertForMaskedLM': transformers.AlbertConfig(
    **{**parity.SMALL, 'num_hidden_layers': 4, 'hidden_act': 'gelu'},
    embedding_size=5,
    num_hidden_groups=2,
  ),
}


def test_outputs_and_gradients_are_transformers_in_float32():
  name = 'AlbertForPreTraining'
  error = parity.compare(FAMILY, name, CONFIGS[name], torch.float32)
  assert error < parity.SINGLE


@pytest.mark.parametrize(
  ('name', 'stack'),
  [
    ('AlbertForPreTraining', 'loop'),
    ('AlbertForMaskedLM', 'loop'),
    ('AlbertForMaskedLM', 'scan'),
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


@pytest.mark.parametrize('name', SIZES)
def test_published_sizes_have_the_parameters_of_transformers(name):
  parity.check_size(FAMILY, 'AlbertForPreTraining', SIZES[name])


def test_defaults_that_json_leaves_out_are_those_of_the_largest_model():
  full = FAMILY.model_of(transformers.AlbertConfig().to_dict())
  assert full == FAMILY.model_of({}) == SIZES['albert-xxlarge']


def test_layers_inside_a_group_are_refused():
  with pytest.raises(ValueError, match='^inner_group_num=2 must be 1'):
    FAMILY.model_of({'inner_group_num': 2})


@pytest.mark.parametrize(
  ('field', 'value'),
  [('embed_width', 0), ('groups', 0), ('block', 'pre'), ('tasks', 3)],
)
def test_models_that_are_no_albert_are_refused(field, value):
  model = ALBERT(depth=1, width=16, heads=4, vocab=5, length=4)
  model = model.clone(**{field: value})
  with pytest.raises(ValueError, match=f'^{field}={value} must be .*ALBERT'):
    FAMILY.config_of(model)
