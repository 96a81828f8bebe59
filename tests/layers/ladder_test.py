"""Rungs of a ladder against what was asked, on a module of formulas alone."""

from __future__ import annotations

from flax import linen as nn
import pytest

from bigdl.layers import ladder


class Shape(nn.Module):
  depth: int = 6
  width: int = 192
  heads: int = 6
  mlp_width: int = 0
  head_width: int = 0


def size(model):
  return model.depth * model.width * (4 * model.width + 2 * mlp(model))


def mlp(model):
  return model.mlp_width or 4 * model.width


def shared(model):
  return size(model) // model.depth


def with_head(model):
  return size(model) + 3 * model.width**2


@pytest.mark.parametrize('count', [size, shared, with_head])
@pytest.mark.parametrize('factor', [0.1, 0.3, 1, 2, 7.5, 64, 1000])
def test_a_rung_has_about_the_size_that_was_asked(count, factor):
  model = Shape()
  rung = ladder.rung(model, factor, size=count)
  # Where depth does not count, sizes are squares of heads.
  least = 1.3 / rung.heads if count is shared else 0.2 if factor < 1 else 0.12
  assert abs(count(rung) / count(model) / factor - 1) < least
  bend = rung.width / rung.depth / (model.width / model.depth)
  assert 0.35 < bend < 3
  assert rung.width == 32 * rung.heads


def test_factor_one_is_the_same_model():
  for model in (Shape(), Shape(depth=5, mlp_width=500), Shape(head_width=40)):
    assert ladder.rung(model, 1, size=size) == model


def test_what_the_model_names_keeps_its_ratio():
  model = Shape(mlp_width=520, head_width=48)
  rung = ladder.rung(model, 8, size=size)
  assert rung.head_width == 48
  assert rung.mlp_width % 8 == 0
  assert abs(rung.mlp_width / rung.width / (520 / 192) - 1) < 0.02
  assert abs(rung.width / rung.heads - 192 / 6) <= 2


def test_heads_come_in_steps():
  rungs = [
    ladder.rung(Shape(), factor, size=size, step=3) for factor in (0.1, 2, 9)
  ]
  assert [rung.heads % 3 for rung in rungs] == [0, 0, 0]
  assert len({rung.heads for rung in rungs}) > 1


def test_a_family_deepens_and_widens_its_own_way():
  def deepen(model, depth):
    return model.clone(depth=2 * max(1, depth // 2))

  def widen(model, heads):
    return ladder.widen(model, heads).clone(mlp_width=7)

  rung = ladder.rung(Shape(), 5, size=shared, widen=widen, deepen=deepen)
  assert rung.mlp_width == 7
  assert rung.depth % 2 == 0


@pytest.mark.parametrize('factor', [0, -1, float('nan')])
def test_a_ladder_goes_nowhere_by_nothing(factor):
  with pytest.raises(ValueError, match=f'^factor={factor} must be positive'):
    ladder.rung(Shape(), factor, size=size)
