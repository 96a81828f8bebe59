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


def greedy(trained, capsys, *flags) -> str:
  args = ['generate', str(trained), '--prompt=abcd', '--temperature=0']
  assert program.main([*args, '--tokens=6', *flags]) == 0
  return capsys.readouterr().out


def test_a_stop_ends_the_text_and_is_not_shown(trained, capsys):
  text = greedy(trained, capsys).removesuffix('\n')
  assert len(text) == 10
  for size in (1, 2):
    stop = text[7 : 7 + size]
    cut = text[: text.index(stop, 4)]
    assert greedy(trained, capsys, f'--stop=zz,{stop}') == f'{cut}\n'
  both = greedy(trained, capsys, '--samples=2', f'--stop={stop}')
  assert both == f'--- 1\n{cut}\n--- 2\n{cut}\n'


def test_one_beam_is_greedy_and_more_are_ranked(trained, capsys):
  text = greedy(trained, capsys)
  assert greedy(trained, capsys, '--beams=1', '--length_penalty=0') == text
  flags = ['--prompt=abcd', '--tokens=3', '--beams=4', '--samples=4']
  assert program.main(['generate', str(trained), *flags]) == 0
  captured = capsys.readouterr()
  found = re.findall(r'^abcd[a-p]{3}$', captured.out, re.MULTILINE)
  assert len(set(found)) == 4
  assert re.fullmatch(
    r'bigdl: [\d,]+ tokens/s \(batch 1, 4 beams, with compilation\)\n',
    captured.err,
  )


def test_prompts_of_a_file_are_continued_each(trained, tmp_path, capsys):
  (tmp_path / 'prompts').write_text('abcd\nb\ncdefgh\n')
  args = [str(trained), f'--prompts={tmp_path / "prompts"}', '--tokens=3']
  assert program.main(['generate', *args, '--temperature=0']) == 0
  found = capsys.readouterr().out.splitlines()
  assert found[::2] == ['--- 1', '--- 2', '--- 3']
  for prompt, text in zip(('abcd', 'b', 'cdefgh'), found[1::2], strict=True):
    own = [f'--prompt={prompt}', '--tokens=3', '--temperature=0']
    assert program.main(['generate', str(trained), *own]) == 0
    assert capsys.readouterr().out == f'{text}\n'


@pytest.mark.parametrize(
  ('flag', 'words'),
  [
    ('--tokens=0', 'tokens=0 must be at least 1'),
    ('--samples=0', 'samples=0 must be at least 1'),
    ('--temperature=-1', 'temperature=-1.0 must not be negative'),
    ('--top_p=2', 'top_p=2.0 must be in (0, 1]'),
    ('--min_p=2', 'min_p=2.0 must be in [0, 1]'),
    ('--beams=-1', 'beams=-1 must not be negative'),
    ('--beams=9', 'beams=9 must be at most half of vocab=16'),
    ('--beams=2', 'tokens=256 after a prompt of 1 must fit in length=16'),
    ('--prompts=nowhere', 'prompt and prompts cannot both be given'),
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
