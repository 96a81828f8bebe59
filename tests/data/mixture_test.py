"""Mixtures keep their shares, and each source its own order."""

from __future__ import annotations

import numpy as np
import pytest

from bigdl.data.mixture import PERIOD, Mixture
from bigdl.data.synthetic import Markov


def source(table: int, **more) -> Markov:
  return Markov(**{'vocab': 8, 'length': 4, 'table': table, **more})


def origin(mixture: Mixture, count: int) -> np.ndarray:
  """Returns which source each of the first rows is of, by its content."""
  rows = mixture.rows(0, count)['tokens']
  pools = [
    {r.tobytes() for r in s.rows(0, count)['tokens']} for s in mixture.sources
  ]
  found = [[r.tobytes() in pool for pool in pools] for r in rows]
  return np.array(found)


@pytest.mark.parametrize(
  'weights', [(1.0, 1.0), (0.7, 0.2, 0.1), (5.0, 3.0, 2.0, 1.0), (99.0, 1.0)]
)
def test_every_stretch_from_the_start_keeps_the_shares(weights):
  mixture = Mixture(
    sources=tuple(source(i) for i in range(len(weights))), weights=weights
  )
  which, _ = mixture._pattern
  counts = np.stack(
    [np.cumsum(which == s) for s in range(len(weights))], axis=1
  )
  shares = np.array(weights) / sum(weights)
  due = np.arange(1, PERIOD + 1)[:, None] * shares
  # One row, and what a period's whole numbers round off.
  assert np.abs(counts - due).max() <= 1.0 + 1.0


def test_each_source_is_read_in_its_own_order_without_gaps():
  a, b = source(0), source(1)
  mixture = Mixture(sources=(a, b), weights=(3.0, 1.0))
  count = 2 * PERIOD + 100
  rows = mixture.rows(0, count)['tokens']
  which = np.concatenate([mixture._pattern[0]] * 3)[:count]
  for s, own in enumerate((a, b)):
    mine = rows[which == s]
    np.testing.assert_array_equal(mine, own.rows(0, len(mine))['tokens'])
  parts = [mixture.rows(i, i + 7)['tokens'] for i in range(0, 700, 7)]
  np.testing.assert_array_equal(np.concatenate(parts), rows[:700])


def test_an_epoch_ends_with_the_first_source():
  mixture = Mixture(sources=(source(0, size=300), source(1, size=1000)))
  assert len(mixture) == 600
  mixture = Mixture(
    sources=(source(0, size=300), source(1, size=1000)), weights=(1.0, 3.0)
  )
  assert len(mixture) == 1200


def test_facts_are_weighed():
  a, b = source(0, exponent=0.5), source(1, exponent=2.0)
  facts = Mixture(sources=(a, b), weights=(1.0, 3.0)).facts()
  assert facts['entropy'] == pytest.approx(a.entropy / 4 + 3 * b.entropy / 4)
  assert facts['vocab'] == 8


def test_the_fingerprint_knows_sources_and_weights():
  prints = {
    Mixture(sources=s, weights=w).fingerprint()
    for s, w in [
      ((source(0), source(1)), (1.0, 1.0)),
      ((source(0), source(1)), (1.0, 2.0)),
      ((source(1), source(0)), (1.0, 2.0)),
      ((source(0), source(2)), (1.0, 2.0)),
    ]
  }
  assert len(prints) == 4
  same = Mixture(sources=(source(0), source(1)), weights=(2.0, 2.0))
  assert same.fingerprint() in prints


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({}, 'sources='),
    ({'sources': (source(0),), 'weights': (1.0, 2.0)}, 'weights='),
    ({'sources': (source(0),), 'weights': (-1.0,)}, 'weights='),
  ],
)
def test_senseless_mixtures_are_refused(options, words):
  with pytest.raises(ValueError, match=words):
    Mixture(**options)


def test_sources_that_disagree_are_named():
  with pytest.raises(ValueError, match=r"differ in 'tokens'.*\[5\].*\[4\]"):
    Mixture(sources=(source(0), source(1, length=3))).facts()
  with pytest.raises(ValueError, match='vocab=8 of Markov and vocab=9'):
    Mixture(sources=(source(0), source(1, vocab=9))).rows(0, 2)
