"""Any two ways of splitting a run together train it as one device does.

Every pair is tried with GPT, and all but one with BERT or ViT, on meshes of three
axes and more; `make scheduled` tries every pair with those as well.
"""

from __future__ import annotations

import itertools

import exactness
import pytest

from bigdl.parallel.layout import Layout

PAIRS = {
  'data-fsdp': Layout(data=2, fsdp=4),
  'data-tensor': Layout(data=2, tensor=4),
  'data-context': Layout(data=4, context=2),
  'data-pipeline': Layout(data=2, pipeline=4),
  'data-slices': Layout(data=8, slices=4),
  'fsdp-tensor': Layout(data=1, fsdp=4, tensor=2),
  'fsdp-context': Layout(data=1, fsdp=2, context=4),
  'fsdp-pipeline': Layout(data=1, fsdp=4, pipeline=2),
  'fsdp-slices': Layout(data=2, fsdp=4, slices=2),
  # A head for each device, so that attention goes round a ring.
  'tensor-context': Layout(data=1, tensor=4, context=2),
  'tensor-pipeline': Layout(data=1, tensor=2, pipeline=4),
  'tensor-slices': Layout(data=4, tensor=2, slices=4),
  'context-pipeline': Layout(data=1, context=4, pipeline=2),
  'context-slices': Layout(data=2, context=4, slices=2),
  'pipeline-slices': Layout(
    data=1, pipeline=4, slices=2, across='pipeline', fsdp=2
  ),
}
MORE = [
  ('bert', Layout(data=2, fsdp=2, pipeline=2)),
  ('vit', Layout(data=2, tensor=2, context=2, slices=2)),
  ('vit', Layout(data=1, fsdp=2, tensor=2, pipeline=2)),
  (
    'bert',
    Layout(
      data=1, tensor=2, context=2, pipeline=2, slices=2, across='pipeline'
    ),
  ),
  ('bert', Layout(data=2, fsdp=2, context=2, slices=2)),
]


def test_every_two_of_the_axes_are_paired():
  axes = ('data', 'fsdp', 'tensor', 'context', 'pipeline', 'slices')
  assert set(PAIRS) == {'-'.join(p) for p in itertools.combinations(axes, 2)}
  for name, layout in PAIRS.items():
    assert all(getattr(layout, axis) > 1 for axis in name.split('-')), name
    assert layout.mesh().size == 8, name


@pytest.mark.parametrize('pair', PAIRS)
def test_any_pair_trains_a_gpt_as_one_device_does(pair):
  exactness.check('gpt', PAIRS[pair])


@pytest.mark.parametrize(('name', 'layout'), MORE)
def test_three_and_more_train_the_others_as_one_device_does(name, layout):
  exactness.check(name, layout)


@pytest.mark.scheduled
@pytest.mark.parametrize('name', ['bert', 'vit'])
@pytest.mark.parametrize('pair', PAIRS)
def test_any_pair_trains_the_others_as_one_device_does(name, pair):
  exactness.check(name, PAIRS[pair])
