"""Status: states, hours, time to go; from files alone, writing nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from bigdl.fleet import attempts, manifest, status
from bigdl.fleet.claims import Claims
from bigdl.fleet.store import host


@pytest.fixture
def at_work(folder, write):
  """`b` is half done by a worker, `c` is finished, `a` waits."""
  worker = {'device': 'TPU v4', 'devices': 8, 'code': 'x'}
  queue = Claims(folder, manifest.read(folder).costliest_first, worker)
  b, c = queue.next(), queue.next()
  c.end('finished', seconds=900.0)
  write(
    'c',
    'record.json',
    status='finished',
    step=10,
    loss=3.25,
    goodput=0.9,
    wall_seconds=900.0,
  )
  b.take({'step': 5, 'steps': 10, 'loss': 4.5})
  b._began -= 1800.0
  b._tell()
  yield folder
  b.end('returned')


def run(found: status.Status, name: str) -> status.Run:
  return next(run for run in found.runs if run.name == name)


def test_states_steps_and_losses_are_told_cell_by_cell(at_work):
  found = status.read(at_work)
  assert {r.name: r.state for r in found.runs} == {
    'a': 'waiting',
    'b': 'claimed',
    'c': 'finished',
  }
  b = run(found, 'b')
  assert (b.step, b.steps, b.loss) == (5, 10, 4.5)
  assert b.where == f'{host().split()[0]}:{os.getpid()}' and not b.dead
  assert run(found, 'c').loss == 3.25
  assert not found.over


def test_device_hours_are_those_held_and_the_rest_goes_at_their_rate(at_work):
  found = status.read(at_work)
  # A quarter of an hour and half of one, on eight devices.
  assert found.spent == {'TPU v4': pytest.approx(6.0, rel=1e-3)}
  # 4e9 FLOPs are done (all of c, half of b), 3e9 are left.
  assert found.share == pytest.approx(4 / 7)
  assert found.left == {'TPU v4': pytest.approx(4.5, rel=1e-3)}
  assert found.devices == {'TPU v4': 8}
  assert found.eta_seconds == pytest.approx(4.5 / 8 * 3600, rel=1e-3)
  assert found.goodput == 0.9


def test_the_eta_of_many_workers_is_that_of_the_longest_cell(folder, write):
  worker = {'device': 'TPU v4', 'devices': 8}
  queue = Claims(folder, manifest.read(folder).costliest_first, worker)
  held = [queue.next() for _ in range(3)]
  for claim in held:
    claim.take({'step': 5, 'steps': 10})
    claim._began -= 3600.0
    claim._tell()
  found = status.read(folder)
  # Each worker has done 3.5e9 / 3 in an hour; b has 2e9 to go.
  assert found.eta_seconds == pytest.approx(3600 * 2 / (3.5 / 3), rel=1e-3)
  for claim in held:
    claim.end('returned')


def test_what_is_known_is_told_as_text(at_work):
  text = status.text(status.read(at_work))
  assert '3 cells: 1 waiting, 1 claimed, 1 finished; 57.1% of the work' in text
  assert 'spent 6 TPU v4; left 4.5 TPU v4' in text
  assert 'ETA           34 min (8x TPU v4 at work)' in text
  assert 'goodput       90.0%' in text


def test_a_failure_is_shown_with_its_last_line(folder):
  queue = Claims(folder, manifest.read(folder).costliest_first, {}, attempts=2)
  queue.next().end('failed', message='RESOURCE_EXHAUSTED: 3 GiB')
  assert run(status.read(folder), 'b').state == 'waiting'
  assert 'RESOURCE_EXHAUSTED' in status.text(status.read(folder))
  queue.next().end('failed', message='RESOURCE_EXHAUSTED: 4 GiB')
  failed = run(status.read(folder), 'b')
  assert (failed.state, failed.attempts) == ('failed', 2)
  assert failed.message == 'RESOURCE_EXHAUSTED: 4 GiB'
  assert '1 failed; 0.0% of the work' in status.text(status.read(folder))
  attempts.forgive(folder, ['b'])
  assert run(status.read(folder), 'b').state == 'waiting'


def test_work_of_a_cell_that_failed_is_neither_done_nor_left(folder, write):
  worker = {'device': 'TPU v4', 'devices': 8}
  queue = Claims(
    folder, manifest.read(folder).costliest_first, worker, attempts=1
  )
  queue.next().end('failed', seconds=0.0)
  queue.next().end('finished', seconds=900.0)
  write('c', 'record.json', status='finished', step=10, loss=2.0)
  found = status.read(folder)
  assert run(found, 'b').state == 'failed'
  # Of 7e9 FLOPs, c's 2e9 are done in two hours; a's 1e9 are left.
  assert found.share == pytest.approx(2 / 7)
  assert found.left == {'TPU v4': pytest.approx(1.0)}


def test_a_diverged_run_is_over_and_says_why(folder, write):
  write('a', 'record.json', status='diverged', step=4, message='loss is nan')
  found = run(status.read(folder), 'a')
  assert (found.state, found.message, found.share) == (
    'diverged',
    'loss is nan',
    1.0,
  )


def test_a_dead_worker_is_seen_at_once_on_its_machine(folder):
  claim = Claims(folder, manifest.read(folder).costliest_first, {}).next()
  claim._over.set()
  claim._thread.join()
  claim._held.release()
  found = status.read(folder)
  assert run(found, 'b').dead and found.devices == {}
  assert found.eta_seconds is None
  assert '  dead  ' in status.text(found)


def test_without_locks_a_living_worker_is_not_taken_for_dead(
  folder, unlockable
):
  claim = Claims(folder, manifest.read(folder).costliest_first, {}).next()
  assert not run(status.read(folder), 'b').dead
  claim.end('returned')


def test_a_sweep_of_which_all_is_over_has_nothing_left(folder, write):
  for name in 'abc':
    write(name, 'record.json', status='finished', step=10, loss=2.0)
  found = status.read(folder)
  assert found.over and found.share == 1.0
  assert found.left == {} and found.eta_seconds == 0.0
  assert 'ETA' not in status.text(found)


def test_status_is_json_and_writes_nothing_and_needs_no_jax(at_work):
  def tree():
    return {
      p: (p.stat().st_mtime_ns, p.read_bytes())
      for p in at_work.root.rglob('*')
      if p.is_file() and p.suffix != '.beat'
    }

  before = tree()
  code = (
    'import sys\n'
    'sys.modules.update(jax=None, numpy=None, pandas=None)\n'
    'from bigdl import __main__ as program\n'
    f'sys.exit(program.main(["sweep", "--status={at_work.root}", "--json"]))'
  )
  shown = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  told = json.loads(shown.stdout)
  assert told['cells'] == 3 and told['states']['claimed'] == 1
  assert told['device_hours']['spent']['TPU v4'] > 0
  assert [r['name'] for r in told['runs']] == ['a', 'b', 'c']
  assert tree() == before
