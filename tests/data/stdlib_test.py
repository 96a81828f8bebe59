"""The standard library as data: by file, in order, each row once."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from bigdl.data import tokens
from bigdl.data.stdlib import StandardLibrary
from bigdl.data.tokenizers import Bytes


@dataclasses.dataclass(frozen=True)
class Few(tokens.TokenSource):
  """Three short documents."""

  def documents(self):
    return [('a', 'one two\0'), ('b', 'three'), ('c', 'four five six')]


def test_no_text_is_in_both_splits():
  train, held = StandardLibrary(), StandardLibrary(split='validation')
  texts = [{t for _, t in s.documents()} for s in (train, held)]
  assert not texts[0] & texts[1]
  sizes = [s.facts()['tokens'] for s in (train, held)]
  assert sizes[0] > 5e6 and 0.02 < sizes[1] / sum(sizes) < 0.2
  assert not any('test' in n.split('/')[:-1] for n, _ in train.documents())


def test_bytes_come_back_as_text():
  text = 'naïve → ok\n'
  assert Bytes().decode(Bytes().encode(text)) == text


def test_an_epoch_predicts_each_token_once(tmp_path):
  source = Few(length=3, cache=str(tmp_path))
  rows = source.rows(0, len(source))['tokens']
  order = np.argsort(source.order(0))
  targets = rows[order, 1:].ravel()
  np.testing.assert_array_equal(
    targets, source.shard.tokens[1 : targets.size + 1]
  )


def test_epochs_differ_in_order_and_batches_repeat(tmp_path):
  source = Few(length=2, cache=str(tmp_path))
  again = Few(length=2, cache=str(tmp_path))
  assert not np.array_equal(source.order(0), source.order(1))
  for step in (0, 3, 9):
    np.testing.assert_array_equal(
      source.batch(step, size=4)['tokens'], again.batch(step, size=4)['tokens']
    )


def test_shards_make_up_the_global_batch(tmp_path):
  source = Few(length=2, cache=str(tmp_path))
  whole = source.batch(5, size=4)['tokens']
  parts = [source.batch(5, size=4, shard=i, shards=2)['tokens'] for i in (0, 1)]
  np.testing.assert_array_equal(whole, np.concatenate(parts))


def test_segments_change_after_each_end_of_document(tmp_path):
  source = Few(length=25, segments=True, cache=str(tmp_path))
  row = source.rows(0, 1)
  ends = np.flatnonzero(row['tokens'][0, :-1] == Bytes().eod)
  steps = np.flatnonzero(np.diff(row['segments'][0]))
  np.testing.assert_array_equal(ends, steps)
  assert row['segments'].min() == 1


@pytest.mark.parametrize('name', ['tokens.bin', 'index.json', 'ends.npy'])
def test_a_damaged_cache_is_made_again(tmp_path, name):
  before = np.array(Few(cache=str(tmp_path), length=3).shard.tokens)
  (file,) = tmp_path.glob(f'*/{name}')
  file.write_bytes(file.read_bytes()[:-2])
  after = Few(cache=str(tmp_path), length=3).shard.tokens
  np.testing.assert_array_equal(before, after)
  assert json.loads(next(tmp_path.glob('*/index.json')).read_text())
  assert not list(tmp_path.glob('.new-*'))


def test_a_split_that_does_not_exist_is_refused():
  with pytest.raises(ValueError, match='split=test must be'):
    StandardLibrary(split='test')
