"""A worker of a sweep: trains the cells that its parent names, one by one.

`python -m bigdl.commands._worker SETUP` reads a cell a line from stdin, as JSON
`{name, folder, config, facts}`, and writes events to stdout, as JSON lines
with the keys `event` (ready, progress, say, done, failed) and `cell`. Once stdin
ends it leaves at once: its parent is done, or dead.
"""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
import time
import traceback
from typing import Any

SECONDS_BETWEEN_NEWS = 0.2


def main(argv: list[str]) -> None:
  """Serves until stdin ends; SETUP is JSON `{cores, cache}`."""
  setup = json.loads(argv[0])
  # Before JAX counts the cores: one that is shared makes each step wait for the
  # slowest thread, and a sum over another number of threads has other digits.
  if setup['cores'] and hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, setup['cores'])
  inbox: queue.SimpleQueue = queue.SimpleQueue()
  threading.Thread(target=_read, args=(inbox,), daemon=True).start()
  # What libraries print must not end up among the events.
  events = os.fdopen(os.dup(1), 'w', buffering=1)
  os.dup2(2, 1)

  def tell(**event: Any) -> None:
    events.write(json.dumps(event) + '\n')

  import jax

  from bigdl.commands import _run
  from bigdl.train import device, signals

  device.keep_memory()
  device.enable_compile_cache(setup['cache'] or device.CACHE)
  jax.config.update('jax_platforms', 'cpu')
  _run.silence_writers()
  with signals.interrupts() as stop:
    tell(event='ready')
    while True:
      cell = inbox.get()
      name = cell['name']
      try:
        record = _train(cell, tell, stop)
        tell(event='done', cell=name, record=record)
      except ValueError as error:
        tell(event='failed', cell=name, message=str(error), input=True)
      except Exception as error:
        traceback.print_exc()
        message = f'{type(error).__name__}: {error}'
        tell(event='failed', cell=name, message=message, input=False)


def _train(cell: dict[str, Any], tell, stop) -> dict[str, Any]:
  from bigdl import config
  from bigdl.commands import _run
  from bigdl.train import run as loop

  name, due = cell['name'], 0.0
  experiment = config.from_json(cell['config'])

  def progress(news: dict[str, Any]) -> None:
    nonlocal due
    if time.monotonic() >= due:
      due = time.monotonic() + SECONDS_BETWEEN_NEWS
      tell(event='progress', cell=name, **news)

  return loop.run(
    experiment,
    cell['folder'],
    config=cell['config'],
    facts={**cell['facts'], **_run.peak_facts(experiment)},
    on_progress=progress,
    stop=stop,
    say=lambda line: tell(event='say', cell=name, line=line),
  )


def _read(inbox: queue.SimpleQueue) -> None:
  for line in sys.stdin:
    inbox.put(json.loads(line))
  os._exit(0)


if __name__ == '__main__':
  main(sys.argv[1:])
