"""How far are estimates of utilisation from what was measured on real pods?

  python tests/benchmarks/published_mfu.py [NAME …] [--full] [--json=OUT]

compiles each row of `bigdl.compiling.published` (or those whose name holds one
of the names) for its slice, estimates its step and prints the table that README
shows: estimate, published number, error as a share of it. Nothing is run; needs
`bigdl[pods]` (and `bigdl[cuda12]` for A100, left out without), 5 to 30 s a row
of one core. With --full, time is by the compiler's own cycles, minutes a row.
Exits with 1 where a row does not compile or does not fit.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import pathlib
import sys

from bigdl import config
from bigdl.commands import _compilation
from bigdl.compiling import hlo, operations, published, roofline
from bigdl.data.noise import Noise
from bigdl.experiment import Experiment
from bigdl.objectives.base import Objective
from bigdl.objectives.causal_lm import CausalLM
from bigdl.objectives.classify import Classify
from bigdl.optim.adafactor import Adafactor
from bigdl.optim.adamw import AdamW
from bigdl.parallel import topology
from bigdl.scaling import count


def experiment(row: published.Row) -> Experiment:
  """Returns what is compiled for a row."""
  model, length = row.model, getattr(row.model, 'length', 0)
  objective: Objective = CausalLM()
  data = Noise('causal', vocab=getattr(model, 'vocab', 1), length=length or 1)
  if not length:
    objective = Classify()
    data = Noise('images', size=model.image_size, classes=model.classes)
  return Experiment(
    model=model,
    objective=objective,
    data=data,
    optimizer=Adafactor(momentum=0.9) if row.optimizer != 'adamw' else AdamW(),
    steps=1000,
    batch=row.batch,
    layout=row.layout,
  )


def measure(row: published.Row, *, full: bool) -> dict:
  """Compiles a row; returns its estimate beside what is published."""
  asked = experiment(row)
  machine, spec = topology.parse(row.topology), asked.data.spec()
  found = count.flops_per_unit(asked.model, asked.objective, spec, xla=False)
  model_flops = (found['matmul_full'] or 0) * asked.batch
  model_flops *= asked.objective.units(spec)
  compiled = _compilation.run(
    config.to_json(asked), _compilation.rows_of(spec), machine, full=full
  )
  out = {
    'name': row.name,
    'topology': row.topology,
    'fits': compiled.fits,
    'published': row.mfu,
    'mfu': math.nan,
    'compile_seconds': compiled.seconds,
    'source': row.source,
  }
  if not compiled.text:
    return out
  module = hlo.parse(compiled.text)
  estimate = roofline.estimate(
    module, compiled.placement, machine, model_flops=model_flops
  )
  work = operations.flops(module) * machine.devices
  return {
    **out,
    'mfu': estimate.mfu,
    'error': published.error(estimate.mfu, row.mfu),
    'seconds': estimate.seconds,
    'parts': estimate.parts,
    'repeated': work / compiled.product_flops,
    'assumptions': estimate.assumptions,
  }


def line(found: dict) -> str:
  """Returns a row of the table."""
  waiting = sum(
    value
    for name, value in found.get('parts', {}).items()
    if name.startswith('waiting')
  )
  cells = (
    found['name'],
    f'`{found["topology"]}`',
    f'{found["mfu"]:.1%}',
    f'{found["published"]:.1%}',
    f'{found.get("error", math.nan):+.0%}',
    f'{waiting / found.get("seconds", math.nan):.0%}',
    found['source'],
  )
  return f'| {" | ".join(cells)} |'


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument('names', nargs='*')
  parser.add_argument('--full', action='store_true')
  parser.add_argument('--json', type=pathlib.Path)
  given = parser.parse_args()
  chosen = [
    row
    for row in published.rows()
    if not given.names or any(n in row.name for n in given.names)
  ]
  if importlib.util.find_spec('jax_cuda12_plugin') is None:
    chosen = [row for row in chosen if not row.topology.startswith('a100')]
    print('no bigdl[cuda12]: rows of A100 are left out', file=sys.stderr)
  print('| run | slice | estimate | published | error | waiting | source |')
  print('|---|---|---|---|---|---|---|')
  results = []
  for row in chosen:
    try:
      found = measure(row, full=given.full)
    except ValueError as problem:
      print(f'{row.name}: {problem}', file=sys.stderr)
      found = {'name': row.name, 'fits': False}
    else:
      print(line(found), flush=True)
    results.append(found)
    if given.json:
      given.json.write_text(json.dumps(results, indent=1))
  errors = [abs(r['error']) for r in results if 'error' in r]
  if errors:
    mean = sum(errors) / len(errors)
    print(f'\nmean of |error| {mean:.0%}, largest {max(errors):.0%}')
  for row in chosen:
    if row.differs:
      print(f'differs: {row.name}, {row.topology}: {row.differs}')
  for name, reason in published.NOT_EXPRESSED.items():
    print(f'not compiled: {name}: {reason}')
  return 0 if all(r['fits'] for r in results) else 1


if __name__ == '__main__':
  sys.exit(main())
