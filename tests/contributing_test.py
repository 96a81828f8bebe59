"""What CONTRIBUTING shows works as it stands: one new file, no other edit."""

from __future__ import annotations

import json
import pathlib
import re

import numpy as np

import bigdl
from bigdl import __main__ as program
from bigdl.scaling import forms, synthetic
from tests import new_model

ROOT = pathlib.Path(bigdl.__file__).parents[1]
MODEL, EXPERIMENT, FORM = re.findall(
  r'```python\n(.*?)```', (ROOT / 'CONTRIBUTING.md').read_text(), re.DOTALL
)


def test_the_model_takes_fewer_than_sixty_lines():
  assert MODEL.count('\n') < 60


def test_contracts_sweep_and_law_work_on_the_model_with_no_other_edit(tmp_path):
  printed = new_model.follow(tmp_path)
  contracts, plan, _, law = printed
  assert ' passed' in contracts and 'failed' not in contracts
  assert len(re.findall(r'^c[\d.e]+_n\d+', plan, re.MULTILINE)) > 15
  assert 'L(N, D) = ' in law and '2 isoflop' in law
  records = list((tmp_path / 'runs/gated_conv/cells').glob('*/record.json'))
  assert len(records) > 15


def test_the_form_is_found_and_fitted(tmp_path, monkeypatch, capsys):
  (tmp_path / 'interaction.py').write_text(FORM)
  # As if the file lay in bigdl/scaling/forms.
  monkeypatch.setattr(forms, '__path__', [*forms.__path__, str(tmp_path)])
  surface = synthetic.Surface()
  runs = synthetic.isoflop(surface, budgets=(1e18, 1e19, 1e20, 1e21), sizes=8)
  n, d = runs['n'].to_numpy(), runs['d'].to_numpy()
  runs['loss'] += 3e4 / (n**surface.alpha * d**surface.beta)
  runs.to_csv(tmp_path / 'runs.csv', index=False)
  out = tmp_path / 'law.json'
  flags = ['--c=flops', '--form=interaction', '--objective=log_mse']
  flags += ['--bootstrap=40', f'--json={out}']
  assert program.main(['law', str(tmp_path / 'runs.csv'), *flags]) == 0
  law = json.loads(out.read_text())
  assert law['form'] == 'interaction'
  assert law['objective_value'] < 1e-16
  np.testing.assert_allclose(law['parameters']['alpha'], surface.alpha, 1e-3)
  assert 'E + A/N^alpha' in capsys.readouterr().out
