"""Processes that find each other, or say in one line who did not come."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

import bigdl
from bigdl import __main__ as program
from bigdl.commands import _join
from bigdl.train import log

ROOT = pathlib.Path(bigdl.__file__).parents[1]
SECONDS = 300  # That a job may take on a machine busy with others.


@pytest.fixture
def port():
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    return probe.getsockname()[1]


def meet(port, seconds, *asked):
  """Returns what each process `(number, of)` is told; '' is to go."""
  told: dict[int, str] = {}

  def one(place, process, processes):
    try:
      _join.meet('localhost', port, processes, process, seconds)
      told[place] = ''
    except ValueError as error:
      told[place] = str(error)

  threads = [
    threading.Thread(target=one, args=(i, *who)) for i, who in enumerate(asked)
  ]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  return [told[i] for i in range(len(asked))]


def test_all_go_once_all_are_there(port):
  assert meet(port, 30, (2, 3), (0, 3), (1, 3)) == ['', '', '']
  # The port is free at once, for JAX.
  assert meet(port, 30, (0, 2), (1, 2)) == ['', '']


def test_all_are_told_who_is_missing(port):
  told = meet(port, 0.5, (0, 4), (2, 4))
  line = 'process 1, 3 of 4 has not come to the coordinator within 0.5 s'
  assert told == [line, line]


def test_processes_that_were_told_other_numbers_are_refused(port):
  first, second = meet(port, 30, (0, 2), (1, 3))
  assert first == second == 'processes=3 on process 1, 2 on process 0'


def test_a_process_that_comes_twice_is_refused(port):
  told = meet(port, 30, (0, 3), (1, 3), (1, 3))
  assert told[0] == 'process=1 has come twice'
  assert told.count('process=1 has come twice') == 3


def test_what_is_no_process_of_the_job_is_ignored(port):
  with threading_guest(port):
    assert meet(port, 30, (0, 2), (1, 2)) == ['', '']


def threading_guest(port):
  """A visitor that says something else, as soon as somebody listens."""

  class Guest:
    def __enter__(self):
      self.thread = threading.Thread(target=self.visit)
      self.thread.start()

    def visit(self):
      end = time.monotonic() + 30
      while time.monotonic() < end:
        try:
          with socket.create_connection(('localhost', port)) as server:
            server.sendall(b'GET / HTTP/1.1\r\n\r\n')
            return
        except OSError:
          time.sleep(0.001)

    def __exit__(self, *_):
      self.thread.join(60)

  return Guest()


def train(experiment_file, folder, *more):
  args = [f'--config={experiment_file}', f'--workdir={folder}', *more]
  return program.main(['train', *args])


@pytest.mark.parametrize(
  'flags, message',
  [
    (['--coordinator=localhost'], "coordinator='localhost' must be HOST:PORT"),
    (['--coordinator=a:1'], 'processes=0 must be at least 1'),
    (
      ['--coordinator=a:1', '--processes=2', '--process=2'],
      'process=2 must be from 0 to 1, as processes=2',
    ),
    (['--processes=2'], '--processes and --process need --coordinator'),
    (['--distributed', '--join_seconds=0'], 'join_seconds=0.0 must be above 0'),
    (['--distributed', '--join_seconds=inf'], 'join_seconds=inf must be above'),
    (['--distributed', '--join_seconds=nan'], 'join_seconds=nan must be above'),
    (['--coordinator=a:1', '--join_seconds=1e10'], 'must be above 0 and below'),
  ],
)
def test_flags_that_make_no_sense_are_refused_in_one_line(
  experiment_file, tmp_path, capsys, flags, message
):
  assert train(experiment_file, tmp_path / 'run', *flags) == 2
  shown = capsys.readouterr().err
  assert shown.count('\n') == 1
  assert message in shown
  assert not (tmp_path / 'run').exists()


def test_a_coordinator_that_is_not_there_is_one_line_in_time(
  experiment_file, tmp_path, capsys, port
):
  began = time.monotonic()
  address = f'localhost:{port}'
  flags = [f'--coordinator={address}', '--processes=2', '--process=1']
  flags += ['--join_seconds=1']
  assert train(experiment_file, tmp_path / 'run', *flags) == 2
  assert time.monotonic() - began < 30
  line = f'bigdl: coordinator={address} cannot be reached in 1 s: '
  shown = capsys.readouterr().err
  assert shown.startswith(line)
  assert shown.count('\n') == 1


def start(args):
  """Starts two processes of one device each."""
  flag = '--xla_force_host_platform_device_count=1'
  return [
    subprocess.Popen(
      [sys.executable, '-m', 'bigdl', 'train', *args, f'--process={i}'],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
      env={**os.environ, 'PYTHONPATH': str(ROOT), 'XLA_FLAGS': flag},
    )
    for i in range(2)
  ]


def test_sigterm_to_one_process_of_two_ends_both_with_143(
  experiment_file, tmp_path, port
):
  folder = tmp_path / 'run'
  args = [f'--config={experiment_file}', f'--workdir={folder}']
  args += ['--steps=100000', '--checkpoints.every=0', '--layout.data=2']
  args += [f'--coordinator=localhost:{port}', '--processes=2']
  jobs = start(args)
  end = time.monotonic() + SECONDS
  while len(log.read(folder)) < 3 and time.monotonic() < end:
    time.sleep(0.02)
  jobs[1].send_signal(signal.SIGTERM)
  shown = [job.communicate(timeout=SECONDS) for job in jobs]
  assert [job.returncode for job in jobs] == [143, 143], shown
  record = json.loads((folder / 'record.json').read_text())
  step = record['step']
  assert (folder / 'checkpoints' / str(step)).is_dir()
  said = [line for _, err in shown for line in err.splitlines()]
  stops = [line for line in said if line.startswith(f'bigdl: {folder}: ')]
  assert stops == [
    f'bigdl: {folder}: stopped and saved at step {step};'
    ' the same command goes on'
  ]


@pytest.mark.scheduled
def test_an_error_on_one_process_is_one_line_and_ends_both(
  experiment_file, tmp_path, port
):
  file = tmp_path / 'broken.py'
  text = pathlib.Path(experiment_file).read_text()
  body = 'def get_config('
  file.write_text(
    text.replace(
      body,
      """
@dataclasses.dataclass(frozen=True)
class Broken(Walk):
  def batch(self, step, *, size, shard=0, shards=1):
    if step == 3 and shard == 0:
      raise ValueError('row 24 is damaged')
    return super().batch(step, size=size, shard=shard, shards=shards)


"""
      + body,
    ).replace('data=Walk(),', 'data=Broken(),', 1)
  )
  args = [f'--config={file}', f'--workdir={tmp_path / "run"}']
  args += ['--layout.data=2', f'--coordinator=localhost:{port}']
  jobs = start([*args, '--processes=2'])
  shown = [job.communicate(timeout=SECONDS) for job in jobs]
  assert jobs[0].returncode == 2
  assert jobs[1].returncode != 0
  assert shown[0][1].splitlines()[-1] == 'bigdl: row 24 is damaged'
