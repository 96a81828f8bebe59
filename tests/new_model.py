"""Follows CONTRIBUTING in a clean copy: one new file, then contracts, sweep, law.

  python tests/new_model.py [FOLDER]

copies what git tracks (or would) into FOLDER, saves the files that CONTRIBUTING
shows under the names it gives them, edits nothing else, and runs the commands that
it shows. Every command must succeed and leave all other files as they were.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[1]
SAVED = re.compile(r'ave this as\s`([^`]+)`.*?```python\n(.*?)```', re.DOTALL)
COMMANDS = re.compile(
  r'^(?:\.venv/bin/python -m pytest|bigdl) .*$', re.MULTILINE
)


def copy(folder: pathlib.Path) -> None:
  """Copies the checkout, without what git ignores."""
  listed = subprocess.check_output(
    ['git', 'ls-files', '-co', '--exclude-standard', '-z'], cwd=ROOT, text=True
  )
  for name in filter(None, listed.split('\0')):
    if (ROOT / name).is_file():
      (folder / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(ROOT / name, folder / name)


def sums(folder: pathlib.Path) -> dict[str, str]:
  """Returns a hash of every source file by its name."""
  return {
    str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
    for file in sorted(folder.rglob('*'))
    if file.is_file() and file.suffix in ('.py', '.md', '.toml', '')
    and not {'runs', '__pycache__'} & set(file.relative_to(folder).parts)
    and not any(p.startswith('.') for p in file.relative_to(folder).parts)
  }  # fmt: skip


def model_files(text: str) -> dict[str, str]:
  """Returns name and content of the files of the model's section."""
  section = text.split('\n## A model in one file\n')[1].split('\n## ')[0]
  return dict(SAVED.findall(section))


def commands(text: str) -> list[list[str]]:
  """Returns the commands that name the new model, as they are to be run."""
  lines = [
    m.group() for m in COMMANDS.finditer(text) if 'gated_conv' in m.group()
  ]
  python = [sys.executable, '-m']
  runs = []
  for line in lines:
    words = shlex.split(line, comments=True)
    if words[0] == 'bigdl':
      runs.append([*python, *words])
    else:
      runs.append([*python, *words[2:], '-p', 'no:cacheprovider'])
  return runs


def follow(folder: pathlib.Path) -> list[str]:
  """Does all of it in an empty folder; returns what the commands printed."""
  copy(folder)
  text = (folder / 'CONTRIBUTING.md').read_text()
  for name, content in model_files(text).items():
    file = folder / name
    if file.exists():
      raise SystemExit(f'{name} is there already')
    file.write_text(content)
  before, printed = sums(folder), []
  environment = {**os.environ, 'PYTHONPATH': str(folder)}
  # The tests' virtual devices are not for a sweep.
  environment.pop('XLA_FLAGS', None)
  for command in commands(text):
    print('$', shlex.join(command[2:]), flush=True)
    done = subprocess.run(
      command, cwd=folder, env=environment, capture_output=True, text=True,
      check=False,
    )  # fmt: skip
    if done.returncode:
      raise SystemExit(
        f'{shlex.join(command)} ended with {done.returncode}:\n'
        f'{done.stdout[-2000:]}\n{done.stderr[-2000:]}'
      )
    printed.append(done.stdout)
  if sums(folder) != before:
    raise SystemExit('a command changed the sources')
  return printed


def main() -> None:
  """Runs in the folder that is given, or in one that is removed afterwards."""
  if len(sys.argv) > 1:
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True)
    print('\n'.join(follow(folder)))
    return
  with tempfile.TemporaryDirectory() as made:
    print('\n'.join(follow(pathlib.Path(made))))


if __name__ == '__main__':
  main()
