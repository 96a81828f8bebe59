"""What a mesh cannot split is named before anything is traced."""

from __future__ import annotations

import dataclasses

import exactness
import pytest

from bigdl.models.head import Classifier
from bigdl.models.lora import LoRA
from bigdl.parallel.layout import Layout
from bigdl.train.program import Program

TENSOR = Layout(data=1, tensor=8)


def plan(name, layout, **changes):
  return Program(exactness.experiment(name, layout, **changes), layout.mesh())


@pytest.mark.parametrize(
  ('name', 'layout', 'model', 'message'),
  [
    ('gpt', TENSOR, {}, 'layout.tensor=8 must divide model.heads=4'),
    ('bert', TENSOR, {}, 'layout.tensor=8 must divide model.heads=4'),
    ('vit', TENSOR, {}, 'layout.tensor=8 must divide model.heads=4'),
    (
      'gpt',
      Layout(data=1, tensor=4),
      {'mlp_width': 90},
      'layout.tensor=4 must divide model.mlp_width=90',
    ),
    (
      'gpt',
      Layout(data=1, tensor=3),
      {'heads': 6, 'head_width': 8},
      'layout.tensor=3 must divide 4 model.width=128',
    ),
    # A row of tokens holds one more than the model reads.
    (
      'gpt',
      Layout(data=1, context=3),
      {},
      'layout.context=3 must divide length=16, the inputs of rows of 17 tokens',
    ),
    (
      'bert',
      Layout(data=1, context=5),
      {},
      'layout.context=5 must divide length=16, the tokens of a row',
    ),
    (
      'vit',
      Layout(data=1, context=2),
      {'pool': 'token'},
      'layout.context=2 must divide length=17, 4 x 4 patches and a class token',
    ),
    (
      'vit',
      Layout(data=1, context=3),
      {},
      'layout.context=3 must divide length=16, 4 x 4 patches',
    ),
  ],
)
def test_what_cannot_be_split_is_one_line(name, layout, model, message):
  with pytest.raises(ValueError) as error:
    plan(name, layout, model=model)
  assert str(error.value) == message


@pytest.mark.parametrize('wrap', [LoRA, Classifier])
def test_a_model_inside_another_is_asked_too(wrap):
  layout = Layout(data=1, tensor=8)
  e = exactness.experiment('gpt' if wrap is LoRA else 'bert', layout)
  e = dataclasses.replace(e, model=wrap(e.model))
  with pytest.raises(ValueError, match=r'must divide model.heads=4$'):
    Program(e, layout.mesh())


@pytest.mark.parametrize(
  ('layout', 'message'),
  [
    (
      Layout(data=4, tensor=2),
      'batch=6 must be divisible by the 4 parts of rows of layout data=4 x'
      ' fsdp=1 x tensor=2',
    ),
    (
      Layout(data=8),
      'batch=6 must be divisible by the 8 devices of layout data=8 x fsdp=1',
    ),
  ],
)
def test_rows_are_divided_by_the_axes_that_split_them(layout, message):
  with pytest.raises(ValueError) as error:
    plan('gpt', layout, batch=6)
  assert str(error.value) == message
  # Rows lie whole on the devices of the other axes.
  assert plan('gpt', Layout(data=2, tensor=4), batch=6)
