"""What a run does about a loss that is not finite, or that leaps.

Skips happen inside the compiled update, so that no host waits for a device: an
update whose loss or gradient is bad leaves all as it was but the step. What it
is judged by, the last losses, stays on the devices beside the state and is kept
by step in `guard.json`, not in the checkpoints: the guard of a run may change
between two starts. Rewinds are decided by the hosts, each by the same numbers;
`guard.json` has them too, so that a resume takes the same batches.
"""

# Shapes: W updates of the window.
from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bigdl.experiment import Guard
from bigdl.objectives.base import Metrics, State
from bigdl.train import record

FILE = 'guard.json'
# Of a normal distribution, the median absolute deviation is 1 / 1.4826 sigma.
SIGMAS_PER_MAD = 1.4826
# Losses that are equal but for rounding have no spread to judge others by.
LEAST_SPREAD = 1e-4  # Of their median.
FINE, NONFINITE, SPIKE = range(3)
# Metrics of a guarded update that are for the loop, not for the log.
VERDICT, IN_A_ROW = 'guard_verdict', 'guard_in_a_row'
DEVIATIONS, SKIPPED = 'loss_deviations', 'skipped'
# Metrics that must stay finite.
FINITE = ('loss', 'grad_norm')

Memory = dict[str, Any]
Update = Callable[[State], tuple[State, Metrics]]


def is_compiled(guard: Guard) -> bool:
  """Returns whether the update itself looks at its numbers."""
  return guard.spike > 0 or guard.nonfinite == 'skip'


def fresh(guard: Guard) -> Memory:
  """Returns what a guard knows before the first update, on the host."""
  memory: Memory = {'skipped': np.int32(0), 'in_a_row': np.int32(0)}
  if guard.spike:
    memory['losses_W'] = np.zeros(guard.window, np.float32)
    memory['count'] = np.int32(0)
  return memory


def enter(state: State, memory: Any) -> State:
  """Returns the state with the guard's memory beside it."""
  extra = {'run': state.extra, 'guard': memory}
  return dataclasses.replace(state, extra=extra)


def leave(state: State) -> tuple[State, Any]:
  """Returns the state as checkpoints have it, and the guard's memory."""
  extra = state.extra
  return dataclasses.replace(state, extra=extra['run']), extra['guard']


def judged(guard: Guard, update: Update, state: State) -> tuple[State, Metrics]:
  """Updates a state that has a memory beside it, unless the numbers are bad.

  Args:
    guard: What is bad.
    update: Takes and returns a state without memory; metrics must have `loss`.
    state: As `enter` returns it.

  Returns:
    The state, of which a bad update changes the step only, and the metrics,
    which then say what was bad.
  """
  old, memory = leave(state)
  new, metrics = update(old)
  seen = [metrics[name] for name in FINITE if name in metrics]
  if 'grad_norm' not in metrics:
    seen.append(optax.tree.norm(new.params))
  finite = jnp.stack([jnp.isfinite(x).all() for x in seen]).all()
  verdict = jnp.where(finite, FINE, NONFINITE)
  more = {}
  if guard.spike:
    deviations = _deviations(metrics['loss'], memory['losses_W'])
    known = memory['count'] >= guard.window
    leaps = known & (deviations > guard.spike)
    verdict = jnp.where(finite & leaps, SPIKE, verdict)
    more[DEVIATIONS] = jnp.where(known & finite, deviations, 0.0)
  fine = verdict == FINE
  kept = jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, old)
  kept = dataclasses.replace(kept, step=new.step)
  memory = _remember(memory, metrics['loss'], fine)
  metrics = {
    **metrics,
    **more,
    VERDICT: verdict,
    IN_A_ROW: memory['in_a_row'],
    SKIPPED: memory['skipped'],
  }
  return enter(kept, memory), metrics


def _deviations(loss: jax.Array, losses_W: jax.Array) -> jax.Array:
  middle = jnp.median(losses_W)
  spread = SIGMAS_PER_MAD * jnp.median(jnp.abs(losses_W - middle))
  least = LEAST_SPREAD * jnp.abs(middle) + jnp.finfo(jnp.float32).tiny
  return (loss - middle) / jnp.maximum(spread, least)


def _remember(memory: Memory, loss: jax.Array, fine: jax.Array) -> Memory:
  bad = jnp.where(fine, 0, 1)
  later = {
    'skipped': memory['skipped'] + bad,
    'in_a_row': jnp.where(fine, 0, memory['in_a_row'] + 1),
  }
  if 'losses_W' in memory:
    losses_W, count = memory['losses_W'], memory['count']
    at = count % losses_W.shape[0]
    later['losses_W'] = losses_W.at[at].set(
      jnp.where(fine, loss, losses_W[at]).astype(jnp.float32)
    )
    later['count'] = count + (1 - bad)
  return later


@dataclasses.dataclass(frozen=True)
class Rewind:
  """Once back at step `to`, update n (from 0) takes the batch `n + shift`."""

  to: int
  shift: int
  step: int  # At which the run went back.
  reason: str


def batch_number(rewinds: Sequence[Rewind], update: int) -> int:
  """Returns the batch of an update, both from 0: the last rewind holds."""
  for rewind in reversed(rewinds):
    if rewind.to <= update:
      return update + rewind.shift
  return update


def add_rewind(
  rewinds: Sequence[Rewind], *, to: int, step: int, ahead: int, reason: str
) -> tuple[Rewind, ...]:
  """Returns the rewinds with one more, past `ahead` batches after the bad one.

  Args:
    rewinds: Those before.
    to: The step that the run goes back to.
    step: The bad update, from 1.
    ahead: Batches.
    reason: For a person.
  """
  first = batch_number(rewinds, step - 1) + 1 + ahead
  return (*rewinds, Rewind(to, first - to, step, reason))


def goal(saved: Sequence[int], step: int, back: int) -> int:
  """Returns the step to go back to from a bad one.

  That is the newest that is saved and `back` updates before the bad one, else
  the oldest that is saved before it, else 0.
  """
  before = [s for s in saved if s < step]
  far = [s for s in before if s < step - back]
  return max(far) if far else min(before, default=0)


class Ledger:
  """`guard.json` of a run folder: rewinds, and memories by saved step."""

  def __init__(self, folder: pathlib.Path):
    self._path = folder / FILE
    value = record.read_json(self._path) or {}
    try:
      self.rewinds = tuple(Rewind(**r) for r in value.get('rewinds', []))
      self._memories = dict(value.get('memories', {}))
    except (AttributeError, TypeError, ValueError) as error:
      raise ValueError(f'{self._path} is no guard file: {error}') from error

  def memory(self, guard: Guard, step: int) -> Memory:
    """Returns what the guard knew at that step; fresh where it is not known."""
    memory = fresh(guard)
    kept = self._memories.get(str(step), {})
    for name, value in memory.items():
      here = np.asarray(kept.get(name, value), value.dtype)
      if here.shape != value.shape:
        # Of another window: losses are looked at from here on.
        return fresh(guard)
      memory[name] = here
    return memory

  def keep(self, step: int, memory: Any, *, saved: Sequence[int]) -> None:
    """Adds what the guard knows; forgets the steps that are not saved."""
    known = {str(s): self._memories.get(str(s)) for s in saved}
    known = {s: m for s, m in known.items() if m}
    plain = {k: np.asarray(v).tolist() for k, v in memory.items()}
    self._memories = {**known, str(step): plain}
    self._write()

  def add(self, rewinds: tuple[Rewind, ...]) -> None:
    """Takes the rewinds of the run so far."""
    self.rewinds = rewinds
    self._write()

  def _write(self) -> None:
    if jax.process_index() == 0:
      rewinds = [dataclasses.asdict(r) for r in self.rewinds]
      value = {'rewinds': rewinds, 'memories': self._memories}
      record.write_json(self._path, value)
