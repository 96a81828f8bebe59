"""A run from its folder to its record: what is before and after the loop."""

from __future__ import annotations

from collections.abc import Callable
import contextlib
import dataclasses
import errno
import logging
import os
import pathlib

import jax

from bigdl import storage, tree
from bigdl.data.base import Source
from bigdl.experiment import Experiment
from bigdl.objectives.base import State
from bigdl.train import (
  batches,
  book,
  checkpoint,
  clock,
  device,
  guard,
  log,
  program,
  record,
)
from bigdl.train import loop as loops
from bigdl.train import start as starting

_warn = logging.getLogger(__name__).warning
Say = Callable[[str], None]


def run(
  experiment: Experiment,
  workdir: str | os.PathLike,
  *,
  config: dict,
  facts: dict | None = None,
  on_progress: book.Progress | None = None,
  stop: Callable[[], object] = lambda: False,
  say: Say = _warn,
  began: float | None = None,
) -> dict:
  """Trains an experiment to its end, from the newest checkpoint if any.

  With several processes (`jax.distributed`), all must call it alike, and must
  see the same workdir.

  Args:
    experiment: What to train.
    workdir: The run folder; one that holds another experiment is refused.
    config: The experiment as JSON, to compare and to record.
    facts: What the caller knows of the run and its record should carry:
      `params`, `flops_per_unit`, `budget`, `peak_flops` (of all devices).
    on_progress: Called at every log record.
    stop: Asked between steps; once it is true on any host (the number of a
      signal, say), all save the same step and return.
    say: Takes one line about anything out of the ordinary; what concerns all
      hosts is said by the first.
    began: When this start began, by `time.perf_counter`; the default is now.

  Returns:
    The content of `record.json`. Its status says how the run ended: finished,
    diverged, or interrupted.
  """
  e, folder, watch = experiment, storage.folder(workdir), clock.Clock(began)
  tell = say if jax.process_index() == 0 else lambda _: None
  with contextlib.ExitStack() as stack:
    held = _claim(stack, folder, say)
    record.check_config(folder, config)
    before = record.read_json(folder / 'record.json') or {}
    # All hosts have looked before the first changes anything.
    if device.any_host(_is_over(before, folder, e)):
      return before
    e.check()
    log.check(e.logs)

    plan = program.Program(e, e.layout.mesh())
    machine = device.describe(plan.mesh)
    ledger = guard.Ledger(folder)

    # All is restored, or made, and compiled before the loop.
    shapes = plan.state_shapes()
    # What cannot be started from leaves no folder behind.
    given = None
    if not checkpoint.saved(folder):
      given = starting.load(e.start, shapes.params, tell)
    record.write_config(folder, config)
    store = stack.enter_context(checkpoint.Store(folder, e.checkpoints, tell))

    def load() -> State:
      """Returns the newest state that is saved, else the first one."""
      nonlocal given
      with watch.within('restore'):
        state = store.restore(shapes)
      if state is None:
        given = given or starting.load(e.start, shapes.params, tell)
        state = plan.init(shapes, given)
      return state

    state = load()
    step = int(state.step)
    record.write_provenance(
      folder, e, machine, step, start=given.facts if given else None
    )
    if e.optimizer.is_partial:
      total, own = tree.size(shapes.params), e.optimizer.trained(shapes.params)
      tell(f'{own:,} of {total:,} parameters train ({own / total:.2%})')
    waiting = batches.Watch(
      say, source=_source(e.data), slow=e.guard.slow, hung=e.guard.hung
    )
    # One host of many cannot save on its own.
    alone = jax.process_count() == 1
    stream = loops.Stream(
      plan.batches(),
      e.steps,
      dataclasses.replace(waiting, stop=stop) if alone else waiting,
    )
    stack.callback(stream.close)
    # Data is read while the update compiles.
    stream.open(step, ledger.rewinds)
    with watch.within('compile'):
      update, names = plan.update(shapes)
    notes = book.Book(
      e,
      folder,
      names=names,
      rates=plan.learning_rates(),
      start=step,
      watch=watch,
      before=before,
      config=config,
      facts=facts or {},
      device=machine,
      on_progress=on_progress,
      say=tell,
    )
    stack.enter_context(notes)
    notes.rewinds = ledger.rewinds
    # At once: what was lost is known only until the log is cut.
    notes.write('running', step)
    waiting = dataclasses.replace(waiting, name='the held-out batch {}')
    loop = loops.Loop(
      e,
      plan,
      update,
      plan.evaluator(waiting),
      store,
      notes,
      ledger,
      stream,
      ask=loops.asking(stop, plan.mesh),
      check=held.check if held is not None else lambda: None,
      step=step,
    )
    status, message = _end(loop, state, load, tell)
    watch.enter('start')
    return notes.write(status, loop.step, message)


def _end(
  loop: loops.Loop, state: State, load: Callable[[], State], say: Say
) -> tuple[str, str]:
  """Trains to whatever end there is; returns the run's status and a message."""
  store = loop.store
  try:
    loop.catch_up(state)
    while True:
      try:
        loop.train(state)
        break
      except book.Rewound as bad:
        state = _go_back(bad, loop, load, say)
    store.wait()
  except book.Diverged as error:
    return 'diverged', str(error)
  except batches.Hung as error:
    # The other hosts wait inside an update; only their end frees them.
    if jax.process_count() > 1:
      raise
    return 'interrupted', f'{error}; {_goes_on(store)}'
  except OSError as error:
    if error.errno != errno.ENOSPC:
      raise
    store.clear()
    return 'interrupted', (
      f'no space left on device at step {loop.step}; once there is some,'
      f' {_goes_on(store)}'
    )
  if loop.step == loop.experiment.steps:
    return 'finished', ''
  saved = f'and saved at step {loop.step}' if loop.step else 'before step 1'
  return 'interrupted', f'stopped {saved}; the same command goes on'


def _go_back(
  bad: book.Rewound, loop: loops.Loop, load: Callable[[], State], say: Say
) -> State:
  """Returns the state of a checkpoint; from there on other batches follow.

  What is newer is removed first: killed in between, a run meets the same bad
  update again and does the same about it.
  """
  rule, store, ledger = loop.experiment.guard, loop.store, loop.ledger
  if len(ledger.rewinds) >= rule.patience:
    raise book.Diverged(f'{bad.reason}, after {len(ledger.rewinds)} rewinds')
  loop.stream.close()
  with loop.notes.clock.within('restore'):
    store.wait()
    to = guard.goal(store.steps(), bad.step, rule.back)
    store.drop(after=to)
  state = load()
  step = int(state.step)
  rewinds = guard.add_rewind(
    ledger.rewinds,
    to=step,
    step=bad.step,
    ahead=rule.ahead,
    reason=bad.reason,
  )
  ledger.add(rewinds)
  loop.notes.rewind(step, rewinds)
  say(
    f'{bad.reason}: back to step {step}, and on with batch'
    f' {guard.batch_number(rewinds, step) + 1}'
  )
  loop.step = step
  loop.stream.open(step, rewinds)
  loop.notes.write('running', step)
  return state


def _claim(
  stack: contextlib.ExitStack, folder: pathlib.Path, say: Say
) -> record.Held | None:
  """Locks the folder on the first host; refused there is refused on all."""
  held, problem = None, None
  if jax.process_index() == 0:
    try:
      held = stack.enter_context(record.locked(folder, say))
    except (OSError, ValueError) as error:
      problem = error
  if device.any_host(problem is not None):
    busy = device.any_host(isinstance(problem, record.Busy))
    kind = record.Busy if busy else ValueError
    raise problem or kind(f'{folder}: the first host was refused it')
  return held


def _is_over(before: dict, folder: pathlib.Path, e: Experiment) -> bool:
  """Returns whether there is nothing left to do.

  A run that diverged goes on under another guard.
  """
  if before.get('status') != 'diverged':
    return before.get('status') == 'finished'
  was = (record.read_json(folder / 'config.json') or {}).get('guard') or {}
  return all(
    was.get(f.name, f.default) == getattr(e.guard, f.name)
    for f in dataclasses.fields(e.guard)
  )


def _source(data: Source) -> str:
  """Returns what the data are called where they do not come."""
  known = [
    f'{f.name}={value!r}'
    for f in dataclasses.fields(data)
    if isinstance(value := getattr(data, f.name), str | int | float)
    and value != f.default
  ]
  return f'{type(data).__name__}({", ".join(known)})'


def _goes_on(store: checkpoint.Store) -> str:
  kept = store.steps()
  return 'the same command ' + (
    f'goes on from step {kept[-1]}' if kept else 'starts again'
  )
