"""`bigdl evaluate`: questions with choices for a run folder."""

from __future__ import annotations

import json
import re

import pytest

from bigdl import __main__ as program


@pytest.fixture
def tasks(tmp_path):
  # Tokens of the data go up by one, so that a trained model knows the answer.
  letters = 'abcdefghijklmnop'
  rows = [
    {
      'prompt': letters[i : i + 3],
      'choices': [letters[i + 3], letters[(i + 9) % 16]],
      'answer': 0,
    }
    for i in range(12)
  ]
  file = tmp_path / 'tasks.jsonl'
  file.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  return file


def test_accuracy_is_printed_with_its_error_and_chance(trained, tasks, capsys):
  args = ['evaluate', str(trained), f'--tasks={tasks}', '--batch=8']
  assert program.main(args) == 0
  lines = capsys.readouterr().out.splitlines()
  assert lines[0] == '12 items, 0 shots, chance 0.500'
  found = [
    re.fullmatch(r'accuracy  (\d\.\d{3}) ± \d\.\d{3}  (.+)', line)
    for line in lines[1:]
  ]
  assert [m[2] for m in found] == [
    'summed log-probability',
    'per token',
    'per byte',
  ]
  assert {float(m[1]) for m in found} == {float(found[0][1])}
  assert float(found[0][1]) > 0.7


def test_shots_come_from_the_other_items_or_a_file(trained, tasks, capsys):
  args = ['evaluate', str(trained), f'--tasks={tasks}', '--shots=2']
  args += ['--separator=', f'--shots_from={tasks}']
  assert program.main(args) == 0
  assert '12 items, 2 shots' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('flags', 'words'),
  [
    (['--tasks=nope.jsonl'], 'nope.jsonl: no such file'),
    (['--tasks={tasks}', '--shots=12'], 'shots=12 must be from 0 to the 11'),
    (['--tasks={tasks}', '--batch=0'], 'batch=0 must be at least 1'),
    (['--tsks={tasks}'], 'nearest is --tasks'),
  ],
)
def test_bad_flags_get_one_line(trained, tasks, capsys, flags, words):
  args = [flag.format(tasks=tasks) for flag in flags]
  assert program.main(['evaluate', str(trained), *args]) == 2
  captured = capsys.readouterr()
  assert captured.out == ''
  (line,) = captured.err.splitlines()
  assert words in line


def test_a_folder_that_is_no_run_gets_one_line(tasks, tmp_path, capsys):
  args = ['evaluate', str(tmp_path / 'no'), f'--tasks={tasks}']
  assert program.main(args) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert line.startswith('bigdl: run=') and line.endswith('no such folder')
