"""Orders of positions, and what is predicted in them."""

# Shapes: N rows, T tokens of a row, P of them predicted.
from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from bigdl.data.permuted import Permuted
from bigdl.data.stdlib import StandardLibrary

T = 32


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  cache = str(tmp_path_factory.mktemp('tokens'))
  return StandardLibrary(length=T, segments=True, cache=cache)


def rows_of(text, rows=200, **fields):
  source = Permuted(text, **fields)
  return source, source.rows(0, rows)


@pytest.mark.parametrize('span', [0, 4])
@pytest.mark.parametrize('whole_context', [True, False])
def test_targets_are_the_last_of_the_order(text, span, whole_context):
  source, rows = rows_of(text, span=span, whole_context=whole_context)
  P = source.targets
  assert P == 5
  order, at = rows['order'], rows['targets_at']
  assert (np.diff(at, axis=1) > 0).all()
  ranks = np.sort(np.take_along_axis(order, at, 1), axis=1)
  np.testing.assert_array_equal(ranks, [np.arange(T - P, T)] * len(order))
  # All else comes before, together or one by one.
  rest = np.sort(order, axis=1)[:, : T - P]
  want = np.full(T - P, T - P - 1) if whole_context else np.arange(T - P)
  np.testing.assert_array_equal(rest, [want] * len(order))
  np.testing.assert_array_equal(
    rows['targets'], np.take_along_axis(rows['tokens'], at, 1)
  )
  assert (rows['weight'] == 1).all()


def test_rows_are_those_of_the_text(text):
  source, rows = rows_of(text)
  plain = text.rows(0, 200)
  for name in ('tokens', 'segments'):
    np.testing.assert_array_equal(rows[name], plain[name][:, :T])
  assert source.facts()['vocab'] == 256
  assert 'bytes_per_token' not in source.facts()


def test_each_position_is_predicted_as_often_as_any_other(text):
  source, rows = rows_of(text, rows=3000)
  share = np.bincount(rows['targets_at'].ravel(), minlength=T) / 3000
  # Four standard deviations of a mean of 3000.
  want = source.targets / T
  assert np.abs(share - want).max() < 4 * (want * (1 - want) / 3000) ** 0.5
  # And comes in each place of the order of targets.
  last = np.argmax(rows['order'], axis=1)
  counts = np.bincount(last, minlength=T) / 3000
  assert np.abs(counts - 1 / T).max() < 4 * (1 / T / 3000) ** 0.5


def test_spans_are_of_neighbours_with_text_between_them(text):
  def neighbours(**fields):
    _, rows = rows_of(text, rows=500, share=4, **fields)
    return (np.diff(rows['targets_at'], axis=1) == 1).mean()

  # Of 8 targets in 32 places, one in about four has the next one beside it.
  alone, together = neighbours(), neighbours(span=5)
  assert 0.15 < alone < 0.3
  assert together > 2 * alone
  _, rows = rows_of(text, rows=500, share=4, span=1)
  # Alone, each out of its own four places: two at most are neighbours.
  blocks = rows['targets_at'] // 4
  np.testing.assert_array_equal(blocks, [np.arange(8)] * 500)


def test_validation_rows_stay_and_training_rows_change_with_the_epoch(text):
  held_out = Permuted(dataclasses.replace(text, split='validation'))
  for source, same in ((Permuted(text), False), (held_out, True)):
    size = len(source)
    first, second = source.rows(3, 5), source.rows(size + 3, size + 5)
    assert np.array_equal(first['order'], second['order']) == same
  assert 'cluster' in first
  other = dataclasses.replace(held_out, seed=1).rows(3, 5)
  assert not np.array_equal(first['order'], other['order'])
  np.testing.assert_array_equal(first['tokens'], other['tokens'])


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'share': 1}, r'^share=1 must be in \[2, text.length=32\]'),
    ({'share': 33}, '^share=33 must be in'),
    ({'span': -1}, r'^span=-1 must be in \[0, text.length=32\]'),
  ],
)
def test_shares_that_cannot_be_are_refused(
  text, fields: dict[str, Any], message
):
  with pytest.raises(ValueError, match=message):
    Permuted(text, **fields)
