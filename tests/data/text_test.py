"""Text files of all sorts become the same documents, or one clear line."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import re
import tarfile

import pytest

from bigdl.data import tokens
from bigdl.data.text import TextFiles

TEXTS = [f'document {i}: ' + 'naïve words ' * (i % 7) for i in range(60)]
LINES = ''.join(
  json.dumps({'text': t, 'id': i}) + '\n' for i, t in enumerate(TEXTS)
)


def archive(mode: str, members: dict[str, bytes]) -> bytes:
  out = io.BytesIO()
  with tarfile.open(fileobj=out, mode=mode) as tar:
    for name, content in members.items():
      info = tarfile.TarInfo(name)
      info.size = len(content)
      tar.addfile(info, io.BytesIO(content))
  return out.getvalue()


MEMBERS = {f'texts/{i:02}.txt': t.encode() for i, t in enumerate(TEXTS)}
FILES = {
  'lines.jsonl': LINES.encode(),
  'lines.ndjson': LINES.encode(),
  'lines.jsonl.gz': gzip.compress(LINES.encode()),
  'lines.jsonl.xz': lzma.compress(LINES.encode()),
  'lines.jsonl.bz2': bz2.compress(LINES.encode()),
  'all.tar': archive('w', MEMBERS),
  'all.tar.gz': archive('w:gz', MEMBERS),
  'all.tgz': archive('w:gz', MEMBERS),
  'all.tar.xz': archive('w:xz', MEMBERS),
  'nested.tar': archive(
    'w', {'a/lines.jsonl.gz': gzip.compress(LINES.encode())}
  ),
}


def both(folder, *paths, **options) -> list[str]:
  """Returns the texts of both splits, sorted."""
  found = []
  for split in ('train', 'validation'):
    source = TextFiles(
      paths=tuple(map(str, paths)), split=split, cache=str(folder), **options
    )
    found += [text for _, text in source.documents()]
  return sorted(found)


@pytest.mark.parametrize('name', FILES)
def test_every_kind_of_file_holds_the_same_documents(tmp_path, name):
  file = tmp_path / name
  file.write_bytes(FILES[name])
  assert both(tmp_path, file) == sorted(TEXTS)


def test_paths_may_be_files_folders_and_patterns(tmp_path):
  for i, text in enumerate(TEXTS):
    file = tmp_path / 'in' / f'{i % 3}' / f'{i}.txt'
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
  (tmp_path / 'in' / '.hidden').write_text('not this')
  folder = tmp_path / 'in'
  assert both(tmp_path, folder) == sorted(TEXTS)
  assert both(tmp_path, folder / '*' / '*.txt') == sorted(TEXTS)
  assert both(tmp_path, folder / '0', folder / '[12]' / '*') == sorted(TEXTS)
  # A file that two of them name is read once.
  assert both(tmp_path, folder, folder / '0' / '0.txt') == sorted(TEXTS)


def test_splits_share_no_text_and_own_paths_are_taken_whole(tmp_path):
  file = tmp_path / 'lines.jsonl'
  file.write_text(LINES)
  (tmp_path / 'held.txt').write_text('held out by its path')
  options = {'paths': (str(file),), 'cache': str(tmp_path)}

  def texts(**more):
    return [t for _, t in TextFiles(**options, **more).documents()]

  held = texts(split='validation')
  assert held and not set(held) & set(texts())
  own = {'validation_paths': (str(tmp_path / 'held.txt'),)}
  assert texts(split='validation', **own) == ['held out by its path']
  assert texts(**own) == TEXTS


def test_rows_hold_the_text(tmp_path):
  file = tmp_path / 'one.txt'
  file.write_text('abcdefgh' * 4)
  own = (str(file),)
  source = TextFiles(
    paths=own,
    validation_paths=own,
    split='validation',
    length=8,
    cache=str(tmp_path / 'cache'),
  )
  rows = source.rows(0, len(source))['tokens']
  assert {source.coder.decode(r) for r in rows} <= {
    'abcdefgh' + 'a',
    'abcdefgh\n',
  }


def test_the_end_of_each_document_is_held_out(tmp_path):
  text = 'abcdefghij' * 10
  for name in ('one', 'two'):
    (tmp_path / name).write_text(text)

  def held(split, **options):
    source = TextFiles(
      paths=(str(tmp_path),), split=split, length=4, cache=str(tmp_path / '.c'),
      **options,
    )  # fmt: skip
    return source, [t for _, t in source.documents()]

  train, before = held('train', tail=0.25)
  validation, after = held('validation', tail=0.25)
  assert before == [text[:75]] * 2
  assert after == [text[75:]] * 2
  assert train.fingerprint() != validation.fingerprint()
  other, _ = held('train', tail=0.5)
  assert other.fingerprint() != train.fingerprint()
  with pytest.raises(ValueError, match=r'tail=1.0 must be in \[0, 1\)'):
    held('train', tail=1.0)
  with pytest.raises(
    ValueError, match='tail=0.1 must be 0 where validation_pa'
  ):
    held('train', tail=0.1, validation_paths=('x',))


def test_a_changed_file_is_read_anew_and_an_unchanged_one_is_not(
  tmp_path, monkeypatch
):
  file, cache = tmp_path / 'lines.jsonl', tmp_path / 'cache'
  file.write_text(LINES)

  def source():
    return TextFiles(paths=(str(file),), cache=str(cache))

  first = source().fingerprint()
  opened = []
  read = type(file).open
  monkeypatch.setattr(
    type(file),
    'open',
    lambda self, *a, **k: opened.append(self) or read(self, *a, **k),
  )
  assert source().fingerprint() == first
  assert file not in opened
  file.write_text(LINES + json.dumps({'text': 'one more ' * 9}) + '\n')
  assert source().fingerprint() != first
  assert file in opened
  # The same content elsewhere is the same data.
  moved = tmp_path / 'moved' / 'lines.jsonl'
  moved.parent.mkdir()
  os.rename(file, moved)
  there = TextFiles(paths=(str(moved),), cache=str(cache))
  assert there.fingerprint() != first
  moved.write_text(LINES)
  assert TextFiles(paths=(str(moved),), cache=str(cache)).fingerprint() == first


@pytest.mark.parametrize(
  ('name', 'content', 'words'),
  [
    ('a.jsonl', b'{"text": "x"}\n{"txt": "y"}\n', "a.jsonl:2: field='text'"),
    ('a.jsonl', b'{"text": "x"}\n\n{nope\n', 'a.jsonl:3 is not JSON'),
    ('a.jsonl', b'[1]\n', 'a.jsonl:1 must be a JSON object'),
    ('a.jsonl', b'{"text": 3}\n', "field='text' must be text, got int"),
    ('a.txt', b'abc\xff', 'byte 3 is 0xff'),
    ('a.gz', b'not gzip', 'a.gz is damaged'),
    ('a.txt.gz', FILES['lines.jsonl.gz'][:200], 'a.txt.gz is damaged'),
    ('a.txt.xz', FILES['lines.jsonl.xz'][:80], 'a.txt.xz is damaged'),
    ('a.tar', b'x' * 3000, 'a.tar is damaged'),
    ('a.txt.zst', b'', '.zst is not read'),
    ('a.txt', b'', 'holds no document'),
  ],
)
def test_bad_files_get_one_line_that_names_the_place(
  tmp_path, name, content, words
):
  (tmp_path / name).write_bytes(content)
  source = TextFiles(
    paths=(str(tmp_path / name),), length=4, cache=str(tmp_path / 'cache')
  )
  with pytest.raises(ValueError) as error:
    len(source)
  assert words in str(error.value) and '\n' not in str(error.value)
  # Nothing half-written is left behind.
  made = tmp_path / 'cache'
  assert not [p for p in made.glob('*') if p.name != 'files']


@pytest.mark.parametrize(
  ('options', 'words'),
  [
    ({}, 'paths=() must name at least one file'),
    ({'paths': ('/nowhere/*.txt',)}, 'paths=/nowhere/*.txt matches no file'),
    ({'paths': ('x',), 'split': 'test'}, 'split=test must be train'),
  ],
)
def test_paths_that_are_not_there_get_one_line(tmp_path, options, words):
  with pytest.raises(
    ValueError,
    match=re.escape(words),
  ):
    TextFiles(**options, cache=str(tmp_path)).fingerprint()


def test_documents_are_read_one_at_a_time(tmp_path):
  file = tmp_path / 'lines.jsonl'
  file.write_text(LINES)
  source = TextFiles(paths=(str(file),), cache=str(tmp_path / 'cache'))
  alive = []

  class Watched(tokens.Bytes):
    def encode(self, text):
      alive.append(text)
      return super().encode(text)

  documents = source.documents()
  assert next(iter(documents))
  shard = tokens.build(
    source.documents(), Watched(), tmp_path / 'cache', inputs='watched'
  )
  assert len(shard.ends) == len(alive) > 40
