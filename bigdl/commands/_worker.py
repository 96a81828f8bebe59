"""A worker of a sweep on this machine, which a parent watches.

`python -m bigdl.commands._worker SETUP` claims cells and trains them until none
is left; it writes the events of `_cells` to stdout, as JSON lines, besides
`ready`, `refused` (message) and `left`. Once stdin ends it leaves at once: its parent is done, or
dead.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import Any

SECONDS_BETWEEN_NEWS = 0.2


def main(argv: list[str]) -> None:
  """Works until stdin ends; SETUP is JSON of `_pool.Setup`."""
  setup = json.loads(argv[0])
  # Before JAX counts the cores: one that is shared makes each step wait for the
  # slowest thread, and a sum over another number of threads has other digits.
  if setup['cores'] and hasattr(os, 'sched_setaffinity'):
    os.sched_setaffinity(0, setup['cores'])
  parent = threading.Thread(target=_leave_with_parent, daemon=True)
  parent.start()
  # What libraries print must not end up among the events.
  events = os.fdopen(os.dup(1), 'w', buffering=1)
  os.dup2(2, 1)
  due = 0.0

  def tell(event: dict[str, Any]) -> None:
    nonlocal due
    if event['event'] == 'progress':
      if time.monotonic() < due:
        return
      due = time.monotonic() + SECONDS_BETWEEN_NEWS
    events.write(json.dumps(event) + '\n')

  import jax

  from bigdl.commands import _cells, _run
  from bigdl.fleet import claims, manifest, store
  from bigdl.train import device, signals

  device.keep_memory()
  device.enable_compile_cache(setup['cache'] or device.CACHE)
  jax.config.update('jax_platforms', 'cpu')
  _run.silence_writers()
  with signals.interrupts() as stop:
    folder = store.open_folder(setup['folder'])
    plan = manifest.read(folder)
    queue = claims.Claims(
      folder,
      plan.costliest_first,
      {**_cells.devices(), 'code': setup['code']},
      silence=setup['silence'],
      attempts=setup['attempts'],
    )
    tell({'event': 'ready'})
    try:
      _cells.train(
        setup['folder'], queue, _cells.Terms(), on_event=tell, stop=stop
      )
    except ValueError as error:
      tell({'event': 'refused', 'message': str(error)})
    tell({'event': 'left'})
    parent.join()


def _leave_with_parent() -> None:
  while os.read(0, 4096):
    pass
  os._exit(0)


if __name__ == '__main__':
  main(sys.argv[1:])
