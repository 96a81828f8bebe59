"""One of two hosts that save and restore together; run by `savers_test.py`.

usage: two_savers.py HOST PORT FOLDER

Both save steps 1 and 2. Then the first changes one bit in a file that the
second wrote, of step 2, and both restore.
"""

from __future__ import annotations

import json
import os
import pathlib
import sys

os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=2'

import jax
from jax.experimental import multihost_utils
import jax.numpy as jnp
import toy_experiment as toy

from bigdl.experiment import Checkpoints
from bigdl.parallel.layout import Layout
from bigdl.train import checkpoint, program


def main(host: int, port: int, folder: str) -> None:
  jax.distributed.initialize(f'localhost:{port}', 2, host)
  e = toy.experiment(layout=Layout(data=1, fsdp=4))
  plan = program.Program(e, e.layout.mesh())
  shapes = plan.state_shapes()
  state = plan.init(shapes)
  said: list[str] = []
  with checkpoint.Store(folder, Checkpoints(), said.append) as store:
    for step in (1, 2):
      store.save(state.replace(step=jnp.full_like(state.step, step)), step)
    store.wait()
    whole = int(store.restore(shapes).step)
    if host == 0:
      parts = pathlib.Path(folder).glob('checkpoints/2/*/ocdbt.process_1/d/*')
      path = max(parts, key=lambda p: p.stat().st_size)
      data = bytearray(path.read_bytes())
      data[len(data) // 2] ^= 1
      path.write_bytes(bytes(data))
    multihost_utils.sync_global_devices('damaged')
    again = int(store.restore(shapes).step)
  print(json.dumps({'whole': whole, 'again': again, 'said': said}))


if __name__ == '__main__':
  main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
