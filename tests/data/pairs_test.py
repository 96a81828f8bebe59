"""Pairs of sentences: labels that are true of the rows."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bigdl.data import tokens
from bigdl.data.pairs import Pairs

LENGTH = 40
WIDTH = LENGTH - 3
FIRST, BETWEEN, PAD = 256, 257, 259


@dataclasses.dataclass(frozen=True)
class Numbered(tokens.TokenSource):
  """Documents of whose every byte one can tell the document and the place."""

  count: int = 12

  def documents(self):
    shift = 100 if self.split == 'validation' else 0
    for d in range(self.count):
      name = chr(0x100 + d + shift)
      yield str(d), ''.join(f'{name}{i}. ' for i in range(30 + 7 * d))


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return str(tmp_path_factory.mktemp('tokens'))


@pytest.fixture
def pairs(cache):
  def make(split='train', count=12, **fields):
    text = Numbered(length=LENGTH, split=split, count=count, cache=cache)
    return Pairs(text, **fields)

  return make


def parts(row_T):
  """Returns A and B as bytes."""
  marks = np.flatnonzero(row_T == BETWEEN)
  assert row_T[0] == FIRST and len(marks) == 2
  assert (row_T[marks[1] + 1 :] == PAD).all()
  first, second = row_T[1 : marks[0]], row_T[marks[0] + 1 : marks[1]]
  assert len(first) and len(second)
  return bytes(first.tolist()), bytes(second.tolist())


def texts(source):
  coder = source.coder
  return [bytes(coder.encode(t).tolist()) for _, t in source.text.documents()]


def test_label_zero_is_what_follows_and_one_is_of_another_document(pairs):
  source = pairs(short=0.0)
  documents = texts(source)
  rows = source.rows(0, len(source))
  for row_T, label in zip(rows['tokens'], rows['label'], strict=True):
    first, second = parts(row_T)
    together = [i for i, d in enumerate(documents) if first + second in d]
    if label == 0:
      assert together
    else:
      # A few bytes may stand in many documents.
      own = {i for i, d in enumerate(documents) if first in d}
      other = {i for i, d in enumerate(documents) if second in d}
      assert own and other and (len(own | other) > 1)
  assert abs(rows['label'].mean() - 0.5) < 3 * 0.5 / np.sqrt(len(source))


def test_sentence_order_swaps_half_of_the_rows(pairs):
  source = pairs(kind='order', short=0.0)
  documents = texts(source)
  rows = source.rows(0, len(source))
  for row_T, label in zip(rows['tokens'], rows['label'], strict=True):
    first, second = parts(row_T)
    whole = second + first if label else first + second
    assert any(whole in d for d in documents)
  assert 0.3 < rows['label'].mean() < 0.7


@pytest.mark.parametrize('kind', ['next', 'order'])
def test_types_and_segments_follow_the_marks(pairs, kind):
  rows = pairs(kind=kind, short=0.5).rows(0, 60)
  for n, row_T in enumerate(rows['tokens']):
    a, b = np.flatnonzero(row_T == BETWEEN) + 1
    at = np.arange(LENGTH)
    assert np.array_equal(rows['segments'][n], at < b)
    assert np.array_equal(rows['types'][n], (at >= a) & (at < b))
  assert (rows['segments'].sum(1) < LENGTH).any()


def test_sentences_end_where_the_text_says(pairs):
  rows = pairs(kind='order', short=0.0).rows(0, 100)
  ended = 0
  for row_T, label in zip(rows['tokens'], rows['label'], strict=True):
    if not label:
      first, _ = parts(row_T)
      ended += first.rstrip().endswith(b'.')
  assert ended == np.count_nonzero(rows['label'] == 0)


def test_an_epoch_shows_every_window_once_and_all_text(pairs):
  source = pairs(kind='order', short=0.0)
  rows = source.rows(0, len(source))
  shown = sum(len(a) + len(b) for a, b in map(parts, rows['tokens']))
  sizes = np.array([len(d) for d in texts(source)])
  # A last window of one token is left out.
  left = np.count_nonzero(sizes % WIDTH == 1)
  assert shown == sizes.sum() - left
  places = [source.place(i) for i in range(len(source))]
  assert sorted(places) == list(range(len(source)))


def test_short_rows_are_as_many_as_asked_for(pairs):
  source = pairs(short=0.3, count=40)
  lengths = source.rows(0, len(source))['segments'].sum(1)
  whole = pairs(short=0.0, count=40).rows(0, len(source))['segments'].sum(1)
  assert 0.2 < np.mean(lengths < whole) < 0.4


def test_validation_pairs_do_not_change(pairs):
  source = pairs('validation')
  size = len(source)
  first, second = source.rows(0, size), source.rows(size, 2 * size)
  assert all(np.array_equal(first[k], second[k]) for k in first)
  assert first['cluster'].max() == source.text.shard.ends.size - 1


def test_one_document_makes_no_pairs(pairs):
  with pytest.raises(ValueError, match='holds 1 document of two') as error:
    len(pairs(count=1))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('fields', 'said'),
  [
    ({'kind': 'previous'}, 'kind=previous must be one of next, order'),
    ({'short': 1.5}, r'short=1.5 must be in \[0, 1\]'),
    ({'text': Numbered(length=4)}, 'text.length=4 must be at least 5'),
  ],
)
def test_bad_fields_are_named_in_one_line(fields, said):
  with pytest.raises(ValueError, match=said):
    Pairs(**{'text': Numbered(), **fields})
