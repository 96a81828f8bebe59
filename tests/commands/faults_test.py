"""Sweeps under kill -9: no cell is lost or run twice, the law is the same."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import pytest

import bigdl
from bigdl.fleet import attempts
from bigdl.fleet.store import Local

HERE = pathlib.Path(__file__).parent
ROOT = pathlib.Path(bigdl.__file__).parents[1]
# Of a batch: a kill then finds any step, and cells outlive a few.
PAUSE = """
  def batch(self, *args, **more):
    import time
    time.sleep(0.004)
    return super().batch(*args, **more)

  def facts(self):
"""
ROUNDS = 50


@pytest.fixture(scope='module')
def slow_file(tmp_path_factory, experiment_file) -> str:
  """The tiny sweep with nine cells whose batches take a while."""
  text = pathlib.Path(experiment_file).read_text()
  for old, new in (
    ('\n  def facts(self):\n', PAUSE),
    ('(4e7, 8e7, 1.6e8, 3.2e8)', '(4e7, 8e7, 1.6e8)'),
    ('(8, 12, 16, 24)', '(8, 12, 16)'),
  ):
    assert text.count(old) == 1
    text = text.replace(old, new)
  file = tmp_path_factory.mktemp('experiments') / 'slow.py'
  file.write_text(text)
  return str(file)


def environment() -> dict[str, str]:
  paths = [str(HERE), str(ROOT), os.environ.get('PYTHONPATH', '')]
  return {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, paths))}


def ends(folder: pathlib.Path) -> dict[str, list[str | None]]:
  """Returns how the attempts at each cell ended, in order."""
  return {
    name: [made.end(n) for n in range(1, made.last + 1)]
    for name, made in attempts.listed(Local(folder)).items()
  }


def check(killed: pathlib.Path, whole: pathlib.Path) -> None:
  """Asserts that nothing is lost, nothing ended twice, and the law equal."""
  made = ends(killed)
  assert set(made) == set(ends(whole)) and len(made) == 9
  for name, how in made.items():
    record = json.loads((killed / f'cells/{name}/record.json').read_text())
    assert record['status'] == 'finished'
    # One that was killed just after its last word was not run again.
    assert how.count('finished') == 1 or how[-1] == 'returned', (name, how)
    lines = (killed / f'cells/{name}/metrics.jsonl').read_text().splitlines()
    steps = [json.loads(line)['step'] for line in lines if '"loss"' in line]
    assert steps == sorted(set(steps)) and steps[-1] == record['steps']
  assert (killed / 'law.json').read_bytes() == (whole / 'law.json').read_bytes()


def test_a_sweep_whose_workers_are_killed_ends_in_the_same_law(
  slow_file, tmp_path
):
  cache = os.environ['JAX_COMPILATION_CACHE_DIR']
  program = HERE / 'killed_sweeps.py'
  done = subprocess.run(
    [sys.executable, program, slow_file, tmp_path, cache, '0', '5'],
    env=environment(),
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  assert json.loads(done.stdout.splitlines()[-1])['killed'] >= 5
  check(tmp_path / 'killed', tmp_path / 'whole')
  lost = [how.count('lost') for how in ends(tmp_path / 'killed').values()]
  assert sum(lost) >= 4


class Launcher:
  """`bigdl sweep` in a process of its own, and its workers."""

  def __init__(self, file: str, folder: pathlib.Path):
    words = ['sweep', f'--config={file}', f'--workdir={folder}', '--workers=2']
    # So many kills in a row are not the cell's fault.
    more = ['--bootstrap=40', f'--attempts={2 * ROUNDS}']
    self.log = folder.with_suffix('.log')
    with open(self.log, 'a') as log:
      self.process = subprocess.Popen(
        [sys.executable, '-m', 'bigdl', *words, *more],
        cwd=ROOT,
        env=environment(),
        stdout=log,
        stderr=log,
      )

  def workers(self) -> list[int]:
    found = []
    for path in pathlib.Path('/proc').glob('[0-9]*/stat'):
      try:
        name, _, rest = path.read_text().rpartition(')')
        command = path.with_name('cmdline').read_bytes()
      except OSError:
        continue
      if int(rest.split()[1]) == self.process.pid and b'_worker' in command:
        found.append(int(name.split()[0]))
    return found

  def wait_for_workers(self) -> list[int]:
    end = time.monotonic() + 120
    while not (found := self.workers()):
      assert time.monotonic() < end, self.log.read_text()[-3000:]
      time.sleep(0.05)
    return found


@pytest.mark.scheduled
def test_fifty_kills_of_workers_and_of_the_launcher_change_nothing(
  slow_file, tmp_path
):
  # So slow that each of nine cells outlives several kills.
  text = pathlib.Path(slow_file).read_text()
  file = tmp_path / 'slower.py'
  file.write_text(re.sub(r'sleep\(0.004\)', 'sleep(0.08)', text))
  folder, chance = tmp_path / 'killed', random.Random(1)
  launcher, kills = Launcher(str(file), folder), {'worker': 0, 'launcher': 0}
  while sum(kills.values()) < ROUNDS:
    # Its own start is a moment to be killed in, too.
    time.sleep(chance.uniform(0, 3))
    assert launcher.process.poll() is None, launcher.log.read_text()[-3000:]
    if chance.random() < 0.4:
      launcher.process.kill()
      launcher.process.wait()
      launcher = Launcher(str(file), folder)
      kills['launcher'] += 1
    else:
      doomed = chance.choice(launcher.wait_for_workers())
      with contextlib.suppress(ProcessLookupError):
        os.kill(doomed, signal.SIGKILL)
        kills['worker'] += 1
  assert launcher.process.wait(600) in (0, 3), launcher.log.read_text()[-3000:]
  assert min(kills.values()) >= 12, kills
  calm = Launcher(slow_file, tmp_path / 'whole')
  assert calm.process.wait(600) in (0, 3)
  # The files differ by their pause alone, which no number tells.
  check(folder, tmp_path / 'whole')
  assert sum(map(len, ends(folder).values())) > 9 + ROUNDS // 4
