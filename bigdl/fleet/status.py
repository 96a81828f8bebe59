"""How a sweep stands: cells, failures, device-hours spent and left, ETA.

All is read from files, by any machine that sees them, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
from typing import Any

from bigdl.fleet import attempts as told
from bigdl.fleet import manifest
from bigdl.fleet.attempts import Attempts
from bigdl.fleet.claims import SILENCE
from bigdl.fleet.manifest import Cell
from bigdl.fleet.store import Store, host

STATES = ('waiting', 'claimed', 'finished', 'diverged', 'failed')


@dataclasses.dataclass(frozen=True)
class Spent:
  """What one attempt took."""

  device: str  # Kind, as the devices name themselves.
  devices: int
  seconds: float

  @property
  def hours(self) -> float:
    return self.seconds * self.devices / 3600


@dataclasses.dataclass(frozen=True)
class Run:
  """How one cell stands."""

  name: str
  state: str  # One of STATES.
  step: int
  steps: int
  flops: float  # Whole run; 0 where it is not counted.
  loss: float | None  # Held out where finished, else of the last record.
  attempts: int
  message: str  # The last line of what went wrong, '' where nothing did.
  where: str  # Host and process that hold it, '' where none does.
  silent: float | None  # Seconds without a sign, if held and clocks agree.
  dead: bool  # Its holder is known to be gone; a worker will take it.
  goodput: float | None  # Share of wall time that trained, where recorded.
  wall_seconds: float
  spent: tuple[Spent, ...] = ()  # One an attempt.

  @property
  def share(self) -> float:
    """The part of the run that is done."""
    if self.state in ('finished', 'diverged'):
      return 1.0
    return min(1.0, self.step / self.steps)

  @property
  def rest(self) -> float:
    """The part of the run that is left to do; none is of one that failed."""
    return 0.0 if self.state == 'failed' else 1.0 - self.share


@dataclasses.dataclass(frozen=True)
class Status:
  """How a sweep stands."""

  spec: str
  runs: tuple[Run, ...]
  codes: int  # Versions of the code that attempts were made with.

  def count(self, state: str) -> int:
    return sum(run.state == state for run in self.runs)

  @property
  def over(self) -> bool:
    """Whether no cell is left to be trained."""
    return self.count('waiting') + self.count('claimed') == 0

  @property
  def spent(self) -> dict[str, float]:
    """Device-hours held by all attempts, by kind of device."""
    hours: dict[str, float] = {}
    for one in (one for run in self.runs for one in run.spent):
      hours[one.device] = hours.get(one.device, 0.0) + one.hours
    return hours

  @property
  def share(self) -> float:
    """The part of the sweep's work that is done."""
    total = sum(self._work(run) for run in self.runs)
    return sum(self._work(r) * r.share for r in self.runs) / total

  def _work(self, run: Run) -> float:
    # Where FLOPs are not counted, cells count alike.
    return run.flops if all(r.flops for r in self.runs) else 1.0

  @property
  def _done(self) -> float:
    """Work that attempts have done, of cells that were not trained before."""
    return sum(self._work(r) * r.share for r in self.runs if r.spent)

  @property
  def left(self) -> dict[str, float] | None:
    """Device-hours to go, by kind of those that work, at the rate so far.

    None before there is a rate.
    """
    spent, done = self.spent, self._done
    if self.over:
      return {}
    if not (done and sum(spent.values())):
      return None
    todo = sum(self._work(r) * r.rest for r in self.runs)
    hours = sum(spent.values()) * todo / done
    shares: Mapping[str, float] = self.devices or {
      k: v for k, v in spent.items() if v
    }
    total = sum(shares.values())
    return {kind: hours * part / total for kind, part in shares.items()}

  @property
  def devices(self) -> dict[str, int]:
    """Devices at work now, by kind."""
    found: dict[str, int] = {}
    for run in self.runs:
      if run.state == 'claimed' and not run.dead:
        last = run.spent[-1]
        found[last.device] = found.get(last.device, 0) + last.devices
    return found

  @property
  def eta_seconds(self) -> float | None:
    """Seconds to go with the workers of now; None where that is not known.

    The rest is shared out evenly, yet no cell can be split.
    """
    left = self.left
    if not left:
      return 0.0 if self.over else None
    at_work = sum(self.devices.values())
    if not at_work:
      return None
    hours = sum(left.values())
    todo = sum(self._work(r) * r.rest for r in self.runs)
    longest = max(self._work(r) * r.rest for r in self.runs)
    # Of the workers that there are, as many devices as one of them has.
    width = at_work / self.count('claimed')
    return 3600 * max(hours / at_work, hours * longest / todo / width)

  @property
  def goodput(self) -> float | None:
    """Share of the runs' wall time that trained, where they say."""
    known = [r for r in self.runs if r.goodput is not None and r.wall_seconds]
    wall = sum(r.wall_seconds for r in known)
    if not wall:
      return None
    return sum((r.goodput or 0.0) * r.wall_seconds for r in known) / wall

  def to_json(self) -> dict[str, Any]:
    left = self.left
    return {
      'sweep': self.spec,
      'cells': len(self.runs),
      'states': {state: self.count(state) for state in STATES},
      'over': self.over,
      'share': self.share,
      'eta_seconds': self.eta_seconds,
      'device_hours': {'spent': self.spent, 'left': left},
      'devices': self.devices,
      'goodput': self.goodput,
      'codes': self.codes,
      'runs': [dataclasses.asdict(run) for run in self.runs],
    }


def read(store: Store) -> Status:
  """Returns how the sweep in a folder stands.

  Raises:
    ValueError: The folder holds no manifest, or nonsense.
  """
  plan, machine = manifest.read(store), host()
  known = told.listed(store)
  found: list[tuple[Run, set[str]]] = []
  for cell in plan.cells:
    attempts = known.get(cell.name, Attempts())
    found.append(_run(store, cell, attempts, machine))
  codes = set().union(*(codes for _, codes in found))
  return Status(plan.spec, tuple(run for run, _ in found), len(codes))


def _run(
  store: Store, cell: Cell, attempts: Attempts, machine: str
) -> tuple[Run, set[str]]:
  name, last = cell.name, attempts.last
  beat = told.beat(store, name) if attempts.held else {}
  if beat.get('attempt') != last:
    beat = {}
  tales = list(_tales(store, name, attempts, beat))
  record = told.record(store, name)
  outcome, owner = told.outcome(store, cell), tales[-1] if tales else {}
  if outcome:
    state = outcome
  elif attempts.held:
    state = 'claimed'
  else:
    most = owner.get('attempts', told.ATTEMPTS)
    failed = last >= most and told.tries(store, name, attempts) >= most
    state = 'failed' if failed else 'waiting'
  held = state == 'claimed'
  dead = held and owner.get('machine') == machine
  dead = dead and owner.get('locked', True)
  dead = dead and store.held(f'{told.FOLDER}/{name}.{last}.claim') is False
  messages = [t['message'] for t in tales if t.get('message')]
  run = Run(
    name=name,
    state=state,
    step=max(beat.get('step', 0), record.get('step', 0)),
    steps=cell.steps,
    flops=cell.flops,
    loss=_first(beat.get('loss'), record.get('loss'), record.get('train_loss')),
    attempts=last,
    message=_message(state, messages, record),
    where=f'{owner.get("host")}:{owner.get("pid")}' if held else '',
    silent=store.age(f'{told.FOLDER}/{name}.beat') if held else None,
    dead=dead,
    goodput=record.get('goodput'),
    wall_seconds=record.get('wall_seconds') or 0.0,
    spent=tuple(
      Spent(t.get('device', '?'), t.get('devices', 1), t.get('seconds', 0.0))
      for t in tales
    ),
  )
  return run, {t['code'] for t in tales if t.get('code')}


def _tales(
  store: Store, cell: str, attempts: Attempts, beat: dict[str, Any]
) -> Iterator[dict[str, Any]]:
  """Yields what is known of each attempt: its claim, and its end or beat."""
  for number in range(1, attempts.last + 1):
    tale = told.read(store, cell, number, 'claim')
    end = attempts.end(number)
    if end:
      tale |= told.read(store, cell, number, end)
    elif number == attempts.last:
      tale |= beat
    yield tale


def _first(*values: float | None) -> float | None:
  return next((v for v in values if v is not None), None)


def _message(state: str, messages: list[str], record: dict[str, Any]) -> str:
  if state == 'diverged':
    return record.get('message', '')
  return messages[-1] if messages and state != 'finished' else ''


def text(status: Status) -> str:
  """Returns the status as lines for a person."""
  counts = [f'{status.count(s)} {s}' for s in STATES if status.count(s)]
  lines = [f'{len(status.runs)} cells: {", ".join(counts)}']
  lines[0] += f'; {status.share:.1%} of the work is done'
  hours, left = status.spent, status.left
  if hours:
    told = f'device-hours  spent {_hours(hours)}'
    told += f'; left {_hours(left)}' if left else ''
    lines.append(told)
  if not status.over:
    at_work = ', '.join(f'{n}x {k}' for k, n in status.devices.items())
    eta = status.eta_seconds
    lines.append(
      f'ETA           {"unknown" if eta is None else clock(eta)}'
      f' ({at_work or "no worker"} at work)'
    )
  if status.goodput is not None:
    lines.append(f'goodput       {status.goodput:.1%}')
  if status.codes > 1:
    lines.append(f'code          {status.codes} versions trained these cells')
  return '\n'.join([*lines, '', *_rows(status.runs)])


def _rows(runs: Iterable[Run]) -> Iterator[str]:
  heads = ('cell', 'state', 'step', 'loss', 'tries', '')
  rows = [heads]
  for run in runs:
    loss = '-' if run.loss is None else f'{run.loss:.4f}'
    state = 'dead' if run.dead else run.state
    step = f'{run.step:,}/{run.steps:,}'
    rows.append((run.name, state, step, loss, str(run.attempts), _note(run)))
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  for row in rows:
    cells = [
      text.ljust(w) if i in (0, 1, 5) else text.rjust(w)
      for i, (text, w) in enumerate(zip(row, widths, strict=True))
    ]
    yield '  '.join(cells).rstrip()


def _note(run: Run) -> str:
  notes = [run.where] if run.where else []
  if run.silent is not None and run.silent > SILENCE / 2:
    notes.append(f'silent for {clock(run.silent)}')
  return '; '.join([*notes, *([run.message] if run.message else [])])


def _hours(hours: dict[str, float]) -> str:
  return ' + '.join(f'{value:.3g} {kind}' for kind, value in hours.items())


def clock(seconds: float) -> str:
  """Returns a duration to read: `40 s`, `12 min`, `3.4 h`."""
  if seconds < 90:
    return f'{seconds:.0f} s'
  if seconds < 5400:
    return f'{seconds / 60:.0f} min'
  return f'{seconds / 3600:.1f} h'
