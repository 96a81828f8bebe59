"""How a sweep that is under way looks: a bar over it and one over each cell."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import contextlib
import sys
import time
from typing import Any

from bigdl.commands import _progress

SECONDS_BETWEEN_LINES = 20


class Board:
  """Takes the events of a sweep; its count of work is in FLOPs.

  Shows plain lines: what `_Bars` does on a terminal, for logs.
  """

  def __init__(self, flops: Mapping[str, float], done: float, unit: str):
    self.unit = unit
    self._flops = flops
    self._part = dict.fromkeys(flops, 0.0)
    self._news: dict[str, dict[str, Any]] = {}
    self._over: set[str] = set()
    self._at_start = done
    self._total = done + sum(flops.values())
    self._began: float | None = None
    self._due = time.monotonic() + SECONDS_BETWEEN_LINES

  @property
  def share(self) -> float:
    """The part of the sweep's FLOPs that is done."""
    return (self._at_start + self._new) / self._total if self._total else 1.0

  @property
  def _new(self) -> float:
    return sum(self._flops[k] * part for k, part in self._part.items())

  @property
  def eta(self) -> float | None:
    """Seconds to go, at the rate of FLOPs so far."""
    if not self._began or not self._new:
      return None
    rate = self._new / (time.monotonic() - self._began)
    return (1 - self.share) * self._total / rate

  def take(self, event: dict[str, Any]) -> None:
    """Takes one event of `_cells` or `_pool`."""
    cell, kind = event.get('cell', ''), event['event']
    if kind == 'start':
      self._began = self._began or time.monotonic()
      self.started(cell)
    elif kind == 'progress':
      self._part[cell] = event['step'] / event['steps']
      self._news[cell] = event
      self.moved(cell, event)
    elif kind == 'done':
      self._news.pop(cell, None)
      record = event['record']
      if record['status'] == 'finished':
        self._part[cell] = 1.0
      if record['status'] != 'interrupted':
        self._over.add(cell)
      self.ended(cell, self._summary(cell, record))
    elif kind == 'failed':
      self._news.pop(cell, None)
      self._over.add(cell)
      self.ended(cell, f'{cell}: {event["message"]}')
    elif kind == 'settled' and cell in self._part:
      self._part[cell] = 1.0
      self._over.add(cell)
    elif kind == 'lost':
      self._news.pop(cell, None)
      self.ended(cell, f'{cell}: {event["line"]}')
    elif kind == 'again':
      self._news.pop(cell, None)
      self.ended(cell, f'{cell}: {event["message"]}; it is tried again')
    elif kind == 'say':
      self.say(f'{cell}: {event["line"]}')

  def _summary(self, cell: str, record: dict[str, Any]) -> str:
    if record['status'] != 'finished':
      return f'{cell}: {record["message"]}'
    where = f'cell {len(self._over)} of {len(self._flops)}'
    text = f'{where}  {cell}'
    if record['loss'] is not None:
      text += f'  loss {record["loss"]:.4f}'
      if record['loss_se'] is not None:
        text += f' ± {record["loss_se"]:.4f}'
    measures = (record.get('measures') or {}).items()
    for name, value in measures:
      if not name.endswith('_se'):
        text += f'  {name} {value:.4f}'
    text += f'  {record["seconds"]:.1f} s'
    if record.get('tokens_per_second'):
      text += f'  {record["tokens_per_second"]:,.0f} {self.unit}'
    if record.get('mfu'):
      text += f'  MFU {record["mfu"]:.1%}'
    return f'{text}  ETA {_progress.clock(self.eta)}'

  def started(self, cell: str) -> None:
    """A cell has begun."""

  def moved(self, cell: str, news: dict[str, Any]) -> None:
    """A running cell has got further."""
    del cell, news
    if time.monotonic() >= self._due:
      self._due = time.monotonic() + SECONDS_BETWEEN_LINES
      lines = [
        f'{k} {n["step"]}/{n["steps"]}  {_progress.describe(n, self.unit)}'
        for k, n in self._news.items()
      ]
      self.say(f'{self.share:.0%}; ' + '; '.join(lines))

  def ended(self, cell: str, line: str) -> None:
    """A cell is over, one way or another."""
    del cell
    self.say(line)

  def say(self, line: str) -> None:
    print(f'bigdl: {line}', file=sys.stderr, flush=True)


class _Bars(Board):
  """The same with bars on a terminal."""

  def __init__(self, flops, done, unit, bars, console):
    super().__init__(flops, done, unit)
    self._bars, self._console = bars, console
    self._tasks: dict[str, Any] = {}
    self._whole = bars.add_task('', total=self._total or 1, name='sweep')
    self._refresh()

  def _refresh(self) -> None:
    self._bars.update(
      self._whole,
      completed=self.share * (self._total or 1),
      description=f'{len(self._over)} of {len(self._flops)} cells'
      f'  ETA {_progress.clock(self.eta)}',
    )

  def take(self, event: dict[str, Any]) -> None:
    super().take(event)
    self._refresh()

  def started(self, cell: str) -> None:
    self._tasks[cell] = self._bars.add_task('compiling', total=None, name=cell)

  def moved(self, cell: str, news: dict[str, Any]) -> None:
    self._bars.update(
      self._tasks[cell],
      completed=news['step'],
      total=news['steps'],
      description=f'{_progress.describe(news, self.unit)}'
      f'  ETA {_progress.clock(news.get("eta_seconds"))}',
    )

  def ended(self, cell: str, line: str) -> None:
    if cell in self._tasks:
      self._bars.remove_task(self._tasks.pop(cell))
    self.say(line)

  def say(self, line: str) -> None:
    self._console.print(f'bigdl: {line}', markup=False, highlight=False)


@contextlib.contextmanager
def shown(
  flops: Mapping[str, float], *, done: float, unit: str
) -> Iterator[Board]:
  """Yields the board of a sweep: bars on a terminal, else lines, to stderr.

  Args:
    flops: FLOPs of each cell that is to be trained.
    done: FLOPs of those that are trained already.
    unit: What speed counts, such as `tokens/s`.
  """
  if not sys.stderr.isatty():
    yield Board(flops, done, unit)
    return
  from rich import console, progress

  err = console.Console(stderr=True)
  columns = (
    progress.TextColumn('{task.fields[name]}', markup=False),
    progress.BarColumn(bar_width=24),
    progress.TaskProgressColumn(),
    progress.TextColumn('{task.description}', markup=False),
  )
  with progress.Progress(*columns, console=err, transient=True) as bars:
    yield _Bars(flops, done, unit, bars, err)
