"""A process that compiles one update for devices that are not here.

`python -m bigdl.commands._lower FOLDER` reads `FOLDER/spec.json`, with the keys
`config`, `topology` and `rows` (shape and dtype of one row of data, by field).
It writes, each file whole or not at all:

* `lowered.json`, before it compiles: bytes of the arguments of a device and of
  the state of all, FLOPs of the products in the program as it was traced, the
  axes of the mesh, and where its devices are;
* `dump/`, what the compiler says of the program as it goes along;
* `done.json`: how it ended, and the memory of the program.

A process of its own, because the compiler must be told of its target before JAX
is imported, and because its parent ends it early: most of the time of compiling
for a TPU goes into code that nobody will run. Once stdin ends it leaves: its
parent is dead.
"""

from __future__ import annotations

from collections.abc import Mapping
import json
import math
import os
import pathlib
import sys
import threading
from typing import Any

TPU = {
  'JAX_PLATFORMS': 'cpu',
  'TPU_SKIP_MDS_QUERY': '1',
  # Or a second process of the machine dies of a lock file.
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
  # These two keep the library from asking where it runs; any target will do.
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
  'TPU_LOG_DIR': 'disabled',
}
GPU = {'JAX_PLATFORMS': 'cpu', 'JAX_SKIP_CUDA_CONSTRAINTS_CHECK': '1'}
# Timing kernels takes a device.
GPU_FLAGS = '--xla_gpu_shard_autotuning=false'
DUMP = {'xla_dump_hlo_as_text': True}
# Share of what a device must at least hold of the weights, and scalars, above
# which one of them is large.
_LARGE = 0.02
_MANY = 2**18
# Dimensions below are widths of heads and depths, which nobody pads.
_LONG = 1024


def main(argv: list[str]) -> None:
  """Compiles what the folder's `spec.json` names."""
  threading.Thread(target=_leave_with_parent, daemon=True).start()
  folder = pathlib.Path(argv[0])
  spec = json.loads((folder / 'spec.json').read_text())
  os.environ.update(environment(spec['topology'], os.environ))
  try:
    done = _compile(folder, spec)
  except ValueError as error:
    done = {'status': 'input', 'message': str(error)}
  write(folder / 'done.json', done)


def _leave_with_parent() -> None:
  sys.stdin.read()
  os._exit(1)


def environment(topology: str, given: Any) -> dict[str, str]:
  """Returns what the compiler of a topology must find in the environment."""
  from bigdl.parallel import topology as slices

  if slices.parse(topology).chip.platform == 'tpu':
    return TPU
  return {**GPU, 'XLA_FLAGS': f'{given.get("XLA_FLAGS", "")} {GPU_FLAGS}'}


def write(path: pathlib.Path, value: Any) -> None:
  """Writes JSON so that a reader finds all of it or nothing."""
  part = path.with_suffix('.part')
  part.write_text(json.dumps(value))
  part.replace(path)


def _compile(folder: pathlib.Path, spec: dict[str, Any]) -> dict[str, Any]:
  from bigdl import config
  from bigdl.compiling import traffic
  from bigdl.parallel import scope, topology
  from bigdl.train import program

  slices = topology.parse(spec['topology'])
  experiment = _with_rows(config.from_json(spec['config']), spec['rows'])
  mesh = experiment.layout.mesh(topology.devices(slices))
  if mesh.size != slices.devices:
    sizes = [f'{k}={n}' for k, n in mesh.shape.items() if n > 1]
    raise ValueError(
      f'layout {" ".join(sizes) or "data=1"} takes {mesh.size} of the'
      f' {slices.devices} devices of {slices.name}; -1 takes what is left'
    )
  plan = program.Program(experiment, mesh)
  shapes = plan.state_shapes()
  found = {
    **bytes_of(shapes, plan.batch_shapes()),
    'whole': undivided(shapes.params, mesh.shape),
    'axes': dict(mesh.shape),
    'placement': traffic.Placement.of(mesh).to_json(),
  }
  if found['state_bytes'] > mesh.size * slices.chip.memory:
    return {'status': 'too large', **found}
  traced, _ = plan.trace(shapes)
  found['product_flops'] = _products(traced)
  write(folder / 'lowered.json', found)
  with scope.entered(experiment.layout, mesh):
    lowered = traced.lower()
  return _finish(lowered, folder / 'dump')


def _finish(lowered: Any, dump: pathlib.Path) -> dict[str, Any]:
  import jax

  options = {**DUMP, 'xla_dump_to': str(dump)}
  try:
    compiled = lowered.compile(compiler_options=options)
  except jax.errors.JaxRuntimeError as error:
    status = 'memory' if 'E1000' in str(error) else 'compiler'
    return {'status': status, 'message': str(error)}
  memory = compiled.memory_analysis()
  if not list(dump.glob('*after_codegen.txt')):
    (dump / 'compiled.txt').write_text(compiled.as_text())
  return {
    'status': 'compiled',
    'memory': {
      'arguments': memory.argument_size_in_bytes,
      'temporaries': memory.temp_size_in_bytes,
      'outputs': memory.output_size_in_bytes,
      'aliases': memory.alias_size_in_bytes,
      'peak': memory.peak_memory_in_bytes,
    },
  }


def bytes_of(shapes: Any, batch: Any) -> dict[str, int]:
  """Returns bytes of the state of all devices, and of a device's arguments."""
  import jax

  def whole(leaf):
    return leaf.size * leaf.dtype.itemsize

  def own(leaf):
    part = leaf.sharding.shard_shape(leaf.shape)
    return math.prod(part) * leaf.dtype.itemsize

  state = jax.tree.leaves(shapes)
  return {
    'state_bytes': sum(map(whole, state)),
    'argument_bytes': sum(map(own, [*state, *jax.tree.leaves(batch)])),
  }


def undivided(params: Any, axes: Mapping[str, int]) -> list[str]:
  """Returns a line on each large array that fewer devices split than could.

  An axis only splits a dimension that it divides. Nothing is wrong with that,
  but a vocabulary that is padded may save the memory.
  """
  from bigdl import tree

  most = axes['fsdp'] * axes['tensor']
  leaves = tree.items(params)
  total = sum(leaf.size for _, leaf in leaves)
  lines = []
  for path, leaf in leaves:
    own = math.prod(leaf.sharding.shard_shape(leaf.shape))
    small = own < max(_MANY, total * _LARGE / most)
    if leaf.size // own >= most or small:
      continue
    wants = {
      math.ceil(size / axes[axis]) * axes[axis]
      for size in leaf.shape
      for axis in ('fsdp', 'tensor')
      if size % axes[axis] and size >= _LONG
    }
    sizes = ' x '.join(map(str, leaf.shape))
    hint = (
      f'; {" or ".join(map(str, sorted(wants)))} would divide' if wants else ''
    )
    lines.append(f'{path} [{sizes}] is split {leaf.size // own} ways{hint}')
  return lines


def _products(traced: Any) -> int:
  from bigdl.scaling import products

  return products.flops(traced.jaxpr.jaxpr)


def _with_rows(experiment: Any, rows: dict[str, Any]) -> Any:
  """Returns the experiment on data of that shape, which is never read."""
  import dataclasses

  import jax
  import numpy as np

  from bigdl.data.base import Source

  @dataclasses.dataclass(frozen=True)
  class Shapes(Source):
    def spec(self):
      return {
        name: jax.ShapeDtypeStruct(tuple(shape), np.dtype(dtype))
        for name, (shape, dtype) in rows.items()
      }

  return dataclasses.replace(experiment, data=Shapes())


if __name__ == '__main__':
  main(sys.argv[1:])
