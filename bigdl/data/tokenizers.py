"""From text to token ids and back.

Byte pair encoding: Sennrich et al., 2016, arXiv:1508.07909, algorithm 1; over
bytes: Radford et al., 2019 (GPT-2), section 2.2. Word pieces, longest first: Wu et
al., 2016, arXiv:1609.08144, section 4.1, as BERT splits and spells text.
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
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

END = '<|endoftext|>'
# What a folder is searched for.
FILES = ('tokenizer.json', 'tokenizer.model', 'vocab.json', 'vocab.txt')
# What the makers of tokenizers call the end of a document.
ENDS = (END, '</s>', '<eos>', '<|end_of_text|>', '[SEP]')
# What BERT's and RoBERTa's vocabularies call their special tokens.
SPECIALS = (
  ('[CLS]', '[SEP]', '[MASK]', '[PAD]'),
  ('<s>', '</s>', '<mask>', '<pad>'),
  ('<cls>', '<sep>', '<mask>', '<pad>'),
)


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


class Specials(NamedTuple):
  """The ids that encoders read besides text, and the size with them."""

  first: int  # [CLS]: opens a row.
  between: int  # [SEP]: ends a sentence.
  mask: int  # [MASK]: stands for a token that is to be predicted.
  pad: int  # [PAD]: fills a row up.
  vocab: int  # Ids in all.


def specials(tokenizer: Tokenizer) -> Specials:
  """Returns the special ids of a vocabulary; they lie above one without them.

  A vocabulary has them if it holds all four, as BERT or RoBERTa spells them.
  """
  find = getattr(tokenizer, 'find', None)
  if find is not None:
    for names in SPECIALS:
      first, between, mask, pad = map(find, names)
      if None not in (first, between, mask, pad):
        return Specials(first, between, mask, pad, tokenizer.vocab)
  size = tokenizer.vocab
  return Specials(size, size + 1, size + 2, size + 3, size + 4)


def spell(tokenizer: Tokenizer) -> tuple[str, ...]:
  """Returns the text of each id alone; joined, words are told by spaces."""
  own = getattr(tokenizer, 'spell', None)
  if own is not None:
    return own()
  return tuple(tokenizer.decode(np.array([i])) for i in range(tokenizer.vocab))


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

  def spell(self) -> tuple[str, ...]:
    # One character a byte: those of a longer character are letters together.
    return tuple(chr(i) if i < 128 else '\xaa' for i in range(256))

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

  path: `tokenizer.json`, a sentencepiece `.model`, BERT's `vocab.txt` (read in
    lower case; see `WordPiece`), or a folder that holds one of them, or GPT-2's
    `vocab.json` and `merges.txt`.
  end: The token that ends a document; '' looks for one of the usual names.
  """

  path: str
  end: str = ''

  @functools.cached_property
  def _made(self) -> Coder | Pieces:
    path = pathlib.Path(self.path).expanduser()
    if path.is_dir():
      for name in FILES:
        if (path / name).is_file():
          path = path / name
          break
      else:
        raise ValueError(
          f'tokenizer.path={self.path} holds no {", ".join(FILES[:-1])} or'
          f' {FILES[-1]}'
        )
    if not path.is_file():
      raise ValueError(f'tokenizer.path={self.path}: no such file')
    if path.suffix == '.model':
      return Pieces(path, self.end)
    if path.name.endswith('vocab.json'):
      return Coder(_gpt2(path), self.end or END)
    if path.suffix == '.txt':
      return Coder(_word_pieces(path, lower=True), self.end)
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

  def find(self, token: str) -> int | None:
    return self._made.find(token)

  def spell(self) -> tuple[str, ...]:
    return self._made.spell()

  def fingerprint(self) -> str:
    return self._made.fingerprint()


@dataclasses.dataclass(frozen=True)
class WordPiece(TokenizerFile):
  """BERT's word pieces: `path` is a `vocab.txt`, or a folder that holds one."""

  lower: bool = True  # Lower case without accents, as uncased models read.

  @functools.cached_property
  def _made(self) -> Coder:
    path = pathlib.Path(self.path).expanduser()
    path = path / 'vocab.txt' if path.is_dir() else path
    if not path.is_file():
      raise ValueError(f'tokenizer.path={self.path}: no such file')
    return Coder(_word_pieces(path, lower=self.lower), self.end)


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

  def find(self, token: str) -> int | None:
    """Returns the id of a token as the vocabulary spells it, or None."""
    return self._made.token_to_id(token)

  def spell(self) -> tuple[str, ...]:
    # Ids that a small text left over are spelt as nothing.
    known = [self._made.id_to_token(i) or '' for i in range(self.vocab)]
    if type(self._made.model).__name__ != 'WordPiece':
      return tuple(
        self.decode(np.array([i])) if t else '' for i, t in enumerate(known)
      )
    inner = self._made.model.continuing_subword_prefix
    return tuple(
      t.removeprefix(inner) if t.startswith(inner) else f' {t}' for t in known
    )

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

    own = self._made.eos_id()
    self.eod = own if own >= 0 and not end else _end(end, self.find)

  def encode(self, text: str) -> np.ndarray:
    return np.array(self._made.EncodeAsIds(text), np.int32)

  def decode(self, tokens: np.ndarray) -> str:
    return self._made.DecodeIds(np.asarray(tokens).tolist())

  def find(self, token: str) -> int | None:
    """Returns the id of a token as the vocabulary spells it, or None."""
    found = self._made.PieceToId(token)
    return None if found == self._made.unk_id() else found

  def spell(self) -> tuple[str, ...]:
    pieces = (self._made.IdToPiece(i) for i in range(self.vocab))
    return tuple(piece.replace('\u2581', ' ') for piece in pieces)

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


def _word_pieces(path: pathlib.Path, *, lower: bool) -> Any:
  """Returns BERT's tokenizer: words and punctuation, then their pieces."""
  import tokenizers
  from tokenizers import decoders, models, normalizers, pre_tokenizers

  try:
    known = models.WordPiece.read_file(str(path))
  except Exception as error:  # The library raises Exception itself.
    raise ValueError(
      f'tokenizer.path={path} is not a vocabulary of word pieces: {error}'
    ) from error
  if '[UNK]' not in known:
    raise ValueError(
      f'tokenizer.path={path} is not a vocabulary of word pieces: it holds no'
      ' [UNK]'
    )
  made = tokenizers.Tokenizer(models.WordPiece(known, unk_token='[UNK]'))
  made.normalizer = normalizers.BertNormalizer(lowercase=lower)
  made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
  made.decoder = decoders.WordPiece(cleanup=False)
  named = ('[PAD]', '[UNK]', *SPECIALS[0])
  made.add_special_tokens([t for t in dict.fromkeys(named) if t in known])
  return made
