"""Writes text with a trained model: of a run, a sweep, or a converted folder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import dataclasses
import pathlib
import sys
import time
from typing import Any

from bigdl import flags


@dataclasses.dataclass(frozen=True)
class Flags:
  """Writes text with a trained model: of a run, a sweep, or a converted folder.

  Given a sweep's folder, takes its cell of lowest held-out loss. The text goes
  to stdout, the speed to stderr. An encoder-decoder reads the prompt and writes
  its answer.
  """

  run: str  # Folder of a run, of a sweep, or as `bigdl convert` writes it.
  prompt: str = ''  # What the text begins with; '' begins a document.
  prompts: str = ''  # File with a prompt a line, instead of one prompt.
  tokens: int = 256  # How many to write.
  min_tokens: int = 0  # How many before a text may end.
  samples: int = 1  # Texts of each prompt, drawn independently.
  temperature: float = 0.8  # 0 takes the likeliest token each time.
  top_k: int = 0  # Draw from the so many likeliest tokens; 0: from all.
  top_p: float = 1.0  # Draw from the likeliest that hold this much probability.
  min_p: float = 0.0  # Draw from those of this share of the likeliest one's.
  beams: int = 0  # Search with so many beams instead of drawing; 0: draw.
  length_penalty: float = 1.0  # Of beams: the power of the length divided by.
  stop: tuple[str, ...] = ()  # Texts that end what is written; not shown.
  end: bool = False  # Whether the end of a document ends it too.
  seed: int = 0  # Of what is drawn.


def main(argv: list[str]) -> int:
  """Runs `bigdl generate` and returns the exit code."""
  given, _ = flags.parse(Flags, argv, verb='generate', positional=('run',))
  for name in ('tokens', 'samples'):
    if getattr(given, name) < 1:
      raise ValueError(f'{name}={getattr(given, name)} must be at least 1')
  for name in ('beams', 'min_tokens'):
    if getattr(given, name) < 0:
      raise ValueError(f'{name}={getattr(given, name)} must not be negative')
  asked = _asked(given)
  # JAX is imported from here on.
  from bigdl.commands import _text
  from bigdl.train import sampling

  how = sampling.Sampling(
    given.temperature, given.top_k, given.top_p, given.min_p
  )
  writer = _Writer(given, *_text.load(given.run))
  if given.beams:
    writer.search(asked)
  else:
    writer.draw(asked, how)
  return 0


def _asked(given: Flags) -> list[str]:
  """Returns the prompts."""
  if not given.prompts:
    return [given.prompt]
  if given.prompt:
    raise ValueError('prompt and prompts cannot both be given')
  file = pathlib.Path(given.prompts)
  if not file.is_file():
    raise ValueError(f'prompts={file}: no such file')
  text = file.read_text('utf-8', 'replace')
  lines = text.removesuffix('\n').split('\n')
  if not text:
    raise ValueError(f'prompts={file} holds no line')
  return lines


class _Writer:
  """Turns prompts into tokens, and what the model makes of them into text."""

  def __init__(self, given: Flags, model: Any, params: Any, tokenizer: Any):
    self._given, self._params = given, params
    self._model, self._tokenizer = model, tokenizer
    self._reads = hasattr(self._model, 'encode')
    self._ends: tuple[int, ...] = ()
    if self._reads:
      self._ends = (self._model.end,)
    elif given.end or given.beams:
      self._ends = (self._tokenizer.eod,)

  def draw(self, asked: list[str], how: Any) -> None:
    """Samples, and shows a single text while it is written."""
    from bigdl.train import generate

    rows = [text for text in asked for _ in range(self._given.samples)]
    starts, source = self._tokens(rows)
    stream = generate.generate(
      self._model,
      self._params,
      starts,
      tokens=self._given.tokens,
      sampling=how,
      seed=self._given.seed,
      ends=self._ends,
      min_tokens=self._given.min_tokens,
      source=source,
    )
    times: list[tuple[float, int]] = []
    texts = self._grow(stream, len(rows), times)
    if len(rows) == 1:
      self._show_one(rows[0], texts)
    else:
      self._show_all(rows, list(texts)[-1])
    # By then both programs, for the prompt and for a token, are compiled.
    if len(times) > 3:
      (start, first), (end, last) = times[2], times[-1]
      made = len(rows) * (last - first)
      _say_rate(made, end - start, f'{len(rows)}')

  def search(self, asked: list[str]) -> None:
    """Shows the best outputs of each prompt."""
    from bigdl.train import beam

    given = self._given
    if given.samples > given.beams:
      raise ValueError(
        f'samples={given.samples} must be at most beams={given.beams}'
      )
    starts, source = self._tokens(asked)
    how = beam.Beam(
      given.beams, given.length_penalty, min_tokens=given.min_tokens
    )
    began = time.perf_counter()
    found = beam.search(
      self._model,
      self._params,
      starts,
      tokens=given.tokens,
      beam=how,
      ends=self._ends,
      source=source,
    )
    seconds = time.perf_counter() - began
    outputs = found.tokens_BKT[:, : given.samples]
    texts = [self._text(row.tolist())[0] for own in outputs for row in own]
    rows = [text for text in asked for _ in range(given.samples)]
    if len(rows) == 1:
      self._show_one(rows[0], [texts])
    else:
      self._show_all(rows, texts)
    made = int((found.tokens_BKT[:, 0] >= 0).sum())
    _say_rate(
      made, seconds, f'{len(asked)}, {given.beams} beams, with compilation'
    )

  def _tokens(self, texts: list[str]) -> tuple[list[list[int]], Any]:
    """Returns what each row begins with, and what is read before it."""
    from bigdl.train import generate

    rows = [[int(t) for t in self._tokenizer.encode(text)] for text in texts]
    if not self._reads:
      return [row or [self._tokenizer.eod] for row in rows], None
    width = max(map(len, rows)) + 1
    if width > self._model.length:
      raise ValueError(
        f'prompt of {width - 1} tokens must be shorter than'
        f' length={self._model.length}'
      )
    import numpy as np

    source_BS = np.full((len(rows), width), self._model.pad, np.int32)
    segments_BS = np.zeros((len(rows), width), np.int32)
    for i, row in enumerate(rows):
      source_BS[i, : len(row) + 1] = [*row, self._model.end]
      segments_BS[i, : len(row) + 1] = 1
    starts = [[self._model.begin]] * len(rows)
    return starts, generate.Encoded(source_BS, segments_BS)

  def _grow(
    self, stream: Iterable[Any], count: int, times: list[tuple[float, int]]
  ) -> Iterator[list[str]]:
    """Yields all texts as far as they are written, until all have ended."""
    rows: list[list[int]] = [[] for _ in range(count)]
    for new in stream:
      times.append((time.perf_counter(), len(rows[0])))
      for row, more in zip(rows, new.tolist(), strict=True):
        row += more
      texts = [self._text(row) for row in rows]
      yield [text for text, _ in texts]
      if all(ended for _, ended in texts):
        return

  def _text(self, row: list[int]) -> tuple[str, bool]:
    """Returns a row's text up to its end, and whether that is reached."""
    ended = False
    for i, token in enumerate(row):
      if token < 0 or token in self._ends:
        row, ended = row[:i], True
        break
    text = self._tokenizer.decode(row)
    places = [text.find(s) for s in self._given.stop if s in text]
    if places:
      return text[: min(places)], True
    return text, ended

  def _show_one(self, prompt: str, texts: Iterable[list[str]]) -> None:
    print('' if self._reads else prompt, end='', flush=True)
    longest = max(map(len, self._given.stop), default=1)
    shown = text = ''
    for (text,) in texts:
      # The last character may be half there, the last few begin a stop.
      ready = text.rstrip('\N{REPLACEMENT CHARACTER}')
      ready = ready[: len(ready) - longest + 1]
      if ready.startswith(shown):
        print(ready[len(shown) :], end='', flush=True)
        shown = ready
    print(text[len(shown) :])

  def _show_all(self, rows: list[str], texts: list[str]) -> None:
    for number, (prompt, text) in enumerate(zip(rows, texts, strict=True), 1):
      print(f'--- {number}')
      print(text if self._reads else f'{prompt}{text}')


def _say_rate(tokens: int, seconds: float, batch: str) -> None:
  rate = tokens / max(seconds, 1e-9)
  print(f'bigdl: {rate:,.0f} tokens/s (batch {batch})', file=sys.stderr)
