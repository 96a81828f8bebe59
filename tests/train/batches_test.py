"""Batches: made ahead, in order, by a thread that ends."""

import threading

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


@pytest.mark.parametrize('layout', [Layout(1), Layout(8), Layout(2, 4)])
def test_placed_rows_keep_order_and_sharding(layout):
  sharding = NamedSharding(layout.mesh(), PartitionSpec(('data', 'fsdp')))
  rows = {'x': np.arange(32, dtype=np.int32).reshape(16, 2)}
  placed = batches.Placer(sharding, 16)(rows)['x']
  assert placed.sharding.is_equivalent_to(sharding, 2)
  np.testing.assert_array_equal(placed, rows['x'])
  assert batches.own_rows(sharding, 16) == (0, 16)


def test_placed_rows_do_not_follow_their_buffer():
  sharding = NamedSharding(Layout(1).mesh(), PartitionSpec())
  rows = {'x': np.arange(1024, dtype=np.int32)}
  placed = batches.Placer(sharding, 1024)(rows)['x']
  placed.block_until_ready()
  rows['x'][:] = -1
  assert int(placed[5]) == 5
