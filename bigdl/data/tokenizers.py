"""From text to token ids and back."""

from __future__ import annotations

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np


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
