"""Several processes train one run: each reads its rows and writes its parts."""

import dataclasses
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import gpt_experiment as gpt
from one_host import Task
import pytest
import toy_experiment as toy

from bigdl.experiment import Guard
from bigdl.parallel.layout import Layout
from bigdl.train import log, run

HERE = pathlib.Path(__file__).parent
SAME_LOSS = 1e-5  # Relative, in float32.
SECONDS = 300  # That a job may take on a machine busy with others.


def start(task: Task) -> list[subprocess.Popen]:
  """Starts the processes of a job."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  paths = [str(HERE), str(HERE.parents[1]), os.environ.get('PYTHONPATH', '')]
  jobs = []
  for host in range(task.hosts):
    own = dataclasses.replace(task, host=host, port=port)
    text = json.dumps(dataclasses.asdict(own))
    jobs.append(
      subprocess.Popen(
        [sys.executable, HERE / 'one_host.py', text],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
      )
    )
  return jobs


def wait(jobs: list[subprocess.Popen]) -> list[dict]:
  """Returns what each process says of the run."""
  answers = []
  for job in jobs:
    out, err = job.communicate(timeout=SECONDS)
    assert job.returncode == 0, err[-3000:]
    answers.append(json.loads(out.splitlines()[-1]))
  return answers


def wait_for_step(folder: pathlib.Path, step: int) -> None:
  """Returns once so many steps are logged."""
  end = time.monotonic() + SECONDS
  while time.monotonic() < end:
    if any(r['step'] >= step for r in log.read(folder)):
      return
    time.sleep(0.02)
  raise AssertionError(f'step {step} did not come')


def losses(folder: pathlib.Path) -> list[tuple[int, float]]:
  lines = log.read(folder)
  return [(r['step'], r.get('loss', r.get('eval_loss'))) for r in lines]


def assert_same_losses(one: pathlib.Path, other: pathlib.Path) -> None:
  a, b = losses(one), losses(other)
  assert [step for step, _ in a] == [step for step, _ in b]
  for (_, x), (_, y) in zip(a, b, strict=True):
    assert x == pytest.approx(y, rel=SAME_LOSS)


def writers(folder: pathlib.Path, step: int) -> set[str]:
  path = folder / 'checkpoints' / str(step)
  return {p.name for p in path.glob('default/array_metadatas/*')}


# Four hosts, then two; one goes on after them.
LAYOUTS = {
  'toy': ({'data': 2, 'fsdp': 2}, {'data': 4}),
  'gpt': ({'data': 1, 'fsdp': 2, 'tensor': 2}, {'data': 2, 'tensor': 2}),
}


@pytest.fixture(
  scope='module',
  params=['toy', pytest.param('gpt', marks=pytest.mark.scheduled)],
)
def dwindling(request, tmp_path_factory):
  """A run on ever fewer hosts, each job ended by SIGTERM to one of them."""
  folder = tmp_path_factory.mktemp('dwindling')
  layouts = LAYOUTS[request.param]
  four = Task(
    str(folder), hosts=4, name=request.param, layout=layouts[0], pause=0.2
  )
  # There, no handler of ours is in the way of JAX's own notice.
  two = dataclasses.replace(
    four, hosts=2, devices=2, layout=layouts[1], handlers=True
  )
  stops, parts = [], []
  for task, after in ((dataclasses.replace(four, handlers=False), 2), (two, 2)):
    begun = stops[-1][0]['record']['step'] if stops else 0
    jobs = start(task)
    wait_for_step(folder, begun + after)
    jobs[-1].send_signal(signal.SIGTERM)
    stops.append(wait(jobs))
    parts.append(writers(folder, stops[-1][0]['record']['step']))
  last = toy.experiment() if request.param == 'toy' else gpt.EXPERIMENT
  last = dataclasses.replace(last, layout=Layout(data=1))
  record = run.run(last, folder, config=toy.config(last))
  whole = tmp_path_factory.mktemp('whole')
  run.run(last, whole, config=toy.config(last))
  return folder, whole, stops, parts, record


def test_sigterm_to_one_host_saves_one_step_on_all(dwindling):
  _, _, stops, parts, record = dwindling
  steps = []
  for answers in stops:
    assert len({a['record']['step'] for a in answers}) == 1
    for answer in answers:
      assert answer['record']['status'] == 'interrupted'
      assert answer['record']['stopped_by'] == 'SIGTERM'
    steps.append(answers[0]['record']['step'])
  assert 2 <= steps[0] < steps[1] < record['steps']
  assert parts[1] == {'process_0', 'process_1'}


def test_a_run_on_fewer_and_fewer_hosts_has_the_losses_of_one(dwindling):
  folder, whole, *_, record = dwindling
  assert record['status'] == 'finished'
  assert record['starts'] == 3
  assert_same_losses(folder, whole)
  for one, other in zip(log.read(folder), log.read(whole), strict=True):
    ids = [key for key in one if key.startswith('id')]
    assert [one[i] for i in ids] == [other[i] for i in ids]


def test_hosts_read_the_rows_of_every_batch_and_no_others(dwindling):
  _, whole, stops, *_ = dwindling
  lines = {r['step']: r for r in log.read(whole) if 'loss' in r}
  first = 0
  for answers, layout in zip(stops, (0, 1), strict=True):
    hosts = [dict(answer['rows']) for answer in answers]
    step = answers[0]['record']['step']
    for number in range(first, step):
      read = [host[number] for host in hosts]
      wanted = list(range(number * 8, number * 8 + 8))
      if 'id0' in lines[1]:
        wanted = [lines[number + 1][f'id{i}'] for i in range(8)]
        # Hosts that share rows, and split what is computed of them.
        read = [read[0], read[-1]] if layout == 0 else read
      assert [row for own in read for row in own] == wanted
    first = step


@pytest.mark.scheduled
def test_two_hosts_go_back_to_one_step_and_on_with_the_same_batches(tmp_path):
  rule = {'nonfinite': 'rewind', 'back': 2, 'ahead': 1}
  poisoned = range(72, 80)
  task = Task(
    str(tmp_path / 'two'),
    layout={'data': 2},
    guard=rule,
    poisoned=tuple(poisoned),
  )
  first, second = wait(start(task))
  assert first['record']['status'] == 'finished'
  assert [r['to'] for r in first['record']['rewinds']] == [5]
  assert first['record']['rewinds'] == second['record']['rewinds']
  assert len(first['said']) == 1
  assert second['said'] == []
  # The same on one device.
  e = toy.experiment(layout=Layout(data=1), guard=Guard(**rule))
  batch = e.data.batch

  def poison(step, **kwargs):
    own = batch(step, **kwargs)
    own['y'][[i in poisoned for i in own['id']]] = float('inf')
    return own

  object.__setattr__(e.data, 'batch', poison)
  run.run(e, tmp_path / 'one', config=toy.config(e))
  assert_same_losses(tmp_path / 'two', tmp_path / 'one')


@pytest.mark.scheduled
def test_a_read_that_hangs_on_one_host_is_told_with_host_and_step(tmp_path):
  jobs = start(
    Task(
      str(tmp_path),
      layout={'data': 2},
      guard={'slow': 0.5, 'hung': 3.0},
      stuck=6,
    )
  )
  out, _ = jobs[1].communicate(timeout=SECONDS)
  assert jobs[1].returncode == 2
  told, raised = out.splitlines()[-2:]
  assert told.startswith('host 1: the batch of step 7 has taken ')
  assert raised.startswith('host 1: the batch of step 7 has not come in 3')
  # JAX ends the other, after 100 s without a sign of life.
  jobs[0].communicate(timeout=SECONDS)
  assert jobs[0].returncode != 0
