"""Claims: one holder a cell, dead ones replaced, paused ones fenced off."""

from __future__ import annotations

import json
import time

from fake_sweeps import cell, plan
import pytest

from bigdl.fleet import attempts, claims, manifest
from bigdl.fleet.claims import Claims, Lost

HERE, THERE = 'here boot-1', 'there boot-2'


class Clock:
  """An observer's own seconds."""

  now = 0.0

  def __call__(self) -> float:
    return self.now


@pytest.fixture
def worker(folder):
  """Makes workers; all claims are let go at the end."""
  held = []

  def make(machine: str = HERE, clock=time.monotonic, silence=60.0, **more):
    cells = manifest.read(folder).costliest_first
    facts = {'device': 'CPU core', 'devices': 2}
    made = Claims(
      folder,
      cells,
      facts,
      machine=machine,
      clock=clock,
      silence=silence,
      **more,
    )
    take = made.next

    def next_():
      claim = take()
      held.extend([claim] if claim else [])
      return claim

    made.next = next_
    return made

  yield make
  for claim in held:
    claim.end('returned')


def ends(folder) -> dict[str, list[str | None]]:
  return {
    name: [made.end(n) for n in range(1, made.last + 1)]
    for name, made in attempts.listed(folder).items()
  }


def die(claim) -> None:
  """What a SIGKILL does to a claim: no further beat, and the lock is free."""
  claim._over.set()
  claim._thread.join()
  claim._held.release()


def pause(claim) -> None:
  """What SIGSTOP does: no further beat; locks stay."""
  claim._over.set()
  claim._thread.join()


def test_cells_are_claimed_costliest_first_each_by_one_worker(worker):
  first, second = worker(), worker(THERE)
  names = [w.next().cell.name for w in (first, second, first)]
  assert names == ['b', 'c', 'a']
  assert second.next() is None and first.next() is None
  assert first.left == second.left == 3


def test_a_finished_or_diverged_run_is_not_claimed(worker, write):
  write('b', 'record.json', status='finished')
  write('c', 'record.json', status='diverged')
  one = worker()
  assert one.next().cell.name == 'a'
  assert one.settled == {'b': 'finished', 'c': 'diverged'}


def test_a_run_that_diverged_goes_on_under_another_guard(worker, folder, write):
  guards = {'nonfinite': 'stop'}, {'nonfinite': 'skip'}
  manifest.write(folder, plan(*(cell(n, 1e9, guard=guards[1]) for n in 'ab')))
  for name, guard in zip('ab', guards, strict=True):
    write(name, 'record.json', status='diverged')
    write(name, 'config.json', guard=guard)
  one = worker()
  assert one.next().cell.name == 'a' and one.next() is None
  assert one.settled == {'b': 'diverged'}


def test_over_nfs_a_living_workers_cell_is_its_own(worker, folder, nfs):
  first = worker().next()
  assert worker().next().cell.name == 'c'
  first.check()
  die(first)
  assert worker().next().cell.name == 'b'


def test_without_locks_the_beat_alone_says_who_lives(worker, unlockable):
  clock = Clock()
  first, other = worker().next(), worker(clock=clock)
  assert [other.next().cell.name for _ in range(2)] == ['c', 'a']
  assert other.next() is None
  die(first)
  clock.now = 61.0
  assert other.next().cell.name == 'b'


def test_a_dead_workers_cell_is_claimed_again_at_once_on_its_machine(
  worker, folder
):
  die(worker().next())
  claim = worker().next()
  assert (claim.cell.name, claim.number) == ('b', 2)
  assert ends(folder)['b'] == ['lost', None]
  told = attempts.last_words(folder, 'b')
  assert 'died or fell silent' in told and 'of here' in told


def test_a_silent_workers_cell_is_claimed_by_another_machine_after_the_silence(
  worker, folder
):
  pause(worker(silence=8.0).next())
  clock = Clock()
  other = worker(THERE, clock)
  (folder.root / 'cells/b').mkdir(parents=True)
  (folder.root / 'cells/b/lock').touch()
  assert other.next().cell.name == 'c'
  clock.now = 7.9
  assert other.next().cell.name == 'a'
  # Its own promise of 8 seconds counts, not the observer's.
  clock.now = 8.1
  claim = other.next()
  assert (claim.cell.name, claim.number) == ('b', 2)
  # A server may hold the lock of the silent one for ever.
  assert not (folder.root / 'cells/b/lock').exists()


def test_a_paused_worker_is_silent_on_its_own_machine_too(worker):
  pause(worker(silence=8.0).next())
  clock = Clock()
  other = worker(HERE, clock)
  assert [other.next().cell.name for _ in range(2)] == ['c', 'a']
  assert other.next() is None
  clock.now = 9.0
  assert other.next().cell.name == 'b'


def test_a_worker_that_beats_keeps_its_cell_whatever_the_clocks_say(
  worker, folder, write
):
  claim = worker(silence=0.3).next()
  for name in ('a', 'c'):
    write(name, 'record.json', status='finished')
  clock = Clock()
  other = worker(THERE, clock)
  assert other.next() is None
  beats = set()
  for _ in range(3):
    beat = folder.read('claims/b.beat')
    while folder.read('claims/b.beat') == beat:
      time.sleep(0.01)
    # Hours pass for the observer between two looks.
    clock.now += 10_000
    assert other.next() is None
    beats.add(beat)
  assert len(beats) == 3 and other.living
  claim.check()


def test_a_paused_worker_notices_that_its_cell_is_anothers(worker, folder):
  old = worker(silence=0.4).next()
  pause(old)
  clock = Clock()
  other = worker(THERE, clock)
  assert [other.next().cell.name for _ in range(2)] == ['c', 'a']
  clock.now = 1.0
  new = other.next()
  time.sleep(0.3)
  with pytest.raises(Lost, match='another worker has taken it from attempt 1'):
    old.check()
  new.check()
  # Nor does its end change what the new holder is at.
  old.end('finished')
  assert attempts.listed(folder)['b'].held


def test_a_claim_alone_tells_the_holder_before_it_that_it_is_replaced(
  worker, folder
):
  claim = worker(silence=0.3).next()
  folder.write('claims/b.2.claim', b'{}')
  time.sleep(0.3)
  with pytest.raises(Lost, match='from attempt 1'):
    claim.check()


def test_a_worker_out_of_reach_of_the_folder_stops_in_time(
  worker, folder, monkeypatch
):
  claim = worker(silence=0.4).next()

  def fail(*_):
    raise OSError('stale file handle')

  monkeypatch.setattr(type(folder), 'mark', fail)
  monkeypatch.setattr(type(folder), 'read', fail)
  claim.check()
  time.sleep(0.6)
  with pytest.raises(Lost, match='silent for'):
    claim.check()


def test_a_cell_that_was_given_back_is_claimed_again_and_not_counted(
  worker, folder
):
  for number in range(1, 6):
    claim = worker().next()
    assert (claim.cell.name, claim.number) == ('b', number)
    claim.end('returned')
  assert attempts.tries(folder, 'b', attempts.listed(folder)['b']) == 0


def test_a_cell_fails_after_its_attempts_with_its_last_words(worker, folder):
  one = worker(attempts=2)
  for _ in range(2):
    claim = one.next()
    assert claim.cell.name == 'b'
    claim.end('failed', message='out of memory')
  assert one.next().cell.name == 'c'
  assert one.settled == {'b': 'failed'}
  assert attempts.last_words(folder, 'b') == 'out of memory'


def test_a_worker_that_dies_each_time_is_not_tried_for_ever(worker, folder):
  for _ in range(2):
    die(worker(attempts=2).next())
  one = worker(attempts=2)
  assert one.next().cell.name == 'c'
  assert one.settled == {'b': 'failed'}
  assert ends(folder)['b'] == ['lost', 'lost']


def test_progress_gives_a_cell_its_attempts_anew(worker, folder):
  for step in (0, 5, 5, 9):
    (folder.root / f'cells/b/checkpoints/{step}').mkdir(
      parents=True, exist_ok=1
    )
    die(worker(attempts=2).next())
  # The fourth began at 9; of the two that began at 5 the second got to 9.
  assert attempts.tries(folder, 'b', attempts.listed(folder)['b']) == 1
  assert worker(attempts=2).next().number == 5


def test_what_failed_is_tried_again_once_forgiven(worker, folder):
  one = worker(attempts=1)
  one.next().end('failed', message='no')
  assert one.next().cell.name == 'c'
  attempts.forgive(folder, ['a', 'b', 'c'])
  claim = worker(attempts=1).next()
  assert (claim.cell.name, claim.number) == ('b', 2)


def test_a_dead_holder_that_no_one_has_seen_is_forgiven_too(worker, folder):
  for _ in range(2):
    die(worker(attempts=2).next())
    attempts.forgive(folder, ['b'])
  claim = worker(attempts=2).next()
  assert (claim.cell.name, claim.number) == ('b', 3)


def test_a_run_that_was_finished_between_look_and_claim_is_not_trained(
  worker, folder, write
):
  one = worker()
  create = folder.create

  class Late(type(folder)):
    def create(self, name, data, unlocked=None):
      if name.endswith('.claim'):
        write('b', 'record.json', status='finished')
      return create(name, data)

  one._store = Late(folder.root)
  assert one.next().cell.name == 'c'
  assert one.settled == {'b': 'finished'}
  assert ends(folder)['b'] == ['returned']


def test_an_end_says_how_long_the_attempt_took_and_how_far_it_came(
  worker, folder
):
  claim = worker().next()
  claim.take({'step': 7, 'steps': 10, 'loss': 2.5, 'mfu': 0.1})
  claim.end('failed', message='no')
  told = attempts.read(folder, 'b', 1, 'failed')
  assert told['step'] == 7 and told['loss'] == 2.5 and told['message'] == 'no'
  assert 0 <= told['seconds'] < 60
  claim = attempts.read(folder, 'b', 1, 'claim')
  assert claim['device'] == 'CPU core' and claim['host'] == 'here'


def test_a_claim_cut_short_by_a_power_cut_is_one_of_a_dead_worker(
  worker, folder
):
  folder.write('claims/b.1.claim', b'')
  clock = Clock()
  one = worker(clock=clock)
  assert [one.next().cell.name for _ in range(2)] == ['c', 'a']
  clock.now = claims.SILENCE + 1
  assert one.next().number == 2


def test_a_claim_that_is_no_json_is_named(worker, folder):
  folder.write('claims/b.1.claim', b'{"host": ')
  with pytest.raises(ValueError, match=r'claims/b\.1\.claim is not JSON'):
    worker().next()


def test_names_of_cells_may_hold_dots_and_digits(folder):
  text = json.dumps({}).encode()
  for name in ('c1.5e+10_n3.1.claim', 'c1.5e+10_n3.2.claim', 'x.beat'):
    folder.write(f'claims/{name}', text)
  assert {k: v.last for k, v in attempts.listed(folder).items()} == {
    'c1.5e+10_n3': 2
  }
