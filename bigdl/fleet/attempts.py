"""What the files in `claims` say of the attempts at the cells of a sweep.

`CELL.3.claim` says who made the third attempt, `CELL.3.finished` (or another of
`ENDS`) how it ended; no process rewrites either. `CELL.beat` is rewritten by who
holds the cell, every few seconds. One listing of names tells all states.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import dataclasses
import json
import re
from typing import Any

from bigdl.fleet.manifest import Cell
from bigdl.fleet.store import Store

FOLDER = 'claims'
ATTEMPTS = 3  # Tries without progress, after which a cell has failed.
# How an attempt may end; where two wrote, the first of these counts: what its
# holder says, before `lost`, which others do.
ENDS = ('finished', 'diverged', 'failed', 'returned', 'lost')
OVER = ('finished', 'diverged')
# Beside an end: the tries up to here count no more.
FORGIVEN = 'forgiven'

_NAME = re.compile(r'(.+)\.([1-9]\d*)\.(\w+)')


@dataclasses.dataclass(frozen=True)
class Attempts:
  """What the names in `claims` say of a cell."""

  last: int = 0  # The number of the latest attempt, 0 for none.
  ends: Mapping[int, frozenset[str]] = dataclasses.field(default_factory=dict)

  def end(self, number: int) -> str | None:
    """Returns how an attempt ended, None where nothing says so."""
    own = self.ends.get(number, frozenset())
    return next((end for end in ENDS if end in own), None)

  @property
  def held(self) -> bool:
    """Whether the latest attempt goes on, as far as names can tell."""
    return self.last > 0 and self.end(self.last) is None


def listed(store: Store) -> dict[str, Attempts]:
  """Returns the attempts at each cell that has any, by one listing."""
  last: dict[str, int] = {}
  ends: dict[str, dict[int, set[str]]] = {}
  for name in store.names(FOLDER):
    match = _NAME.fullmatch(name)
    if match and match[1][0] != '.':
      cell, number = match[1], int(match[2])
      if match[3] == 'claim':
        last[cell] = max(number, last.get(cell, 0))
      else:
        ends.setdefault(cell, {}).setdefault(number, set()).add(match[3])
  return {
    cell: Attempts(
      number, {k: frozenset(v) for k, v in ends.get(cell, {}).items()}
    )
    for cell, number in last.items()
  }


def read(store: Store, cell: str, number: int, kind: str) -> dict[str, Any]:
  """Returns what a file of an attempt says; {} where it is missing or empty.

  A machine that loses its power may leave a name without content.
  """
  return _object(store, f'{FOLDER}/{cell}.{number}.{kind}')


def beat(store: Store, cell: str) -> dict[str, Any]:
  """Returns the latest sign of life at a cell; {} where there is none."""
  try:
    return json.loads(store.read(f'{FOLDER}/{cell}.beat') or b'{}')
  except ValueError:
    return {}  # Read while it was written.


def _object(store: Store, name: str) -> dict[str, Any]:
  data = (store.read(name) or b'').strip()
  try:
    value = json.loads(data) if data else {}
  except ValueError as error:
    raise ValueError(f'{store.url}/{name} is not JSON: {error}') from error
  if not isinstance(value, dict):
    raise ValueError(f'{store.url}/{name}={value!r}: expected an object')
  return value


def record(store: Store, cell: str) -> dict[str, Any]:
  """Returns a cell's record.json, {} where there is none yet."""
  return _object(store, f'cells/{cell}/record.json')


def outcome(store: Store, cell: Cell) -> str:
  """Returns how a cell's run ended, one of `OVER`, or '' where it is not over.

  A run that diverged goes on under another guard.
  """
  status = record(store, cell.name).get('status')
  if status == 'diverged':
    was = _object(store, f'cells/{cell.name}/config.json').get('guard')
    if was is not None and was != cell.config.get('guard', was):
      return ''
  return status if status in OVER else ''


def saved(store: Store, cell: str) -> int:
  """Returns the step of a cell's newest checkpoint, 0 where there is none."""
  names = store.names(f'cells/{cell}/checkpoints')
  return max((int(name) for name in names if name.isdigit()), default=0)


def tries(store: Store, cell: str, attempts: Attempts) -> int:
  """Returns how many of the latest attempts came to nothing.

  One that was stopped and gave its cell back does not count, and none does from
  before a checkpoint that a later one could go on from.
  """
  count, then = 0, saved(store, cell)
  for number in range(attempts.last, 0, -1):
    if FORGIVEN in attempts.ends.get(number, ()):
      break
    began = read(store, cell, number, 'claim').get('step', 0)
    if then > began:
      break
    then = began
    count += attempts.end(number) != 'returned'
  return count


def last_words(store: Store, cell: str) -> str:
  """Returns what the latest attempt that says something says, '' for none."""
  attempts = listed(store).get(cell, Attempts())
  for number in range(attempts.last, 0, -1):
    end = attempts.end(number)
    message = read(store, cell, number, end).get('message') if end else ''
    if message:
      return message
  return ''


def ended(
  store: Store, cell: str, number: int, end: str, facts: Mapping[str, Any]
) -> None:
  """Notes how an attempt ended, unless that is noted already."""
  text = json.dumps(dict(facts)) + '\n'
  made = store.create(f'{FOLDER}/{cell}.{number}.{end}', text.encode())
  if made:
    made.release()


def forgive(store: Store, cells: Iterable[str]) -> None:
  """Lets cells that have failed, or lost their workers, be tried as often again.

  One that is held is forgiven too: its holder may be dead, and no one saw it.
  """
  known = listed(store)
  for cell in cells:
    attempts = known.get(cell, Attempts())
    own = attempts.ends.get(attempts.last, frozenset())
    if attempts.last and not own & {*OVER, 'returned', FORGIVEN}:
      ended(store, cell, attempts.last, FORGIVEN, {})
