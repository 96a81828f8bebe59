"""Writes the programs that the tests of `bigdl.compiling` read.

  python tests/compiling/make_texts.py

compiles three layers of a toy for slices of TPU v5e with the compiler of TPUs
(`bigdl[pods]`; nothing is run), and keeps of its text what the package reads:

* `tpu.txt`: 2 x 4 chips, weights split over `fsdp`, rows over `data` and
  `fsdp`; with estimated cycles, as after code generation.
* `two_slices.txt`: the same on two slices of 2 x 4, `data` across them.
* `pallas.txt`: attention by a kernel, forward, on one chip of 2 x 4.
"""

from __future__ import annotations

import os
import pathlib
import re
import sys
import tempfile

from bigdl.commands import _lower

HERE = pathlib.Path(__file__).parent
LAYERS, ROWS, WIDTH = 3, 128, 1024


def compiled(topology: str, layout: dict[str, int], *, code: bool) -> str:
  """Returns the text of the toy's step for a topology."""
  import jax
  import jax.numpy as jnp

  from bigdl.parallel import topology as slices
  from bigdl.parallel.layout import Layout

  mesh = Layout(**layout).mesh(slices.devices(slices.parse(topology)))

  def loss(w_LDD, x_BD):
    def layer(x_BD, w_DD):
      x_BD = jax.lax.with_sharding_constraint(x_BD, jax.P(('data', 'fsdp')))
      return jnp.tanh(x_BD @ w_DD), None

    x_BD, _ = jax.lax.scan(jax.checkpoint(layer), x_BD, w_LDD)
    return (x_BD.astype(jnp.float32) ** 2).sum()

  def step(w_LDD, x_BD):
    return w_LDD - jax.grad(loss)(w_LDD, x_BD)

  split = jax.NamedSharding(mesh, jax.P(None, None, 'fsdp'))
  rows = jax.NamedSharding(mesh, jax.P(('data', 'fsdp')))
  w_LDD = jax.ShapeDtypeStruct(
    (LAYERS, WIDTH, WIDTH), jnp.bfloat16, sharding=split
  )
  x_BD = jax.ShapeDtypeStruct((ROWS, WIDTH), jnp.bfloat16, sharding=rows)
  with jax.set_mesh(mesh):
    lowered = jax.jit(step, out_shardings=split).lower(w_LDD, x_BD)
  return _dumped(lowered, code)


def kernel() -> str:
  """Returns the text of attention by a kernel."""
  import jax
  import jax.numpy as jnp

  from bigdl.layers import attention
  from bigdl.parallel import topology as slices
  from bigdl.parallel.layout import Layout

  mesh = Layout(data=8).mesh(slices.devices(slices.parse('v5e:2x4')))
  rows = jax.NamedSharding(mesh, jax.P('data'))
  q = jax.ShapeDtypeStruct((16, 256, 2, 128), jnp.bfloat16, sharding=rows)
  with jax.set_mesh(mesh):
    lowered = jax.jit(lambda q: attention.attend(q, q, q, kind='pallas')).lower(
      q
    )
  return _dumped(lowered, code=False)


def _dumped(lowered, code: bool) -> str:
  with tempfile.TemporaryDirectory() as folder:
    lowered.compile(
      compiler_options={**_lower.DUMP, 'xla_dump_to': folder},
    )
    end = 'codegen' if code else 'optimizations_after_buffer_assignment'
    (found,) = pathlib.Path(folder).glob(f'*after_{end}.txt')
    return trimmed(found.read_text())


def trimmed(text: str) -> str:
  """Returns the text without what the package does not read."""
  text = re.sub(r', metadata=\{op_name="([^"]*)"[^}]*\}', _shorter, text)
  text = re.sub(r',? *metadata=\{(?!op_name)[^}]*\}', '', text)
  lines = []
  for line in text.split('\n'):
    head, found, config = line.partition('backend_config=')
    cycles = re.search(r'"estimated_cycles":"\d+"', config)
    cycles_kept = f'backend_config={{{cycles.group()}}}' if cycles else ''
    if found and 'custom_call_target="tpu_custom_call"' in head:
      cycles_kept = ''
    lines.append(head.rstrip(', ') + f', {cycles_kept}' if found else line)
  kept = '\n'.join(line.rstrip(', ') for line in lines)
  kept = re.sub(r'entry_computation_layout=.*?, (?=num_partitions)', '', kept)
  # Tables of the source's lines.
  tables = r'\n(FileNames|FunctionNames|FileLocations|StackFrames)\n(.+\n)*'
  return re.sub(tables, '\n', kept)


def _shorter(found) -> str:
  # The end of a name says what a kernel is for; scopes before it which loop.
  return f', metadata={{op_name="{found.group(1)[-240:]}"}}'


def main() -> None:
  (HERE / 'tpu.txt').write_text(
    compiled('v5e:2x4', {'data': 2, 'fsdp': 4}, code=True)
  )
  (HERE / 'two_slices.txt').write_text(
    compiled('v5e:2x4*2', {'data': 2, 'fsdp': 8, 'slices': 2}, code=False)
  )
  (HERE / 'pallas.txt').write_text(kernel())


if __name__ == '__main__':
  if os.environ.get('TPU_WORKER_HOSTNAMES') is None:
    # The compiler reads its environment when JAX is imported.
    environment = {**os.environ, **_lower.TPU}
    os.execve(sys.executable, [sys.executable, *sys.argv], environment)
  main()
