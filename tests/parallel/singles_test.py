"""Each way of splitting a run alone, and all of them with what models may have."""

from __future__ import annotations

import dataclasses

import exactness
import jax
import numpy as np
import pytest

from bigdl import tree
from bigdl.experiment import Evaluation
from bigdl.models.lora import LoRA
from bigdl.objectives.causal_lm import CausalLM
from bigdl.optim.adafactor import Adafactor
from bigdl.optim.adamw import AdamW
from bigdl.optim.muon import Muon
from bigdl.parallel.layout import Layout
from bigdl.train.program import Program

SINGLES = {
  'data': Layout(data=8),
  'fsdp': Layout(data=1, fsdp=8),
  'tensor': Layout(data=1, tensor=4),
  'all-to-all': Layout(data=1, context=4),
  # Four heads are too few for eight devices.
  'ring': Layout(data=1, context=8),
  'slices': Layout(data=8, slices=2),
}
TOGETHER = Layout(data=1, fsdp=2, context=2, tensor=2)


@pytest.mark.parametrize('name', ['gpt', 'bert', 'vit'])
@pytest.mark.parametrize('single', SINGLES)
def test_a_split_run_has_the_losses_of_one_device(name, single):
  exactness.check(name, SINGLES[single])


# Models of other forms, and what moves them.
VARIANTS = {
  'gated, grouped heads, dropout, Muon': {
    'model': {
      'depth': 2,
      'activation': 'swiglu',
      'norm': 'rmsnorm',
      'position': 'rotary',
      'kv_heads': 1,
      'qk_norm': True,
      'dropout': 0.1,
      'remat': 'full',
    },
    'optimizer': Muon(lr=1e-2),
  },
  # Nothing divides this vocabulary: positions are split in its place.
  'loop, odd vocabulary, chunks, Adafactor': {
    'model': {
      'depth': 2,
      'stack': 'loop',
      'block': 'parallel',
      'tied': False,
      'vocab': 67,
      'window': 5,
    },
    'objective': CausalLM(chunk=6, z_loss=1e-3),
    'optimizer': Adafactor(lr=1e-2, smallest=8),
  },
  'chunks of a split vocabulary': {
    'model': {'depth': 2},
    'objective': CausalLM(chunk=6, z_loss=1e-3),
    'accumulate': 2,
  },
}


@pytest.mark.parametrize('name', VARIANTS)
def test_other_forms_of_a_model_are_split_as_well(name):
  want, found = (
    exactness.losses('gpt', layout, **VARIANTS[name])
    for layout in (exactness.ALONE, TOGETHER)
  )
  np.testing.assert_allclose(found, want, rtol=exactness.SAME_LOSS)


def lora(layout: Layout):
  e = exactness.experiment('gpt', layout, model={'depth': 2}, steps=5)
  return dataclasses.replace(
    e, model=LoRA(e.model, rank=4), optimizer=AdamW(lr=1e-2, train='^lora/')
  )


def trained(e):
  """Returns the losses of a run, its state, and its score if it has one."""
  plan = Program(e, e.layout.mesh())
  shapes = plan.state_shapes()
  with exactness.quick_compiles():
    update, names = plan.update(shapes)
  state, batch, key = plan.init(shapes), plan.batches(), plan.key()
  found = []
  for step in range(e.steps):
    state, metrics = update(state, batch(step), key)
    found.append(metrics[names.index('loss')])
  score = plan.evaluator()
  return np.asarray(found), state, score and score(state)


def test_a_trained_difference_is_split_as_its_weights_are():
  (want, *_), (found, state, _) = (
    trained(lora(layout)) for layout in (exactness.ALONE, TOGETHER)
  )
  np.testing.assert_allclose(found, want, rtol=exactness.SAME_LOSS)
  specs = {p: x.sharding.spec for p, x in tree.items(state.params)}
  pair = 'lora/blocks/attention/query/kernel'
  assert specs[f'{pair}/b'] == jax.P(None, None, 'tensor')


def test_held_out_rows_have_the_score_of_one_device():
  def scored(layout):
    e = exactness.experiment('gpt', layout, model={'depth': 2}, steps=1)
    e = dataclasses.replace(e, evaluation=Evaluation(e.data, rows=12))
    return trained(e)[2]

  want, found = scored(exactness.ALONE), scored(TOGETHER)
  assert found.count == want.count == 12 * 16
  assert found.loss == pytest.approx(want.loss, rel=exactness.SAME_LOSS)
  assert found.se == pytest.approx(want.se, rel=1e-3)


@pytest.mark.parametrize('layout', [SINGLES['fsdp'], TOGETHER], ids=str)
def test_parameters_are_drawn_alike_however_they_are_split(layout):
  def start(layout):
    e = exactness.experiment('gpt', layout)
    plan = Program(e, layout.mesh())
    return plan.init(plan.state_shapes()).params

  split = start(layout)
  assert not all(x.is_fully_replicated for x in jax.tree.leaves(split))
  jax.tree.map(np.testing.assert_array_equal, split, start(exactness.ALONE))
