"""The sweep of any family: what ARG names, and that images are planned too."""

from __future__ import annotations

import pathlib

import pytest

from bigdl import config
from bigdl.data.glyphs import Glyphs
from bigdl.data.stdlib import StandardLibrary
from bigdl.models.vit import ViT

FILE = str(pathlib.Path(__file__).parents[2] / 'experiments' / 'isoflop.py')


def loaded(arg):
  return config.load(f'{FILE}:{arg}' if arg else FILE)


def test_text_is_the_family_that_need_not_be_named():
  assert loaded('') == loaded('gpt') == loaded('1e10,2e10')
  assert isinstance(loaded('').data, StandardLibrary)


def test_images_are_planned_by_what_one_costs(monkeypatch):
  base = loaded('vit,1e10,2e10')
  assert isinstance(base.model, ViT) and isinstance(base.data, Glyphs)
  module, arg = config.load_module(f'{FILE}:vit,1e10,2e10')
  # Each model that is counted takes a second.
  monkeypatch.setattr(module, 'FACTORS', [1 / 16, 1 / 8])
  plan = config.call(module, 'get_sweep', arg, given=[base])
  assert {cell.budget for cell in plan} == {1e10, 2e10}
  for cell in plan:
    assert cell.experiment.objective.unit == 'image'
    assert cell.d == cell.experiment.steps * cell.experiment.batch
    assert cell.flops['matmul_causal'] == pytest.approx(cell.budget, rel=0.02)
    # Sixteen patches an image: the products alone are 96 N or more.
    assert cell.flops_per_unit['matmul_causal'] > 80 * cell.n
  assert len({cell.n for cell in plan}) > 1


@pytest.mark.parametrize(
  ('arg', 'told'),
  [
    ('vgg', r"'vgg' must be one of .*gpt, .*vit"),
    ('vit,large', "'large' must be budgets in FLOPs"),
  ],
)
def test_what_is_no_family_or_budget_is_one_line(arg, told):
  with pytest.raises(ValueError, match=told) as error:
    loaded(arg)
  assert '\n' not in str(error.value)
