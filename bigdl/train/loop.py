"""The loop itself: update, look at the numbers, save, score, stop together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import signal
from typing import Any

import jax
from jax.sharding import Mesh

from bigdl.experiment import Experiment
from bigdl.objectives.base import State
from bigdl.train import (
  batches,
  book,
  checkpoint,
  device,
  evaluate,
  guard,
  program,
)


@dataclasses.dataclass
class Loop:
  """What is compiled and open while a run trains, and the step it is at."""

  experiment: Experiment
  plan: program.Program
  update: Callable[..., Any]
  score: evaluate.Evaluator | None
  store: checkpoint.Store
  notes: book.Book
  ledger: guard.Ledger
  stream: Stream
  ask: Callable[[int], int]
  check: Callable[[], None]
  step: int  # Updates done.

  def __post_init__(self):
    self.finite, self.key = self.plan.finite(), self.plan.key()
    self.guarded = guard.is_compiled(self.experiment.guard)
    self._saved = self.step

  def catch_up(self, state: State) -> None:
    """Scores a state that was saved before it was scored."""
    every, steps = self.experiment.evaluation.every, self.experiment.steps
    if self.score and self.step and due(self.step, every, steps):
      if not self.notes.has_score(self.step):
        self.measure(state)

  def train(self, state: State) -> None:
    """Trains on to the end, or until asked to stop, and saved.

    Raises:
      Diverged, Rewound: The numbers are bad.
      Hung: The data do not come; where this host is the only one, the state is
        saved.
    """
    e, notes = self.experiment, self.notes
    self._saved = self.step
    if self.guarded:
      memory = self.ledger.memory(e.guard, self.step)
      state = guard.enter(state, self.plan.place_memory(memory))
    notes.clock.enter('train')
    with transfers('disallow'):
      late, asked = None, 0
      while self.step < e.steps and not asked:
        try:
          batch = self.stream.next(late)
        except (batches.Hung, batches.Interrupted) as stuck:
          asked = self._leave(state, late)
          if isinstance(stuck, batches.Hung):
            raise
          break
        notes.clock.waited(self.stream.waited)
        state, metrics = self.update(state, batch, self.key)
        self.step += 1
        # The update before this one is over, or nearly; while the host looks
        # at that one, the devices have this one to do.
        if late is not None:
          notes.observe(*late)
        late = self.step, metrics

        asked = self.ask(self.step)
        saves = asked or due(self.step, e.checkpoints.every, e.steps)
        scores = self.score and due(self.step, e.evaluation.every, e.steps)
        if saves or scores:
          # No state is kept whose own numbers have not been looked at.
          notes.observe(*late)
          late = None
          if saves:
            self.save(state)
          if scores:
            self.measure(guard.leave(state)[0] if self.guarded else state)
    notes.stopped_by = _name(asked)
    notes.clock.enter('save')

  def _leave(self, state: State, late: tuple[int, jax.Array] | None) -> int:
    """Saves what there is, between two updates, where no other host waits."""
    if jax.process_count() > 1:
      return 0
    if late is not None:
      self.notes.observe(*late)
    if self.step != self._saved:
      self.save(state)
    return self.ask(self.step)

  def save(self, state: State) -> None:
    """Starts to save, unless a parameter is not finite."""
    notes = self.notes
    with notes.clock.within('save'), transfers('allow'):
      if not self.finite(state):
        notes.broken(self.step)
      self.check()
      if self.guarded:
        state, memory = guard.leave(state)
        # Before the state: one that is saved has its memory.
        self.ledger.keep(self.step, memory, saved=self.store.steps())
      # A checkpoint must not be whole before what leads up to it.
      notes.flush()
      self.store.save(state, self.step)
      self._saved = self.step
      notes.write('running', self.step)

  def measure(self, state: State) -> None:
    """Scores held-out rows."""
    assert self.score
    with self.notes.clock.within('evaluate'), transfers('allow'):
      self.notes.score(self.step, self.score(state))


class Stream:
  """The batches of a run from any step on, past those that are rewound."""

  def __init__(
    self,
    make: Callable[[int], batches.Batch],
    steps: int,
    watch: batches.Watch,
  ):
    self._make, self._steps = make, steps
    self._late: Any = None
    self._watch = dataclasses.replace(watch, busy=self._is_busy)
    self._now: batches.Prefetch | None = None

  def open(self, step: int, rewinds: tuple[guard.Rewind, ...]) -> None:
    """Starts to make the batches of the updates after that step."""
    self.close()

    def make(update: int) -> batches.Batch:
      return self._make(guard.batch_number(rewinds, update))

    self._now = batches.Prefetch(make, step, self._steps, watch=self._watch)
    self._now.__enter__()

  def close(self) -> None:
    """Ends the thread that makes them."""
    if self._now is not None:
      self._now.__exit__()
      self._now = None

  def next(self, late: tuple[int, jax.Array] | None) -> batches.Batch:
    """Returns the next batch; `late` is the update that may still run."""
    assert self._now is not None
    self._late = late
    return next(self._now)

  @property
  def waited(self) -> float:
    """Seconds for which the last batch kept the devices waiting."""
    return self._now.waited if self._now is not None else 0.0

  def _is_busy(self) -> bool:
    return self._late is not None and not self._late[1].is_ready()


def asking(stop: Callable[[], object], mesh: Mesh) -> Callable[[int], int]:
  """Returns what tells, after a step, whether all hosts leave after it.

  It returns the number of a signal, 1 where there is none, or 0 to go on.
  """

  def own(step: int) -> int:
    asked = stop()
    if not asked and several and device.preempted(step):
      asked = signal.SIGTERM
    return int(asked) if isinstance(asked, int) else int(bool(asked))

  several = jax.process_count() > 1
  if not several:
    return own
  vote = device.Vote(mesh)
  return lambda step: vote(own(step))


def _name(number: int) -> str | None:
  """Returns what asked a run to stop."""
  if number in {*signal.Signals} and number > 1:
    return signal.Signals(number).name
  return 'request' if number else None


def due(step: int, every: int, last: int) -> bool:
  """Returns whether something that is done every so often is due."""
  return step == last or (every > 0 and step % every == 0)


@contextlib.contextmanager
def transfers(rule: str) -> Iterator[None]:
  """Allows or forbids what moves arrays unseen, onto or between devices."""
  with (
    jax.transfer_guard_host_to_device(rule),
    jax.transfer_guard_device_to_device(rule),
  ):
    yield
