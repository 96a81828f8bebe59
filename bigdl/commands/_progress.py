"""How a run that is under way looks: a bar on a terminal, else a few lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import sys
import time
from typing import Any

import jax

SECONDS_BETWEEN_LINES = 10

Update = Callable[[dict[str, Any]], None]
Say = Callable[[str], None]


@contextlib.contextmanager
def shown(unit: str) -> Iterator[tuple[Update, Say]]:
  """Yields `(update, say)`: a bar on a terminal, a line now and then elsewhere.

  Both go to stderr; on a pod only the first host shows progress.
  """
  if jax.process_index():
    yield (lambda _: None), _say
  elif sys.stderr.isatty():
    with _bar(unit) as shown:
      yield shown
  else:
    yield _Lines(unit).update, _say


def describe(news: dict[str, Any], unit: str) -> str:
  """Returns loss, speed and utilisation of a progress report in one line."""
  text = f'loss {news["loss"]:.4f}  {news["tokens_per_second"]:,.0f} {unit}'
  if news.get('mfu'):
    text += f'  MFU {news["mfu"]:.1%}'
  return text


def _say(line: str) -> None:
  print(f'bigdl: {line}', file=sys.stderr, flush=True)


class _Lines:
  """One plain line every few seconds, for logs."""

  def __init__(self, unit: str):
    self._unit, self._next = unit, time.monotonic() + SECONDS_BETWEEN_LINES

  def update(self, news: dict[str, Any]) -> None:
    if time.monotonic() < self._next:
      return
    self._next = time.monotonic() + SECONDS_BETWEEN_LINES
    print(
      f'step {news["step"]}/{news["steps"]}  {describe(news, self._unit)}'
      f'  ETA {clock(news.get("eta_seconds"))}',
      file=sys.stderr,
      flush=True,
    )


@contextlib.contextmanager
def _bar(unit: str) -> Iterator[tuple[Update, Say]]:
  from rich import console
  from rich import progress as rich

  err = console.Console(stderr=True)
  columns = (
    rich.TextColumn('step'),
    rich.MofNCompleteColumn(),
    rich.BarColumn(),
    rich.TextColumn('{task.description}'),
    rich.TextColumn('ETA {task.fields[eta]}'),
  )
  with rich.Progress(*columns, console=err, transient=True) as bar:
    task = bar.add_task('compiling', total=None, eta='–')

    def update(news: dict[str, Any]) -> None:
      bar.update(
        task,
        completed=news['step'],
        total=news['steps'],
        description=describe(news, unit),
        eta=clock(news.get('eta_seconds')),
      )

    def say(line: str) -> None:
      err.print(f'bigdl: {line}', markup=False, highlight=False)

    yield update, say


def clock(seconds: float | None) -> str:
  if seconds is None:
    return '–'
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{rest:02}' if hours else f'{minutes}:{rest:02}'
