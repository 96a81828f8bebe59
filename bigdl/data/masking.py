"""Which tokens of a row are hidden, and what stands in their place.

Tokens: Devlin et al., 2018, arXiv:1810.04805, section 3.1. Whole words: the
authors' release of 2019. Words, phrases and entities: Sun et al., 2019 (ERNIE),
arXiv:1904.09223, section 3.2. Spans: Joshi et al., 2019, arXiv:1907.10529,
section 3.1.
Differs from the papers: what is hidden is a share of the row in expectation,
not rounded; random tokens are never special ones; ERNIE's phrases and entities
are found by rules, not by an analyser of Chinese.
"""

# Shapes: T tokens of a row.
from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
import pathlib
import re
from typing import ClassVar

import numpy as np

# Stands for what no unit may reach across: no character of any text.
WALL = '\uffff'
WORD = r'\w+'


@dataclasses.dataclass(frozen=True)
class Masking:
  """Hides units of text: tokens, words, phrases; a subclass says which.

  Units are taken in random order until the share `rate` of a row's tokens is
  hidden: exactly so in expectation, but for rows so short that the one unit
  which they hide at least is more. Of what is hidden, the share `mask` becomes
  [MASK], `random` a random token, and the rest stays.
  """

  rate: float = 0.15
  mask: float = 0.8
  random: float = 0.1
  # Whether what replaces a unit is one choice, not one a token.
  together: ClassVar[bool] = False

  def __post_init__(self):
    if not 0 < self.rate < 1:
      raise ValueError(f'rate={self.rate} must be in (0, 1)')
    for name in ('mask', 'random'):
      if not 0 <= getattr(self, name) <= 1:
        raise ValueError(f'{name}={getattr(self, name)} must be in [0, 1]')
    if self.mask + self.random > 1 + 1e-9:
      raise ValueError(
        f'mask={self.mask} and random={self.random} must sum to at most 1'
      )

  @property
  def most(self) -> int:
    """The most tokens of a unit; a longer one is cut."""
    return 1

  def fingerprint(self) -> str:
    """Returns a string that names what is hidden."""
    return repr(self)

  def units(
    self, pieces: np.ndarray, rng: np.random.Generator, number: int
  ) -> list[tuple[int, int]]:
    """Returns the units of a row, each where it begins and ends.

    They do not overlap, and none is longer than `most`.

    Args:
      pieces: The text of each token, `[T]`, `WALL` for one that stays as it is.
      rng: The row's own.
      number: Of the row, from the start of training; -1: it is held out.
    """
    raise NotImplementedError

  def choose(
    self, pieces: np.ndarray, rng: np.random.Generator, number: int
  ) -> np.ndarray:
    """Returns the units to hide, where each begins and ends: `[units, 2]`.

    The arguments are those of `units`.
    """
    taken: list[tuple[int, int]] = []
    left = self._draw_size(pieces != WALL, rng)
    for start, stop in self._order(pieces, rng, number) if left else ():
      size = stop - start
      # A unit that is too long is taken so often that the share is right.
      if size > left and taken and rng.random() * size >= left:
        break
      taken.append((start, stop))
      left -= size
      if left <= 0:
        break
    return np.array(taken, np.int64).reshape(-1, 2)

  def _draw_size(self, free_T, rng) -> int:
    """Returns how many tokens to hide; its expectation is the rate's share."""
    size = int(free_T.sum())
    return max(1, int(self.rate * size + rng.random())) if size else 0

  def _order(self, pieces, rng, number) -> Iterator[tuple[int, int]]:
    units = self.units(pieces, rng, number)
    for i in rng.permutation(len(units)):
      yield units[i]

  def count(self, length: int) -> int:
    """Returns how many of a row's `length` tokens are hidden at most."""
    return min(length, int(self.rate * length) + self.most)


@dataclasses.dataclass(frozen=True)
class Tokens(Masking):
  """Single tokens, each as likely as any other (BERT, RoBERTa)."""

  def choose(self, pieces, rng, number):
    free_T = pieces != WALL
    size = self._draw_size(free_T, rng)
    starts = rng.permutation(np.flatnonzero(free_T))[:size]
    return np.stack([starts, starts + 1], axis=1)

  def units(self, pieces, rng, number):
    return [(int(t), int(t) + 1) for t in np.flatnonzero(pieces != WALL)]


@dataclasses.dataclass(frozen=True)
class Words(Masking):
  """Whole words, so that no half of one gives away the other."""

  word: str = WORD  # Regular expression; what it leaves is hidden by token.
  longest: int = 16  # Tokens; longer words are cut.

  def __post_init__(self):
    super().__post_init__()
    _check_longest(self.longest)
    _compile('word', self.word)

  @property
  def most(self) -> int:
    return self.longest

  def units(self, pieces, rng, number):
    return _split(pieces, [_finder(_compile('word', self.word))], self.longest)


@dataclasses.dataclass(frozen=True)
class Knowledge(Masking):
  """ERNIE's: words at first, then phrases, then entities, as one unit each.

  A level's units are found first, those of the levels before it in what is
  left, and what no level knows is hidden by token. Without `stages` every row
  draws its level; with them, held-out rows hide words.
  """

  word: str = WORD
  # Runs of two to four words of a line.
  phrase: str = r'\w+(?:[ \t]\w+){1,3}'
  # Runs of capitalised words, names in code, numbers.
  entity: str = (
    r'[A-Z]\w*(?:[ \t][A-Z]\w*)+|[A-Za-z]\w*(?:[._]\w+)+|[A-Z]\w+|\d[\d.,]*\d'
  )
  entities: str = ''  # File of entities, one a line, in place of `entity`.
  shares: tuple[float, float, float] = (1.0, 1.0, 1.0)  # Of the levels.
  # Rows of training after which phrases, then entities, are what is hidden.
  stages: tuple[int, ...] = ()
  longest: int = 32  # Tokens; longer units are cut.

  def __post_init__(self):
    super().__post_init__()
    _check_longest(self.longest)
    for name in ('word', 'phrase', 'entity'):
      _compile(name, getattr(self, name))
    if min(self.shares) < 0 or not sum(self.shares) > 0:
      raise ValueError(f'shares={self.shares} must be positive numbers')
    stages = self.stages
    if stages and (len(stages) != 2 or not 0 <= stages[0] <= stages[1]):
      raise ValueError(
        f'stages={stages} must be two numbers of rows, the second no smaller'
      )

  @property
  def most(self) -> int:
    return self.longest

  def fingerprint(self) -> str:
    # The entities themselves count, not where their file lies.
    bare = dataclasses.replace(self, entities='')
    return f'{bare} {sorted(self._listed)}'

  @functools.cached_property
  def _listed(self) -> frozenset[tuple[str, ...]]:
    return _read(self.entities) if self.entities else frozenset()

  def units(self, pieces, rng, number):
    level = int(np.searchsorted(self.stages, number, 'right'))
    if not self.stages:
      shares = np.cumsum(self.shares) / sum(self.shares)
      level = int(np.searchsorted(shares, rng.random(), 'right'))
    return _split(pieces, self._finders[level::-1], self.longest)

  @functools.cached_property
  def _finders(self):
    found = [
      _finder(_compile(name, getattr(self, name)))
      for name in ('word', 'phrase', 'entity')
    ]
    if self.entities:
      found[2] = functools.partial(_find, known=self._listed)
    return found


@dataclasses.dataclass(frozen=True)
class Spans(Masking):
  """SpanBERT's: runs of tokens, their lengths drawn from a geometric law.

  A run that meets one taken before it, or the end of a text, ends there.
  """

  end: float = 0.2  # Chance that a span ends after each of its tokens.
  longest: int = 10  # Tokens; longer spans are cut.
  together: ClassVar[bool] = True

  def __post_init__(self):
    super().__post_init__()
    _check_longest(self.longest)
    if not 0 < self.end <= 1:
      raise ValueError(f'end={self.end} must be in (0, 1]')

  @property
  def most(self) -> int:
    return self.longest

  def _order(self, pieces, rng, number):
    free = pieces != WALL
    while free.any():
      start = int(rng.choice(np.flatnonzero(free)))
      stop = start + min(self.longest, int(rng.geometric(self.end)))
      closed = np.flatnonzero(~free[start:stop])
      stop = start + int(closed[0]) if closed.size else min(stop, free.size)
      free[start:stop] = False
      yield start, stop

  def units(self, pieces, rng, number):
    return sorted(self._order(pieces, rng, number))


def _check_longest(longest: int) -> None:
  if longest < 1:
    raise ValueError(f'longest={longest} must be at least 1')


def _compile(name: str, pattern: str) -> re.Pattern:
  try:
    return re.compile(pattern)
  except re.error as error:
    raise ValueError(
      f'{name}={pattern!r} is not a regular expression: {error}'
    ) from error


def _finder(pattern: re.Pattern):
  return lambda text: (match.span() for match in pattern.finditer(text))


def _read(path: str) -> frozenset[tuple[str, ...]]:
  """Returns the words of each line of the file."""
  file = pathlib.Path(path).expanduser()
  if not file.is_file():
    raise ValueError(f'entities={path}: no such file')
  lines = file.read_text('utf-8', 'replace').splitlines()
  found = frozenset(tuple(re.findall(WORD, line)) for line in lines) - {()}
  if not found:
    raise ValueError(f'entities={path} holds no entity')
  return found


def _find(text: str, known: frozenset[tuple[str, ...]]):
  """Yields where the longest entities stand, from the left."""
  words = list(re.finditer(WORD, text))
  longest = max(map(len, known))
  i = 0
  while i < len(words):
    for j in range(min(len(words), i + longest), i, -1):
      if tuple(w[0] for w in words[i:j]) in known:
        span = words[i].start(), words[j - 1].end()
        if WALL not in text[slice(*span)]:
          yield span
          i = j - 1
          break
    i += 1


def _split(pieces, finders, longest: int) -> list[tuple[int, int]]:
  """Returns units that cover each token that is open once, in order.

  A token is of the first unit that holds a character of it.
  """
  text = ''.join(pieces)
  ends = np.cumsum([len(piece) for piece in pieces])
  starts = np.concatenate([[0], ends[:-1]])
  free = pieces != WALL
  units: list[tuple[int, int]] = []
  for find in finders:
    for first, last in find(text):
      if first == last:
        continue
      start = int(np.searchsorted(ends, first, 'right'))
      stop = int(np.searchsorted(starts, last, 'left'))
      if not free[start:stop].all():
        continue
      free[start:stop] = False
      for at in range(start, stop, longest):
        units.append((at, min(stop, at + longest)))
  units += [(int(t), int(t) + 1) for t in np.flatnonzero(free)]
  return sorted(units)
