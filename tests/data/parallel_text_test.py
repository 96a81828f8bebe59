"""Pairs of sentences from files of all sorts."""

from __future__ import annotations

import dataclasses
import gzip
import io
import zipfile

import numpy as np
import pytest

from bigdl.data.parallel_text import ParallelText
from bigdl.data.tokenizers import BPE

LINES = [f'go {i % 40}\tva {i}' for i in range(120)]
BEGIN = 256  # Above the bytes, of which 0 is the end.


@pytest.fixture
def file(tmp_path):
  path = tmp_path / 'pairs.txt'
  path.write_text('\n'.join(LINES) + '\n\n', 'utf-8')
  return path


@pytest.fixture
def pairs(file, tmp_path):
  return ParallelText(
    paths=(str(file),), length=16, cache=str(tmp_path / 'cache')
  )


def texts(source):
  """Returns the pairs of each row as text, by the row's own segments."""
  rows, found = source.rows(0, len(source)), []
  for s, s_seg, t, t_seg in zip(
    *(rows[k] for k in ('source', 'source_segments', 'tokens', 'segments')),
    strict=True,
  ):
    own = []
    for segment in range(1, int(s_seg.max()) + 1):
      left, right = s[s_seg == segment], t[t_seg == segment]
      assert left[-1] == 0 and right[0] == BEGIN and right[-1] == 0
      own.append((text(left[:-1]), text(right[1:-1])))
    assert s_seg.max() == t_seg.max()
    assert (s[s_seg == 0] == BEGIN).all() and (t[t_seg == 0] == BEGIN).all()
    found.append(own)
  return found


def text(ids):
  return bytes(ids.astype(np.uint8)).decode()


def other(pairs, /, **changes):
  return dataclasses.replace(pairs, **changes)


def test_rows_are_the_lines_of_the_file_each_once(pairs):
  held_out = other(pairs, split='validation')
  found = [row for s in (pairs, held_out) for row in texts(s)]
  assert all(len(row) == 1 for row in found)
  lines = sorted('\t'.join(row[0]) for row in found)
  assert lines == sorted(LINES)


def test_lines_of_one_source_are_of_one_split(pairs):
  sides = [
    {row[0][0] for row in texts(other(pairs, split=split))}
    for split in ('train', 'validation')
  ]
  assert all(sides) and not sides[0] & sides[1]


def test_columns_say_which_side_is_read(pairs):
  turned = other(pairs, source=1, target=0)
  assert {(b, a) for row in texts(turned) for a, b in row} < {
    tuple(line.split('\t')) for line in LINES
  }


def test_packed_rows_hold_the_same_pairs_and_waste_little(pairs):
  pairs = other(pairs, length=40)
  packed = other(pairs, packed=True)
  assert sorted(p for row in texts(packed) for p in row) == sorted(
    p for row in texts(pairs) for p in row
  )
  assert len(packed) < len(pairs) / 3
  assert packed.rows(0, len(packed))['segments'].astype(bool).mean() > 0.7


def test_long_pairs_are_left_out_and_counted(pairs):
  short = other(pairs, length=6)
  kept = [row[0] for row in texts(short)]
  assert all(len(a) < 6 and len(b) < 6 for a, b in kept)
  everything, facts = pairs.facts()['pairs'], short.facts()
  assert facts['left_out'] == everything - facts['pairs'] > 0
  assert facts['pairs'] == len(kept) == len(short)
  with pytest.raises(ValueError, match='^length=2 fits no pair of split=train'):
    len(other(pairs, length=2))


def test_epochs_have_an_order_of_their_own(pairs):
  size = len(pairs)
  first, second = pairs.rows(0, size), pairs.rows(size, 2 * size)
  assert not np.array_equal(first['tokens'], second['tokens'])
  for name, x in first.items():
    assert sorted(map(tuple, x)) == sorted(map(tuple, second[name]))


def test_rows_of_one_source_are_one_cluster(pairs):
  held_out = other(pairs, split='validation')
  rows = held_out.rows(0, len(held_out))
  by_cluster: dict[int, set] = {}
  for cluster, (pair,) in zip(rows['cluster'], texts(held_out), strict=True):
    by_cluster.setdefault(int(cluster), set()).add(pair[0])
  assert all(len(sources) == 1 for sources in by_cluster.values())
  assert len(by_cluster) == len({p[0] for (p,) in texts(held_out)})
  assert len(by_cluster) < len(held_out)


def test_byte_pairs_are_learnt_over_both_sides(pairs):
  learnt = other(pairs, tokenizer=BPE(vocab=270))
  ids = learnt.coder.encode('go 1')
  assert len(ids) < 4 and len(learnt.coder.encode('va 1')) < 4
  facts = learnt.facts()
  assert facts['vocab'] == 271 and facts['begin'] == facts['pad'] == 270
  assert facts['end'] == learnt.coder.eod
  rows = learnt.rows(0, len(learnt))
  assert rows['tokens'].max() == 270 and rows['source'].max() == 270


def archive(name):
  packed = io.BytesIO()
  with zipfile.ZipFile(packed, 'w', zipfile.ZIP_DEFLATED) as out:
    out.writestr('_about.txt', 'no pairs here')
    out.writestr(f'{name}/pairs.txt', '\n'.join(LINES))
  return packed.getvalue()


@pytest.mark.parametrize(
  ('name', 'content'),
  [
    ('pairs.txt.gz', gzip.compress('\n'.join(LINES).encode())),
    ('fra-eng.zip', archive('inner')),
  ],
)
def test_compressed_files_and_archives_hold_the_same(
  pairs, tmp_path, name, content
):
  file = tmp_path / name
  file.write_bytes(content)
  packed = other(pairs, paths=(str(file),))
  assert texts(packed) == texts(pairs)
  assert packed.fingerprint() != pairs.fingerprint()


def test_files_for_validation_are_not_split(pairs, tmp_path):
  file = tmp_path / 'test.txt'
  file.write_text('stop\tarrete\n')
  own = other(pairs, validation_paths=(str(file),))
  assert len(own) == len(LINES)
  assert texts(other(own, split='validation')) == [[('stop', 'arrete')]]


@pytest.mark.parametrize('mark', ['\u2028', '\x85', '\x0b', '\x0c'])
def test_only_ends_of_lines_end_pairs(pairs, tmp_path, mark):
  file = tmp_path / 'test.txt'
  raw = f'\ufeffgo\tva\r\none{mark}two\tun{mark}deux\r\n'
  file.write_bytes(raw.encode())
  held_out = other(pairs, validation_paths=(str(file),), split='validation')
  assert sorted(row[0] for row in texts(held_out)) == [
    ('go', 'va'),
    (f'one{mark}two', f'un{mark}deux'),
  ]


def test_a_line_with_too_few_columns_is_named(pairs, tmp_path):
  file = tmp_path / 'bad.txt'
  file.write_text('a\tb\nalone\n')
  with pytest.raises(
    ValueError,
    match=r'bad.txt:2 has 1 columns, expected column source=0 and target=1$',
  ):
    len(other(pairs, paths=(str(file),)))


def test_a_damaged_archive_is_named(pairs, tmp_path):
  file = tmp_path / 'bad.zip'
  file.write_bytes(archive('inner')[:60])
  with pytest.raises(ValueError, match='bad.zip is damaged: '):
    len(other(pairs, paths=(str(file),)))


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'split': 'test'}, 'split=test must be train or validation'),
    ({'length': 1}, 'length=1 must be at least 2'),
    ({'source': -1}, 'source=-1 must not be negative'),
  ],
)
def test_bad_fields_are_refused(fields, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    ParallelText(**fields)
