"""The training loop: one for all objectives, read from top to bottom."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import errno
import logging
import os
import pathlib
import time

import jax

from bigdl import tree
from bigdl.experiment import Experiment
from bigdl.train import book, checkpoint, device, log, program, record
from bigdl.train import start as starting
from bigdl.train.batches import Prefetch

_warn = logging.getLogger(__name__).warning


def run(
  experiment: Experiment,
  workdir: str | os.PathLike,
  *,
  config: dict,
  facts: dict | None = None,
  on_progress: book.Progress | None = None,
  stop: Callable[[], object] = lambda: False,
  say: Callable[[str], None] = _warn,
) -> dict:
  """Trains an experiment to its end, from the newest checkpoint if any.

  Args:
    experiment: What to train.
    workdir: The run folder; one that holds another experiment is refused.
    config: The experiment as JSON, to compare and to record.
    facts: What the caller knows of the run and its record should carry:
      `params`, `flops_per_unit`, `budget`, `peak_flops` (of all devices).
    on_progress: Called at every log record.
    stop: Asked between steps; once true, the run saves and returns.
    say: Takes one line about anything out of the ordinary.

  Returns:
    The content of `record.json`. Its status says how the run ended: finished,
    diverged, or interrupted.
  """
  e, folder, began = experiment, pathlib.Path(workdir), time.perf_counter()
  with contextlib.ExitStack() as stack:
    if jax.process_index() == 0:
      stack.enter_context(record.locked(folder))
    record.check_config(folder, config)
    before = record.read_json(folder / 'record.json') or {}
    if before.get('status') in ('finished', 'diverged'):
      return before
    e.check()
    log.check(e.logs)

    plan = program.Program(e, e.layout.mesh())
    machine = device.describe(plan.mesh)

    # All is restored, or made, and compiled before the loop.
    shapes = plan.state_shapes()
    # What cannot be started from leaves no folder behind.
    given = None
    if not checkpoint.saved(folder):
      given = starting.load(e.start, shapes.params, say)
    record.write_config(folder, config)
    store = stack.enter_context(checkpoint.Store(folder, e.checkpoints, say))
    state = store.restore(shapes)
    if state is None:
      given = given or starting.load(e.start, shapes.params, say)
      state = plan.init(shapes, given)
    step = int(state.step)
    record.write_provenance(
      folder, e, machine, step, start=given.facts if given else None
    )
    if e.optimizer.is_partial:
      total, own = tree.size(shapes.params), e.optimizer.trained(shapes.params)
      say(f'{own:,} of {total:,} parameters train ({own / total:.2%})')
    # Data is read while the update compiles.
    stream = stack.enter_context(Prefetch(plan.batches(), step, e.steps))
    update, names = plan.update(shapes)
    score, finite, key = plan.evaluator(), plan.finite(), plan.key()
    notes = book.Book(
      e,
      folder,
      names=names,
      rates=plan.learning_rates(),
      start=step,
      began=began,
      before=before,
      config=config,
      facts=facts or {},
      device=machine,
      on_progress=on_progress,
    )
    stack.enter_context(notes)
    notes.write('running', step)
    status, message = 'finished', ''
    try:
      # A run that was killed while it scored has saved this step already.
      due = step and _due(step, e.evaluation.every, e.steps)
      if score and due and not notes.has_score(step):
        notes.score(step, score(state))

      notes.clock.start()
      stack.enter_context(_transfers('disallow'))
      late = None
      stopping = False
      while step < e.steps and not stopping:
        state, metrics = update(state, next(stream), key)
        step += 1
        # The update before this one is over, or nearly; while the host looks
        # at that one, the devices have this one to do.
        if late is not None:
          notes.observe(*late)
        late = step, metrics

        stopping = _stops(stop, step, e.logs.every)
        saves = stopping or _due(step, e.checkpoints.every, e.steps)
        scores = _due(step, e.evaluation.every, e.steps)
        if saves or (score and scores):
          # No state is kept whose own numbers have not been looked at.
          notes.observe(*late)
          late = None
          with notes.clock.paused(), _transfers('allow'):
            if saves:
              if not finite(state):
                raise book.Diverged(f'a parameter is not finite at step {step}')
              store.save(state, step)
              notes.write('running', step)
            if score and scores:
              notes.score(step, score(state))
      notes.clock.stop()
      store.wait()
      if step < e.steps:
        status = 'interrupted'
        message = f'stopped and saved at step {step}; the same command goes on'
    except book.Diverged as error:
      status, message = 'diverged', str(error)
    except OSError as error:
      if error.errno != errno.ENOSPC:
        raise
      store.clear()
      kept = store.steps()
      status = 'interrupted'
      message = f'no space left on device at step {step}; ' + (
        f'once there is some, the same command goes on from step {kept[-1]}'
        if kept
        else 'once there is some, the same command starts again'
      )
    return notes.write(status, step, message)


def _due(step: int, every: int, last: int) -> bool:
  return step == last or (every > 0 and step % every == 0)


def _stops(stop: Callable[[], object], step: int, every: int) -> bool:
  """Returns whether to leave after this step; hosts agree at every record."""
  if jax.process_count() == 1:
    return bool(stop())
  return step % max(every, 1) == 0 and device.any_host(bool(stop()))


@contextlib.contextmanager
def _transfers(rule: str) -> Iterator[None]:
  """Allows or forbids what moves arrays unseen, onto or between devices."""
  with (
    jax.transfer_guard_host_to_device(rule),
    jax.transfer_guard_device_to_device(rule),
  ):
    yield
