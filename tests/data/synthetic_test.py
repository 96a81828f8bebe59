"""The language of known entropy: its entropy is what it says."""

from __future__ import annotations

import numpy as np
import pytest

from bigdl.data.synthetic import Markov

SOURCE = Markov(vocab=24, length=64)


def surprise(source: Markov, rows: int) -> np.ndarray:
  """Returns -log p of every target under the true chain, `[rows, length]`."""
  tokens = source.rows(0, rows)['tokens']
  rank = np.argsort(source.order, axis=1)
  p = source.probabilities[rank[tokens[:, :-1], tokens[:, 1:]]]
  return -np.log(p)


@pytest.mark.parametrize('split', ['train', 'validation'])
def test_the_true_model_is_surprised_by_the_entropy(split):
  source = Markov(vocab=24, length=64, split=split)
  found = surprise(source, 3000)
  error = found.mean(axis=1).std() / 3000**0.5
  assert error < 0.005
  assert abs(found.mean() - source.entropy) < 4 * error
  # The first target too: nothing that determines it is out of sight.
  first = found[:, 0]
  assert abs(first.mean() - source.entropy) < 4 * first.std() / 3000**0.5


def test_the_entropy_is_that_of_the_formula():
  source = Markov(vocab=4, exponent=1.0)
  q = np.array([12, 6, 4, 3]) / 25
  assert source.entropy == pytest.approx(-(q * np.log(q)).sum(), rel=1e-12)
  assert source.facts()['entropy'] == source.entropy


def test_tokens_come_with_their_stationary_shares_from_the_first_on():
  tokens = SOURCE.rows(0, 4000)['tokens']
  share = SOURCE.stationary
  chain = np.zeros((24, 24))
  np.put_along_axis(chain, SOURCE.order, SOURCE.probabilities[None], axis=1)
  np.testing.assert_allclose(share @ chain, share, atol=1e-12)
  for place in (0, 1, 64):
    found = np.bincount(tokens[:, place], minlength=24) / 4000
    assert np.abs(found - share).max() < 4 * (0.25 / 4000) ** 0.5


def test_common_tokens_are_much_more_common_than_rare_ones():
  share = np.sort(Markov().stationary)
  assert share[-1] > 30 * share[0]


def test_one_token_of_context_is_worth_much(monkeypatch):
  share = SOURCE.stationary
  alone = -(share * np.log(share)).sum()
  assert alone > SOURCE.entropy + 0.3


def test_splits_and_seeds_draw_other_rows_of_the_same_chain():
  held = Markov(vocab=24, length=64, split='validation')
  other = Markov(vocab=24, length=64, seed=1)
  np.testing.assert_array_equal(held.order, SOURCE.order)
  np.testing.assert_array_equal(other.order, SOURCE.order)
  rows = [s.rows(0, 64)['tokens'] for s in (SOURCE, held, other)]
  texts = [{r.tobytes() for r in part} for part in rows]
  assert not texts[0] & texts[1] and not texts[0] & texts[2]
  assert (Markov(vocab=24, table=1).order != SOURCE.order).any()


def test_training_rows_never_come_again_and_held_out_ones_do():
  train = Markov(vocab=24, size=16)
  held = Markov(vocab=24, size=16, split='validation')
  first, second = (train.rows(k, k + 16)['tokens'] for k in (0, 16))
  assert (first != second).any()
  first, second = (held.rows(k, k + 16) for k in (0, 16))
  np.testing.assert_array_equal(first['tokens'], second['tokens'])
  np.testing.assert_array_equal(first['cluster'], np.arange(16))


@pytest.mark.parametrize(
  ('field', 'value'),
  [
    ('split', 'test'),
    ('vocab', 1),
    ('length', 0),
    ('size', 0),
    ('exponent', 0.0),
    ('lean', 1.5),
  ],
)
def test_senseless_fields_are_refused(field, value):
  with pytest.raises(ValueError, match=f'{field}={value}'):
    Markov(**{field: value})
