"""The notebooks run from top to bottom, and are committed without outputs."""

from __future__ import annotations

import pathlib

import nbclient
import nbformat
import pytest

import bigdl
from tests.scaling.conftest import write

ROOT = pathlib.Path(bigdl.__file__).parents[1]
NOTEBOOKS = sorted((ROOT / 'notebooks').glob('*.ipynb'))


@pytest.mark.parametrize('path', NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_committed_without_outputs(path):
  cells = nbformat.read(path, as_version=4).cells
  code = [c for c in cells if c.cell_type == 'code']
  assert code
  assert all(not c.outputs and c.execution_count is None for c in code)


# What the kernel's own sockets and loops warn of is not of the notebook.
@pytest.mark.filterwarnings('ignore')
def test_the_quickstart_draws_the_curves_of_a_sweep(tmp_path, monkeypatch):
  write(tmp_path)
  monkeypatch.setenv('SWEEP', str(tmp_path))
  monkeypatch.setenv('PYTHONPATH', str(ROOT))
  book = nbformat.read(ROOT / 'notebooks' / 'quickstart.ipynb', as_version=4)
  client = nbclient.NotebookClient(
    book, timeout=120, resources={'metadata': {'path': str(tmp_path)}}
  )
  client.execute()
  shown = [o for c in book.cells for o in c.get('outputs', ())]
  images = [o for o in shown if 'image/png' in o.get('data', {})]
  words = ''.join(o.get('text', '') for o in shown)
  assert len(images) >= 2 and all(
    len(o.data['image/png']) > 10_000 for o in images
  )
  assert 'N ~ C^a' in words and '10x the compute: N =' in words
  assert not [o for o in shown if o.output_type == 'error']
