"""A sweep folder as training leaves it, drawn from a known law."""

from __future__ import annotations

import json

import pytest

from bigdl.scaling import synthetic

BUDGETS = (3e11, 1e12, 3e12, 1e13, 3e13)
SMALL = synthetic.Surface(E=0.9, A=12.0, B=40.0, alpha=0.35, beta=0.32)


def write(folder, *, budgets=BUDGETS, sizes=5, noise=0.004, seed=3, spread=4.0):
  """Writes cells/*/record.json and plan.json; returns the names of cells."""
  runs = synthetic.isoflop(
    SMALL, budgets=budgets, sizes=sizes, noise=noise, seed=seed, spread=spread
  )
  cells = []
  for row in runs.to_dict('records'):
    n, d = row['n'], row['d']
    # An embedding of 64 rows: its width is what N = 12 L d^2 with L = d / 16
    # gives.
    width = (n * 16 / 12) ** (1 / 3)
    params = {
      'total': n,
      'nonembedding': n - 128 * width,
      'nonembedding_head': n - 64 * width,
    }
    rate = 6 * (n - 64 * width)
    per_unit = {
      '6N': 6 * n,
      '6N_nonembedding': 6 * params['nonembedding'],
      'matmul_causal': rate,
      'matmul_full': 1.1 * rate,
      'chinchilla_f': 1.05 * rate,
      'xla': None,
    }
    flops = {k: v and v * d for k, v in per_unit.items()}
    cells.append(
      {
        'name': row['name'],
        'budget': row['budget'],
        'n': n,
        'd': d,
        'steps': 100,
        'batch': 8,
        'lr': 3e-3,
        'params': params,
        'flops_per_unit': per_unit,
        'flops': flops,
      }
    )
    record = {
      'status': 'finished',
      'step': 100,
      'units': d,
      'loss': row['loss'],
      'loss_se': 0.01,
      'unit': 'token',
      **{k: cells[-1][k] for k in ('steps', 'batch', 'lr', 'budget')},
      **{k: cells[-1][k] for k in ('params', 'flops_per_unit', 'flops')},
    }
    path = folder / 'cells' / row['name'] / 'record.json'
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(record))
  plan = {
    'convention': '6N',
    'params': 'total',
    'unit': 'token',
    'cells': cells,
  }
  (folder / 'plan.json').write_text(json.dumps(plan))
  return [c['name'] for c in cells]


def change(folder, name, **values):
  """Overwrites fields of one cell's record."""
  path = folder / 'cells' / name / 'record.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture
def sweep(tmp_path):
  """A folder of 25 finished cells, its names, and how to change one."""
  names = write(tmp_path)

  class Sweep:
    folder = tmp_path

    def change(self, index, **values):
      change(tmp_path, names[index], **values)
      return names[index]

  Sweep.names = names
  return Sweep()
