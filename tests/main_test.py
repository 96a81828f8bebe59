"""Dispatch: verbs, help, exit codes, one line for bad input."""

from __future__ import annotations

import errno
import os
import pathlib
import subprocess
import sys
import time
import types

import pytest

import bigdl
from bigdl import __main__ as program

ROOT = pathlib.Path(bigdl.__file__).parents[1]
# Twice what is promised for an idle machine, where tests run side by side.
IMPORT_SECONDS = 0.4
HELP_SECONDS = 2.0


@pytest.fixture
def verb(monkeypatch):
  """Puts a function in the place of `bigdl train`."""

  def put(function):
    fake = types.SimpleNamespace(main=function)
    monkeypatch.setitem(sys.modules, 'bigdl.commands.train', fake)

  monkeypatch.delenv('BIGDL_DEBUG', raising=False)
  return put


def _raise(error):
  def main(argv):
    raise error

  return main


def test_verbs_are_the_files_in_commands():
  files = {p.stem for p in (ROOT / 'bigdl' / 'commands').glob('[!_]*.py')}
  assert set(program.verbs()) == files
  assert 'train' in files


def test_help_shows_the_first_docstring_line_of_every_verb(capsys):
  assert program.main(['--help']) == 0
  text = capsys.readouterr().out
  for verb in program.verbs():
    source = (ROOT / 'bigdl' / 'commands' / f'{verb}.py').read_text()
    first = source.removeprefix('"""').partition('\n')[0].removesuffix('"""')
    assert first
    assert f'  {verb:<10}{first}\n' in text


def test_no_verb_shows_help_and_fails(capsys):
  assert program.main([]) == 2
  assert 'train' in capsys.readouterr().out


@pytest.mark.parametrize(
  ('word', 'message'),
  [
    ('trian', 'bigdl: trian: no such verb; nearest is train\n'),
    ('zzz', 'bigdl: zzz: no such verb\n'),
    ('_run', 'bigdl: _run: no such verb'),
    ('../config', 'bigdl: ../config: no such verb'),
  ],
)
def test_unknown_verb_is_one_line_with_the_nearest(capsys, word, message):
  assert program.main([word]) == 2
  shown = capsys.readouterr().err
  assert shown.startswith(message)
  assert shown.count('\n') == 1


def test_arguments_and_exit_code_pass_through(verb):
  seen = []
  verb(lambda argv: seen.extend(argv) or 7)
  assert program.main(['train', '--a=1', 'b', '--help']) == 7
  assert seen == ['--a=1', 'b', '--help']


@pytest.mark.parametrize(
  ('error', 'code', 'line'),
  [
    (ValueError('heads=3 must\n  divide width=64'), 2, 'heads=3 must divide w'),
    (
      OSError(errno.ENOSPC, 'No space left on device', '/x'),
      2,
      'No space left',
    ),
    (FileNotFoundError(errno.ENOENT, 'No such file', '/x'), 2, 'No such file'),
    (PermissionError(errno.EACCES, 'Permission denied', '/x'), 2, 'Permission'),
    (OSError('the store does not answer'), 1, 'the store does'),
    (KeyboardInterrupt(), 130, 'interrupted'),
  ],
)
def test_what_a_person_can_mend_is_one_line(verb, capsys, error, code, line):
  verb(_raise(error))
  assert program.main(['train']) == code
  shown = capsys.readouterr()
  assert shown.err.startswith(f'bigdl: {line}')
  assert shown.err.count('\n') == 1
  assert shown.out == ''


@pytest.mark.parametrize(
  'error', [TypeError('a bug'), OSError(errno.EIO, 'bad disk'), KeyError('x')]
)
def test_a_bug_keeps_its_traceback(verb, error):
  verb(_raise(error))
  with pytest.raises(type(error)):
    program.main(['train'])


@pytest.mark.parametrize(
  ('code', 'want'), [(0, 0), (None, 0), (3, 3), ('text', 2)]
)
def test_exit_inside_a_verb_is_an_exit_code(verb, code, want):
  verb(_raise(SystemExit(code)))
  assert program.main(['train']) == want


def test_debug_shows_the_traceback(verb, capsys, monkeypatch):
  verb(_raise(ValueError('heads=3')))
  assert program.main(['train', '--debug']) == 2
  flag = capsys.readouterr().err
  assert 'Traceback' in flag
  assert flag.endswith('bigdl: heads=3\n')
  monkeypatch.setenv('BIGDL_DEBUG', '1')
  assert program.main(['train']) == 2
  assert 'Traceback' in capsys.readouterr().err


def _run(*args: str) -> tuple[subprocess.CompletedProcess, float]:
  start = time.perf_counter()
  done = subprocess.run(
    [sys.executable, *args],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={**os.environ, 'PYTHONPATH': str(ROOT)},
    check=False,
  )
  return done, time.perf_counter() - start


def _fastest(limit: float, *args: str) -> subprocess.CompletedProcess:
  """Runs until it is fast enough once, as a busy machine slows any process."""
  for _ in range(5):
    done, seconds = _run(*args)
    if seconds < limit:
      return done
  raise AssertionError(f'{args} took {seconds:.2f} s, expected {limit}')


def test_help_is_quick_and_imports_nothing_heavy():
  code = (
    'import sys; from bigdl.__main__ import main; main(["--help"]);'
    'print([m for m in ("jax", "flax", "numpy", "rich") if m in sys.modules])'
  )
  done = _fastest(HELP_SECONDS, '-c', code)
  assert done.stdout.endswith('[]\n')
  assert 'train' in done.stdout


def test_package_imports_in_a_moment():
  _fastest(IMPORT_SECONDS, '-c', 'import bigdl')


def test_module_is_a_program_with_exit_codes():
  done, _ = _run('-m', 'bigdl', 'trian')
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr == 'bigdl: trian: no such verb; nearest is train\n'


def test_reader_that_leaves_early_is_no_error():
  command = f'"{sys.executable}" -m bigdl --help | true'
  done = subprocess.run(
    ['bash', '-c', f'set -o pipefail; {command}'],
    capture_output=True,
    text=True,
    cwd=ROOT,
    # Unbuffered output would fail earlier, at the print.
    env={k: v for k, v in os.environ.items() if k != 'PYTHONUNBUFFERED'},
    check=False,
  )
  assert (done.returncode, done.stderr) == (0, '')


@pytest.mark.parametrize(
  ('asked', 'threads'),
  [
    ('--xla_force_host_platform_device_count=8', '32'),
    ('--xla_force_host_platform_device_count=1', None),
    ('', None),
  ],
)
def test_virtual_devices_have_threads_for_their_collectives(
  verb, monkeypatch, asked, threads
):
  monkeypatch.setenv('XLA_FLAGS', asked)
  monkeypatch.delenv('NPROC', raising=False)
  seen = []
  verb(lambda argv: seen.append(os.environ.get('NPROC')) or 0)
  assert program.main(['train']) == 0
  assert seen == [threads]
  # What a person sets stays.
  monkeypatch.setenv('NPROC', '5')
  program.main(['train'])
  assert seen[1] == '5'
