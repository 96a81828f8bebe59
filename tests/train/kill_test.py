"""A run that is killed again and again ends where one that is not ends."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
CHAINS, KILLS = 4, 6
TIMING = {'seconds', 'tokens_per_second', 'mfu'}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  root = tmp_path_factory.mktemp('killed')
  paths = [str(HERE), str(HERE.parents[1])]
  paths += [p for p in [os.environ.get('PYTHONPATH')] if p]
  done = subprocess.run(
    [
      sys.executable,
      HERE / 'killed_runs.py',
      *map(str, (root, root / 'cache', 0, CHAINS, KILLS)),
    ],
    env={**os.environ, 'PYTHONPATH': os.pathsep.join(paths)},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return root, json.loads(done.stdout.splitlines()[-1])


def numbers(folder):
  """Returns the lines of metrics.jsonl as text, without how long they took."""
  lines = (folder / 'metrics.jsonl').read_text().splitlines()
  return [
    json.dumps({k: v for k, v in json.loads(x).items() if k not in TIMING})
    for x in lines
  ]


def test_at_least_twenty_kills_hit_runs_that_went_on(runs):
  _, points = runs
  kills = [tuple(p) for chain in points.values() for p in chain]
  assert len(kills) >= 20, points
  assert len({step for step, _ in kills}) >= 10, points
  assert any(torn for _, torn in kills), points


def test_final_state_is_bit_identical_after_kills(runs):
  root, points = runs
  whole = (root / 'whole' / 'digest').read_text()
  for name in points:
    assert (root / name / 'digest').read_text() == whole, points[name]


def test_every_metric_is_identical_after_kills(runs):
  root, points = runs
  whole = numbers(root / 'whole')
  assert len(whole) == 150 + 7 + 1
  for name in points:
    assert numbers(root / name) == whole, points[name]


def test_what_kills_have_cost_is_told(runs):
  root, points = runs
  whole = json.loads((root / 'whole' / 'record.json').read_text())
  assert whole['goodput_parts']['repeated'] == 0
  for name in points.keys() - {'whole'}:
    record = json.loads((root / name / 'record.json').read_text())
    parts = record['goodput_parts']
    assert parts['repeated'] > 0, (points[name], parts)
    assert parts['restore'] > 0
    assert 1 < record['starts'] <= KILLS + 1
    assert record['wall_seconds'] == pytest.approx(sum(parts.values()))
    # Updates that count took about as long as where nothing was lost.
    assert record['seconds'] < record['wall_seconds'] - parts['repeated']
