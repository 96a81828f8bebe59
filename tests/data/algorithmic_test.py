"""Sequences to copy and to reverse."""

from __future__ import annotations

import numpy as np
import pytest

from bigdl.data.algorithmic import BEGIN, END, PAD, Algorithmic

SMALL = Algorithmic(vocab=8, length=6, size=300)


def pairs(source):
  """Returns the symbols of source and target of each row."""
  rows = source.rows(0, len(source))
  for s, s_seg, t, t_seg in zip(
    *(rows[k] for k in ('source', 'source_segments', 'tokens', 'segments')),
    strict=True,
  ):
    size = int(s_seg.sum())
    assert s_seg.tolist() == [1] * size + [0] * (6 - size)
    assert t_seg.tolist() == [1] * (size + 2) + [0] * (6 - size)
    assert t[0] == BEGIN and t[size + 1] == END
    assert (s[size:] == PAD).all() and (t[size + 2 :] == PAD).all()
    yield s[:size].tolist(), t[1 : size + 1].tolist()


@pytest.mark.parametrize('task', ['copy', 'reverse'])
@pytest.mark.parametrize('split', ['train', 'validation'])
def test_the_target_is_the_task_s(task, split):
  source = Algorithmic(task=task, split=split, vocab=8, length=6, size=300)
  found = list(pairs(source))
  for s, t in found:
    assert t == (s if task == 'copy' else s[::-1])
    assert all(3 <= x < 8 for x in s)
  sizes = np.bincount([len(s) for s, _ in found])
  # Short sequences are few, and more of those drawn may be of another split.
  assert len(sizes) == 7 and sizes[0] == 0 and sizes[3:].min() > 20


def test_no_sequence_is_of_both_splits():
  train, held_out = (
    {
      tuple(s)
      for s, _ in pairs(Algorithmic(vocab=5, length=6, split=split, size=300))
    }
    for split in ('train', 'validation')
  )
  assert train and held_out and not train & held_out


def test_short_sequences_can_be_left_out():
  long = Algorithmic(vocab=8, length=6, shortest=5, size=40)
  assert {len(s) for s, _ in pairs(long)} == {5, 6}


def test_too_few_sequences_to_split_are_refused():
  few = Algorithmic(vocab=5, length=1, split='validation')
  with pytest.raises(ValueError, match='^vocab=5 and length=1 leave no seq'):
    few.rows(0, 1)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'task': 'sort'}, 'task=sort must be one of copy, reverse'),
    ({'split': 'test'}, 'split=test must be one of train, validation'),
    ({'vocab': 4}, 'vocab=4 must be at least 5'),
    ({'shortest': 0}, r'shortest=0 must be in \[1, length=20\]'),
    ({'shortest': 21}, r'shortest=21 must be in \[1, length=20\]'),
    ({'size': 0}, 'size=0 must be at least 1'),
  ],
)
def test_bad_fields_are_refused(fields, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    Algorithmic(**fields)


def test_facts_name_the_ids():
  assert SMALL.facts() == {'vocab': 8, 'pad': 0, 'begin': 1, 'end': 2}
