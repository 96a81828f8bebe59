"""How long one waits for this package, against what is promised.

  python tests/benchmarks/startup.py [--repeats 5]

measures, each in fresh processes: `import bigdl` (under 0.2 s), `bigdl --help`
(under 1 s, without importing jax), and the first step of the quickstart
experiment from the moment of the command (under 10 s), once with an empty
compile cache and data cache and once more with what that left behind. Times are
the best of the repeats: the machine may be busy. Exits with 1 where a promise
is broken.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
IMPORT_SECONDS = 0.2
HELP_SECONDS = 1.0
STEP_SECONDS = 10.0
HEAVY = ('jax', 'flax', 'numpy', 'optax', 'grain')


def environment(home: str | None = None) -> dict[str, str]:
  """Returns the environment of a child that imports this checkout."""
  values = {**os.environ, 'PYTHONPATH': str(ROOT)}
  return {**values, 'HOME': home} if home else values


def import_seconds() -> float:
  """Returns the seconds of `import bigdl` alone, the interpreter started."""
  code = (
    'import time; t = time.perf_counter(); import bigdl;'
    ' print(time.perf_counter() - t)'
  )
  out = subprocess.run(
    [sys.executable, '-c', code],
    env=environment(),
    capture_output=True,
    text=True,
    check=True,
  )
  return float(out.stdout)


def help_seconds() -> float:
  """Returns the seconds of the whole command `bigdl --help`."""
  start = time.perf_counter()
  command = [sys.executable, '-m', 'bigdl', '--help']
  subprocess.run(command, env=environment(), capture_output=True, check=True)
  return time.perf_counter() - start


def help_imports() -> list[str]:
  """Returns the heavy packages that `bigdl --help` imports."""
  command = [sys.executable, '-X', 'importtime', '-m', 'bigdl', '--help']
  out = subprocess.run(
    command, env=environment(), capture_output=True, text=True, check=True
  )
  lines = out.stderr.splitlines()
  names = {line.rpartition('|')[2].strip().split('.')[0] for line in lines}
  return [name for name in HEAVY if name in names]


def first_step_seconds(config: pathlib.Path, home: str) -> float:
  """Returns the seconds from the command to the first step in the log."""
  with tempfile.TemporaryDirectory() as folder:
    workdir = pathlib.Path(folder) / 'run'
    command = [sys.executable, '-m', 'bigdl', 'train', f'--config={config}']
    start = time.perf_counter()
    process = subprocess.Popen(
      [*command, f'--workdir={workdir}'],
      env=environment(home),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.PIPE,
      text=True,
    )
    try:
      while not _stepped(workdir / 'metrics.jsonl'):
        if process.poll() is not None:
          raise RuntimeError(f'train ended early: {process.stderr.read()}')
        time.sleep(0.02)
      return time.perf_counter() - start
    finally:
      process.send_signal(signal.SIGTERM)
      process.communicate()


def _stepped(metrics: pathlib.Path) -> bool:
  if not metrics.exists():
    return False
  # The last line may be half written.
  lines = metrics.read_text().splitlines(keepends=True)
  return any(
    'loss' in json.loads(line) for line in lines if line.endswith('\n')
  )


def main() -> int:
  """Prints each promise beside what was measured."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--repeats', type=int, default=5)
  parser.add_argument(
    '--config',
    type=pathlib.Path,
    default=ROOT / 'experiments' / 'quickstart.py',
  )
  flags = parser.parse_args()
  heavy = help_imports()
  results = [
    ('import bigdl', min(_repeat(import_seconds, flags)), IMPORT_SECONDS),
    ('bigdl --help', min(_repeat(help_seconds, flags)), HELP_SECONDS),
  ]
  with tempfile.TemporaryDirectory() as home:
    for name in ('first step, nothing cached', 'first step, again'):
      seconds = first_step_seconds(flags.config, home)
      results.append((name, seconds, STEP_SECONDS))
  kept = not heavy
  for name, seconds, limit in results:
    verdict = 'kept' if seconds < limit else 'BROKEN'
    kept = kept and seconds < limit
    print(f'{name:28}{seconds:8.3f} s of {limit:g} s  {verdict}')
  print(f'{"bigdl --help imports":28}{", ".join(heavy) or "nothing heavy"}')
  return 0 if kept else 1


def _repeat(function, flags):
  return [function() for _ in range(flags.repeats)]


if __name__ == '__main__':
  sys.exit(main())
