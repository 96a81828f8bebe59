"""Metrics: one whole line a record, and the other places where asked."""

import json
import sys
import types

import pytest

from bigdl.experiment import Logs
from bigdl.train import log

QUIET = Logs(tensorboard=False)


def write(folder, *steps, logs=QUIET, step=0):
  with log.Log(folder, logs, step=step, config={'a': 1}) as out:
    for number in steps:
      out.write({'step': number, 'loss': number / 3, 'mfu': None})


def test_records_come_back_exactly(tmp_path):
  write(tmp_path, 1, 2)
  assert log.read(tmp_path) == [
    {'step': 1, 'loss': 1 / 3, 'mfu': None},
    {'step': 2, 'loss': 2 / 3, 'mfu': None},
  ]


def test_a_record_is_on_disk_once_it_is_written(tmp_path):
  with log.Log(tmp_path, QUIET, step=0, config={}) as out:
    out.write({'step': 1})
    assert log.read(tmp_path) == [{'step': 1}]


def test_going_on_drops_what_came_after_the_checkpoint(tmp_path):
  write(tmp_path, 1, 2, 3, 4)
  write(tmp_path, 3, step=2)
  assert [r['step'] for r in log.read(tmp_path)] == [1, 2, 3]


@pytest.mark.parametrize('cut', [1, 5, 20])
def test_half_a_line_at_the_end_is_dropped(tmp_path, cut):
  write(tmp_path, 1, 2)
  path = tmp_path / 'metrics.jsonl'
  path.write_bytes(path.read_bytes()[:-cut])
  assert [r['step'] for r in log.read(tmp_path)] == [1]
  write(tmp_path, 2, step=2)
  assert [r['step'] for r in log.read(tmp_path)] == [1, 2]


@pytest.mark.parametrize('tail', [b'\0\0\0\n', b'{"st\n\xff\n', b'\n'])
def test_what_a_loss_of_power_leaves_at_the_end_is_dropped(tmp_path, tail):
  write(tmp_path, 1, 2)
  with open(tmp_path / 'metrics.jsonl', 'ab') as file:
    file.write(tail)
  assert [r['step'] for r in log.read(tmp_path)] == [1, 2]
  write(tmp_path, 3, step=2)
  assert [r['step'] for r in log.read(tmp_path)] == [1, 2, 3]


def test_a_damaged_line_before_others_is_named(tmp_path):
  write(tmp_path, 1, 2, 3)
  path = tmp_path / 'metrics.jsonl'
  lines = path.read_text().splitlines(keepends=True)
  path.write_text(lines[0] + '{"st\n' + lines[2])
  with pytest.raises(ValueError, match=r'metrics\.jsonl, line 2 is no record'):
    log.read(tmp_path)


def test_no_file_is_no_records(tmp_path):
  assert log.read(tmp_path) == []


def test_hosts_but_the_first_write_nothing(tmp_path):
  with log.Log(tmp_path, Logs(), step=0, config={}, primary=False) as out:
    out.write({'step': 1, 'loss': 1.0})
    assert out.records == [{'step': 1, 'loss': 1.0}]
  assert list(tmp_path.iterdir()) == []


def test_tensorboard_is_on_by_default(tmp_path):
  write(tmp_path, 1, 2, logs=Logs())
  (events,) = (tmp_path / 'tensorboard').iterdir()
  data = events.read_bytes()
  assert b'loss' in data
  assert b'mfu' not in data  # It was None.


@pytest.mark.parametrize(
  'logs, module, field',
  [
    (Logs(), 'tensorboardX', 'tensorboard'),
    (Logs(tensorboard=False, wandb='p'), 'wandb', 'wandb'),
    (Logs(tensorboard=False, mlflow='e'), 'mlflow', 'mlflow'),
  ],
)
def test_missing_package_is_one_line(
  tmp_path, monkeypatch, logs, module, field
):
  monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(ValueError) as error:
    write(tmp_path, 1, logs=logs)
  with pytest.raises(ValueError, match=f'needs the package {module}'):
    log.check(logs)
  assert f'logs.{field} needs the package {module}' in str(error.value)
  assert '\n' not in str(error.value)


def test_wandb_goes_on_under_its_id(tmp_path, monkeypatch):
  calls = []

  class Run:
    def log(self, numbers, step):
      calls.append((step, numbers))

    def finish(self):
      calls.append('finish')

  starts = []
  module = types.ModuleType('wandb')
  module.init = lambda **kwargs: starts.append(kwargs) or Run()
  monkeypatch.setitem(sys.modules, 'wandb', module)
  logs = Logs(tensorboard=False, wandb='project')
  write(tmp_path, 1, logs=logs)
  write(tmp_path, 2, logs=logs, step=1)
  one = {'loss': 1 / 3}
  assert calls == [(1, one), 'finish', (2, {'loss': 2 / 3}), 'finish']
  assert [s['project'] for s in starts] == ['project', 'project']
  assert starts[0]['id'] == starts[1]['id']
  assert starts[0]['config'] == {'a': 1}
  assert starts[0]['resume'] == 'allow'


def test_mlflow_goes_on_under_its_id(tmp_path, monkeypatch):
  calls = []

  class Client:
    def get_experiment_by_name(self, name):
      return None

    def create_experiment(self, name):
      calls.append(('experiment', name))
      return '7'

    def create_run(self, number, run_name):
      calls.append(('run', number, run_name))
      return types.SimpleNamespace(info=types.SimpleNamespace(run_id='r'))

    def log_dict(self, run_id, value, name):
      calls.append(('config', run_id, value))

    def log_metric(self, run_id, name, value, step):
      calls.append((run_id, name, value, step))

    def set_terminated(self, run_id):
      calls.append(('end', run_id))

  module = types.ModuleType('mlflow')
  module.MlflowClient = Client
  monkeypatch.setitem(sys.modules, 'mlflow', module)
  logs = Logs(tensorboard=False, mlflow='name')
  write(tmp_path, 1, logs=logs)
  write(tmp_path, 2, logs=logs, step=1)
  assert calls == [
    ('experiment', 'name'),
    ('run', '7', tmp_path.name),
    ('config', 'r', {'a': 1}),
    ('r', 'loss', 1 / 3, 1),
    ('end', 'r'),
    ('r', 'loss', 2 / 3, 2),
    ('end', 'r'),
  ]


def test_lines_are_json_objects_in_the_order_written(tmp_path):
  write(tmp_path, 1)
  line = (tmp_path / 'metrics.jsonl').read_text()
  assert line == json.dumps({'step': 1, 'loss': 1 / 3, 'mfu': None}) + '\n'
