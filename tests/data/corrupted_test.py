"""Text with holes can be put together again."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from bigdl.data.corrupted import Corrupted
from bigdl.data.stdlib import StandardLibrary

TEXT = StandardLibrary(length=40, cache='')
HOLES = Corrupted(TEXT, rate=0.5, span=4)


def filled(source, target, begin):
  """Returns the text that a source and a target were made of."""
  target = target[1:-1].tolist()
  starts = [i for i, t in enumerate(target) if t > begin]
  spans = {
    target[a]: target[a + 1 : b]
    for a, b in zip(starts, [*starts[1:], len(target)], strict=True)
  }
  text = []
  for token in source.tolist():
    text += spans.get(token, [token])
  return text


@pytest.mark.parametrize('split', ['train', 'validation'])
def test_source_and_target_are_the_text(split):
  holes = dataclasses.replace(
    HOLES, text=dataclasses.replace(TEXT, split=split)
  )
  rows, text = holes.rows(3, 12), holes.text.rows(3, 12)
  begin = holes.facts()['begin']
  assert rows['source'].shape == (9, 40 - 20 + 5)
  assert rows['tokens'].shape == (9, 20 + 5 + 2)
  for source, target, want in zip(
    rows['source'], rows['tokens'], text['tokens'], strict=True
  ):
    assert target[0] == begin and target[-1] == holes.facts()['end']
    marks = list(range(begin + 1, begin + 6))
    assert [t for t in source if t > begin] == marks
    assert [t for t in target if t > begin] == marks
    assert filled(source, target, begin) == want[:40].tolist()
  most = max(rows['source'].max(), rows['tokens'].max())
  assert most == holes.facts()['vocab'] - 1


def test_holes_are_new_in_each_epoch_and_fixed_in_validation():
  size = len(HOLES)
  train = {tuple(HOLES._bounds(i)) for i in (0, size, 2 * size)}
  assert len(train) == 3
  held_out = dataclasses.replace(
    HOLES, text=dataclasses.replace(TEXT, split='validation')
  )
  size = len(held_out)
  first, again = held_out.rows(0, 2), held_out.rows(size, size + 2)
  for name, x in first.items():
    np.testing.assert_array_equal(x, again[name])


def test_spans_have_the_mean_length_that_is_asked():
  sizes = np.concatenate([np.diff(HOLES._bounds(i))[1::2] for i in range(300)])
  assert sizes.mean() == 4 and sizes.min() == 1 and sizes.max() > 8


def test_hidden_and_spans_are_counted():
  assert (HOLES.hidden, HOLES.spans) == (20, 5)
  paper = Corrupted(dataclasses.replace(TEXT, length=512))
  assert (paper.hidden, paper.spans) == (77, 26)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'rate': 0.0}, r'rate=0.0 must be in \(0, 1\)'),
    ({'span': 0.5}, 'span=0.5 must be at least 1'),
    ({'rate': 0.9, 'span': 1.0}, 'rate=0.9 and span=1.0 must leave a token'),
  ],
)
def test_bad_fields_are_refused(fields, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    Corrupted(TEXT, **fields)
