"""A lock in an object store: one at a time, and not for the dead."""

from __future__ import annotations

from concurrent import futures
import json
import os
import subprocess
import sys
import threading
import time

from object_store import bucket  # noqa: F401  A fixture.
import pytest

from bigdl import storage
from bigdl.train import lease, record

RACERS = 4


@pytest.fixture
def folder(bucket, request):  # noqa: F811
  return storage.folder(f'{bucket}/{request.node.name}')


@pytest.fixture
def hasty(monkeypatch):
  monkeypatch.setattr(lease, 'BEAT', 0.05)
  # Long for a thread of a machine that is busy with other things.
  monkeypatch.setattr(lease, 'SILENCE', 2.0)


def put(folder, number=1, **changes):
  """Puts the lock of a holder on another machine."""
  content = {
    'holder': 'x',
    'host': 'far',
    'process': 7,
    'machine': 'another',
    'born': '1',
    'beat': 3,
    'released': False,
  }
  storage.write(folder / f'lock.{number}', json.dumps(content | changes))


def names(folder):
  return sorted(storage.entries(folder))


def test_one_holder_at_a_time_and_the_next_at_once(folder, hasty):
  said = []
  for _ in range(3):
    with record.locked(folder, said.append) as held:
      held.check()
      (name,) = names(folder)
      assert not json.loads(storage.read(folder / name))['released']
      with (
        pytest.raises(record.Busy, match='is being trained already by process'),
        record.locked(folder, said.append),
      ):
        pass
  assert names(folder) == ['lock.3']
  # Each of those who were refused has waited for the next beat.
  assert len(said) == 3


def test_a_lock_of_a_dead_process_of_this_machine_is_taken_at_once(folder):
  dead = subprocess.Popen([sys.executable, '-c', 'pass'])
  born = lease._born(dead.pid)
  dead.wait()
  put(folder, machine=lease._machine(), process=dead.pid, born=born)
  began = time.monotonic()
  with record.locked(folder, lambda line: pytest.fail(line)):
    assert time.monotonic() - began < lease.SILENCE / 4
    assert names(folder) == ['lock.2']


def test_a_silent_lock_of_another_machine_is_taken_after_the_wait(
  folder, hasty
):
  # An id of this machine says nothing of the other.
  put(folder, process=1)
  said = []
  began = time.monotonic()
  with record.locked(folder, said.append):
    assert time.monotonic() - began >= lease.SILENCE
  assert len(said) == 1
  assert 'was held by process 1 on far; waiting 2 s' in said[0]


def test_of_many_who_wait_one_takes_over(folder, hasty):
  put(folder)
  refused = threading.Semaphore(0)

  def race(_):
    try:
      with record.locked(folder, lambda line: None) as held:
        for _ in range(RACERS - 1):
          assert refused.acquire(timeout=60)
        held.check()
        return True
    except ValueError as error:
      assert 'trained already' in str(error)
      refused.release()
      return False

  with futures.ThreadPoolExecutor(RACERS) as pool:
    assert sum(pool.map(race, range(RACERS))) == 1


def test_a_holder_that_was_paused_stops_once_it_is_replaced(folder):
  with record.locked(folder, lambda line: None) as held:
    held._over.set()  # As if this process had been stopped, for long.
    held._thread.join()
    held._seen -= 2 * lease.SILENCE
    held.check()  # Nobody has come.
    held._seen -= 2 * lease.SILENCE
    put(folder, number=2, process=9)
    with pytest.raises(record.Busy, match='taken over by process 9 on far'):
      held.check()
  # The other's lock is the other's.
  assert not json.loads(storage.read(folder / 'lock.2'))['released']


def test_a_holder_that_lives_learns_it_from_its_beat(folder, hasty):
  with record.locked(folder, lambda line: None) as held:
    put(folder, number=2)
    held._thread.join(timeout=60)
    with pytest.raises(record.Busy, match='taken over'):
      held.check()


def test_a_number_that_was_cleared_away_is_not_taken_again(folder):
  put(folder, number=3)
  assert not lease.Lease(folder, 2).take()


def test_this_process_is_born_once():
  assert lease._born(os.getpid()) == lease._born(os.getpid()) is not None
  assert lease._born(2**22 + 1) is None
