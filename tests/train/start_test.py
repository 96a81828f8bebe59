"""Runs that start from given weights, and runs that train a part of them."""

from __future__ import annotations

import dataclasses
import json
import shutil

from flax import linen as nn
import jax
import numpy as np
import pytest
import toy_experiment as toy

from bigdl import config, tensors, tree
from bigdl.experiment import Checkpoints, Start
from bigdl.models.gpt import GPT
from bigdl.optim.adamw import AdamW
from bigdl.parallel.layout import Layout
from bigdl.train import checkpoint, program, run, start

ONE = Layout(data=1)


class Body(nn.Module):
  """What the first run trains, with another head on it."""

  outputs: int = 1

  def setup(self):
    self.body = toy.Net(16)
    self.head = nn.Dense(self.outputs)

  def __call__(self, x_BD):
    return self.head(self.body(x_BD))


def experiment(**changes):
  values = {
    'model': toy.Net(16),
    'optimizer': AdamW(lr=1e-2, decay=''),
    'layout': ONE,
    'evaluation': toy.Evaluation(),
    'steps': 4,
    'checkpoints': Checkpoints(every=2),
  }
  return toy.experiment(**{**values, **changes})


def train(folder, e, lines=None, **options):
  said = [] if lines is None else lines
  return run.run(
    e, folder, config=config.to_json(e), say=said.append, **options
  )


def params_of(folder, e):
  plan = program.Program(e, e.layout.mesh())
  state = checkpoint.load(folder, plan.state_shapes())
  return dict(tree.items(jax.tree.map(np.asarray, state.params)))


@pytest.fixture(scope='module')
def first(tmp_path_factory):
  folder = tmp_path_factory.mktemp('first') / 'run'
  e = experiment()
  train(folder, e)
  return folder, params_of(folder, e)


def starting(folder, **changes):
  """A run on that takes no step that counts."""
  given = Start(str(folder), rename=(('^', 'body/'),))
  return experiment(
    model=Body(), start=given, optimizer=AdamW(lr=0.0, decay=''), **changes
  )


def test_a_run_starts_from_the_weights_of_another(first, tmp_path):
  folder, weights = first
  e, lines = starting(folder), []
  train(tmp_path / 'b', e, lines)
  found = params_of(tmp_path / 'b', e)
  for path, value in weights.items():
    np.testing.assert_array_equal(found[f'body/{path}'], value)
  count = sum(x.size for x in weights.values())
  assert lines == [
    f'start={folder}: 4 parameters taken ({count:,} numbers); 2 start fresh'
    ' (head/bias, head/kernel); 0 left over'
  ]
  provenance = json.loads((tmp_path / 'b' / 'provenance.json').read_text())
  said = provenance['start']
  assert said['folder'] == str(folder)
  assert said['fresh'] == ['head/bias', 'head/kernel']
  assert len(said['fingerprint']) == 24
  recorded = json.loads((tmp_path / 'b' / 'config.json').read_text())
  assert recorded['start']['folder'] == str(folder)


def test_what_is_dropped_starts_fresh(first, tmp_path):
  folder, weights = first
  given = Start(str(folder), drop='^Dense_1/')
  e = experiment(start=given, optimizer=AdamW(lr=0.0, decay=''))
  plain = dataclasses.replace(e, start=Start())
  train(tmp_path / 'a', e)
  train(tmp_path / 'b', plain)
  found, fresh = params_of(tmp_path / 'a', e), params_of(tmp_path / 'b', plain)
  for path, value in found.items():
    same = weights if path.startswith('Dense_0') else fresh
    np.testing.assert_array_equal(value, same[path])
    assert 'kernel' not in path or np.any(weights[path] != fresh[path])


def test_a_resume_needs_neither_the_folder_nor_other_weights(first, tmp_path):
  folder, _ = first
  moved = tmp_path / 'weights'
  shutil.copytree(folder, moved)
  e = dataclasses.replace(starting(moved), optimizer=AdamW(lr=0.1, decay=''))
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  train(whole, e)
  seen = []
  stopped = train(
    parts,
    e,
    on_progress=lambda news: seen.append(news['step']),
    stop=lambda: 2 in seen,
  )
  assert stopped['status'] == 'interrupted'
  said = json.loads((parts / 'provenance.json').read_text())['start']
  shutil.rmtree(moved)
  assert train(parts, e)['status'] == 'finished'
  assert json.loads((parts / 'provenance.json').read_text())['start'] == said
  want, found = params_of(whole, e), params_of(parts, e)
  for path, value in want.items():
    np.testing.assert_array_equal(found[path], value)


def test_averaged_weights_begin_at_the_given_ones(first):
  folder, weights = first
  e = dataclasses.replace(
    starting(folder), optimizer=AdamW(lr=0.1, decay='', ema=0.9)
  )
  plan = program.Program(e, e.layout.mesh())
  shapes = plan.state_shapes()
  given = start.load(e.start, shapes.params, print)
  state = plan.init(shapes, given)
  average = dict(tree.items(state.opt.average))
  for path, value in weights.items():
    np.testing.assert_array_equal(average[f'body/{path}'], value)


def test_given_weights_are_split_like_drawn_ones(first):
  folder, weights = first
  e = dataclasses.replace(
    starting(folder), layout=Layout(data=2, fsdp=4), batch=8
  )
  e = dataclasses.replace(e, model=Body(), start=e.start)
  plan = program.Program(e, e.layout.mesh())
  shapes = plan.state_shapes()
  state = plan.init(shapes, start.load(e.start, shapes.params, print))
  for got, want in zip(
    jax.tree.leaves(state), jax.tree.leaves(shapes), strict=True
  ):
    assert got.sharding == want.sharding
  for path, value in weights.items():
    got = dict(tree.items(state.params))[f'body/{path}']
    np.testing.assert_array_equal(got, value)


def test_a_loop_starts_a_scan(tmp_path):
  loop = GPT(depth=2, width=8, heads=2, vocab=7, length=4, stack='loop')
  tokens = np.zeros((1, 4), np.int32)
  params = loop.init(jax.random.key(0), tokens)['params']
  (tmp_path / 'm').mkdir()
  tensors.write_model(tmp_path / 'm', loop, params)
  scan = loop.clone(stack='scan')
  shapes = jax.eval_shape(scan.init, jax.random.key(1), tokens)['params']
  given = start.load(Start(str(tmp_path / 'm')), shapes, print)
  assert given.values.keys() == dict(tree.items(shapes)).keys()
  key = 'attention/query/kernel'
  np.testing.assert_array_equal(
    given.values[f'blocks/{key}'][1],
    dict(tree.items(params))[f'blocks_1/{key}'],
  )


@pytest.mark.parametrize(
  ('changes', 'words'),
  [
    ({'folder': 'nowhere'}, 'start.folder=nowhere: nowhere: no such folder'),
    ({'drop': 'haed'}, "start.drop='haed' must match a parameter of"),
    ({'rename': (('x', 'y'),)}, "start.rename='x' must match a parameter of"),
    ({'rename': ()}, 'has none of the parameters: it has Dense_0/bias'),
    (
      {'rename': (('^Dense_0', 'head'),)},
      'misshapen head/kernel [16, 1], expected [1, 1]',
    ),
    ({'rename': (('Dense_.', 'head'),)}, 'gives two parameters of'),
    (
      {'rename': (('^Dense_0', r'\1'),)},
      "must be what replaces '^Dense_0': invalid group reference 1",
    ),
  ],
)
def test_what_cannot_be_started_from_is_one_line_and_no_folder(
  first, tmp_path, changes, words
):
  e = starting(first[0])
  e = dataclasses.replace(e, start=dataclasses.replace(e.start, **changes))
  with pytest.raises(ValueError) as error:
    train(tmp_path / 'run', e)
  assert words in str(error.value) and '\n' not in str(error.value)
  assert not (tmp_path / 'run' / 'config.json').exists()


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'folder': 'a', 'drop': '('}, r"start.drop='\(' must be a regular .*"),
    ({'rename': (('a', 'b'),)}, 'start.folder must say where the weights are'),
  ],
)
def test_a_bad_field_is_refused(fields, message):
  with pytest.raises(ValueError, match=f'^{message}$'):
    Start(**fields)


def test_of_a_partial_run_the_rest_stays_and_the_counts_are_said(
  first, tmp_path
):
  folder, weights = first
  e, lines = starting(folder), []
  e = dataclasses.replace(
    e, optimizer=AdamW(lr=0.1, decay='', train='^head/'), steps=3
  )
  train(tmp_path / 'run', e, lines)
  found = params_of(tmp_path / 'run', e)
  for path, value in weights.items():
    np.testing.assert_array_equal(found[f'body/{path}'], value)
  assert lines[-1] == '2 of 163 parameters train (1.23%)'
  # The first step's gradient is that of the head alone.
  lines = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  norm = json.loads(lines[0])['grad_norm']
  plan = program.Program(e, ONE.mesh())
  shapes = plan.state_shapes()
  state = plan.init(shapes, start.load(e.start, shapes.params, print))
  batch, key = plan.batches()(0), jax.random.fold_in(plan.key(), 0)

  def loss(head):
    params = {**state.params, 'head': head}
    return e.objective.loss(e.model, params, state.extra, batch, key)[0]

  grads = jax.tree.leaves(jax.grad(loss)(state.params['head']))
  own = np.sqrt(sum(float((g**2).sum()) for g in grads))
  assert norm == pytest.approx(own, rel=1e-4)
