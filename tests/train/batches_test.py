"""Batches: made ahead, in order, by a thread that ends."""

import re
import threading

import jax
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import pytest

from bigdl.parallel.layout import Layout
from bigdl.train import batches


def test_batches_come_in_order_and_the_thread_ends():
  with batches.Prefetch(lambda step: {'x': step}, 3, 9) as stream:
    assert [next(stream)['x'] for _ in range(6)] == list(range(3, 9))
  assert not stream._thread.is_alive()


def test_no_more_than_depth_batches_are_made_ahead():
  made, paused = [], threading.Event()

  def make(step):
    made.append(step)
    if len(made) == 3:
      paused.set()
    return {'x': step}

  with batches.Prefetch(make, 0, 100, depth=2) as stream:
    next(stream)
    assert paused.wait(10)
  # Two ahead of the one that was taken; leaving may let one more through.
  assert 3 <= len(made) <= 4


def test_leaving_early_does_not_wait_for_the_rest():
  with batches.Prefetch(lambda step: {'x': step}, 0, 10**9):
    pass


def test_error_comes_at_its_step():
  def make(step):
    if step == 2:
      raise OSError('gone')
    return {'x': step}

  with batches.Prefetch(make, 0, 5) as stream:
    assert [next(stream)['x'] for _ in range(2)] == [0, 1]
    with pytest.raises(OSError, match='gone'):
      next(stream)


def stuck_at(step, release):
  def make(number):
    if number == step:
      release.wait(60)
    return {'x': number}

  return make


def test_a_slow_read_is_told_with_host_step_and_source_ever_more_rarely():
  release, said = threading.Event(), []

  def say(line):
    said.append(line)
    if len(said) == 3:
      release.set()

  watch = batches.Watch(say, source='Books(seed=1)', slow=0.1)
  with batches.Prefetch(stuck_at(11, release), 9, 13, watch=watch) as stream:
    assert [next(stream)['x'] for _ in range(4)] == [9, 10, 11, 12]
  pattern = r'host 0: the batch of step 12 has taken (\S+) s so far \((.*)\)'
  found = [re.fullmatch(pattern, line) for line in said]
  assert [m and m[2] for m in found] == ['Books(seed=1)'] * 3
  times = [float(m[1]) for m in found if m]
  assert times[0] >= 0.1
  assert times[1] >= 2 * times[0] * 0.99
  assert times[2] >= 2 * times[1] * 0.99


def test_a_hung_read_is_an_error_that_does_not_wait_for_it(monkeypatch):
  monkeypatch.setattr(batches, 'SECONDS_TO_LEAVE', 0.1)
  release = threading.Event()
  watch = batches.Watch(print, source='Books()', hung=0.2)
  with (
    pytest.raises(batches.Hung, match=r'host 0: the batch of step 1 has not'),
    batches.Prefetch(stuck_at(0, release), 0, 5, watch=watch) as stream,
  ):
    next(stream)
  release.set()


def test_a_stop_is_heard_while_a_batch_is_waited_for(monkeypatch):
  monkeypatch.setattr(batches, 'SECONDS_TO_LEAVE', 0.1)
  release = threading.Event()
  watch = batches.Watch(print, stop=lambda: True)
  with batches.Prefetch(stuck_at(1, release), 0, 5, watch=watch) as stream:
    while not stream._ready.qsize():
      pass
    # One that is there is taken all the same.
    assert next(stream)['x'] == 0
    with pytest.raises(batches.Interrupted):
      next(stream)
    release.set()


@pytest.mark.parametrize('layout', [Layout(1), Layout(8), Layout(2, 4)])
def test_placed_rows_keep_order_and_sharding(layout):
  sharding = NamedSharding(layout.mesh(), PartitionSpec(('data', 'fsdp')))
  rows = {'x': np.arange(32, dtype=np.int32).reshape(16, 2)}
  placed = batches.Placer(sharding, 16)(rows)['x']
  assert placed.sharding.is_equivalent_to(sharding, 2)
  np.testing.assert_array_equal(placed, rows['x'])
  np.testing.assert_array_equal(batches.own_rows(sharding, 16), np.arange(16))


def test_a_host_may_have_rows_here_and_there(monkeypatch):
  # Chips of one host in two rows of a mesh, and the others of another host.
  mesh = Layout(data=8).mesh()
  sharding = NamedSharding(mesh, PartitionSpec(('data', 'fsdp')))
  monkeypatch.setattr(
    NamedSharding,
    'addressable_devices_indices_map',
    lambda self, shape: {
      d: index
      for i, (d, index) in enumerate(self.devices_indices_map(shape).items())
      if i in (2, 3, 6, 7)
    },
  )
  own = batches.own_rows(sharding, 16)
  assert own.tolist() == [4, 5, 6, 7, 12, 13, 14, 15]
  assert batches.shards(own, 16) == (4, [1, 3])


@pytest.mark.parametrize(
  ('own', 'found'),
  [
    (range(16), (1, [0])),
    (range(8, 16), (2, [1])),
    # A block, but not one of equal blocks of the batch.
    (range(4, 12), (4, [1, 2])),
    (range(2, 4), (8, [1])),
    ((0, 1, 6, 7), (8, [0, 3])),
    ((0, 1, 2, 3, 12, 13, 14, 15), (4, [0, 3])),
  ],
)
def test_own_rows_are_blocks_of_a_batch(own, found):
  assert batches.shards(np.asarray(own), 16) == found


def test_each_device_is_given_its_rows_by_number(monkeypatch):
  # As many processes do: from what a host has read.
  monkeypatch.setattr(jax, 'process_count', lambda: 2)
  sharding = NamedSharding(
    Layout(data=2, fsdp=2, tensor=2).mesh(), PartitionSpec(('data', 'fsdp'))
  )
  rows = {'x': np.arange(32, dtype=np.int32).reshape(16, 2)}
  placed = batches.Placer(sharding, 16)(rows)['x']
  assert placed.sharding.is_equivalent_to(sharding, 2)
  np.testing.assert_array_equal(placed, rows['x'])


def test_placed_rows_do_not_follow_their_buffer():
  sharding = NamedSharding(Layout(1).mesh(), PartitionSpec())
  rows = {'x': np.arange(1024, dtype=np.int32)}
  placed = batches.Placer(sharding, 1024)(rows)['x']
  placed.block_until_ready()
  rows['x'][:] = -1
  assert int(placed[5]) == 5
