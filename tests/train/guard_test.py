"""Bad numbers: an update that is skipped, a run that goes back, one that ends."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_experiment as toy

from bigdl.experiment import Evaluation, Guard
from bigdl.objectives.base import State
from bigdl.parallel.layout import Layout
from bigdl.train import checkpoint, guard, log, program, run

ONE = Layout(data=1)
TIMING = {'seconds', 'tokens_per_second', 'mfu'}
SKIP = Guard(nonfinite='skip')
# Nothing before the eighth loss is judged.
SPIKE = Guard(spike=50.0, window=8, action='skip')
REWIND = Guard(nonfinite='rewind', back=2, ahead=1)
BATCH = 8


@dataclasses.dataclass(frozen=True)
class Spoilt(toy.Points):
  """Some batches have targets that are far off, or infinite."""

  batches: tuple[int, ...] = (9,)
  value: float = float('inf')

  def row(self, i):
    row = super().row(i)
    return {**row, 'y': np.float32(self.value)} if self._bad(i) else row

  def _bad(self, i):
    return i // BATCH in self.batches


def experiment(rule, **changes):
  data = changes.pop('data', Spoilt())
  quiet = dict(layout=ONE, evaluation=Evaluation(), guard=rule, data=data)
  return toy.experiment(**{**quiet, **changes})


def train(folder, e, **kwargs):
  return run.run(e, folder, config=toy.config(e), **kwargs)


def numbers(folder):
  return [
    {k: v for k, v in r.items() if k not in TIMING} for r in log.read(folder)
  ]


def stop_after(step):
  seen = []
  return {
    'on_progress': lambda p: seen.append(p['step']),
    'stop': lambda: bool(seen) and seen[-1] >= step,
  }


def final_state(folder, e):
  shapes = program.Program(e, e.layout.mesh()).state_shapes()
  return jax.tree.map(np.asarray, checkpoint.load(folder, shapes))


def assert_same_run(a, b, e):
  assert numbers(a) == numbers(b)
  jax.tree.map(
    np.testing.assert_array_equal, final_state(a, e), final_state(b, e)
  )


@pytest.mark.parametrize(
  'rule, data',
  [(SKIP, Spoilt()), (SPIKE, Spoilt(batches=(9, 14), value=1e4))],
  ids=['nonfinite', 'spike'],
)
def test_a_skipped_update_counts_and_a_resume_is_exact(tmp_path, rule, data):
  e = experiment(rule, data=data)
  said = []
  result = train(tmp_path / 'whole', e, say=said.append)
  assert result['status'] == 'finished'
  assert result['skipped'] == len(data.batches) == len(said)
  assert 'at step 10' in said[0]
  assert said[0].endswith(': skipped')
  lines = log.read(tmp_path / 'whole')
  assert [r['step'] for r in lines] == list(range(1, 21))
  assert [r['skipped'] for r in lines if r['step'] in (9, 10, 11)] == [0, 1, 1]
  assert max(r.get('loss', 0) for r in lines if r['step'] != 10) < 1e9
  assert all(
    np.isfinite(x).all()
    for x in jax.tree.leaves(final_state(tmp_path / 'whole', e))
  )
  # Before, at and after the bad update, and between two bad ones.
  for step in (8, 9, 12):
    folder = tmp_path / str(step)
    train(folder, e, **stop_after(step))
    assert train(folder, e)['skipped'] == len(data.batches)
    assert_same_run(folder, tmp_path / 'whole', e)


@dataclasses.dataclass(frozen=True)
class Own(toy.Regress):
  """An update of its own, which tells no gradient."""

  def update(self, model, tx, state, batch, key, *, accumulate=1):
    state, metrics = super().update(
      model, tx, state, batch, key, accumulate=accumulate
    )
    return state, {k: metrics[k] for k in ('loss', 'ids')}


@dataclasses.dataclass(frozen=True)
class Blind(Own):
  """Its loss says nothing of what becomes of the parameters."""

  def update(self, *args, **kwargs):
    state, metrics = super().update(*args, **kwargs)
    return state, {**metrics, 'loss': jnp.zeros(())}


@pytest.mark.parametrize(
  'changes',
  [
    {},
    {'accumulate': 2},
    {'objective': Own()},
    {'objective': Blind()},
    {'layout': Layout(data=2, fsdp=2)},
  ],
  ids=['plain', 'accumulate', 'own update', 'blind update', 'sharded'],
)
def test_a_bad_update_changes_nothing_but_the_step(changes):
  e = experiment(SKIP, **changes)
  plan = program.Program(e, e.layout.mesh())
  shapes = plan.state_shapes()
  update, names = plan.update(shapes)
  memory = plan.place_memory(guard.fresh(e.guard))
  before = guard.enter(plan.init(shapes), memory)
  kept = jax.tree.map(np.asarray, guard.leave(before)[0])
  make, key = plan.batches(), plan.key()
  after, metrics = update(before, make(9), key)
  state, memory = guard.leave(after)
  assert int(state.step) == 1
  assert dict(zip(names, np.asarray(metrics), strict=True))['skipped'] == 1
  assert int(memory['in_a_row']) == 1
  same = dataclasses.replace(state, step=kept.step)
  jax.tree.map(np.testing.assert_array_equal, same, kept)
  # A good one is applied, and ends the row.
  state, memory = guard.leave(update(after, make(1), key)[0])
  moved = jax.tree.map(lambda a, b: np.any(a != b), state.params, kept.params)
  assert all(jax.tree.leaves(moved))
  assert (int(memory['in_a_row']), int(memory['skipped'])) == (0, 1)


def test_the_default_guard_adds_nothing_to_the_update():
  plan = program.Program(experiment(Guard()), ONE.mesh())
  _, names = plan.trace(plan.state_shapes())
  assert set(names) == {'loss', 'grad_norm', 'weight', 'noise', 'ids'}


def test_a_spike_is_judged_by_the_losses_before_it():
  rule = Guard(spike=5.0, window=8, action='skip')
  state = State(np.int32(0), {'w': np.ones(3, np.float32)}, (), {})
  state = guard.enter(state, jax.tree.map(jnp.asarray, guard.fresh(rule)))

  def step(loss):
    nonlocal state

    def update(old):
      new = dataclasses.replace(old, step=old.step + 1)
      return new, {'loss': jnp.float32(loss), 'grad_norm': jnp.float32(1)}

    state, metrics = guard.judged(rule, update, state)
    return int(metrics[guard.VERDICT]), float(metrics[guard.DEVIATIONS])

  # Not full yet: even a leap is taken for granted.
  assert [step(x)[0] for x in (9, 1, 2, 3, 4, 5, 6, 7)] == [0] * 8
  # Of 9 and 1 to 7: median 4.5, absolute deviations' median 2.
  assert step(30.0) == (2, pytest.approx(25.5 / (1.4826 * 2)))
  # It is not among the losses that the next is judged by, and down is no leap.
  assert step(-30.0)[0] == 0
  assert step(17.0)[0] == 0
  assert step(float('inf')) == (1, 0.0)
  # Of -30, 17 and 2 to 7: median 4.5, absolute deviations' median 2.
  assert step(5.0) == (0, pytest.approx(0.5 / (1.4826 * 2)))


def test_losses_that_are_all_equal_make_no_spike_of_rounding():
  losses_W = jnp.full(8, 2.0)
  assert guard._deviations(jnp.float32(2.0001), losses_W) < 1
  assert guard._deviations(jnp.float32(2.1), losses_W) > 100


@pytest.mark.parametrize('nonfinite', ['skip', 'rewind'])
def test_a_run_without_patience_left_diverges(tmp_path, nonfinite):
  data = Spoilt(batches=tuple(range(9, 40)))
  rule = Guard(nonfinite=nonfinite, patience=2, back=2, ahead=0)
  result = train(tmp_path, experiment(rule, data=data))
  assert result['status'] == 'diverged'
  if nonfinite == 'skip':
    # Updates 10, 11 and 12: the third in a row is one too many.
    assert 'loss is inf at step 12' in result['message']
    assert '2 updates before it were skipped' in result['message']
  else:
    assert 'after 2 rewinds' in result['message']
    assert len(result['rewinds']) == 2


def batches_of(folder):
  """Returns the number of the batch that each logged update took."""
  first = (BATCH - 1) / 2
  return [int((r['ids'] - first) / BATCH) for r in log.read(folder)]


@pytest.fixture(scope='module')
def rewound(tmp_path_factory):
  folder = tmp_path_factory.mktemp('rewound')
  said = []
  e = experiment(REWIND, data=Spoilt(batches=(11,)))
  return folder, e, train(folder, e, say=said.append), said


def test_a_rewind_goes_on_past_the_batches_that_led_to_it(rewound):
  folder, _, result, said = rewound
  assert result['status'] == 'finished'
  # Update 12 took batch 11. At least 2 updates before it: not step 10 but 5.
  # The batches of updates 6 to 12 are passed over, and one more.
  assert result['rewinds'] == [
    {'to': 5, 'shift': 8, 'step': 12, 'reason': 'loss is inf at step 12'}
  ]
  assert batches_of(folder) == [0, 1, 2, 3, 4, *range(13, 28)]
  assert said == [
    'loss is inf at step 12: back to step 5, and on with batch 14'
  ]
  assert [r['step'] for r in log.read(folder)] == list(range(1, 21))
  assert result['goodput_parts']['repeated'] > 0


@pytest.mark.parametrize('step', [3, 8, 13, 16])
def test_a_rewound_run_that_is_stopped_ends_the_same(rewound, tmp_path, step):
  folder, e, *_ = rewound
  train(tmp_path, e, **stop_after(step))
  assert train(tmp_path, e)['status'] == 'finished'
  # A stop makes a checkpoint of its own, which a rewind may go back to.
  if step == 8:
    assert batches_of(tmp_path) != batches_of(folder)
  else:
    assert_same_run(tmp_path, folder, e)


@pytest.mark.parametrize('where', ['keep nothing', 'drop', 'add', 'open'])
def test_a_run_killed_while_it_goes_back_ends_the_same(
  rewound, tmp_path, monkeypatch, where
):
  folder, e, *_ = rewound

  def killed(*_, **__):
    raise ZeroDivisionError

  with monkeypatch.context() as patch:
    if where == 'drop':
      patch.setattr(checkpoint.Store, 'drop', killed)
    elif where == 'open':
      patch.setattr(run.book.Book, 'rewind', killed)
    else:
      patch.setattr(guard.Ledger, 'add', killed)
    with pytest.raises(ZeroDivisionError):
      train(tmp_path, e)
  assert train(tmp_path, e)['status'] == 'finished'
  assert_same_run(tmp_path, folder, e)


def test_a_rewind_before_the_first_checkpoint_starts_again(tmp_path):
  e = experiment(REWIND, data=Spoilt(batches=(2,)))
  result = train(tmp_path, e)
  assert result['status'] == 'finished'
  assert result['rewinds'][0]['to'] == 0
  assert batches_of(tmp_path) == list(range(4, 24))


def test_a_spike_is_rewound_to_the_losses_known_then(tmp_path):
  rule = dataclasses.replace(SPIKE, action='rewind', back=2, ahead=0)
  e = experiment(rule, data=Spoilt(batches=(12, 16), value=1e4))
  result = train(tmp_path / 'whole', e)
  assert result['status'] == 'finished'
  assert [r['step'] for r in result['rewinds']] == [13, 14]
  assert max(r['loss'] for r in log.read(tmp_path / 'whole')) < 1e4
  train(tmp_path / 'stopped', e, **stop_after(16))
  train(tmp_path / 'stopped', e)
  assert_same_run(tmp_path / 'stopped', tmp_path / 'whole', e)


def test_a_diverged_run_goes_on_under_another_guard(tmp_path):
  stopped = train(tmp_path, experiment(Guard()))
  assert stopped['status'] == 'diverged'
  # Asked again, it does not change its mind.
  assert train(tmp_path, experiment(Guard())) == stopped
  result = train(tmp_path, experiment(SKIP))
  assert (result['status'], result['skipped']) == ('finished', 1)


def test_the_last_rewind_says_which_batch_is_next():
  rewinds = guard.add_rewind((), to=5, step=10, ahead=1, reason='')
  taken = [guard.batch_number(rewinds, n) for n in range(8)]
  assert taken == [0, 1, 2, 3, 4, 11, 12, 13]
  # Further back than the first: what was passed over stays so.
  rewinds = guard.add_rewind(rewinds, to=2, step=7, ahead=0, reason='')
  taken = [guard.batch_number(rewinds, n) for n in range(8)]
  assert taken == [0, 1, 13, 14, 15, 16, 17, 18]


@pytest.mark.parametrize(
  'saved, goal',
  [([5, 10, 15], 10), ([15, 19], 15), ([10, 20, 25], 10), ([], 0), ([20], 0)],
)
def test_a_rewind_goes_back_far_enough_where_it_can(saved, goal):
  assert guard.goal(saved, 20, back=6) == goal


def test_a_guard_file_that_is_none_is_refused_in_one_line(tmp_path):
  (tmp_path / 'guard.json').write_text(json.dumps({'rewinds': [{'at': 3}]}))
  with pytest.raises(ValueError, match='guard.json is no guard file'):
    guard.Ledger(tmp_path)


@pytest.mark.parametrize(
  'field, value',
  [('spike', -1.0), ('window', 7), ('patience', -1), ('hung', float('inf'))],
)
def test_a_guard_that_makes_no_sense_is_refused(field, value):
  with pytest.raises(ValueError, match=f'guard.{field}={value} must be'):
    Guard(**{field: value})
