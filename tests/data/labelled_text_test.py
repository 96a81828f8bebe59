"""Labelled texts from tables, JSON lines and treebanks."""

from __future__ import annotations

import dataclasses
import gzip
import json

import numpy as np
import pytest

from bigdl.data import tokens
from bigdl.data.labelled_text import LabelledText
from bigdl.data.text import TextFiles
from bigdl.data.tokenizers import BPE, Bytes

TREES = [
  '(3 (2 A) (4 (3 warm) (2 film)))',
  '(0 (1 (2 a) (1 dull)) (2 plot))',
  '(2 (2 It) (2 is))',
  '(4 (2 -LRB-) (4 (4 so\\/so) (4 good)))',
]
TWO = ('0|1', '3|4')


@pytest.fixture
def write(tmp_path):
  def build(name, lines):
    file = tmp_path / name
    text = ''.join(f'{line}\n' for line in lines)
    if name.endswith('.gz'):
      file.write_bytes(gzip.compress(text.encode()))
    else:
      file.write_text(text)
    return str(file)

  return build


def source(file, **changes):
  """All rows of a file, as validation, in a known order."""
  values = {'split': 'validation', 'validation_paths': (file,), 'length': 24}
  return LabelledText(**{**values, **changes})


def texts(data):
  """Each row's text and label, framing taken off."""
  rows = data.rows(0, len(data))
  answers = rows['label' if data.classes else 'target']
  return sorted(
    (bytes(t[s != 0][1:-1].astype(np.uint8)).decode(), a)
    for t, s, a in zip(rows['tokens'], rows['segments'], answers, strict=True)
  )


def test_trees_are_sentences_with_the_label_of_the_whole(write):
  data = source(write('t.txt', TREES), classes=TWO, left_out=('2',))
  assert texts(data) == [
    ('( so/so good', 1),
    ('A warm film', 1),
    ('a dull plot', 0),
  ]
  assert data.facts() == {'vocab': 260, 'rows': 3, 'cut': 0, 'classes': 2}
  five = source(write('t.txt', TREES), classes=tuple('01234'))
  assert [label for _, label in texts(five)] == [4, 3, 2, 0]


def test_phrases_of_trees_are_rows_of_training_alone_each_once(write):
  file = write('t.txt', TREES)
  fields = {'classes': TWO, 'left_out': ('2',), 'phrases': True}
  held_out = source(file, **fields)
  assert len(held_out) == 3
  more = write('more.txt', [*TREES, '(4 (3 warm) (2 film))'])
  train = source(file, split='train', paths=(more,), **fields)
  found = texts(train)
  assert ('warm film', 1) in found and ('dull', 0) in found
  assert len(found) == len(set(found)) == 10


def test_no_phrase_of_a_held_out_tree_is_trained_on(write):
  trees = [f'(1 (0 left{i}) (1 right{i}))' for i in range(200)]
  file = write('t.txt', trees)
  train = LabelledText(paths=(file,), phrases=True, length=24)
  held_out = dataclasses.replace(train, split='validation')
  trained, held = ({t for t, _ in texts(d)} for d in (train, held_out))
  assert 4 < len(held) < 40 and all(len(t.split()) == 2 for t in held)
  assert not {word for t in held for word in t.split()} & trained
  # Of the others all are, but those that are held out themselves.
  assert len(trained) > 2.5 * (200 - len(held))


def test_a_file_may_hold_no_tree_to_train_on(write):
  held_out = next(i for i in range(999) if tokens.is_held_out(f'left right{i}'))
  file = write('t.txt', [f'(1 (0 left) (1 right{held_out}))'])
  more = write('more.txt', [f'(1 up{i})' for i in range(9)])
  data = LabelledText(paths=(file, more), phrases=True, length=24)
  found = {t for t, _ in texts(data)}
  assert found and all(t.startswith('up') for t in found)


def test_examples_beside_files_are_not_in_validation_too(write):
  file = write('a.tsv', ['sentence\tlabel', 'far\t0'])
  data = source(file, examples=(('near', '1'),), split='train')
  assert texts(data) == [('near', 1)]
  assert texts(dataclasses.replace(data, split='validation')) == [('far', 0)]


@pytest.mark.parametrize('mark', ['\u2028', '\x85', '\x0b', '\x0c'])
def test_only_ends_of_lines_end_rows(write, mark):
  row = {'sentence': f'a{mark}b', 'label': 1}
  file = write('a.jsonl', [json.dumps(row, ensure_ascii=False) + '\r'])
  assert texts(source(file)) == [(f'a{mark}b', 1)]
  tree = write('t.txt', [f'(1 (0 a){mark}(1 b))\r', '(0 c)'])
  assert texts(source(tree)) == [('a b', 1), ('c', 0)]


@pytest.mark.parametrize('name', ['a.tsv', 'a.jsonl', 't.txt', 'a.tsv.gz'])
def test_a_byte_order_mark_is_no_part_of_the_text(write, name):
  lines = {
    'a.jsonl': ['{"sentence": "good", "label": 1}'],
    't.txt': ['(1 good)'],
  }.get(name, ['sentence\tlabel', 'good\t1'])
  file = write(name, ['\ufeff' + lines[0], *lines[1:]])
  assert texts(source(file)) == [('good', 1)]


def test_tables_json_and_compressed_files_hold_the_same_rows(write):
  table = ['label\tsentence', '1\ta "good one', '0\tbad']
  rows = [
    {'sentence': 'a "good one', 'label': 1},
    {'sentence': 'bad', 'label': 0},
  ]
  want = [('a "good one', 1), ('bad', 0)]
  for file in (
    write('a.tsv', table),
    write('a.tsv.gz', table),
    write('a.jsonl', map(json.dumps, rows)),
  ):
    assert texts(source(file)) == want
  own = source(write('b.tsv', ['x\ty', 'good\tyes']), text='x', label='y')
  own = dataclasses.replace(own, classes=('no', 'yes'))
  assert texts(own) == [('good', 1)]


def test_rows_are_framed_padded_and_cut(write):
  file = write('a.tsv', ['sentence\tlabel', 'abcdefgh\t1', 'xy\t0'])
  data = source(file, length=6)
  rows = data.rows(0, 2)
  order = np.argsort(rows['label'])
  first, end, pad = 256, 257, 259
  np.testing.assert_array_equal(
    rows['tokens'][order],
    [[first, *b'xy', end, pad, pad], [first, *b'abcd', end]],
  )
  np.testing.assert_array_equal(
    rows['segments'][order], [[1, 1, 1, 1, 0, 0], [1] * 6]
  )
  assert data.facts()['cut'] == 1
  decoder = dataclasses.replace(data, reader='decoder')
  row = decoder.rows(0, 2)['tokens'][order[0]]
  np.testing.assert_array_equal(row, [0, *b'xy', 0, 0, 0])
  assert decoder.facts()['vocab'] == 256


def test_two_texts_are_told_apart_and_the_longer_one_is_cut(write):
  file = write('a.tsv', ['s\tt\tlabel', 'abcdefgh\txy\t1'])
  row = source(file, length=10, text='s', pair='t').rows(0, 1)
  first, end = 256, 257
  np.testing.assert_array_equal(
    row['tokens'][0], [first, *b'abcde', end, *b'xy', end]
  )
  np.testing.assert_array_equal(row['types'][0], [0] * 7 + [1] * 3)


def test_numbers_are_standardised(write):
  file = write('a.tsv', ['sentence\tlabel', 'a\t5', 'b\t-1.5'])
  data = source(file, classes=(), mean=2.0, std=2.0)
  assert texts(data) == [('a', 1.5), ('b', -1.75)]
  assert data.spec()['target'].dtype == np.float32
  assert 'classes' not in data.facts()


def test_a_text_is_on_one_side_whatever_its_label():
  words = [f'word {i}' for i in range(200)]
  data = LabelledText(
    examples=tuple((w, '01'[i % 2]) for i, w in enumerate(words))
  )
  held_out = dataclasses.replace(data, split='validation')
  train, rest = ({t for t, _ in texts(d)} for d in (data, held_out))
  assert train | rest == set(words) and not train & rest
  assert 4 < len(rest) < 40
  other = dataclasses.replace(held_out, examples=tuple((w, '0') for w in words))
  assert {t for t, _ in texts(other)} == rest


def test_the_tokenizer_of_other_data_is_taken(tmp_path, write):
  file = write('book.txt', ['the cat sat on the mat ' * 20])
  text = TextFiles(
    paths=(file,),
    validation_paths=(file,),
    tokenizer=BPE(300),
    cache=str(tmp_path / 'cache'),
  )
  table = write('a.tsv', ['sentence\tlabel', 'the cat\t1', 'the mat\t0'])
  data = source(table, like=text)
  assert data.coder.vocab == 300 and data.facts()['vocab'] == 304
  ids = data.rows(0, 1)['tokens'][0]
  assert (ids != 303).sum() == 2 + len(text.coder.encode('the cat'))
  with pytest.raises(ValueError, match='must be one that is learnt already'):
    source(table, tokenizer=BPE(300)).rows(0, 1)


@pytest.mark.parametrize(
  ('name', 'lines', 'words'),
  [
    ('a.txt', ['(1 a)', '(2 b)'], r"a.txt:2: label='2' must be one of 0, 1$"),
    ('a.tsv', ['sentence\tlabel', 'x\tpositive'], "a.tsv:2: label='positive'"),
    ('a.tsv', ['sentence\tlabel', 'x'], 'a.tsv:2 has 1 columns, .* 2'),
    ('a.tsv', ['text\tlabel', 'x\t1'], "a.tsv:2: text='sentence' is not there"),
    ('a.tsv', ['sentence\tlabel'], 'a.tsv holds no row'),
    ('a.tsv', [], 'a.tsv is empty'),
    ('a.txt', ['(1 (0 a) b'], 'a.txt:1 is not a tree: a bracket is left open'),
    ('a.txt', ['(1 a) b'], "a.txt:1 goes on after its tree: 'b'"),
    ('a.txt', ['(1 ())'], 'a.txt:1 is not a tree: a phrase has no word'),
    ('a.jsonl', ['{'], 'a.jsonl:1 is not JSON'),
    ('a.jsonl', ['3'], 'a.jsonl:1 must be a JSON object'),
    ('a.jsonl', ['{"sentence": "x"}'], "a.jsonl:1: label='label' is not there"),
  ],
)
def test_a_bad_row_is_named_with_its_file(write, name, lines, words):
  with pytest.raises(ValueError, match=words) as error:
    source(write(name, lines)).rows(0, 1)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('label', ['good', 'nan', '-inf'])
def test_a_number_that_is_none_is_named(write, label):
  file = write('a.tsv', ['sentence\tlabel', f'x\t{label}'])
  with pytest.raises(
    ValueError, match=f"a.tsv:2: label='{label}' must be a finite number"
  ):
    source(file, classes=()).rows(0, 1)


@pytest.mark.parametrize(
  ('fields', 'words'),
  [
    ({'classes': ('1',)}, 'must be two or more, or none'),
    ({'classes': ('0|1', '1')}, "label '1' stands twice"),
    ({'left_out': ('1',)}, "label '1' stands twice"),
    ({'std': 0.0}, 'std=0.0 must be positive'),
    ({'length': 3}, 'length=3 must be at least 4'),
    ({'split': 'test'}, 'split=test must be train or validation'),
    ({'reader': 'both'}, 'reader=both must be encoder or decoder'),
  ],
)
def test_a_bad_field_is_refused(fields, words):
  with pytest.raises(ValueError, match=words):
    LabelledText(**fields)


def test_no_file_and_a_missing_file_are_named():
  with pytest.raises(ValueError, match='must name at least one file'):
    len(LabelledText())
  with pytest.raises(ValueError, match='paths=nope.tsv matches no file'):
    len(LabelledText(paths=('nope.tsv',)))
  assert isinstance(LabelledText().coder, Bytes)
