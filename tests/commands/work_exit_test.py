"""`bigdl work` at errors: which are worth another start, and who leaves when."""

# Fixtures are imported, and are arguments too.
# ruff: noqa: F401, F811

from __future__ import annotations

import os
import pathlib
import socket

import pytest
from work_test import (
  SECONDS,
  plan,
  planned,
  slow,
  small_file,
  start,
  statuses,
  work,
)

from bigdl.commands import _cells, _join
from bigdl.fleet import attempts
from bigdl.fleet.store import Local
from bigdl.train import batches, record


def test_data_that_do_not_come_are_worth_another_start(small_file, tmp_path):
  folder = tmp_path / 'sweep'
  assert plan(slow(small_file, tmp_path), folder, '--guard.hung=0.03') == 0
  assert work(folder, '--once') == 1
  assert statuses(folder) == ['interrupted']
  ends = attempts.listed(Local(folder))
  assert [made.end(1) for made in ends.values()] == ['returned']


@pytest.mark.parametrize(
  ('error', 'code'),
  [
    (ValueError('row 24 is damaged'), 2),
    (batches.Hung('the batch of step 1 has not come'), 1),
    (record.Busy('it is being trained already'), 1),
    (RuntimeError('RESOURCE_EXHAUSTED'), 1),
  ],
)
def test_one_host_of_several_leaves_at_once_at_any_error(
  planned, monkeypatch, capsys, error, code
):
  class Left(BaseException):
    """The process is gone."""

  def leave(with_code):
    raise Left(with_code)

  def fail(*_, **__):
    raise error

  monkeypatch.setattr(_join, 'join', lambda *_: None)
  monkeypatch.setattr(_join, 'SECONDS_FOR_OTHERS', 0.0)
  monkeypatch.setattr(_cells.loop, 'run', fail)
  monkeypatch.setattr(os, '_exit', leave)
  with pytest.raises(Left, match=str(code)):
    work(planned, '--distributed')
  lines = capsys.readouterr().err.splitlines()
  assert str(error) in lines[-1]
  assert ('Traceback' in '\n'.join(lines)) == isinstance(error, RuntimeError)


def test_a_cell_whose_former_holder_is_back_is_returned_and_had_later(
  planned, monkeypatch
):
  real, calls = _cells.loop.run, []

  def run(*args, **more):
    calls.append(args[1])
    if len(calls) == 1:
      raise record.Busy(f'{args[1]} is being trained already')
    return real(*args, **more)

  monkeypatch.setattr(_cells, 'PAUSE_BUSY', 0.1)
  monkeypatch.setattr(_cells.loop, 'run', run)
  assert work(planned) == 0
  assert statuses(planned) == ['finished', 'finished']
  made = attempts.listed(Local(planned))['c8e07_n3824']
  assert [made.end(n) for n in (1, 2)] == ['returned', 'finished']
  assert calls[0] == calls[1]


@pytest.mark.scheduled
def test_bad_input_on_one_process_of_a_job_ends_both(small_file, tmp_path):
  file = tmp_path / 'broken.py'
  text = pathlib.Path(small_file).read_text()
  method = '\n  def facts(self):\n'
  assert text.count(method) == 1
  broken = (
    '\n  def batch(self, step, *, size, shard=0, shards=1):\n'
    '    if step == 3 and shard == 0:\n'
    "      raise ValueError('row 24 is damaged')\n"
    '    return super().batch(step, size=size, shard=shard, shards=shards)\n'
  )
  file.write_text(text.replace(method, broken + method))
  folder = tmp_path / 'sweep'
  assert plan(str(file), folder, '--layout.data=2') == 0
  with socket.socket() as free:
    free.bind(('localhost', 0))
    address = f'--coordinator=localhost:{free.getsockname()[1]}'
  flags = '--xla_force_host_platform_device_count=1'
  pair = [
    start(folder, address, '--processes=2', f'--process={i}', XLA_FLAGS=flags)
    for i in range(2)
  ]
  try:
    _, err = pair[0].communicate(timeout=SECONDS)
    pair[1].communicate(timeout=SECONDS)
  finally:
    for process in pair:
      process.kill()
      process.communicate()
  assert pair[0].returncode == 2, err
  assert pair[1].returncode != 0
  assert err.splitlines()[-1].endswith('row 24 is damaged')
