"""One of two hosts that train a toy run together; run by `hosts_test.py`.

usage: two_hosts.py HOST PORT FOLDER STOP_AFTER
"""

from __future__ import annotations

import json
import os
import sys

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=2'

import jax
import toy_experiment as toy

from bigdl.parallel.layout import Layout
from bigdl.train import run


def main(host: int, port: int, folder: str, stop_after: int) -> None:
  jax.distributed.initialize(f'localhost:{port}', 2, host)
  e = toy.experiment(layout=Layout(data=2, fsdp=2))
  rows: list[int] = []
  seen = [0]
  batch = e.data.batch

  def watched(step, **kwargs):
    own = batch(step, **kwargs)
    rows.extend(own['id'].tolist())
    return own

  object.__setattr__(e.data, 'batch', watched)
  record = run.run(
    e,
    folder,
    config=toy.config(e),
    on_progress=lambda p: seen.append(p['step']),
    # Only the second host is told to stop; both must.
    stop=lambda: host == 1 and seen[-1] >= stop_after,
  )
  print(json.dumps({'record': record, 'rows': rows}))


if __name__ == '__main__':
  main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
