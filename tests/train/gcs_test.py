"""A run folder in Google Cloud Storage, of which a stand-in answers."""

from __future__ import annotations

from gcs_store import gcs_bucket  # noqa: F401  A fixture.
import jax
import numpy as np
import pytest
import toy_experiment as toy

from bigdl import storage
from bigdl.parallel.layout import Layout
from bigdl.train import checkpoint, log, program, run

TIMING = {'seconds', 'tokens_per_second', 'mfu'}


def experiment():
  return toy.experiment(layout=Layout(1))


def numbers(folder):
  rows = log.read(folder)
  return [{k: v for k, v in r.items() if k not in TIMING} for r in rows]


@pytest.fixture(scope='module')
def runs(gcs_bucket, tmp_path_factory):  # noqa: F811
  """A run in the bucket that was stopped and went on, and one on a disk."""
  e, steps = experiment(), []
  folder, disk = f'{gcs_bucket}/run', tmp_path_factory.mktemp('disk')
  first = run.run(
    e,
    folder,
    config=toy.config(e),
    on_progress=lambda news: steps.append(news['step']),
    stop=lambda: 7 in steps,
  )
  assert first['status'] == 'interrupted'
  for place in (folder, disk):
    assert run.run(e, place, config=toy.config(e))['status'] == 'finished'
  return folder, disk


def test_a_run_in_gcs_that_was_stopped_is_the_run_on_a_disk(runs):
  folder, disk = runs
  assert numbers(folder) == numbers(disk) != []
  e = experiment()
  shapes = program.Program(e, e.layout.mesh()).state_shapes()
  states = [checkpoint.load(place, shapes) for place in runs]
  jax.tree.map(np.testing.assert_array_equal, *states)


def test_a_changed_byte_in_gcs_falls_back_with_one_line(runs):
  folder, _ = runs
  found = storage.entries(f'{folder}/checkpoints/20')
  name = max((n for n in found if '/d/' in n), key=lambda n: found[n].size)
  path = f'{folder}/checkpoints/20/{name}'
  data = bytearray(storage.read_bytes(path))
  data[len(data) // 2] ^= 1
  storage.filesystem(path).pipe_file(path, bytes(data))
  e, said = experiment(), []
  shapes = program.Program(e, e.layout.mesh()).state_shapes()
  with checkpoint.Store(folder, e.checkpoints, said.append) as store:
    assert int(store.restore(shapes).step) == 15
  assert len(said) == 1 and f'{name} is not what was saved' in said[0]


def test_one_creates_an_object_and_a_missing_bucket_is_named(gcs_bucket):  # noqa: F811
  path = f'{gcs_bucket}/claim'
  assert storage.create(path, 'first')
  assert not storage.create(path, 'second')
  assert storage.read(path) == 'first'
  with pytest.raises(ValueError, match='there is no bucket nowhere'):
    storage.check('gs://nowhere/run')
