"""`bigdl generate`: text from a run folder."""

from __future__ import annotations

import json
import re
import shutil

import pytest
from snapshots import snapshot

from bigdl import __main__ as program


def test_text_begins_with_the_prompt_and_goes_on(trained, capsys):
  before = snapshot(trained)
  args = ['generate', str(trained), '--prompt=abc', '--tokens=80']
  assert program.main(args) == 0
  captured = capsys.readouterr()
  assert re.fullmatch(r'abc[a-p]{80}\n', captured.out)
  assert re.fullmatch(r'bigdl: [\d,]+ tokens/s \(batch 1\)\n', captured.err)
  assert snapshot(trained) == before


def test_a_trained_model_goes_on_as_its_data_does(trained, capsys):
  # Tokens of the data go up by one, now and then by two; rows hold nine.
  flags = ['--prompt=abcd', '--tokens=4', '--temperature=0']
  assert program.main(['generate', str(trained), *flags]) == 0
  text = capsys.readouterr().out.strip()
  steps = [(ord(b) - ord(a)) % 16 for a, b in zip(text, text[1:], strict=False)]
  assert len(steps) == 7 and set(steps) <= {1, 2}


def test_samples_differ_and_a_seed_repeats_them(trained, capsys):
  def texts(seed):
    flags = ['--prompt=a', '--tokens=12', '--samples=3', f'--seed={seed}']
    assert program.main(['generate', str(trained), *flags]) == 0
    return re.findall(r'^a[a-p]{12}$', capsys.readouterr().out, re.MULTILINE)

  first = texts(0)
  assert len(set(first)) == 3
  assert texts(0) == first
  assert texts(1) != first


def test_of_a_sweep_the_best_cell_writes(trained, tmp_path, capsys):
  for name, loss in (('a', 3.0), ('b', 1.0), ('c', 2.0)):
    cell = shutil.copytree(trained, tmp_path / 'cells' / name)
    record = json.loads((cell / 'record.json').read_text())
    (cell / 'record.json').write_text(json.dumps({**record, 'loss': loss}))
    if name != 'b':
      shutil.rmtree(cell / 'checkpoints')
  flags = ['--prompt=a', '--tokens=4']
  assert program.main(['generate', str(tmp_path), *flags]) == 0
  assert re.fullmatch(r'a[a-p]{4}\n', capsys.readouterr().out)


@pytest.mark.parametrize(
  ('flag', 'words'),
  [
    ('--tokens=0', 'tokens=0 must be at least 1'),
    ('--samples=0', 'samples=0 must be at least 1'),
    ('--temperature=-1', 'temperature=-1.0 must not be negative'),
    ('--top_p=2', 'top_p=2.0 must be in (0, 1]'),
    ('--prompt=xyz', "'x' is not in the vocabulary"),
    ('--temprature=1', 'nearest is --temperature'),
  ],
)
def test_bad_flags_get_one_line(trained, capsys, flag, words):
  args = ['generate', str(trained), '--prompt=a', flag]
  assert program.main(args) == 2
  captured = capsys.readouterr()
  assert captured.out == ''
  (line,) = captured.err.splitlines()
  assert words in line


def test_a_folder_without_a_checkpoint_gets_one_line(run_folder, capsys):
  shutil.rmtree(run_folder / 'checkpoints')
  assert program.main(['generate', str(run_folder), '--prompt=a']) == 2
  (line,) = capsys.readouterr().err.splitlines()
  assert 'has no checkpoint that can be read' in line
  assert program.main(['generate', str(run_folder / 'nope')]) == 2
  assert 'no such folder' in capsys.readouterr().err
