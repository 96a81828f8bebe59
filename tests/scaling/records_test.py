"""Records: what is read, what is refused in one line, what is set aside."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bigdl.scaling import records, synthetic


def _csv(folder, text, name='runs.csv'):
  path = folder / name
  path.write_text(text)
  return path


GOOD = 'N,D,L,C\n1e6,2e7,3.1,1.2e14\n2e6,4e7,2.9,4.8e14\n4e6,8e7,2.7,1.92e15\n'
NAMES = {'n': 'N', 'd': 'D', 'loss': 'L', 'flops': 'C'}


def test_folder_gives_a_row_a_cell_under_the_plans_convention(sweep):
  table = records.load(sweep.folder)
  assert len(table) == 25
  assert set(table['name']) == set(sweep.names)
  assert table['loss_se'].eq(0.01).all()
  np.testing.assert_allclose(table['flops'], 6 * table['n'] * table['d'])
  assert table['budget'].nunique() == 5


def test_other_conventions_give_other_sizes_and_compute(sweep):
  table = records.load(sweep.folder)
  other = records.under(table, 'matmul_causal', 'nonembedding')
  assert (other['n'] < table['n']).all()
  assert (other['flops'] < table['flops']).all()
  assert records.conventions(table) == [
    '6N',
    '6N_nonembedding',
    'matmul_causal',
    'matmul_full',
    'chinchilla_f',
  ]
  with pytest.raises(ValueError, match='xla.*not recorded.*matmul_causal'):
    records.under(table, 'xla', 'total')


def test_what_runs_measure_beside_the_loss_can_take_its_place(sweep):
  for i in range(25):
    sweep.change(i, measures={'error': 0.1 + i / 100, 'error_se': 0.001 * i})
  plain = records.load(sweep.folder).set_index('name')
  table = records.load(sweep.folder, columns={'loss': 'error'})
  assert plain['error'].nunique() == 25
  assert table.attrs['loss'] == 'error' and 'error' not in table
  for row in table.to_dict('records'):
    was = plain.loc[row['name']]
    assert row['loss'] == was['error'] != was['loss']
    assert row['loss_se'] == was['error_se']
    assert (row['n'], row['flops']) == (was['n'], was['flops'])
  same = records.load(sweep.folder, columns={'loss': 'loss'})
  assert same['loss'].tolist() == plain['loss'].tolist()
  with pytest.raises(ValueError, match="loss='top5' is not .* loss, error$"):
    records.load(sweep.folder, columns={'loss': 'top5'})
  with pytest.raises(ValueError, match='only a CSV needs --n$'):
    records.load(sweep.folder, columns={'loss': 'error', 'n': 'N'})


def test_curves_are_of_the_measure_that_is_asked_for(sweep):
  for i in range(25):
    sweep.change(i, measures={'error': 0.5, 'error_se': 0.1})
  lines = [
    {'step': 50, 'eval_loss': 2.0, 'eval_error': 0.7},
    {'step': 100, 'eval_loss': 1.0, 'eval_error': 0.5},
  ]
  file = sweep.folder / 'cells' / sweep.names[0] / 'metrics.jsonl'
  file.write_text(''.join(json.dumps(line) + '\n' for line in lines))
  for name, want in (('loss', [2.0, 1.0]), ('error', [0.7, 0.5])):
    table = records.load(sweep.folder, columns={'loss': name})
    curves = records.curves(sweep.folder, table)
    assert curves['loss'].tolist() == want


def test_cells_without_a_final_loss_are_set_aside_with_what_to_do(sweep):
  bad = sweep.change(0, status='diverged', step=40, loss=None)
  half = sweep.change(1, status='interrupted', step=60, loss=None)
  nan = sweep.change(2, loss=float('nan'))
  (sweep.folder / 'cells' / sweep.names[3] / 'record.json').unlink()
  kept, aside = records.split(records.load(sweep.folder))
  said = {a['name']: a['reason'] for a in aside}
  assert len(kept) == 21
  assert said[bad].startswith('diverged at step 40 of 100: train it again with')
  assert 'lower learning rate' in said[nan]
  assert 'interrupted at step 60 of 100' in said[half]
  assert 'run the sweep again to finish it' in said[half]
  assert 'not started' in said[sweep.names[3]]


def test_empty_folder_and_broken_record_are_named(sweep, tmp_path):
  empty = tmp_path / 'nothing'
  empty.mkdir()
  with pytest.raises(ValueError, match='nothing holds no cells'):
    records.load(empty)
  with pytest.raises(ValueError, match='must be a sweep folder or a CSV'):
    records.load(tmp_path / 'not-there')
  file = sweep.folder / 'cells' / sweep.names[0] / 'record.json'
  file.write_text('{"status": "fin')
  with pytest.raises(ValueError, match='record.json cannot be read as JSON'):
    records.load(sweep.folder)


def test_csv_columns_are_mapped_and_never_guessed(tmp_path):
  path = _csv(tmp_path, GOOD)
  table = records.load(path, columns=NAMES)
  assert table['n'].tolist() == [1e6, 2e6, 4e6]
  assert table['flops'].tolist() == [1.2e14, 4.8e14, 1.92e15]
  assert table.attrs['flops'] == 'as given'
  with pytest.raises(
    ValueError, match=r"called 'n'; it has N, D, L, C.*--n=COL"
  ):
    records.load(path)
  with pytest.raises(ValueError, match='--loss=Loss names no column; it has'):
    records.load(path, columns={**NAMES, 'loss': 'Loss'})
  with pytest.raises(
    ValueError, match="--c=Cc names no column; did you mean 'C'"
  ):
    records.load(_csv(tmp_path, GOOD), columns={**NAMES, 'flops': 'Cc'})


def test_without_a_compute_column_it_is_six_n_d(tmp_path):
  names = {k: v for k, v in NAMES.items() if k != 'flops'}
  table = records.load(_csv(tmp_path, GOOD), columns=names)
  np.testing.assert_allclose(table['flops'], 6 * table['n'] * table['d'])
  assert table.attrs['flops'] == '6N'


@pytest.mark.parametrize('value', ['-1', '0', 'nan', 'inf', '', 'abc'])
def test_bad_numbers_are_named_by_line(tmp_path, value):
  text = GOOD + f'8e6,1e8,{value},4.8e15\n'
  with pytest.raises(
    ValueError, match=r"column 'L' must be positive.*line 5"
  ) as e:
    records.load(_csv(tmp_path, text), columns=NAMES)
  assert '\n' not in str(e.value)


def test_duplicate_columns_are_refused(tmp_path):
  path = _csv(tmp_path, 'n,d,loss,loss\n1,2,3,4\n')
  with pytest.raises(ValueError, match="'loss' appears more than once"):
    records.load(path)


def test_files_that_are_no_csv_are_refused(tmp_path):
  for text in ('', 'hello\n', 'a;b;c\n1;2;3\n'):
    with pytest.raises(ValueError, match='first line names columns'):
      records.load(_csv(tmp_path, text))
  binary = tmp_path / 'x.csv'
  binary.write_bytes(b'\xff\xfe\x00\x80,\x90\n')
  with pytest.raises(ValueError, match='cannot be read as CSV'):
    records.load(binary)
  ragged = _csv(tmp_path, 'n,d,loss\n1,2,3\n1,2,3,4\n')
  with pytest.raises(ValueError, match='cannot be read as CSV') as e:
    records.load(ragged)
  assert '\n' not in str(e.value)


def test_units_that_cannot_be_are_refused(tmp_path):
  text = (
    GOOD.replace('2e7', '0.02').replace('4e7', '0.04').replace('8e7', '0.08')
  )
  with pytest.raises(ValueError, match='1e.09 times 6 N D.*--d_unit=1e.09'):
    records.load(_csv(tmp_path, text), columns=NAMES)


def test_where_and_holdout_are_conditions_on_the_files_own_columns(tmp_path):
  path = _csv(tmp_path, GOOD)
  table = records.load(path, columns=NAMES, where='C < 1e15', holdout='N > 1e6')
  assert table['held_out'].tolist() == [False, True]
  with pytest.raises(ValueError, match="where='Q < 3' cannot be evaluated"):
    records.load(path, columns=NAMES, where='Q < 3')
  with pytest.raises(ValueError, match='must be a condition'):
    records.load(path, columns=NAMES, where='N + 1')
  with pytest.raises(ValueError, match='no run is left'):
    records.load(path, columns=NAMES, where='N < 0')


def test_status_column_excuses_missing_losses(tmp_path):
  text = 'name,n,d,loss,status\na,1e6,2e7,,diverged\nb,1e6,2e7,3.0,finished\n'
  kept, aside = records.split(records.load(_csv(tmp_path, text)))
  assert kept['name'].tolist() == ['b']
  assert aside[0]['name'] == 'a'


def test_runs_of_equal_compute_are_grouped_where_no_budget_is_named(tmp_path):
  runs = synthetic.isoflop(synthetic.Surface(), budgets=(1e18, 1e19, 1e20))
  path = tmp_path / 'runs.csv'
  runs.drop(columns='budget').to_csv(path, index=False)
  table = records.load(path)
  np.testing.assert_allclose(
    sorted(table['budget'].unique()), [1e18, 1e19, 1e20]
  )
  assert table.attrs['grouped']
  # Two runs apart from all others are no budget, so that nothing is grouped.
  odd = runs.drop(columns='budget')
  odd.loc[0, 'flops'] *= 1.9
  odd.loc[0, 'd'] *= 1.9
  odd.to_csv(path, index=False)
  assert records.load(path)['budget'].isna().all()


def test_contradictory_compute_is_flagged_by_name(sweep):
  table = records.load(sweep.folder)
  assert records.contradictory(table) == []
  table.loc[4, 'flops'] *= 10
  (found,) = records.contradictory(table)
  assert found['row'] == table.loc[4, 'name']
  assert 'times more' in found['reason']


def test_curves_hold_the_held_out_losses_of_training(sweep):
  name = sweep.names[0]
  lines = [{'step': 10, 'loss': 3.0}, {'step': 50, 'eval_loss': 2.5}]
  text = ''.join(json.dumps(line) + '\n' for line in lines) + '{"step": 6'
  (sweep.folder / 'cells' / name / 'metrics.jsonl').write_text(text)
  table = records.load(sweep.folder)
  (row,) = records.curves(sweep.folder, table).to_dict('records')
  d = table.loc[table['name'] == name, 'd'].item()
  assert row == {'name': name, 'd': d / 2, 'loss': 2.5, 'step': 50}
