"""What all launchers do: check, dry run, plan, write, submit."""

from __future__ import annotations

import dataclasses
import importlib
import os
import pathlib
import shlex
import shutil
import subprocess
import sys

import base
import pytest
import slurm

ROOT = pathlib.Path(base.__file__).parents[1]
# Each is found by itself: a file of launch/ with an engine.
LAUNCHERS = sorted(
  path.stem
  for path in (ROOT / 'launch').glob('*.py')
  if '\nENGINE = ' in path.read_text()
)


@pytest.fixture(params=LAUNCHERS)
def launcher(request):
  return importlib.import_module(request.param)


@pytest.fixture
def programs(tmp_path, monkeypatch):
  """Puts programs on the PATH, alone, that note what they are called with."""
  folder = tmp_path / 'programs'
  folder.mkdir()
  env = shutil.which('env')
  assert env
  (folder / 'env').symlink_to(env)
  monkeypatch.setenv('PATH', str(folder))

  def put(*names: str, code: int = 0) -> pathlib.Path:
    calls = folder / 'calls'
    for name in names:
      (folder / name).write_text(
        f'#!/bin/sh\necho {name} "$@" >> {calls}\nexit {code}\n'
      )
      (folder / name).chmod(0o755)
    return calls

  return put


def test_the_launchers_are_found():
  assert {'slurm', 'xpk', 'skypilot', 'tpu_vm'} <= set(LAUNCHERS)


def test_a_launcher_ends_in_tiny_and_its_commands_are_pure(launcher):
  run = launcher.tiny()
  assert type(run) is launcher.Run
  command = launcher.command(run)
  assert command == launcher.command(launcher.tiny())
  assert command and all(isinstance(word, str) for word in command)
  files = launcher.ENGINE.files
  assert files(run) == files(launcher.tiny())
  assert command in [list(c) for c in launcher.ENGINE.commands(run)]


def test_a_launcher_says_what_it_does_and_which_flags_it_takes(
  launcher, capsys
):
  assert base.main(launcher.ENGINE, ['--help']) == 0
  shown = capsys.readouterr().out
  assert shown.startswith(f'usage: python launch/{launcher.__name__}.py ')
  for field in dataclasses.fields(launcher.Run):
    assert f'--{field.name}' in shown


def test_a_launcher_runs_as_a_program():
  done = subprocess.run(
    [sys.executable, 'launch/slurm.py', '--workdir=/x', '--partitoin=a'],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=False,
  )
  assert (done.returncode, done.stdout) == (2, '')
  assert done.stderr.startswith('bigdl: --partitoin')


def test_a_dry_run_prints_all_that_a_launch_does_and_does_nothing(
  experiment_file, tmp_path, capsys, programs
):
  programs()
  folder = tmp_path / 'sweep'
  flags = [f'--config={experiment_file}', f'--workdir={folder}']
  more = ['--workers=2', '--model.depth=2', '--dry_run']
  assert base.main(slurm.ENGINE, [*flags, *more]) == 0
  assert not folder.exists()
  run = base.read(slurm.ENGINE, [*flags, *more])
  assert isinstance(run, slurm.Run)
  plan = shlex.join(
    [
      *('env', 'JAX_PLATFORMS=cpu', sys.executable),
      *('-m', 'bigdl', 'sweep', *flags),
      *('--plan_only', '--model.depth=2'),
    ]
  )
  script = slurm.files(run)['slurm.sh']
  assert capsys.readouterr().out == (
    f'$ {plan}\n==> {folder}/launch/slurm.sh <==\n{script}'
    f'$ sbatch {folder}/launch/slurm.sh\n'
  )


def test_a_launch_plans_writes_and_submits_what_the_dry_run_says(
  experiment_file, tmp_path, programs, capfd
):
  calls = programs('sbatch')
  folder = tmp_path / 'sweep'
  flags = [f'--config={experiment_file}', f'--workdir={folder}', '--workers=2']
  assert base.main(slurm.ENGINE, flags) == 0
  assert (folder / 'manifest.json').exists()
  file = folder / 'launch' / 'slurm.sh'
  assert calls.read_text() == f'sbatch {file}\n'
  assert base.main(slurm.ENGINE, [*flags, '--dry_run']) == 0
  shown = capfd.readouterr().out
  assert shown.endswith(f'==> {file} <==\n{file.read_text()}$ sbatch {file}\n')
  # More workers, later, need no experiment.
  assert base.main(slurm.ENGINE, [f'--workdir={folder}', '--name=more']) == 0
  assert '--job-name=more\n' in file.read_text()


def test_a_layout_is_checked_against_what_a_worker_has(
  experiment_file, tmp_path, programs, capfd
):
  programs()
  flags = [f'--config={experiment_file}', f'--workdir={tmp_path}/sweep']
  # Four nodes of two GPUs are eight devices, whatever this machine has.
  more = ['--nodes=4', '--gpus=2', '--dry_run']
  assert base.main(slurm.ENGINE, [*flags, *more, '--layout.data=8']) == 0
  assert 'device_count=8 ' in capfd.readouterr().out
  assert base.main(slurm.ENGINE, [*flags, *more, '--layout.data=16']) == 2
  assert 'needs 16 devices, a worker has 8\n' in capfd.readouterr().err


@pytest.mark.parametrize('name', sorted({*LAUNCHERS} - {'local'}))
def test_a_program_that_is_missing_is_named_and_nothing_is_written(
  name, planned, programs, capsys, monkeypatch, tmp_path
):
  launcher = importlib.import_module(name)
  programs()
  monkeypatch.chdir(tmp_path)
  run = launcher.tiny()
  needs = launcher.ENGINE.needs(run)
  values = {f.name: getattr(run, f.name) for f in dataclasses.fields(run)}
  if '://' not in run.workdir:
    values['workdir'] = planned
  flags = [
    f'--{k}={v}' for k, v in values.items() if v and not isinstance(v, bool)
  ]
  before = sorted(planned.rglob('*'))
  assert base.main(launcher.ENGINE, flags) == 2
  error = capsys.readouterr().err
  program, how = next(iter(needs.items()))
  assert error == f'bigdl: {program} is not installed here: {how}\n'
  assert sorted(planned.rglob('*')) == before
  assert not (tmp_path / 'runs').exists()


def test_a_refusal_of_the_engine_ends_the_launch(planned, programs, capfd):
  programs('sbatch', code=5)
  assert base.main(slurm.ENGINE, [f'--workdir={planned}']) == 2
  error = capfd.readouterr().err
  assert error.startswith(
    'bigdl: sbatch ended with exit code 5 at command 1 of'
  )
  assert error.count('\n') == 1


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ([], '--workdir is required; see python launch/slurm.py --help'),
    (['--workdir='], 'workdir= must name a folder'),
    (['--workdir=ftp://a/b'], 'must be a path, or begin with gs:// or s3://'),
    (['--workdir=DIR', '--workers=0'], 'workers=0 must be 1 or more'),
    (['--workdir=DIR', '--workers=9'], 'more than the 8 cells of the sweep'),
    (['--workdir=DIR', '--name=My_Job'], "name='My_Job' must be up to 40"),
    (['--workdir=DIR', '--model.depth=2'], 'no such flag of launch/slurm.py'),
    (['--workdir=/nowhere', '--dry_run'], 'holds no manifest.json'),
    (['--workdir=DIR', '--config=no.py', '--dry_run'], 'no.py: no such file'),
    (
      ['--workdir=DIR', '--config=FILE', '--model.dept=2', '--dry_run'],
      'nearest is --model.depth',
    ),
  ],
)
def test_bad_input_is_one_line_and_exit_code_2(
  flags, message, planned, experiment_file, programs, capsys
):
  calls = programs('sbatch')
  flags = [
    f.replace('DIR', str(planned)).replace('FILE', experiment_file)
    for f in flags
  ]
  assert base.main(slurm.ENGINE, flags) == 2
  out, error = capsys.readouterr()
  assert message in error and error.startswith('bigdl: ')
  assert (out, error.count('\n')) == ('', 1)
  assert not calls.exists()


@pytest.mark.parametrize(
  ('workdir', 'name'),
  [
    ('/runs/My Sweep (2)', 'my-sweep-2'),
    ('gs://bucket/a/7b/', 'sweep-7b'),
    ('/runs/' + 'x' * 60, 'x' * 40),
    ('/', 'sweep'),
  ],
)
def test_jobs_are_named_after_the_folder(workdir, name):
  run = slurm.Run(workdir=workdir)
  assert run.job == name
  # What it is called is a name that may be given, too.
  assert slurm.Run(workdir=workdir, name=run.job).job == name


def test_a_worker_has_a_name_of_its_own_that_every_engine_takes():
  run = slurm.Run(workdir='/runs/a', name='x' * 40)
  assert run.worker(0) == 'x' * 38 + '-0'
  assert run.worker(11) == 'x' * 37 + '-11'


def test_what_a_launcher_writes_lies_where_this_machine_can_write():
  assert slurm.Run(workdir='/a/b').folder == '/a/b/launch'
  assert slurm.Run(workdir='gs://a/b').folder == 'runs/launched/b'
  assert os.path.isabs(base.read(slurm.ENGINE, ['--workdir=a']).workdir)
