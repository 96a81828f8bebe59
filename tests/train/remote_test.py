"""A run folder in an object store: as on a disk, whatever is cut short."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import numpy as np
from object_store import bucket  # noqa: F401  A fixture.
import pytest
import toy_experiment as toy

from bigdl import storage
from bigdl.experiment import Checkpoints
from bigdl.parallel.layout import Layout
from bigdl.train import checkpoint, log, program, record, run, weights

ROOT = pathlib.Path(__file__).parents[2]
HERE = pathlib.Path(__file__).parent
KEEPING = Checkpoints(keep=2)
TIMING = {'seconds', 'tokens_per_second', 'mfu'}


def experiment(**changes):
  return toy.experiment(layout=Layout(1), **changes)


def planned():
  e = experiment()
  plan = program.Program(e, e.layout.mesh())
  return plan, plan.state_shapes()


def numbers(folder):
  """Returns the lines of the log without how long they took."""
  rows = log.read(folder)
  return [{k: v for k, v in r.items() if k not in TIMING} for r in rows]


def restored(folder):
  _, shapes = planned()
  return jax.tree.map(np.asarray, checkpoint.load(folder, shapes))


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope='module')
def on_disk(tmp_path_factory):
  folder = tmp_path_factory.mktemp('disk')
  e = experiment()
  return folder, run.run(e, folder, config=toy.config(e))


@pytest.fixture(scope='module')
def in_store(bucket):  # noqa: F811
  folder = f'{bucket}/runs/whole'
  e = experiment()
  return folder, run.run(e, folder, config=toy.config(e))


def test_a_run_in_a_store_is_the_run_on_a_disk(on_disk, in_store):
  (disk, here), (store, there) = on_disk, in_store
  assert there['status'] == 'finished'
  assert there['loss'] == here['loss']
  assert numbers(store) == numbers(disk) != []
  assert_same(restored(store), restored(disk))
  names = {name.split('/')[0] for name in storage.entries(store)}
  want = {p.name for p in disk.iterdir()} - {'lock'}
  assert names - {'lock.1'} == want


def test_a_finished_run_in_a_store_trains_nothing(in_store):
  folder, record_ = in_store
  before = storage.entries(folder)
  e = experiment()
  assert run.run(e, folder, config=toy.config(e)) == record_
  after = storage.entries(folder)
  # But for the lock.
  same = [k for k in before if not k.startswith('lock')]
  assert {k: after[k] for k in same} == {k: before[k] for k in same}


def test_a_run_in_a_store_goes_on_where_it_stopped(bucket, in_store):  # noqa: F811
  folder = f'{bucket}/runs/stopped'
  e, steps = experiment(), []
  first = run.run(
    e,
    folder,
    config=toy.config(e),
    on_progress=lambda news: steps.append(news['step']),
    stop=lambda: 7 in steps,
  )
  assert first['status'] == 'interrupted'
  assert 7 <= first['step'] < 20
  assert run.run(e, folder, config=toy.config(e))['status'] == 'finished'
  assert numbers(folder) == numbers(in_store[0])
  assert_same(restored(folder), restored(in_store[0]))


def test_another_experiment_is_refused_in_a_store_too(in_store):
  e = experiment(seed=3)
  with pytest.raises(ValueError, match='seed: 3 here, 0 in the folder'):
    run.run(e, in_store[0], config=toy.config(e))


def test_weights_are_read_from_a_run_in_a_store(in_store, on_disk):
  assert weights.find(in_store[0]) == storage.folder(in_store[0])
  assert record.read_json(
    storage.folder(in_store[0]) / 'config.json'
  ) == record.read_json(on_disk[0] / 'config.json')


def starts_under_kills(folder, env):
  """Trains in processes that are killed; returns the first step of each."""
  starts = []
  for number, steps in enumerate((9, 14, None)):
    process = subprocess.Popen(
      [sys.executable, HERE / 'remote_run.py', folder],
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    assert process.stdout is not None
    for count, line in enumerate(process.stdout):
      if not count:
        starts.append(int(line))
      if steps is not None and int(line) >= steps:
        process.send_signal(signal.SIGKILL)
        break
    error = process.communicate()[1]
    want = -signal.SIGKILL if steps is not None else 0
    assert process.returncode == want, (number, error[-2000:])
  return starts


def test_kills_change_nothing_of_a_run_in_a_store(bucket, in_store):  # noqa: F811
  paths = [str(HERE), str(ROOT), os.environ.get('PYTHONPATH', '')]
  env = {**os.environ, 'PYTHONPATH': os.pathsep.join(paths)}
  folder = f'{bucket}/runs/killed'
  starts = starts_under_kills(folder, env)
  # The save of step 5 is whole before that of step 10 begins.
  assert starts[0] == 1
  assert starts[2] in (6, 11), starts
  assert numbers(folder) == numbers(in_store[0])
  assert_same(restored(folder), restored(in_store[0]))
  assert record.read_json(storage.folder(folder) / 'record.json')['step'] == 20


@pytest.fixture
def two_saves(bucket, request):  # noqa: F811
  """A folder in the store with steps 1 and 2, and what is in them."""
  plan, shapes = planned()
  state = plan.init(shapes)
  folder = f'{bucket}/{request.node.name}'
  states = {
    step: state.replace(step=np.full_like(state.step, step)) for step in (1, 2)
  }
  with checkpoint.Store(folder, KEEPING, print) as store:
    for step, value in states.items():
      store.save(value, step)
  return folder, shapes, states


def test_saves_are_kept_by_count_in_a_store_too(two_saves):
  folder, shapes, states = two_saves
  with checkpoint.Store(folder, KEEPING, print) as store:
    store.save(states[2].replace(step=np.full_like(states[2].step, 3)), 3)
    store.wait()
    assert store.steps() == [2, 3]
    assert int(store.restore(shapes).step) == 3


def test_a_changed_byte_of_an_object_falls_back_with_one_line(two_saves):
  folder, shapes, states = two_saves
  found = storage.entries(f'{folder}/checkpoints/2')
  # Arrays, whose content nothing else guards.
  name = max((n for n in found if '/d/' in n), key=lambda n: found[n].size)
  path = storage.folder(f'{folder}/checkpoints/2/{name}')
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(bytes(data))
  said = []
  with checkpoint.Store(folder, KEEPING, said.append) as store:
    assert_same(store.restore(shapes), states[1])
    assert store.steps() == [1]
    store.save(states[2], 2)
    store.wait()
    assert_same(store.restore(shapes), states[2])
  assert len(said) == 1 and '\n' not in said[0]
  assert f'{name} is not what was saved' in said[0]
  assert 'going back to step 1' in said[0]


def test_a_save_that_was_cut_short_is_no_checkpoint(two_saves):
  folder, shapes, states = two_saves
  storage.remove(f'{folder}/checkpoints/2/commit_success.txt')
  said = []
  # One that only reads leaves it: it may be on its way.
  assert_same(checkpoint.load(folder, shapes, said.append), states[1])
  assert 'checkpoints/2/sums.json' in storage.entries(folder)
  with checkpoint.Store(folder, KEEPING, said.append) as store:
    assert store.steps() == [1]
    assert_same(store.restore(shapes), states[1])
    store.save(states[2], 2)
  assert said == []
  assert_same(checkpoint.load(folder, shapes), states[2])


def test_a_copy_elsewhere_is_still_readable(two_saves, tmp_path):
  folder, shapes, states = two_saves
  files = storage.filesystem(folder)
  files.get(folder, str(tmp_path / 'disk'), recursive=True)
  assert_same(checkpoint.load(tmp_path / 'disk', shapes), states[2])
  # In parts, which gives other ETags.
  body = json.loads(storage.read(f'{folder}/checkpoints/2/sums.json') or '')
  for known in body['files'].values():
    known['tag'] = known['tag'] and f'{known["tag"]}-2'
  storage.write(f'{folder}/checkpoints/2/sums.json', json.dumps(body))
  files.copy(folder, f'{folder}-copy', recursive=True)
  said = []
  loaded = checkpoint.load(f'{folder}-copy', shapes, said.append)
  assert_same(loaded, states[2])
  assert said == []
  # In its own place they count.
  assert_same(checkpoint.load(folder, shapes, said.append), states[1])
  assert len(said) == 1


def test_a_run_on_a_disk_that_was_copied_to_a_store_goes_on(
  bucket,  # noqa: F811
  on_disk,
):
  folder = f'{bucket}/from_disk'
  storage.filesystem(folder).put(str(on_disk[0]), folder, recursive=True)
  assert_same(restored(folder), restored(on_disk[0]))
