"""From text to token ids and back.

Byte pair encoding: Sennrich et al., 2016, arXiv:1508.07909, algorithm 1; over
bytes: Radford et al., 2019 (GPT-2), section 2.2.
Differs from the papers: nothing; the `tokenizers` library does it.
"""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import tempfile
from typing import Any, Protocol, runtime_checkable

import numpy as np

END = '<|endoftext|>'
# What the makers of tokenizers call the end of a document.
ENDS = (END, '</s>', '<eos>', '<|end_of_text|>', '[SEP]')


@runtime_checkable
class Tokenizer(Protocol):
  """What a text source asks of a tokenizer."""

  @property
  def vocab(self) -> int:
    """Returns how many ids there are."""

  @property
  def eod(self) -> int:
    """Returns the id that ends a document."""

  def encode(self, text: str) -> np.ndarray:
    """Returns the ids of a text, int32 `[tokens]`."""

  def decode(self, tokens: np.ndarray) -> str:
    """Returns the text of ids."""

  def fingerprint(self) -> str:
    """Returns a string that names what `encode` does."""


@dataclasses.dataclass(frozen=True)
class Bytes:
  """The bytes of the text in UTF-8; byte 0 ends a document.

  A NUL of the text itself becomes a space, so that byte 0 says one thing.
  """

  @property
  def vocab(self) -> int:
    return 256

  @property
  def eod(self) -> int:
    return 0

  def encode(self, text: str) -> np.ndarray:
    raw = text.encode('utf-8', 'replace').replace(b'\0', b' ')
    return np.frombuffer(raw, np.uint8).astype(np.int32)

  def decode(self, tokens: np.ndarray) -> str:
    raw = bytes(np.asarray(tokens, np.uint8)).replace(b'\0', b'\n')
    return raw.decode('utf-8', 'replace')

  def fingerprint(self) -> str:
    return 'bytes-1'


@dataclasses.dataclass(frozen=True)
class BPE:
  """Byte pairs, learnt from the source's own training documents.

  A source trains it once, before its first token; see `TokenSource.coder`.
  """

  vocab: int = 4096  # Ids, the 256 bytes and the end of a document included.

  def __post_init__(self):
    if self.vocab < 257:
      raise ValueError(
        f'tokenizer.vocab={self.vocab} must be at least 257: the bytes and the'
        ' end of a document'
      )

  def train(
    self, texts: Iterable[str], *, key: str, cache: pathlib.Path
  ) -> Tokenizer:
    """Returns the tokenizer of these texts, from the cache where it is there.

    Args:
      texts: The training documents.
      key: Names them, so that they need not be read again.
      cache: Folder for trained vocabularies.
    """
    name = hashlib.sha256(f'bpe-1 {self.vocab} {key}'.encode()).hexdigest()
    file = cache / f'bpe-{name[:24]}.json'
    if not file.is_file():
      made = self._train(texts).to_str()
      cache.mkdir(parents=True, exist_ok=True)
      handle, part = tempfile.mkstemp(dir=cache, prefix='.new-')
      with os.fdopen(handle, 'w', encoding='utf-8') as out:
        out.write(made)
      os.replace(part, file)
    return Coder(_parse(file.read_text('utf-8'), str(file)), END, self.vocab)

  def _train(self, texts: Iterable[str]) -> Any:
    from tokenizers import models, trainers

    made = _bytewise(models.BPE())
    trainer = trainers.BpeTrainer(
      vocab_size=self.vocab,
      special_tokens=[END],
      initial_alphabet=_alphabet(),
      show_progress=False,
    )
    made.train_from_iterator(texts, trainer)
    return made


@dataclasses.dataclass(frozen=True)
class TokenizerFile:
  """A tokenizer from disk: whatever its makers saved.

  path: `tokenizer.json`, a sentencepiece `.model`, or a folder that holds one
    of them, or GPT-2's `vocab.json` and `merges.txt`.
  end: The token that ends a document; '' looks for one of the usual names.
  """

  path: str
  end: str = ''

  @functools.cached_property
  def _made(self) -> Tokenizer:
    path = pathlib.Path(self.path).expanduser()
    if path.is_dir():
      for name in ('tokenizer.json', 'tokenizer.model', 'vocab.json'):
        if (path / name).is_file():
          path = path / name
          break
      else:
        raise ValueError(
          f'tokenizer.path={self.path} holds no tokenizer.json,'
          ' tokenizer.model or vocab.json'
        )
    if not path.is_file():
      raise ValueError(f'tokenizer.path={self.path}: no such file')
    if path.suffix == '.model':
      return Pieces(path, self.end)
    if path.name.endswith('vocab.json'):
      return Coder(_gpt2(path), self.end or END)
    return Coder(_parse(path.read_text('utf-8'), str(path)), self.end)

  @property
  def vocab(self) -> int:
    return self._made.vocab

  @property
  def eod(self) -> int:
    return self._made.eod

  def encode(self, text: str) -> np.ndarray:
    return self._made.encode(text)

  def decode(self, tokens: np.ndarray) -> str:
    return self._made.decode(tokens)

  def fingerprint(self) -> str:
    return self._made.fingerprint()


class Coder:
  """A tokenizer of the `tokenizers` library."""

  def __init__(self, made: Any, end: str, vocab: int = 0):
    self._made = made
    # A small text may not fill the vocabulary that was asked for.
    self.vocab = vocab or made.get_vocab_size()
    self.eod = _end(end, made.token_to_id)

  def encode(self, text: str) -> np.ndarray:
    ids = self._made.encode(text, add_special_tokens=False).ids
    return np.array(ids, np.int32)

  def decode(self, tokens: np.ndarray) -> str:
    ids = np.asarray(tokens).tolist()
    return self._made.decode(ids, skip_special_tokens=False)

  def fingerprint(self) -> str:
    content = f'{self.eod} {self._made.to_str()}'.encode()
    return f'tokenizers-{hashlib.sha256(content).hexdigest()[:24]}'


class Pieces:
  """A sentencepiece model."""

  def __init__(self, path: pathlib.Path, end: str):
    import sentencepiece

    self._digest = hashlib.sha256(path.read_bytes()).hexdigest()[:24]
    self._made = sentencepiece.SentencePieceProcessor()
    try:
      self._made.Load(str(path))
    except (RuntimeError, OSError) as error:
      raise ValueError(
        f'tokenizer.path={path} is not a sentencepiece model: {error}'
      ) from error
    self.vocab = self._made.GetPieceSize()

    def find(piece: str) -> int | None:
      found = self._made.PieceToId(piece)
      return None if found == self._made.unk_id() else found

    own = self._made.eos_id()
    self.eod = own if own >= 0 and not end else _end(end, find)

  def encode(self, text: str) -> np.ndarray:
    return np.array(self._made.EncodeAsIds(text), np.int32)

  def decode(self, tokens: np.ndarray) -> str:
    return self._made.DecodeIds(np.asarray(tokens).tolist())

  def fingerprint(self) -> str:
    return f'sentencepiece-{self.eod}-{self._digest}'


def _end(end: str, find: Any) -> int:
  names = [end] if end else ENDS
  for name in names:
    found = find(name)
    if found is not None:
      return int(found)
  raise ValueError(
    f'tokenizer.end={end!r}: the vocabulary holds no {" or ".join(names)}; name'
    ' the token that ends a document'
  )


def _alphabet() -> list[str]:
  from tokenizers import pre_tokenizers

  return sorted(pre_tokenizers.ByteLevel.alphabet())


def _bytewise(model: Any) -> Any:
  """Returns a tokenizer that splits and spells text as GPT-2's does."""
  import tokenizers
  from tokenizers import decoders, pre_tokenizers

  made = tokenizers.Tokenizer(model)
  made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  made.decoder = decoders.ByteLevel()
  return made


def _parse(text: str, path: str) -> Any:
  import tokenizers

  try:
    return tokenizers.Tokenizer.from_str(text)
  except Exception as error:  # The library raises Exception itself.
    raise ValueError(
      f'tokenizer.path={path} is not a tokenizer.json: {error}'
    ) from error


def _gpt2(vocab: pathlib.Path) -> Any:
  from tokenizers import models

  merges = vocab.with_name(vocab.name.replace('vocab.json', 'merges.txt'))
  if not merges.is_file():
    raise ValueError(f'tokenizer.path={vocab} needs {merges} beside it')
  try:
    made = _bytewise(models.BPE.from_file(str(vocab), str(merges)))
    known = json.loads(vocab.read_text('utf-8'))
  except Exception as error:
    raise ValueError(
      f'tokenizer.path={vocab} is not a vocabulary of byte pairs: {error}'
    ) from error
  # A token that no merge makes is one that the text cannot spell.
  made.add_special_tokens([t for t in (END,) if t in known])
  return made
