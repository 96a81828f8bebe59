"""Workers are killed and paused at random: no cell is lost, none ends twice."""

from __future__ import annotations

import collections
import json
import pathlib
import subprocess
import sys

from fake_sweeps import cell, plan
import pytest

from bigdl.fleet import manifest, status
from bigdl.fleet.store import Local

PROGRAM = pathlib.Path(__file__).parent / 'killed_workers.py'
CELLS, STEPS, KILLS, SEED = 6, 400, 50, 0


@pytest.fixture(scope='module')
def disturbed(tmp_path_factory) -> Local:
  """A sweep that has ended under fifty kills, and a pause."""
  store = Local(tmp_path_factory.mktemp('sweeps') / 'disturbed')
  cells = [cell(f'c{i}', 1e9 * (1 + i), STEPS) for i in range(CELLS)]
  manifest.write(store, plan(*cells))
  done = subprocess.run(
    [sys.executable, PROGRAM, *map(str, (store.root, SEED, KILLS))],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return store


def lines(store: Local, name: str, file: str) -> list[list[int]]:
  text = (store.read(f'cells/{name}/{file}') or b'').decode()
  return [[int(word) for word in line.split()] for line in text.splitlines()]


def names(store: Local) -> list[str]:
  return [cell.name for cell in manifest.read(store).cells]


def test_no_cell_is_lost_and_none_runs_to_its_end_twice(disturbed):
  assert status.read(disturbed).count('finished') == CELLS
  ends = 0
  for name in names(disturbed):
    (own, *more) = lines(disturbed, name, 'ends') or [None]
    record = json.loads(disturbed.read(f'cells/{name}/record.json'))
    assert not more and own in (None, [record['attempt']])
    # Nor did anyone train it once its record was there.
    steps = lines(disturbed, name, 'steps')
    assert max(number for number, _ in steps) <= record['attempt']
    ends += own is not None
  # Few kills fall between a record and its line.
  assert ends >= CELLS - 2


def test_each_attempt_goes_on_from_a_save_and_writes_nothing_once_replaced(
  disturbed,
):
  attempts = 0
  for name in names(disturbed):
    steps = lines(disturbed, name, 'steps')
    numbers = [number for number, _ in steps]
    # Never a line of an attempt that a later one has followed.
    assert numbers == sorted(numbers)
    by_attempt = collections.defaultdict(list)
    for number, step in steps:
      by_attempt[number].append(step)
    attempts += len(by_attempt)
    for own in by_attempt.values():
      assert own == list(range(own[0], own[-1] + 1))
      assert own[0] % 5 == 1
    assert steps[-1][1] == STEPS
  assert attempts > CELLS + 20


def test_a_worker_that_was_paused_finds_itself_replaced(disturbed):
  assert (disturbed.root / 'fenced').read_text().split()
