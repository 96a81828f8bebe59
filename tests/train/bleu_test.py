"""BLEU against numbers worked out by hand."""

import math

import pytest

from bigdl.train.bleu import bleu, words

REFERENCE = 'the cat sat on the mat'


def test_a_copy_is_perfect_and_another_text_is_nothing():
  assert bleu([REFERENCE], [REFERENCE]) == pytest.approx(100)
  assert bleu(['dogs ran off at noon today'], [REFERENCE]) == 0


def test_it_is_the_geometric_mean_of_the_four_shares():
  # 5 of 6 words, 3 of 5 pairs, 2 of 4 triples, 1 of 3 quadruples.
  got = bleu(['the cat sat on a mat'], [REFERENCE])
  assert got == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)


def test_a_word_counts_as_often_as_the_reference_has_it():
  # The paper's example: of seven times 'the', two are in the reference.
  got = bleu(['the the the the the the the', REFERENCE], [REFERENCE] * 2)
  shares = (2 + 6) / 13, 5 / 11, 4 / 9, 3 / 7
  assert got == pytest.approx(100 * math.prod(shares) ** 0.25)


def test_short_candidates_are_penalised_and_long_ones_are_not():
  short = bleu(['the cat sat on'], [REFERENCE])
  assert short == pytest.approx(100 * math.exp(1 - 6 / 4))
  long = bleu([REFERENCE + ' now'], [REFERENCE])
  assert long == pytest.approx(100 * (6 / 7 * 5 / 6 * 4 / 5 * 3 / 4) ** 0.25)


def test_counts_are_summed_over_the_corpus():
  texts = ['the cat sat on a mat', 'he is here']
  wanted = [REFERENCE, 'he is here']
  shares = 8 / 9, 5 / 7, 3 / 5, 1 / 3
  got = bleu(texts, wanted)
  assert got == pytest.approx(100 * math.prod(shares) ** 0.25)


def test_punctuation_stands_alone():
  assert words("Va-t'en, vite !") == [
    'Va', '-', 't', "'", 'en', ',', 'vite', '!'
  ]  # fmt: skip


def test_as_many_references_as_candidates_are_needed():
  with pytest.raises(ValueError, match='^1 candidates must be as many as 2'):
    bleu(['a'], ['a', 'b'])
