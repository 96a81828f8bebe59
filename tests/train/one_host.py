"""One of several hosts that train a run together; run by `hosts_test.py`.

usage: one_host.py TASK, where TASK is the JSON of a `Task`
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
import time
from typing import Any


@dataclasses.dataclass(frozen=True)
class Task:
  """What the hosts do, and which of them this is."""

  folder: str
  hosts: int = 2
  host: int = 0
  port: int = 0
  devices: int = 1  # Of each host.
  name: str = 'toy'  # Or 'gpt'.
  layout: dict[str, int] = dataclasses.field(default_factory=dict)
  guard: dict[str, Any] = dataclasses.field(default_factory=dict)
  poisoned: tuple[int, ...] = ()  # Rows whose targets are infinite.
  pause: float = 0.0  # Seconds that a batch takes.
  stuck: int = -1  # The batch that never comes to the last host.
  # The last host is asked to stop once it has logged so many steps; 0: never.
  stop_after: int = 0
  handlers: bool = True  # Own ones for signals, else those of JAX.


def main(task: Task) -> None:
  os.environ['JAX_PLATFORMS'] = 'cpu'
  flag = '--xla_force_host_platform_device_count'
  os.environ['XLA_FLAGS'] = f'{flag}={task.devices}'
  import gpt_experiment as gpt
  import jax
  import toy_experiment as toy

  from bigdl.experiment import Guard
  from bigdl.parallel.layout import Layout
  from bigdl.train import batches, run, signals

  address = f'localhost:{task.port}'
  jax.distributed.initialize(address, task.hosts, task.host)
  e = toy.experiment() if task.name == 'toy' else gpt.EXPERIMENT
  e = dataclasses.replace(
    e, layout=Layout(**task.layout), guard=Guard(**task.guard)
  )
  rows: dict[int, list[int]] = {}
  seen = [0]
  last = task.host == task.hosts - 1
  batch = e.data.batch

  def watched(step, **kwargs):
    time.sleep(10**6 if last and step == task.stuck else task.pause)
    own = batch(step, **kwargs)
    rows[step] = own['id'].tolist()
    if task.poisoned:
      own['y'][[i in task.poisoned for i in own['id']]] = float('inf')
    return own

  object.__setattr__(e.data, 'batch', watched)
  own = contextlib.nullcontext(lambda: 0)
  with signals.interrupts() if task.handlers else own as stop:
    said: list[str] = []
    try:
      record = run.run(
        e,
        task.folder,
        config=toy.config(e),
        on_progress=lambda p: seen.append(p['step']),
        say=said.append,
        stop=lambda: stop() or (last and seen[-1] >= task.stop_after > 0),
      )
    except batches.Hung as error:
      # As `bigdl train` does.
      print(*said, error, sep='\n', flush=True)
      os._exit(2)
  print(json.dumps({'record': record, 'rows': [*rows.items()], 'said': said}))


if __name__ == '__main__':
  main(Task(**json.loads(sys.argv[1])))
