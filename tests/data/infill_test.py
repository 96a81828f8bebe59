"""Causal-masked infilling: what a row holds, and how spans are drawn."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl.data import infill
from bigdl.data.infill import Infill
from bigdl.data.tokens import TokenSource
from bigdl.models.gpt import GPT
from bigdl.objectives.causal_lm import CausalLM

END = 256  # <EOM>, above the bytes; <Mask:k> is 257 + k.


@dataclasses.dataclass(frozen=True)
class Letters(TokenSource):
  """Every byte of a row differs from its neighbours'."""

  def documents(self):
    text = ''.join(chr(33 + (7 * i) % 90) for i in range(4000))
    return [(self.split, text)]


@pytest.fixture(name='source')
def fixture_source(tmp_path):
  return Infill(Letters(length=40, cache=str(tmp_path)), spans=5)


def restore(row):
  """Undoes the move; returns the text and its spans, left to right."""
  row = row.tolist()
  count = row.count(END)
  # Each mask stands once in the text, and once before its span.
  tail = row.index(END + 1, row.index(END + 1) + 1)
  body, rest, spans = row[:tail], row[tail:], []
  for k in range(count):
    assert rest[0] == END + 1 + k
    stop = rest.index(END)
    spans.append(rest[1:stop])
    rest = rest[stop + 1 :]
  assert rest == []
  for k, span in enumerate(spans):
    at = body.index(END + 1 + k)
    body[at : at + 1] = span
  return body, spans


def test_spans_put_back_give_the_text(source):
  plain = source.text.rows(0, 90)['tokens']
  moved = source.rows(0, 90)['tokens']
  assert moved.shape == plain.shape and moved.dtype == plain.dtype
  counts = []
  for before, after in zip(plain, moved, strict=True):
    text, spans = restore(after)
    assert text == before[: len(text)].tolist()
    # Nothing is lost but room for three tokens a span.
    assert len(text) == len(before) - 3 * len(spans)
    assert all(spans) and max(after) < END + 1 + 5
    counts.append(len(spans))
  assert 1 == min(counts) < max(counts) <= 5


def test_numbers_of_spans_are_poissons_and_lengths_uniform():
  rng = np.random.default_rng(0)
  firsts = []
  for _ in range(4000):
    (span,) = infill.draw(rng, 103, 1)
    firsts.append(span)
  lengths = np.diff(firsts, axis=1)[:, 0]
  assert lengths.min() == 1 and lengths.max() == 100
  # A uniform length of 1 to 100: mean 50.5, deviation 28.9 / sqrt(4000) of it.
  assert lengths.mean() == pytest.approx(50.5, abs=2)
  assert np.percentile(lengths, 25) == pytest.approx(25.5, abs=3)
  # The place is uniform among those that it fits in.
  starts = np.array(firsts)[:, 0] / np.maximum(100 - lengths, 1)
  assert starts[lengths < 60].mean() == pytest.approx(0.5, abs=0.02)


def test_one_span_is_as_likely_as_poisson_says(tmp_path):
  text = Letters(length=40, cache=str(tmp_path))
  rows = Infill(text).rows(0, 2000)['tokens']
  counts = np.bincount((rows == END).sum(1), minlength=4) / len(rows)
  # P(0) + P(1) = 2 / e, P(2) = 1 / 2e; and overlaps do not move weight there.
  assert counts[0] == 0
  assert counts[1] == pytest.approx(2 / np.e, abs=0.03)
  assert counts[2] == pytest.approx(0.5 / np.e, abs=0.03)


@pytest.mark.parametrize('count', [2, 3, 9])
def test_spans_never_overlap_and_fit(count):
  rng = np.random.default_rng(0)
  for _ in range(20):
    spans = infill.draw(rng, 40, count)
    ends = [0, *(x for span in spans for x in span), 40 - 3 * len(spans)]
    assert ends == sorted(ends)
    assert all(first < last for first, last in spans)
    assert 1 <= len(spans) <= count


def test_short_rows_hold_a_span_and_its_marks(tmp_path):
  source = Infill(Letters(length=3, cache=str(tmp_path)))
  rows = source.rows(0, 50)['tokens']
  # One token, moved: its mask, the mask again, the token, the end.
  assert (rows[:, [0, 1, 3]] == [END + 1, END + 1, END]).all()


def test_every_epoch_moves_other_spans_in_training_alone(source):
  size = len(source)
  for split, same in (('train', False), ('validation', True)):
    text = dataclasses.replace(source.text, split=split)
    own = dataclasses.replace(source, text=text)
    # The row that an epoch reads k-th, wherever its order puts it.
    place = [list(text.order(epoch)).index(3) for epoch in (0, 1)]
    rows = [
      own.rows(e * size + p, e * size + p + 1)['tokens']
      for e, p in enumerate(place)
    ]
    assert np.array_equal(*rows) == same


def test_masks_are_read_but_never_learnt(source):
  batch = source.rows(0, 4)
  masks = batch['tokens'] > END
  np.testing.assert_array_equal(batch['weight'], ~masks)
  model = GPT(
    depth=1, width=8, heads=2, vocab=source.facts()['vocab'], length=40
  )
  objective, key = CausalLM(), jax.random.key(0)
  batch = {k: jnp.asarray(v) for k, v in batch.items()}
  params, _ = objective.init(model, key, batch)
  loss, (_, metrics) = objective.loss(model, params, {}, batch, key)
  assert metrics['weight'] == (~masks)[:, 1:].sum()
  logits = model.apply({'params': params}, batch['tokens'][:, :-1])
  losses = -jnp.take_along_axis(
    jax.nn.log_softmax(logits), batch['tokens'][:, 1:, None], -1
  )[..., 0]
  want = losses[~masks[:, 1:]].mean()
  np.testing.assert_allclose(loss, want, rtol=1e-5)
  sums, weights = objective.score(model, params, {}, batch)
  np.testing.assert_allclose(sums.sum() / weights.sum(), want, rtol=1e-5)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'spans': 0}, 'spans=0 must be at least 1'),
    ({'text': Letters(length=2)}, 'text.length=2 must be at least 3'),
    ({'text': Letters(segments=True)}, 'text.segments=True must be False'),
  ],
)
def test_bad_fields_are_named_with_their_value(fields, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    Infill(**{'text': Letters(), **fields})


def test_the_vocabulary_holds_the_special_ids(source):
  assert source.facts()['vocab'] == 256 + 1 + 5
  assert 'bytes_per_token' not in source.facts()
