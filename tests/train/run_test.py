"""The loop, from an empty folder to a record, whatever happens between."""

import dataclasses
import errno
import json
import os
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_experiment as toy

from bigdl.experiment import Checkpoints, Evaluation, Guard, Logs
from bigdl.parallel.layout import Layout
from bigdl.train import (
  batches,
  book,
  checkpoint,
  log,
  program,
  record,
  run,
  signals,
)

ONE = Layout(data=1)
TIMING = {'seconds', 'tokens_per_second', 'mfu'}
SAME_LOSS = 1e-6  # Relative, in float32, whatever the number of devices.


def train(folder, e, **kwargs):
  return run.run(e, folder, config=toy.config(e), **kwargs)


def numbers(folder):
  return [
    {k: v for k, v in r.items() if k not in TIMING} for r in log.read(folder)
  ]


def final_state(folder, e):
  plan = program.Program(e, e.layout.mesh())
  with checkpoint.Store(folder, e.checkpoints, print) as store:
    return jax.tree.map(np.asarray, store.restore(plan.state_shapes()))


def assert_same_state(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def stop_after(step):
  """Returns `on_progress, stop` that leave once `step` has been logged."""
  seen = []
  return {
    'on_progress': lambda p: seen.append(p['step']),
    'stop': lambda: bool(seen) and seen[-1] >= step,
  }


def contents(folder):
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in sorted(folder.rglob('*'))
    if p.is_file()
  }


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
  """A run on one device that nothing disturbs."""
  folder = tmp_path_factory.mktemp('whole')
  e = toy.experiment(layout=ONE)
  facts = {
    'params': {'total': 161},
    'flops_per_unit': {'matmul_causal': 2.0, '6N': None},
    'peak_flops': 1e9,
    'budget': 320.0,
  }
  progress = []
  result = train(folder, e, facts=facts, on_progress=progress.append)
  return folder, e, result, progress


@dataclasses.dataclass(frozen=True)
class Measured(toy.Regress):
  """Also measures how many rows are below what was predicted."""

  def measures(self, model, params, extra, batch):
    y = model.apply({'params': params}, batch['x'])[:, 0]
    loss, weight = self.score(model, params, extra, batch)
    return {'loss': loss, 'below': (batch['y'] < y).astype(float)}, weight


def test_what_is_measured_beside_the_loss_is_recorded_with_its_error(tmp_path):
  e = toy.experiment(layout=ONE, objective=Measured())
  result = train(tmp_path, e)
  share, error = (result['measures'][k] for k in ('below', 'below_se'))
  # Of 20 rows: s = sqrt(p (1 - p) / 19).
  assert 20 * share == pytest.approx(round(20 * share))
  assert error == pytest.approx(np.sqrt(share * (1 - share) / 19))
  scores = [r for r in log.read(tmp_path) if 'eval_loss' in r]
  assert len(scores) == 2
  assert (scores[-1]['eval_below'], scores[-1]['eval_below_se']) == (
    share,
    error,
  )


def test_record_says_what_was_trained(whole):
  folder, _, result, _ = whole
  assert result == json.loads((folder / 'record.json').read_text())
  last = log.read(folder)[-1]
  rate = result['tokens_per_second']
  assert result == {
    'status': 'finished',
    'step': 20,
    'steps': 20,
    'units': 20 * 8,
    'batch': 8,
    'lr': 0.01,
    'seed': 0,
    'loss': last['eval_loss'],
    'loss_se': last['eval_se'],
    'bits_per_byte': pytest.approx(last['eval_loss'] / np.log(2) / 2),
    'measures': {},
    'train_loss': log.read(folder)[-2]['loss'],
    'unit': 'token',
    'params': {'total': 161},
    'flops_per_unit': {'matmul_causal': 2.0, '6N': None},
    'flops': {'matmul_causal': 320.0, '6N': None},
    'budget': 320.0,
    'tokens_per_second': pytest.approx(160 / result['seconds']),
    'mfu': pytest.approx(rate * 2 / 1e9),
    'mfu_flops': 'matmul_causal',
    'seconds': result['seconds'],
    'wall_seconds': result['wall_seconds'],
    'goodput': result['goodput'],
    'goodput_parts': result['goodput_parts'],
    'starts': 1,
    'skipped': 0,
    'rewinds': [],
    'peak_flops': 1e9,
    'peak_note': None,
    'device': f'1x {jax.devices()[0].device_kind}',
    'stopped_by': None,
    'message': '',
  }
  assert 0 < result['seconds'] < result['wall_seconds']


def test_loss_falls(whole):
  folder, *_ = whole
  losses = [r['loss'] for r in log.read(folder) if 'loss' in r]
  assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:4])


def test_log_has_each_step_once_with_its_batch_and_rate(whole):
  folder, *_ = whole
  lines = [r for r in log.read(folder) if 'loss' in r]
  assert [r['step'] for r in lines] == list(range(1, 21))
  for r in lines:
    first = (r['step'] - 1) * 8
    assert r['ids'] == np.mean(range(first, first + 8))
    assert r['lr'] == pytest.approx(0.01 * (1 - (r['step'] - 1) / 20))
  assert [r['step'] for r in log.read(folder) if 'eval_loss' in r] == [10, 20]


def test_every_step_and_seed_draws_its_own_noise(whole, tmp_path):
  folder, e, *_ = whole
  train(tmp_path, dataclasses.replace(e, seed=1))
  draws = [
    r['noise'] for f in (folder, tmp_path) for r in log.read(f) if 'noise' in r
  ]
  assert len(set(draws)) == len(draws) == 40


def test_progress_comes_with_every_record(whole):
  *_, progress = whole
  assert [p['step'] for p in progress] == list(range(1, 21))
  assert progress[-1]['eta_seconds'] == 0 < progress[0]['eta_seconds']
  for p in progress:
    assert p['mfu'] == pytest.approx(p['tokens_per_second'] * 2 / 1e9)


def test_provenance_names_code_device_data_and_seed(whole):
  folder, *_ = whole
  found = json.loads((folder / 'provenance.json').read_text())
  assert found['versions']['jax'] == jax.__version__
  assert found['versions']['orbax-checkpoint']
  assert found['device']['count'] == 1
  assert found['device']['platform'] == 'cpu'
  assert found['data'] == 'points-4096-0'
  assert found['held_out'] == 'points-4096-1'
  assert found['seed'] == 0
  assert 'resumed' not in found


def test_finished_run_returns_its_record_and_compiles_nothing(
  whole, monkeypatch
):
  folder, e, result, _ = whole
  before = contents(folder)
  monkeypatch.setattr(program, 'Program', None)
  assert train(folder, e) == result
  assert contents(folder) == before


@pytest.mark.parametrize('step', [1, 7, 10])
def test_run_stopped_anywhere_ends_the_same(whole, tmp_path, step):
  folder, e, *_ = whole
  stopped = train(tmp_path, e, **stop_after(step))
  # The loop is one step ahead of what it has logged.
  assert stopped['status'] == 'interrupted'
  assert stopped['step'] == step + 1
  assert f'saved at step {step + 1}' in stopped['message']
  assert train(tmp_path, e)['status'] == 'finished'
  assert numbers(tmp_path) == numbers(folder)
  assert_same_state(final_state(tmp_path, e), final_state(folder, e))
  found = json.loads((tmp_path / 'provenance.json').read_text())
  assert [r['step'] for r in found['resumed']] == [step + 1]


@pytest.mark.parametrize(
  'layout',
  [Layout(2), Layout(4), Layout(8), Layout(1, 4), Layout(2, 4)],
  ids=str,
)
def test_resume_on_other_devices_sees_same_rows_and_losses(
  whole, tmp_path, layout
):
  folder, e, *_ = whole
  # The first half on two devices that share parameters, then another layout.
  half = dataclasses.replace(e, layout=Layout(data=1, fsdp=2))
  train(tmp_path, half, **stop_after(9))
  train(tmp_path, dataclasses.replace(e, layout=layout))
  for here, there in zip(numbers(tmp_path), numbers(folder), strict=True):
    assert here.keys() == there.keys()
    assert here.get('ids') == there.get('ids')
    for name in here.keys() & {'loss', 'eval_loss'}:
      assert here[name] == pytest.approx(there[name], rel=SAME_LOSS)


def test_accumulated_microbatches_take_the_same_step(tmp_path):
  quiet = toy.experiment(objective=toy.Regress(noise=0.0), layout=Layout(2))
  train(tmp_path / 'a', quiet)
  train(tmp_path / 'b', dataclasses.replace(quiet, accumulate=4))
  # Adam divides by the size of tiny gradients.
  for a, b in zip(
    numbers(tmp_path / 'a'), numbers(tmp_path / 'b'), strict=True
  ):
    for name in a:
      assert a[name] == pytest.approx(b[name], rel=1e-4), (a, b)


def test_nan_loss_stops_the_run_and_keeps_the_last_good_state(tmp_path):
  e = toy.experiment(objective=toy.Regress(explode=9), layout=ONE)
  result = train(tmp_path, e)
  assert result['status'] == 'diverged'
  assert 'loss is nan at step 10' in result['message']
  assert result['loss'] is None
  assert int(final_state(tmp_path, e).step) == 5
  assert [r['step'] for r in log.read(tmp_path)][-1] == 9
  # Asked again, it neither trains nor changes its mind.
  assert train(tmp_path, e) == result


@dataclasses.dataclass(frozen=True)
class Leap(toy.Adam):
  """Jumps to infinity at update `at`, on finite gradients."""

  at: int = 10

  def make(self, steps):
    def update(updates, count, params=None):
      far = jnp.where(count + 1 == self.at, jnp.inf, 0)
      return jax.tree.map(lambda u: u + far, updates), count + 1

    leap = optax.GradientTransformation(
      lambda params: jnp.zeros((), jnp.int32), update
    )
    return optax.chain(super().make(steps), leap)


def test_parameters_that_are_not_finite_are_never_saved(tmp_path):
  e = toy.experiment(optimizer=Leap(lr=1e-2), layout=ONE)
  result = train(tmp_path, e)
  assert result['status'] == 'diverged'
  assert 'step 10' in result['message']
  assert int(final_state(tmp_path, e).step) == 5


def test_other_experiment_in_the_folder_is_refused_and_left_alone(tmp_path):
  e = toy.experiment(layout=ONE, steps=2)
  train(tmp_path, e)
  before = contents(tmp_path)
  other = dataclasses.replace(e, model=toy.Net(width=4), steps=3)
  with pytest.raises(ValueError) as error:
    train(tmp_path, other)
  message = str(error.value)
  assert 'model.width: 4 here, 128 in the folder' in message
  assert 'steps: 3 here, 2 in the folder' in message
  assert 'batch' not in message
  assert '\n' not in message
  assert contents(tmp_path) == before


def test_layout_logs_and_checkpoints_may_change_between_starts(tmp_path):
  e = toy.experiment(layout=ONE)
  train(tmp_path, e, **stop_after(3))
  changed = dataclasses.replace(
    e, layout=Layout(2), checkpoints=Checkpoints(every=3)
  )
  assert train(tmp_path, changed)['status'] == 'finished'


def test_other_data_under_the_same_name_is_refused(tmp_path, monkeypatch):
  e = toy.experiment(layout=ONE)
  train(tmp_path, e, **stop_after(3))
  monkeypatch.setattr(toy.Points, 'fingerprint', lambda self: 'changed')
  with pytest.raises(ValueError, match='other data: data fingerprint changed'):
    train(tmp_path, e)


def test_one_folder_is_trained_by_one_process(tmp_path):
  e = toy.experiment(layout=ONE, steps=1)
  with (
    record.locked(tmp_path),
    pytest.raises(ValueError, match='is being trained already'),
  ):
    train(tmp_path, e)
  assert train(tmp_path, e)['status'] == 'finished'


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'batch': 6}, 'batch=6 must be divisible by the 8 devices'),
    (
      {'batch': 16, 'accumulate': 4},
      'batch/accumulate=4 must be divisible by the 8 devices',
    ),
    (
      {'evaluation': Evaluation(toy.Points(), batch=3)},
      'evaluation.batch=3 must be divisible by the 8 devices',
    ),
    ({'layout': Layout(16)}, 'needs 16 devices'),
    ({'seed': -1}, 'seed=-1 must be in'),
  ],
)
def test_what_cannot_be_laid_out_is_refused_before_anything_is_written(
  tmp_path, changes, message
):
  with pytest.raises(ValueError, match=message):
    train(tmp_path, toy.experiment(**{'layout': Layout(8), **changes}))
  # The folder is still free for the experiment that is meant.
  assert not (tmp_path / 'config.json').exists()


def test_transfer_in_the_loop_raises(tmp_path):
  e = toy.experiment(layout=ONE, evaluation=Evaluation())
  with pytest.raises(Exception, match='Disallowed host-to-device transfer'):
    train(tmp_path, e, on_progress=lambda _: jnp.ones(3) + np.ones(3))


def test_batches_are_made_on_another_thread(tmp_path):
  threads = set()

  class Watched(toy.Points):
    def batch(self, step, **kwargs):
      threads.add(threading.current_thread())
      return super().batch(step, **kwargs)

  train(tmp_path, toy.experiment(data=Watched(), layout=ONE, steps=3))
  assert threads
  assert threading.main_thread() not in threads
  assert not any(t.is_alive() for t in threads)


def test_error_in_the_data_is_raised_by_the_run(tmp_path):
  class Broken(toy.Points):
    def batch(self, step, **kwargs):
      if step == 4:
        raise ValueError('row 32 is damaged')
      return super().batch(step, **kwargs)

  with pytest.raises(ValueError, match='row 32 is damaged'):
    train(tmp_path, toy.experiment(data=Broken(), layout=ONE))


def test_full_disk_ends_the_run_with_what_was_saved_whole(
  whole, tmp_path, monkeypatch
):
  folder, e, *_ = whole
  write = checkpoint.Store._write_sums

  def full(self):
    if self._saving == 10:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    write(self)

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint.Store, '_write_sums', full)
    result = train(tmp_path, e)
  assert result['status'] == 'interrupted'
  assert 'no space left on device' in result['message']
  assert 'from step 5' in result['message']
  assert sorted(p.name for p in tmp_path.glob('checkpoints/*')) == ['5']
  assert train(tmp_path, e)['status'] == 'finished'
  assert numbers(tmp_path) == numbers(folder)


def test_score_missing_at_the_checkpoint_is_made_up_for(whole, tmp_path):
  folder, e, *_ = whole
  # The process dies between saving step 10 and scoring it.
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(book.Book, 'score', lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
      train(tmp_path, e)
  assert train(tmp_path, e)['status'] == 'finished'
  lines = sorted(numbers(tmp_path), key=lambda r: (r['step'], 'loss' not in r))
  assert lines == numbers(folder)


def test_unreadable_checkpoint_costs_only_the_steps_since_the_one_before(
  whole, tmp_path
):
  folder, e, *_ = whole
  train(tmp_path, e, **stop_after(11))
  newest = tmp_path / 'checkpoints' / '12'
  os.truncate(newest / 'default' / 'manifest.ocdbt', 20)
  said = []
  assert train(tmp_path, e, say=said.append)['status'] == 'finished'
  assert len(said) == 1
  assert 'going back to step 10' in said[0]
  assert '\n' not in said[0]
  assert numbers(tmp_path) == numbers(folder)
  assert_same_state(final_state(tmp_path, e), final_state(folder, e))


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_leaves(whole, tmp_path, number):
  folder, e, *_ = whole

  def send(progress):
    if progress['step'] == 7:
      os.kill(os.getpid(), number)

  before = signal.getsignal(number)
  with signals.interrupts() as stop:
    result = train(tmp_path, e, on_progress=send, stop=stop)
  assert stop() == number
  assert signal.getsignal(number) is before
  assert result['status'] == 'interrupted'
  assert int(final_state(tmp_path, e).step) == result['step'] == 8
  assert train(tmp_path, e)['status'] == 'finished'
  assert numbers(tmp_path) == numbers(folder)


def test_second_interrupt_leaves_at_once():
  with signals.interrupts() as stop:
    os.kill(os.getpid(), signal.SIGINT)
    assert stop() == signal.SIGINT
    with pytest.raises(KeyboardInterrupt):
      os.kill(os.getpid(), signal.SIGINT)


def test_logs_only_at_their_interval(tmp_path):
  e = toy.experiment(
    layout=ONE,
    steps=8,
    logs=Logs(every=3, tensorboard=False),
    evaluation=Evaluation(),
  )
  result = train(tmp_path, e)
  assert [r['step'] for r in log.read(tmp_path)] == [1, 3, 6, 8]
  assert result['loss'] is None
  assert result['train_loss'] == log.read(tmp_path)[-1]['loss']


class Stuck(toy.Points):
  """Has a batch that does not come until the test is over."""

  over = threading.Event()

  def batch(self, step, **kwargs):
    if step == 12:
      self.over.wait(60)
    return super().batch(step, **kwargs)


@pytest.mark.parametrize('how', ['hung', 'signal'])
def test_a_read_that_hangs_costs_no_update(whole, tmp_path, monkeypatch, how):
  monkeypatch.setattr(batches, 'SECONDS_TO_LEAVE', 0.1)
  folder, e, *_ = whole
  said, data = [], Stuck()
  data.over.clear()
  rule = Guard(slow=0.1, hung=0.5 if how == 'hung' else 0.0)
  stuck = dataclasses.replace(e, data=data, guard=rule)
  stop = lambda: signal.SIGTERM if how == 'signal' and said else 0  # noqa: E731
  result = train(tmp_path, stuck, say=said.append, stop=stop)
  data.over.set()
  assert result['status'] == 'interrupted'
  assert int(final_state(tmp_path, e).step) == result['step'] == 12
  assert said[0].startswith('host 0: the batch of step 13 has taken 0.1')
  assert said[0].endswith(' s so far (Stuck())')
  if how == 'hung':
    assert 'the batch of step 13 has not come in 0.5' in result['message']
    assert 'goes on from step 12' in result['message']
    assert result['stopped_by'] is None
  else:
    assert 'saved at step 12' in result['message']
    assert result['stopped_by'] == 'SIGTERM'
  assert train(tmp_path, e)['status'] == 'finished'
  assert numbers(tmp_path) == numbers(folder)
