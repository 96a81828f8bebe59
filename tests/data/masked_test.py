"""Masked rows: how much is hidden, what replaces it, and when it changes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bigdl.data import tokens
from bigdl.data.masked import Masked
from bigdl.data.masking import WALL, Knowledge, Masking, Spans, Tokens, Words
from bigdl.data.pairs import Pairs
from bigdl.data.tokenizers import Bytes

TEXT = (
  'Mary Ann met Dr Brown in New York on 12.5.1890; they_spoke of the weather.\n'
  'Nobody else was there, and the station clock had stopped at noon.\n'
)
LENGTH = 64
KINDS: dict[str, Masking] = {
  'tokens': Tokens(),
  'words': Words(longest=8),
  'knowledge': Knowledge(longest=6),
  'spans': Spans(),
}


@dataclasses.dataclass(frozen=True)
class Letters(tokens.TokenSource):
  """A few dozen documents in memory."""

  def documents(self):
    size = 6 if self.split == 'validation' else 40
    for d in range(size):
      said = [f'{self.split} {d * 7 + i}. {TEXT}' for i in range(3)]
      yield str(d), ''.join(said)


@pytest.fixture(scope='module')
def cache(tmp_path_factory):
  return str(tmp_path_factory.mktemp('tokens'))


@pytest.fixture
def source(cache):
  def make(masking=Tokens(), *, split='train', segments=False, **fields):
    text = Letters(length=LENGTH, split=split, cache=cache, segments=segments)
    return Masked(text, masking=masking, **fields)

  return make


@pytest.mark.parametrize('rate', [0.15, 0.4])
@pytest.mark.parametrize('kind', KINDS)
def test_the_share_that_is_hidden_is_the_rate_and_never_none(
  source, kind, rate
):
  masking = dataclasses.replace(KINDS[kind], rate=rate)
  made = source(masking)
  rows = made.rows(0, 3000)
  hidden_N = rows['weight'].sum(1)
  free = np.isin(rows['targets'], [0, 256, 257], invert=True).sum(1)
  assert hidden_N.min() >= 1
  assert set(np.unique(rows['weight'])) == {0, 1}
  # Of the mean of 3000 rows, whose counts spread by a unit's size.
  error = hidden_N.std() / np.sqrt(len(hidden_N))
  assert abs((hidden_N - rate * free).mean()) < 4 * error + 1e-9
  if kind == 'tokens':
    assert np.abs(hidden_N - rate * free).max() < 1


@pytest.mark.parametrize('kind', KINDS)
def test_hidden_tokens_become_mask_random_or_stay_in_their_shares(source, kind):
  made = source(KINDS[kind])
  rows = made.rows(0, 3000)
  at = rows['weight'] > 0
  now, before = rows['tokens'][at], rows['targets'][at]
  assert np.array_equal(rows['tokens'][~at], rows['targets'][~at])
  shares = [np.mean(now == 258), np.mean(now == before)]
  # Spans are replaced whole, hence fewer independent draws.
  tolerance = 0.02 if kind == 'spans' else 0.01
  np.testing.assert_allclose(shares, [0.8, 0.1 + 0.1 / 255], atol=tolerance)
  drawn = now[(now != 258) & (now != before)]
  assert drawn.min() > 0 and drawn.max() == 255, 'no special id is drawn'
  assert len(np.unique(drawn)) > 200


def test_nothing_special_is_ever_hidden(source):
  rows = source(Tokens(rate=0.9)).rows(0, 200)
  special = np.isin(rows['targets'], [0, 256, 257])
  assert special.any(1).all()
  assert not rows['weight'][special].any()
  rows = Masked(Pairs(source().text), Tokens(rate=0.9)).rows(0, 200)
  padding = rows['segments'] == 0
  assert padding.any() and not rows['weight'][padding].any()


@pytest.mark.parametrize('kind', KINDS)
def test_places_name_every_hidden_token_once(source, kind):
  masking = dataclasses.replace(KINDS[kind], rate=0.4)
  rows = source(masking).rows(0, 500)
  places = rows['places']
  assert places.shape[1] == masking.count(LENGTH) < LENGTH
  assert all(len(set(row)) == len(row) for row in places.tolist())
  taken = np.take_along_axis(rows['weight'], places, 1)
  assert np.array_equal(taken.sum(1), rows['weight'].sum(1))


def test_dynamic_masks_differ_between_epochs_and_static_ones_do_not(source):
  def masks(made, epoch):
    """By example, whatever its place in the epoch."""
    size = len(made)
    rows = made.rows(epoch * size, (epoch + 1) * size)
    order = np.lexsort(rows['targets'].T)
    keys = rows['targets'][order]
    fresh = np.concatenate([[True], (keys[1:] != keys[:-1]).any(1)])
    # Of rows of the same text, one cannot tell which is which.
    alone = fresh & np.append(fresh[1:], True)
    assert alone.mean() > 0.5
    return rows['weight'][order][alone]

  dynamic, static = source(), source(maskings=1)
  twice = source(maskings=2)
  assert not np.array_equal(masks(dynamic, 0), masks(dynamic, 1))
  assert np.array_equal(masks(static, 0), masks(static, 1))
  assert not np.array_equal(masks(twice, 0), masks(twice, 1))
  assert np.array_equal(masks(twice, 1), masks(twice, 3))


def test_validation_masks_are_the_same_in_every_epoch(source):
  made = source(split='validation')
  size = len(made)
  first, second = made.rows(0, size), made.rows(size, 2 * size)
  assert all(np.array_equal(first[k], second[k]) for k in first)
  assert len(np.unique(first['weight'], axis=0)) > 1


def test_held_out_rows_hide_words_at_every_stage(source):
  words = Words(longest=6)
  staged = Knowledge(stages=(1, 2), longest=6)
  held, plain = (source(m, split='validation') for m in (staged, words))
  size = len(held)
  assert size > 3
  held, plain = held.rows(0, size), plain.rows(0, size)
  np.testing.assert_array_equal(held['weight'], plain['weight'])
  # In training the stages differ from words.
  late, early = (source(m).rows(2, 40)['weight'] for m in (staged, words))
  assert not np.array_equal(late, early)


def test_rows_are_the_whole_text_framed_by_special_tokens(source):
  made = source()
  rows = made.plain_rows(0, len(made))
  assert rows['tokens'].shape == (len(made), LENGTH)
  assert (rows['tokens'][:, 0] == 256).all()
  assert (rows['tokens'][:, -1] == 257).all()
  first = np.argsort(made._inner.order(0))
  text = rows['tokens'][first, 1:-1].reshape(-1)
  assert np.array_equal(text, made.text.shard.tokens[: text.size])
  bare = source(framed=False).plain_rows(0, 3)
  assert bare['tokens'].shape == (3, LENGTH) and bare['tokens'].max() < 256


def test_packed_documents_keep_their_segments(source):
  rows = source(segments=True).rows(0, 50)
  assert rows['segments'].shape == rows['tokens'].shape
  ends = rows['targets'] == 0
  assert ends.any()
  steps = np.diff(rows['segments'], axis=1)
  # The token after the end of a document is of the next one; [SEP] is of the
  # document before it.
  assert np.array_equal(steps[:, :-1], ends[:, :-2])
  assert not steps[:, -1].any()
  assert (rows['segments'][:, 0] == 1).all()


def units(masking, text, number=0, seed=0):
  pieces = np.array([WALL if c == '|' else c for c in text], object)
  rng = np.random.default_rng(seed)
  found = masking.units(pieces, rng, number)
  covered = [t for start, stop in found for t in range(start, stop)]
  assert covered == [t for t, c in enumerate(text) if c != '|']
  return [text[start:stop] for start, stop in found]


def test_words_are_units_that_cut_only_where_too_long_or_at_a_wall():
  assert units(Words(), 'two words, ok') == [
    *('two', ' ', 'words', ',', ' ', 'ok')
  ]
  assert units(Words(longest=3), 'station') == ['sta', 'tio', 'n']
  assert units(Words(), 'sta|tion') == ['sta', 'tion']


def test_pieces_of_one_word_are_one_unit():
  pieces = np.array([' un', 'believ', 'able', ' thing', 's', '!'], object)
  found = Words().units(pieces, np.random.default_rng(0), 0)
  assert found == [(0, 3), (3, 5), (5, 6)]


def test_stages_go_from_words_to_phrases_to_entities(tmp_path):
  masking = Knowledge(stages=(10, 20), longest=40)
  text = 'we met Ann Brown at noon'
  assert units(masking, text, 9)[:5] == ['we', ' ', 'met', ' ', 'Ann']
  assert units(masking, text, 10) == ['we met Ann Brown', ' ', 'at noon']
  assert 'Ann Brown' in units(masking, text, 20)
  assert units(masking, 'on 12.5.1890', 20) == ['on', ' ', '12.5.1890']
  listed = tmp_path / 'entities.txt'
  listed.write_text('met Ann\nnoon\n')
  named = dataclasses.replace(masking, entities=str(listed), stages=(0, 0))
  found = units(named, text)
  assert 'met Ann' in found and 'noon' in found and 'Brown' in found
  # A row's level is drawn where there are no stages.
  drawn = Knowledge(shares=(0, 0, 1), longest=40)
  assert 'Ann Brown' in units(drawn, text)


def test_a_file_of_entities_is_part_of_the_fingerprint(source, tmp_path):
  listed = tmp_path / 'entities.txt'
  listed.write_text('Mary Ann\n')
  first = source(Knowledge(entities=str(listed))).fingerprint()
  listed.write_text('New York\n')
  assert source(Knowledge(entities=str(listed))).fingerprint() != first
  other = tmp_path / 'others.txt'
  other.write_text('Mary Ann\n')
  assert source(Knowledge(entities=str(other))).fingerprint() == first


def test_spans_have_geometric_lengths_and_are_replaced_whole(source):
  pieces = np.array(['x'] * 4000, object)
  rng = np.random.default_rng(0)
  taken = Spans(rate=0.1, end=0.2, longest=10).choose(pieces, rng, 0)
  sizes = taken[:, 1] - taken[:, 0]
  # Joshi et al., section 3.1: clipped at 10, the mean is 3.8 with carrying
  # over; without it, E min(l, 10) = (1 - 0.8^10) / 0.2 = 4.46.
  assert abs(sizes.mean() - 4.46) < 4 * sizes.std() / np.sqrt(len(sizes)) + 0.1
  rows = source(Spans(mask=0.5, random=0.0, rate=0.05)).rows(0, 400)
  for tokens_T, weight_T in zip(rows['tokens'], rows['weight'], strict=True):
    edges = np.flatnonzero(np.diff(weight_T, prepend=0, append=0))
    for start, stop in edges.reshape(-1, 2):
      # Two spans may touch: a change is then at most one more.
      masked = tokens_T[start:stop] == 258
      assert np.count_nonzero(np.diff(masked)) <= 2


@pytest.mark.parametrize(
  ('make', 'said'),
  [
    (lambda: Tokens(rate=0.0), r'rate=0.0 must be in \(0, 1\)'),
    (lambda: Tokens(mask=0.8, random=0.3), 'must sum to at most 1'),
    (lambda: Words(word='('), r"word='\(' is not a regular expression"),
    (lambda: Words(longest=0), 'longest=0 must be at least 1'),
    (lambda: Spans(end=0.0), r'end=0.0 must be in \(0, 1\]'),
    (lambda: Knowledge(stages=(5, 2)), r'stages=\(5, 2\)'),
    (lambda: Knowledge(shares=(0, 0, 0)), 'shares'),
    (
      lambda: Knowledge(entities='no/file').fingerprint(),
      'entities=no/file: no',
    ),
    (lambda: Masked(Letters(length=2)), 'text.length=2 must be at least 3'),
    (lambda: Masked(Letters(), maskings=-1), 'maskings=-1'),
  ],
)
def test_bad_fields_are_named_in_one_line(make, said):
  with pytest.raises(ValueError, match=said) as error:
    make()
  assert '\n' not in str(error.value)


def test_facts_count_the_special_ids(source):
  facts = source().facts()
  assert facts['vocab'] == Bytes().vocab + 4
  assert facts['mask'] == 258
  assert 'bytes_per_token' not in facts
