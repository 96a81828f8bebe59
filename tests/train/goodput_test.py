"""Where the time of a run went, over stops, crashes and rewinds."""

import json
import time

import pytest
import toy_experiment as toy

from bigdl.experiment import Evaluation, Guard
from bigdl.parallel.layout import Layout
from bigdl.train import batches, clock, log, run

ONE = Layout(data=1)
PAUSE = 0.05


@pytest.fixture
def now(monkeypatch):
  """A clock's time, which the test sets."""
  value = [100.0]
  monkeypatch.setattr(clock.time, 'perf_counter', lambda: value[0])
  return value


def train(folder, e, **kwargs):
  return run.run(e, folder, config=toy.config(e), **kwargs)


def check_sums(record):
  parts = record['goodput_parts']
  assert tuple(parts) == clock.PARTS
  assert min(parts.values()) >= 0
  assert record['wall_seconds'] == pytest.approx(sum(parts.values()))
  assert record['seconds'] == pytest.approx(
    parts['train'] + parts['data'], abs=1e-3
  )
  assert record['goodput'] == pytest.approx(
    parts['train'] / record['wall_seconds']
  )


def test_each_second_is_counted_to_one_part(now):
  watch = clock.Clock(began=90.0)
  watch.enter('train')
  now[0] = 103.0
  with watch.within('save'):
    now[0] = 105.0
    with watch.within('restore'):
      now[0] = 106.0
    now[0] = 107.5
  now[0] = 110.0
  watch.waited(1.0)
  parts = watch.parts()
  assert {k: v for k, v in parts.items() if v} == {
    **{'start': 10.0, 'train': 4.5, 'data': 1.0},
    **{'save': 3.5, 'restore': 1.0},
  }
  assert watch.seconds == 5.5
  assert clock.goodput(parts) == 4.5 / 20
  # What is lost never exceeds what there is.
  watch.lose(5.0)
  assert watch.seconds == 0.5
  watch.lose(9.0)
  assert watch.parts()['repeated'] == 5.5
  assert sum(watch.parts().values()) == 20


def test_parts_of_a_run_add_up_to_its_wall_time(tmp_path):
  began = time.perf_counter() - 7.0
  result = train(tmp_path, toy.experiment(layout=ONE), began=began)
  check_sums(result)
  parts = result['goodput_parts']
  assert 7 < parts['start']
  assert result['wall_seconds'] < time.perf_counter() - began + 0.1
  for part in ('train', 'compile', 'evaluate', 'save'):
    assert parts[part] > 0, part
  assert parts['repeated'] == 0


def test_what_a_crash_lost_is_counted_as_repeated(tmp_path):
  e = toy.experiment(layout=ONE)

  def crash(news):
    if news['step'] == 14:
      raise ZeroDivisionError

  with pytest.raises(ZeroDivisionError):
    train(tmp_path, e, on_progress=crash)
  saved = json.loads((tmp_path / 'record.json').read_text())
  assert saved['step'] == 10
  reached = log.read(tmp_path)[-1]
  assert reached['step'] == 14
  lost = reached['seconds'] - saved['seconds']
  assert lost > 0
  first = saved['wall_seconds'] + lost
  began = time.perf_counter()
  result = train(tmp_path, e)
  second = time.perf_counter() - began
  check_sums(result)
  parts = result['goodput_parts']
  assert result['starts'] == 2
  assert parts['repeated'] == pytest.approx(lost, abs=1e-3)
  assert parts['restore'] > 0
  assert first < result['wall_seconds'] < first + second


def test_a_run_that_stops_and_saves_repeats_nothing(tmp_path):
  e = toy.experiment(layout=ONE)
  stopped = train(tmp_path, e, stop=lambda: len(log.read(tmp_path)) >= 7)
  assert stopped['status'] == 'interrupted'
  result = train(tmp_path, e)
  check_sums(result)
  assert result['goodput_parts']['repeated'] == 0
  assert result['seconds'] > stopped['seconds']


def test_time_before_there_were_parts_is_kept(tmp_path):
  e = toy.experiment(layout=ONE)
  train(tmp_path, e, stop=lambda: len(log.read(tmp_path)) >= 7)
  path = tmp_path / 'record.json'
  old = json.loads(path.read_text())
  for name in ('goodput', 'goodput_parts', 'starts'):
    del old[name]
  old['wall_seconds'] += 1000
  path.write_text(json.dumps(old))
  result = train(tmp_path, e)
  check_sums(result)
  assert result['wall_seconds'] > 1000


class Slow(toy.Points):
  """Takes longer over a batch than an update does."""

  def batch(self, step, **kwargs):
    time.sleep(PAUSE)
    return super().batch(step, **kwargs)


def test_waiting_for_data_is_told_from_training(tmp_path):
  e = toy.experiment(layout=ONE, data=Slow(), evaluation=Evaluation())
  result = train(tmp_path, e)
  check_sums(result)
  # Two batches are ready when the loop begins, or nearly.
  least = 0.5 * (e.steps - 3) * PAUSE
  assert result['goodput_parts']['data'] > least


def test_waiting_costs_nothing_while_the_devices_work():
  busy = [True]

  def make(step):
    time.sleep(PAUSE)
    return {'x': step}

  watch = batches.Watch(print, busy=lambda: busy[0])
  with batches.Prefetch(make, 0, 4, watch=watch) as stream:
    next(stream)
    assert stream.waited == 0
    busy[0] = False
    time.sleep(4 * PAUSE)
    next(stream)
    # It was there already.
    assert stream.waited == 0
  with batches.Prefetch(make, 0, 4, watch=watch) as stream:
    next(stream)
    assert stream.waited > 0.5 * PAUSE


def test_a_record_says_where_time_went_after_a_rewind(tmp_path):
  e = toy.experiment(
    layout=ONE,
    objective=toy.Regress(explode=9),
    guard=Guard(nonfinite='rewind', patience=1, back=0),
  )
  # It explodes at the same step again, whatever the batch.
  result = train(tmp_path, e)
  assert result['status'] == 'diverged'
  assert len(result['rewinds']) == 1
  check_sums(result)
  assert result['goodput_parts']['repeated'] > 0
