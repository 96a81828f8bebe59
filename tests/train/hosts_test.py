"""Two processes train one run: each reads its rows and writes its parts."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import pytest
import toy_experiment as toy

from bigdl.parallel.layout import Layout
from bigdl.train import log, run

HERE = pathlib.Path(__file__).parent
STEPS_TO_STOP = 7
SAME_LOSS = 1e-6  # Relative, in float32.


def together(folder, stop_after):
  """Returns what each of two hosts says of the run."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  paths = [str(HERE), str(HERE.parents[1]), os.environ.get('PYTHONPATH', '')]
  hosts = [
    subprocess.Popen(
      [
        sys.executable,
        HERE / 'two_hosts.py',
        *map(str, (host, port, folder, stop_after)),
      ],
      env={**os.environ, 'PYTHONPATH': os.pathsep.join(paths)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for host in range(2)
  ]
  answers = []
  for host in hosts:
    out, err = host.communicate(timeout=300)
    assert host.returncode == 0, err[-3000:]
    answers.append(json.loads(out.splitlines()[-1]))
  return answers


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  folder = tmp_path_factory.mktemp('two')
  stopped = together(folder, STEPS_TO_STOP)
  parts = {
    p.name for p in folder.glob('checkpoints/*/default/array_metadatas/*')
  }
  # One process with another mesh ends what two began.
  e = toy.experiment(layout=Layout(data=4, fsdp=2))
  run.run(e, folder, config=toy.config(e))
  alone = tmp_path_factory.mktemp('alone')
  e = toy.experiment(layout=Layout(data=1))
  run.run(e, alone, config=toy.config(e))
  return folder, alone, stopped, parts


def test_signal_on_one_host_stops_both_at_the_same_step(runs):
  *_, stopped, _ = runs
  for host in stopped:
    assert host['record']['status'] == 'interrupted'
    assert host['record']['step'] == STEPS_TO_STOP + 1


def test_each_host_reads_its_half_of_every_batch(runs):
  *_, stopped, _ = runs
  first, second = (host['rows'] for host in stopped)
  for step in range(STEPS_TO_STOP + 1):
    mine, other = range(step * 4, step * 4 + 4), range(step * 8, step * 8 + 8)
    both = [first[i] for i in mine] + [second[i] for i in mine]
    assert both == list(other)


def test_both_hosts_write_the_checkpoint(runs):
  *_, parts = runs
  assert parts == {'process_0', 'process_1'}


def test_losses_are_those_of_one_device(runs):
  two, one = (
    [(r['step'], r.get('loss', r.get('eval_loss'))) for r in log.read(folder)]
    for folder in runs[:2]
  )
  assert [s for s, _ in two] == [s for s, _ in one]
  for (_, a), (_, b) in zip(two, one, strict=True):
    assert a == pytest.approx(b, rel=SAME_LOSS)
