"""One queue of cells for all hosts of a job: the first claims, the rest follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jax.experimental import multihost_utils
import numpy as np

from bigdl.commands import _cells
from bigdl.fleet.manifest import Cell

_NONE = -1


class Together:
  """A queue from which every host takes the same cell.

  All hosts must call `next` equally often.
  """

  def __init__(self, queue: _cells.Queue | None, cells: Sequence[Cell]):
    """Takes the queue on the first host, None on the others.

    Args:
      queue: What claims.
      cells: Those of the sweep, in one order on all hosts.
    """
    self.settled: dict[str, str] = queue.settled if queue else {}
    self.living = False
    self.left = len(cells)
    self._queue, self._cells = queue, list(cells)

  def next(self) -> _cells.Held | None:
    held, index = None, _NONE
    if self._queue is not None:
      held = self._queue.next()
      names = [cell.name for cell in self._cells]
      index = names.index(held.cell.name) if held else _NONE
      self.living, self.left = self._queue.living, self._queue.left
    told = np.asarray([index, self.living, self.left], np.int32)
    told = np.asarray(multihost_utils.broadcast_one_to_all(told))
    index, self.living, self.left = int(told[0]), bool(told[1]), int(told[2])
    if index == _NONE:
      return None
    return held or Follower(self._cells[index])


class Follower:
  """A cell that the first host holds."""

  def __init__(self, cell: Cell):
    self.cell, self.number = cell, 0

  def check(self) -> None:
    """The first host's claim is checked there."""

  def take(self, news: dict[str, Any]) -> None:
    """The first host's claim tells how far the cell is."""

  def end(self, how: str, **facts: Any) -> None:
    """The first host's claim is ended there."""
