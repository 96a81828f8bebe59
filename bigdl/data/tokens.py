"""Tokens in one memory-mapped file, cut into rows that can be read in any order.

A corpus is tokenised once, into a folder named by a hash of its documents and
its tokenizer; documents are read one at a time, so that it may exceed memory. Every document is followed by the tokenizer's `eod`. Row i holds
`length + 1` tokens, and the last of one row is the first of the next, so that
an epoch predicts each token once.
"""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import shutil
import tempfile

import grain.python as grain
import numpy as np

from bigdl.data.base import Source
from bigdl.data.tokenizers import BPE, Bytes, Tokenizer

FORMAT = 2
# Bytes of tokens up to which their checksum is compared at every start.
CHECKED = 2**26
# A document is held out where its hash, as a share of all hashes, is below.
HELD_OUT = 0.08
Document = tuple[str, str]  # Its name and its text.


def default_cache() -> pathlib.Path:
  """Returns the folder that token files are kept in."""
  return pathlib.Path.home() / '.cache' / 'bigdl' / 'tokens'


def is_held_out(text: str, share: float = HELD_OUT) -> bool:
  """Returns whether a document is for validation, by a hash of its text.

  Two copies of one text, whatever their names, are on the same side.
  """
  digest = hashlib.sha256(text.encode('utf-8', 'replace')).digest()
  return int.from_bytes(digest[:8], 'big') < share * 2**64


@dataclasses.dataclass(frozen=True)
class Shard:
  """Tokens on disk with where each document ends.

  tokens: `[tokens]`, memory-mapped.
  ends: int64 `[documents]`, one past each document's `eod`.
  text_bytes: UTF-8 bytes of all documents.
  """

  tokens: np.ndarray
  ends: np.ndarray
  text_bytes: int
  fingerprint: str


def hash_documents(documents: Iterable[Document]) -> str:
  """Returns a hash of names and texts, in their order."""
  digest = hashlib.sha256()
  for document in documents:
    for part in document:
      raw = part.encode('utf-8', 'replace')
      digest.update(f'{len(raw)} '.encode() + raw)
  return digest.hexdigest()


def build(
  documents: Iterable[Document],
  tokenizer: Tokenizer,
  cache: pathlib.Path,
  *,
  inputs: str,
) -> Shard:
  """Returns the tokens of `documents`, from the cache where it holds them.

  Args:
    documents: Read only where the cache does not hold their tokens.
    tokenizer: Turns each into tokens.
    cache: Folder of token files.
    inputs: Names the documents: whatever changes them changes it.

  Raises:
    ValueError: There is no document.
  """
  named = f'{FORMAT} {tokenizer.fingerprint()} {tokenizer.eod} {inputs}'
  key = hashlib.sha256(named.encode()).hexdigest()[:24]
  folder = cache / key
  found = _open(folder, key)
  if found is None:
    _write(documents, tokenizer, folder)
    found = _open(folder, key)
    if found is None:
      raise ValueError(f'cache={folder} was written and cannot be read back')
  return found


def _open(folder: pathlib.Path, key: str) -> Shard | None:
  """Returns the shard, or None where it is missing or damaged."""
  try:
    index = json.loads((folder / 'index.json').read_text())
    ends = np.load(folder / 'ends.npy')
    tokens = np.memmap(folder / 'tokens.bin', dtype=index['dtype'], mode='r')
  except (OSError, ValueError, KeyError):
    return None
  whole = (
    tokens.size == index.get('tokens')
    and ends.size > 0
    and ends[-1] == tokens.size
  )
  # A large file is checked by its size alone, or each start would read it all.
  if whole and tokens.nbytes <= CHECKED:
    whole = hashlib.sha256(tokens.data).hexdigest() == index.get('sha256')
  return Shard(tokens, ends, index['text_bytes'], key) if whole else None


def _write(
  documents: Iterable[Document], tokenizer: Tokenizer, folder: pathlib.Path
) -> None:
  """Writes beside the folder and moves it into place, whole or not at all."""
  folder.parent.mkdir(parents=True, exist_ok=True)
  dtype = (
    'uint8'
    if tokenizer.vocab <= 2**8
    else ('uint16' if tokenizer.vocab <= 2**16 else 'uint32')
  )
  made = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix='.new-'))
  try:
    ends, size, text_bytes = [], 0, 0
    digest = hashlib.sha256()
    with open(made / 'tokens.bin', 'wb') as file:
      for _, text in documents:
        ids = np.append(tokenizer.encode(text), tokenizer.eod).astype(dtype)
        file.write(ids.tobytes())
        digest.update(ids.tobytes())
        size += ids.size
        ends.append(size)
        text_bytes += len(text.encode('utf-8', 'replace'))
    if not ends:
      raise ValueError('there is no document')
    np.save(made / 'ends.npy', np.array(ends, np.int64))
    index = {
      'dtype': dtype,
      'tokens': size,
      'text_bytes': text_bytes,
      'sha256': digest.hexdigest(),
    }
    (made / 'index.json').write_text(json.dumps(index))
    if folder.exists():  # Damaged, or `build` would have returned it.
      shutil.rmtree(folder, ignore_errors=True)
    try:
      os.rename(made, folder)
    except OSError:
      # Another process was first; its folder holds the same tokens.
      if not folder.exists():
        raise
  finally:
    shutil.rmtree(made, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class TokenSource(Source):
  """Rows of tokens; a subclass says which documents.

  Training rows come in an order drawn afresh each epoch; validation rows in one
  fixed order, so that the first so many are a fair sample.
  """

  split: str = 'train'  # Or validation: other documents.
  length: int = 128  # Tokens that a row predicts.
  tokenizer: Tokenizer | BPE = Bytes()
  segments: bool = False  # Whether rows say which document a token is of.
  seed: int = 0  # Of the order of rows.
  cache: str = ''  # Folder for token files; '' takes one per user.

  def __post_init__(self):
    if self.split not in ('train', 'validation'):
      raise ValueError(f'split={self.split} must be train or validation')
    if self.length < 1:
      raise ValueError(f'length={self.length} must be at least 1')

  def documents(self) -> Iterable[Document]:
    """Returns name and text of this split's documents, in a fixed order."""
    raise NotImplementedError

  def inputs(self) -> str:
    """Returns a string that changes where the documents do."""
    return hash_documents(self.documents())

  @property
  def _cache(self) -> pathlib.Path:
    if self.cache:
      return pathlib.Path(self.cache).expanduser()
    return default_cache()

  @functools.cached_property
  def coder(self) -> Tokenizer:
    """The tokenizer; one that has to be learnt, learnt from the train split."""
    if not hasattr(self.tokenizer, 'train'):
      return self.tokenizer
    train = dataclasses.replace(self, split='train')
    texts = (text for _, text in train.documents())
    return self.tokenizer.train(texts, key=train.inputs(), cache=self._cache)

  @functools.cached_property
  def shard(self) -> Shard:
    """The tokens of this split."""
    try:
      return build(
        self.documents(), self.coder, self._cache, inputs=self.inputs()
      )
    except ValueError as error:
      if str(error) != 'there is no document':
        raise
      raise ValueError(
        f'split={self.split} of {type(self).__name__} holds no document'
      ) from None

  def __len__(self) -> int:
    rows = (self.shard.tokens.size - 1) // self.length
    if rows < 1:
      raise ValueError(
        f'length={self.length} is more than the {self.shard.tokens.size} tokens'
        f' of split={self.split}'
      )
    return rows

  def dataset(self) -> grain.MapDataset:
    return grain.MapDataset.source(range(len(self))).map(
      lambda i: {k: v[0] for k, v in self.rows(i, i + 1).items()}
    )

  def facts(self) -> dict:
    shard = self.shard
    return {
      'vocab': self.coder.vocab,
      'tokens': int(shard.tokens.size),
      'documents': int(shard.ends.size),
      # The end of a document is a token that stands for no byte.
      'bytes_per_token': shard.text_bytes / shard.tokens.size,
    }

  def fingerprint(self) -> str:
    return self.shard.fingerprint

  def order(self, epoch: int) -> np.ndarray:
    """Returns the order of rows in that epoch: a permutation, int64 `[rows]`."""
    return _permutation(self.seed, self._epoch(epoch), len(self))

  def _epoch(self, epoch: int) -> int:
    return epoch if self.split == 'train' else 0

  def rows(self, start: int, stop: int) -> dict[str, np.ndarray]:
    size = len(self)
    index = np.arange(start, stop)
    place = np.empty_like(index)
    for epoch in range(start // size, (stop - 1) // size + 1):
      own = index // size == epoch
      place[own] = self.order(epoch)[index[own] % size]
    at = place[:, None] * self.length + np.arange(self.length + 1)
    rows = {'tokens': self.shard.tokens[at].astype(np.int32)}
    if self.segments:
      document = np.searchsorted(self.shard.ends, at, 'right')
      rows['segments'] = (document - document[:, :1] + 1).astype(np.int32)
    if self.split == 'validation':
      first = np.searchsorted(self.shard.ends, at[:, 0], 'right')
      rows['cluster'] = first.astype(np.int32)
    return rows


@functools.lru_cache(maxsize=8)
def _permutation(seed: int, epoch: int, size: int) -> np.ndarray:
  return np.random.default_rng([seed, epoch]).permutation(size)
