"""Pipelines: what they compute, when, with what traffic, and what they refuse."""

from __future__ import annotations

import functools
import re
from typing import Any

import exactness
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl import tree
from bigdl.experiment import Checkpoints
from bigdl.layers import stack
from bigdl.models.albert import ALBERT
from bigdl.models.gpt import GPT
from bigdl.models.transformer import Transformer
from bigdl.models.xlnet import XLNet
from bigdl.parallel import pipeline, scope
from bigdl.parallel.layout import Layout
from bigdl.parallel.pipeline import Schedule
from bigdl.train import record
from bigdl.train.checkpoint import Store
from bigdl.train.program import Program

CLOSE = 1e-6  # Of the largest gradient there is, in float32.
ROWS, T, VOCAB = 8, 16, 29
FOUR = Layout(data=2, pipeline=4)
ROUND = Layout(data=1, pipeline=2, repeats=2, microbatches=4, tensor=2)

SIZE: dict[str, Any] = {
  'width': 16,
  'heads': 2,
  'vocab': VOCAB,
  'stack': 'scan',
}
gpt = functools.partial(GPT, depth=4, length=T, **SIZE)


def tokens(length=T):
  draw = np.random.default_rng(0)
  return jnp.asarray(draw.integers(0, VOCAB, (ROWS, length)), jnp.int32)


def segments():
  starts = np.random.default_rng(1).integers(0, 5, (ROWS, T)) == 0
  return jnp.asarray(1 + np.cumsum(starts, axis=1), jnp.int32)


def graded(model, inputs, layout=None, **options):
  """Returns a loss and its gradients, under a layout or on one device."""
  params = initial(model, inputs)

  def loss(params, *inputs):
    out = model.apply({'params': params}, *inputs, **options)
    out = out[0] if isinstance(out, tuple) else out
    # No two logits count alike, nor two rows.
    shares = jnp.sin(jnp.arange(out.size, dtype=jnp.float32))
    return (out * shares.reshape(out.shape)).mean()

  step = jax.jit(jax.value_and_grad(loss))
  with exactness.quick_compiles():
    if layout is None:
      return jax.device_get(step(params, *inputs))
    with scope.entered(layout, layout.mesh()):
      return jax.device_get(step(params, *inputs))


def initial(model, inputs):
  start = jax.jit(lambda key, *inputs: model.init(key, *inputs)['params'])
  return start(jax.random.key(0), *inputs)


def assert_same(found, want):
  largest = max(np.abs(g).max() for g in jax.tree.leaves(want[1]))
  assert found[0] == pytest.approx(want[0], rel=1e-4, abs=1e-8)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=CLOSE * largest, rtol=0),
    found[1],
    want[1],
  )


FORMS: dict[str, Any] = {
  # Rotations are of rows of their own, or, where lengths are those of the
  # batch, of all.
  'packed': (gpt(position='rotary'), (tokens(), segments())),
  'shared': (gpt(position='rotary'), (tokens(ROWS),)),
  # A stage begins with another kind of block than the one before it.
  'turns': (gpt(window=4, dense_every=3), (tokens(),)),
  'remat': (gpt(remat='dots'), (tokens(),)),
  'repeated': (
    ALBERT(depth=8, groups=4, embed_width=8, remat='full', length=T, **SIZE),
    (tokens(), segments()),
  ),
  'two stacks': (
    Transformer(depth=4, length=T, **SIZE),
    (tokens(12), tokens(), segments()[:, :12], segments()),
  ),
  'two streams': (
    XLNet(depth=4, **SIZE),
    (
      *(tokens(), segments(), segments() % 2),
      *(jnp.argsort(tokens(), 1), jnp.argsort(tokens(), 1)[:, :4]),
    ),
  ),
}


@pytest.mark.parametrize('form', FORMS)
def test_stages_compute_what_a_scan_does(form):
  model, inputs = FORMS[form]
  assert_same(graded(model, inputs, FOUR), graded(model, inputs))


@pytest.mark.parametrize('form', ['packed', 'turns'])
def test_rounds_compute_what_a_scan_does(form):
  model, inputs = FORMS[form]
  assert_same(graded(model, inputs, ROUND), graded(model, inputs))


@pytest.mark.parametrize('name', ['gpt', 'bert', 'vit'])
def test_a_pipeline_trains_as_one_device_does(name):
  exactness.check(name, Layout(data=1, pipeline=4))


def test_rounds_train_a_gpt_as_one_device_does():
  layout = Layout(data=1, pipeline=2, repeats=2, microbatches=4)
  exactness.check('gpt', layout)


SCHEDULES = [
  Schedule(1, 3),
  Schedule(4, 4),
  Schedule(4, 1),
  Schedule(3, 7),
  Schedule(2, 4, repeats=3),
  Schedule(4, 8, repeats=2),
]


def worked(plan):
  """Returns, by step and stage, the piece of work and what it is, or None."""
  table = []
  for t in range(plan.steps):
    pieces = [t - s for s in range(plan.stages)]
    last = plan.repeats * plan.microbatches
    table.append([plan.work(u) if 0 <= u < last else None for u in pieces])
  return table


@pytest.mark.parametrize('plan', SCHEDULES, ids=str)
def test_each_stage_does_each_round_of_each_microbatch_once(plan):
  rounds = [
    (m, r) for m in range(plan.microbatches) for r in range(plan.repeats)
  ]
  for column in zip(*worked(plan), strict=True):
    assert sorted(p for p in column if p) == rounds


@pytest.mark.parametrize('plan', SCHEDULES, ids=str)
def test_a_stage_takes_up_what_the_one_before_it_has_just_handed_on(plan):
  table = worked(plan)
  for before, now in zip(table, table[1:], strict=False):
    for s, piece in enumerate(now):
      if piece and s:
        assert before[s - 1] == piece
      elif piece and piece[1]:
        assert before[-1] == (piece[0], piece[1] - 1)


@pytest.mark.parametrize('plan', SCHEDULES, ids=str)
def test_the_bubble_is_the_share_of_steps_that_a_stage_is_idle(plan):
  idle = [sum(p is None for p in c) for c in zip(*worked(plan), strict=True)]
  assert set(idle) == {plan.stages - 1}
  assert plan.bubble == pytest.approx(idle[0] / plan.steps)
  # Narayanan et al., section 2.2: over the time without it.
  over = plan.bubble / (1 - plan.bubble)
  share = (plan.stages - 1) / (plan.repeats * plan.microbatches)
  assert over == pytest.approx(share)


@pytest.mark.parametrize('repeats', range(2, 7))
@pytest.mark.parametrize('stages', range(2, 9))
def test_runs_are_dealt_to_where_they_run_in_permutations(stages, repeats):
  sends, gets = pipeline.deals(Schedule(stages, stages, repeats))
  for runs in sends:
    np.testing.assert_array_equal(runs // repeats, range(stages))
    assert sorted(runs % stages) == list(range(stages))
  for s in range(stages):
    got = [next(c for c in sends[k] if c % stages == s) for k in gets[s]]
    assert got == [r * stages + s for r in range(repeats)]


class Doubled(nn.Module):
  """Adds 0 or 2 to each number, whichever dropout says."""

  @nn.compact
  def __call__(self, x, deterministic=False):
    self.param('none', nn.initializers.zeros, (1,))
    return x + nn.Dropout(0.5, deterministic=deterministic)(jnp.ones_like(x))


class Dropping(nn.Module):
  def setup(self):
    self.blocks = stack.build(Doubled, 4, kind='auto')

  def __call__(self, x):
    return stack.run(self.blocks, x, depth=4, remat='none')


def test_dropout_differs_by_block_and_row_and_not_by_call():
  model, x = Dropping(), jnp.zeros((ROWS, 64))
  rngs = {'dropout': jax.random.key(1)}

  @jax.jit
  def drop(params):
    return model.apply({'params': params}, x, rngs=rngs)

  with scope.entered(FOUR, FOUR.mesh()):
    params = model.init({'params': jax.random.key(0), **rngs}, x)['params']
    found = np.asarray(drop(params))
    np.testing.assert_array_equal(found, drop(params))
  assert len(np.unique(found, axis=0)) == ROWS
  # Of four blocks that drop alike, none or all would add.
  shares = np.bincount(found.astype(int).ravel() // 2, minlength=5) / found.size
  np.testing.assert_allclose(shares, np.array([1, 4, 6, 4, 1]) / 16, atol=0.08)


def test_decoding_goes_without_a_pipeline():
  model, inputs = gpt(), (tokens(),)
  params = initial(model, inputs)

  @jax.jit
  def decode(params, tokens):
    return model.apply(
      {'params': params},
      *(tokens, jnp.zeros((), jnp.int32)),
      method='decode',
      capacity=T,
      mutable=['cache'],
    )[0]

  with scope.entered(FOUR, FOUR.mesh()):
    found = decode(params, *inputs)
  want: Any = model.apply({'params': params}, *inputs, method='hidden')
  np.testing.assert_allclose(found, want, atol=1e-5)


def test_sixteen_bits_pass_through_a_pipeline():
  # A sum in 16 bits inside of the stages would end this process.
  model, inputs = gpt(dtype='bfloat16'), (tokens(),)
  found, want = graded(model, inputs, FOUR), graded(gpt(), inputs)
  largest = max(np.abs(g).max() for g in jax.tree.leaves(want[1]))
  for a, b in zip(*map(jax.tree.leaves, (found[1], want[1])), strict=True):
    np.testing.assert_allclose(a, b, atol=0.1 * largest)


@functools.cache
def compiled(layout):
  """Returns a GPT's hidden states, compiled with its parameters split."""
  e = exactness.experiment('gpt', layout)
  plan = Program(e, layout.mesh())
  params = plan.state_shapes().params
  tokens = jax.ShapeDtypeStruct(
    (ROWS, 16), jnp.int32, sharding=plan.batch_sharding
  )
  hidden = jax.jit(
    lambda params, x: e.model.apply({'params': params}, x, method='hidden')
  )
  with scope.entered(layout, plan.mesh):
    return hidden.lower(params, tokens).compile().as_text()


def collectives(text):
  """Returns kind, shape and whether it is in a loop, of each collective."""
  found, inside = [], ''
  for line in text.splitlines():
    if line and line[0] != ' ':
      inside = line.split(' ')[0]
    match = re.search(
      r'= (.*?) (all-gather|all-reduce|all-to-all|reduce-scatter'
      r'|collective-permute)(-start)?\(',
      line,
    )
    if match:
      shape = re.findall(r'\w+\[([\d,]*)\]', match[1])[0]
      dims = tuple(int(n) for n in shape.split(',') if n)
      found.append((match[2], dims, inside != 'ENTRY'))
  return found


def test_a_step_of_the_schedule_sends_one_state_and_no_weights():
  text = compiled(FOUR)
  # A microbatch has one row on each device; there are 4 + 4 - 1 steps.
  inside = [c for c in collectives(text) if c[2]]
  assert inside == [('collective-permute', (1, 16, 32), True)]
  assert re.findall(r'known_trip_count":{"n":"(\d+)"', text) == ['7']
  # What has been through the stages is told to all of them.
  outside = [c for c in collectives(text) if not c[2]]
  assert outside == [('all-reduce', (1, 4, 1, 16, 32), False)]


def test_rounds_move_each_block_once_and_gather_none():
  layout = Layout(data=1, pipeline=2, repeats=2, microbatches=4)
  text = compiled(layout)
  inside = [c for c in collectives(text) if c[2]]
  assert inside == [('collective-permute', (2, 16, 32), True)]
  outside = [c for c in collectives(text) if not c[2]]
  assert {kind for kind, *_ in outside} == {'all-reduce', 'collective-permute'}
  shapes = Program(
    exactness.experiment('gpt', layout), layout.mesh()
  ).state_shapes()
  blocks = jax.tree.leaves(shapes.params['blocks'])
  moved = [dims for kind, dims, _ in outside if kind == 'collective-permute']
  # Of the two blocks that a stage keeps, one is the other's to run.
  assert sorted(moved) == sorted((1, *leaf.shape[1:]) for leaf in blocks)


def test_stages_keep_their_own_blocks_and_moments_alone():
  layout = Layout(data=1, fsdp=2, pipeline=4)
  e = exactness.experiment('gpt', layout)
  shapes = Program(e, layout.mesh()).state_shapes()
  blocks = [
    leaf
    for path, leaf in tree.items((shapes.params, shapes.opt))
    if 'blocks' in path.split('/')
  ]
  assert len(blocks) > 30
  for leaf in blocks:
    assert leaf.shape[0] == 4
    assert leaf.sharding.shard_shape(leaf.shape)[0] == 1


def test_a_run_goes_on_without_the_pipeline_that_it_began_with(tmp_path):
  parts = {1: Layout(data=2, pipeline=4), 11: exactness.ALONE}
  losses = []
  for first, layout in parts.items():
    plan = Program(exactness.experiment('gpt', layout), layout.mesh())
    shapes = plan.state_shapes()
    with Store(tmp_path, Checkpoints(), print) as store:
      with exactness.quick_compiles():
        state = store.restore(shapes) or plan.init(shapes)
        update, names = plan.update(shapes)
      assert int(state.step) == first - 1
      batch, key = plan.batches(), plan.key()
      for step in range(first - 1, first + 9):
        state, metrics = update(state, batch(step), key)
        losses.append(float(metrics[names.index('loss')]))
      store.save(state, first + 9)
      store.wait()
  np.testing.assert_allclose(
    losses, exactness.alone('gpt'), rtol=exactness.SAME_LOSS
  )


def test_a_runs_provenance_states_the_bubble(tmp_path):
  for name, layout in (('four', FOUR), ('alone', exactness.ALONE)):
    e = exactness.experiment('gpt', layout)
    folder = tmp_path / name
    folder.mkdir()
    record.write_provenance(folder, e, {'count': layout.mesh().size}, 0)
  found = record.read_json(tmp_path / 'four' / 'provenance.json')['pipeline']
  assert found == {
    'stages': 4,
    'microbatches': 4,
    'repeats': 1,
    'bubble': pytest.approx(3 / 7),
  }
  alone = record.read_json(tmp_path / 'alone' / 'provenance.json')
  assert 'pipeline' not in alone


@pytest.mark.parametrize(
  ('layout', 'changes', 'message'),
  [
    (
      Layout(data=2, pipeline=3),
      {'batch': 6},
      'model.depth=4 must be divisible by layout.pipeline=3',
    ),
    (
      Layout(data=1, pipeline=4, repeats=2),
      {},
      'model.depth=4 must be divisible by layout.pipeline=4 x layout.repeats=2',
    ),
    (
      Layout(data=2, pipeline=4),
      {'batch': 12},
      'batch=12 must be divisible by 2 parts of rows x 4 microbatches of'
      ' layout.pipeline=4',
    ),
    (
      Layout(data=2, pipeline=4),
      {'accumulate': 2},
      'batch/accumulate=4 must be divisible by 2 parts of rows x 4 microbatches'
      ' of layout.pipeline=4',
    ),
    (
      Layout(data=1, pipeline=2, repeats=2, microbatches=3),
      {'batch': 6},
      'layout.microbatches=3 must be divisible by layout.pipeline=2 where'
      ' layout.repeats=2',
    ),
    (
      Layout(data=2, pipeline=4),
      {'model': {'stack': 'loop'}},
      'model.stack=loop must be scan, or auto, where layout.pipeline=4',
    ),
  ],
)
def test_what_cannot_be_a_pipeline_is_one_line_before_anything_is_traced(
  layout, changes, message
):
  e = exactness.experiment('gpt', layout, **changes)
  with pytest.raises(ValueError) as error:
    Program(e, layout.mesh())
  assert str(error.value) == message


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'pipeline': 2, 'repeats': 0}, 'layout.repeats=0 must be at least 1'),
    ({'repeats': 2}, 'layout.repeats=2 must be 1 where layout.pipeline=1'),
  ],
)
def test_rounds_need_a_pipeline(fields, message):
  with pytest.raises(ValueError, match=f'^{message}$'):
    Layout(**fields)


def test_blocks_that_share_weights_are_counted_once():
  model = ALBERT(depth=8, groups=2, **SIZE)
  with pytest.raises(ValueError, match=r'^model.groups=2 must be divisible'):
    pipeline.check(Schedule(4, 4), model)


def test_a_stack_of_unknown_fields_is_refused_while_it_is_traced():
  model = Transformer(depth=4, decoder_depth=6, length=T, **SIZE)
  with pytest.raises(ValueError, match=r'^model.decoder_depth=6 must be'):
    pipeline.check(Schedule(4, 4), model)
  with (
    scope.entered(FOUR, FOUR.mesh()),
    pytest.raises(ValueError, match=r'^depth=6 must be divisible by'),
  ):
    jax.eval_shape(model.init, jax.random.key(0), tokens(), tokens())


def test_an_array_of_other_rows_is_refused():
  with pytest.raises(ValueError, match=r'an array \[16, 4\] .* the batch, 8'):
    with scope.entered(FOUR, FOUR.mesh()):
      pipeline.run(
        lambda x, *_: x,
        jnp.zeros((8, 3)),
        jnp.zeros((16, 4)),
        jnp.zeros(4),
        Schedule(4, 4),
      )
