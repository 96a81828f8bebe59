"""`bigdl law`: any CSV or sweep folder, exit codes, one line for bad input."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest
import sweep_records

from bigdl import __main__ as program
from bigdl.scaling import synthetic

SHARED = pathlib.Path(__file__).parents[3] / 'shared' / 'laws'
SURFACE = synthetic.Surface()
BUDGETS = (1e18, 4e18, 1.6e19, 6.4e19, 2.56e20)
FLAGS = ['--n=N', '--d=D', '--loss=L', '--bootstrap=100']


@pytest.fixture
def csv(tmp_path):
  runs = synthetic.isoflop(SURFACE, budgets=BUDGETS, noise=0.002)
  names = {'n': 'N', 'd': 'D', 'loss': 'L', 'flops': 'C', 'budget': 'group'}
  path = tmp_path / 'runs.csv'
  runs.rename(columns=names).to_csv(path, index=False)
  return path


def _sweep(folder, budgets=BUDGETS):
  """Writes the records of a sweep, as training leaves them."""
  runs = synthetic.isoflop(SURFACE, budgets=budgets, noise=0.002)
  return sweep_records.write(folder, runs)


def _run(*args):
  return program.main(['law', *map(str, args)])


def test_csv_is_fitted_printed_and_written(csv, tmp_path, capsys):
  out = tmp_path / 'law.json'
  code = _run(
    csv,
    *FLAGS,
    '--budget=group',
    f'--json={out}',
    '--allocate=1e22,1e23',
    '--predict=1e9:2e10',
  )
  assert code == 0
  text = capsys.readouterr().out
  assert 'N ~ C^a' in text
  assert str(out) in text
  law = json.loads(out.read_text())
  keys = (
    'form approach objective delta rows parameters objective_value'
    ' standard_errors intervals exponents converged unidentified flagged'
    ' warnings holdout predictions allocation'
  )
  assert set(keys.split()) <= set(law)
  assert set(law['parameters']) == {'E', 'A', 'B', 'alpha', 'beta'}
  assert law['form'] == 'hoffmann'
  assert law['rows'] == 25
  assert [r['c'] for r in law['allocation']] == [1e22, 1e23]
  assert law['predictions'][0]['n'] == 1e9
  truth = SURFACE.beta / (SURFACE.alpha + SURFACE.beta)
  low, high = law['intervals']['exponents']['a']
  assert low < truth < high


@pytest.mark.skipif(
  not (SHARED / 'chinchilla_epoch.csv').is_file(), reason='no published points'
)
def test_published_points_give_the_published_answer(tmp_path):
  out = tmp_path / 'law.json'
  code = _run(
    SHARED / 'chinchilla_epoch.csv',
    '--n=N',
    '--d=D',
    '--loss=loss',
    '--c=C',
    '--where=high_loss_dropped == 0',
    '--approach=3',
    '--bootstrap=50',
    f'--json={out}',
  )
  assert code == 0
  law = json.loads(out.read_text())
  assert law['rows'] == 240
  assert law['objective_value'] == pytest.approx(1.018274018e-3, rel=1e-8)
  assert law['exponents']['a'] == pytest.approx(0.51390, abs=1e-5)


def test_csv_is_refitted_to_all_runs_unless_a_holdout_is_asked_for(
  csv, tmp_path
):
  out = tmp_path / 'law.json'
  args = [csv, *FLAGS, '--budget=group', '--approach=3', f'--json={out}']
  _run(*args)
  law = json.loads(out.read_text())
  assert (law['rows'], len(law['holdout']['rows'])) == (25, 5)
  _run(*args, '--holdout=C >= 6e19')
  law = json.loads(out.read_text())
  assert (law['rows'], len(law['holdout']['rows'])) == (15, 10)
  _run(*args, '--holdout=2')
  law = json.loads(out.read_text())
  assert (law['rows'], len(law['holdout']['rows'])) == (15, 10)
  _run(*args, '--holdout=0')
  law = json.loads(out.read_text())
  assert (law['rows'], law['holdout']) == (25, None)


def test_a_sweep_has_a_law_of_its_error_beside_that_of_its_loss(
  tmp_path, capsys
):
  folder = _sweep(tmp_path / 'sweep')
  for file in folder.glob('cells/*/record.json'):
    record = json.loads(file.read_text())
    measures = {'error': record['loss'] / 10, 'error_se': 1e-4}
    file.write_text(json.dumps({**record, 'measures': measures}))
  flags = ('--approach=2', '--bootstrap=100')
  assert _run(folder, *flags) == 0
  first = (folder / 'law.json').read_bytes()
  assert _run(folder, *flags, '--loss=error') == 0
  assert 'law_error.json' in capsys.readouterr().out
  assert (folder / 'law.json').read_bytes() == first
  loss, error = (
    json.loads((folder / name).read_text())
    for name in ('law.json', 'law_error.json')
  )
  assert (loss['loss_unit'], error['loss_unit']) == (
    'nats per token',
    'error per token',
  )
  a, b = (law['approaches']['isoflop']['minima'] for law in (loss, error))
  # The same surface at a tenth of its height.
  for one, two in zip(a, b, strict=True):
    assert two['loss'] == pytest.approx(one['loss'] / 10, rel=1e-3)
  assert program.main(['law', str(folder), '--loss=weather']) == 2
  assert "loss='weather' is not measured" in capsys.readouterr().err


def test_sweep_folder_gets_its_law_json_twice_the_same(tmp_path, capsys):
  folder = _sweep(tmp_path / 'sweep')
  assert _run(folder, '--bootstrap=100') == 0
  first = (folder / 'law.json').read_bytes()
  law = json.loads(first)
  assert law['conventions'] == {'flops': 'matmul_causal', 'params': 'total'}
  assert set(law['by_convention']) == {'6N', 'matmul_causal'}
  assert law['records']['held_out'] == 5
  assert _run(folder, '--bootstrap=100') == 0
  assert (folder / 'law.json').read_bytes() == first
  assert _run(folder, '--bootstrap=100', '--flops=6N', f'--out={tmp_path}') == 0
  assert (folder / 'law.json').read_bytes() == first
  other = json.loads((tmp_path / 'law.json').read_text())
  assert other['conventions']['flops'] == '6N'
  assert 'held out' in capsys.readouterr().out


def test_refused_law_is_exit_code_3_and_says_what_to_add(tmp_path, capsys):
  folder = _sweep(tmp_path / 'sweep', BUDGETS[:2])
  out = tmp_path / 'out.json'
  assert _run(folder, '--bootstrap=100', f'--json={out}') == 3
  assert 'add cells at 1 more budget' in capsys.readouterr().out
  law = json.loads(out.read_text())
  assert law['refused']
  assert any('add cells at 1 more budget' in w for w in law['warnings'])


def test_one_approach_alone(csv, tmp_path):
  out = tmp_path / 'law.json'
  args = [csv, *FLAGS, '--budget=group', f'--json={out}']
  assert _run(*args, '--approach=2') == 0
  law = json.loads(out.read_text())
  assert (law['approach'], law['form']) == (2, 'isoflop_parabola')
  assert list(law['approaches']) == ['isoflop']
  assert _run(*args, '--approach=1,3') == 0
  assert sorted(json.loads(out.read_text())['approaches']) == [
    'envelope',
    'parametric',
  ]


@pytest.mark.parametrize(
  ('args', 'said'),
  [
    (['nowhere'], 'nowhere must be a sweep folder or a CSV'),
    (['CSV'], "no column is called 'n'; it has name, status, N, D, L"),
    (['CSV', '--n=N', '--d=D', '--loss=l'], "did you mean 'L'"),
    (['CSV', *FLAGS, '--approach=4'], "approach='4' must be 1 (envelope)"),
    (['CSV', *FLAGS, '--predict=3'], "predict='3' must be pairs N:D"),
    (['CSV', *FLAGS, '--predict=-1:3'], 'must hold positive N and D'),
    (['CSV', *FLAGS, '--where=Q == 1'], "where='Q == 1' cannot be evaluated"),
    (['CSV', *FLAGS, '--holdout=-1'], 'holdout=-1 must be 0 or more'),
    (['CSV', *FLAGS, '--curves'], 'curves=True needs a sweep folder'),
    (['CSV', *FLAGS, '--boostrap=5'], 'bootstrap'),
    (['CSV', *FLAGS, '--level=2'], 'level=2.0 must be'),
    ([], '--runs is required'),
  ],
)
def test_bad_input_is_one_line_and_exit_code_2(csv, capsys, args, said):
  assert _run(*[csv if a == 'CSV' else a for a in args]) == 2
  error = capsys.readouterr().err
  assert said in error
  assert error.count('\n') == 1


def test_fitting_needs_no_jax(csv):
  program = (
    'import sys; from bigdl.commands import law;'
    'code = law.main(sys.argv[1:]); assert "jax" not in sys.modules; exit(code)'
  )
  call = [sys.executable, '-c', program, str(csv), *FLAGS, '--c=C']
  done = subprocess.run(call, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
