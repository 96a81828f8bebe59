"""States on disk: whole or not there, on any mesh, as many as asked."""

import errno
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy_experiment as toy

from bigdl.experiment import Checkpoints
from bigdl.parallel.layout import Layout
from bigdl.train import checkpoint, program

KEEPING = Checkpoints(keep=2)


ONE = Layout(1)


def planned(layout=ONE):
  e = toy.experiment(layout=layout, model=toy.Net(width=256))
  plan = program.Program(e, e.layout.mesh())
  return plan, plan.state_shapes()


def at(state, step):
  """Returns a state that can be told from those of other steps."""
  return state.replace(
    step=jnp.full_like(state.step, step),
    params=jax.tree.map(lambda x: x + step, state.params),
  )


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A folder with steps 1 and 2, and what is in them."""
  folder = tmp_path_factory.mktemp('saved')
  plan, shapes = planned()
  first = plan.init(shapes)
  states = {step: at(first, step) for step in (1, 2)}
  with checkpoint.Store(folder, KEEPING, print) as store:
    for step, state in states.items():
      store.save(state, step)
  return folder, shapes, jax.tree.map(np.asarray, states)


def files(folder):
  """Returns one file of each kind in a checkpoint, the largest of its kind."""
  kinds = {}
  for path in sorted(folder.rglob('*'), key=lambda p: p.stat().st_size):
    if path.is_file():
      name = path.relative_to(folder)
      kinds[str(name.parent / ('*' if len(name.name) == 32 else name.name))] = (
        name
      )
  return kinds


def test_newest_state_comes_back_bit_for_bit(saved):
  folder, shapes, states = saved
  with checkpoint.Store(folder, KEEPING, print) as store:
    assert store.steps() == [1, 2]
    assert_same(store.restore(shapes), states[2])


@pytest.mark.parametrize('layout', [Layout(8), Layout(1, 8), Layout(2, 2)])
def test_state_is_restored_into_the_shardings_of_another_mesh(saved, layout):
  folder, _, states = saved
  _, shapes = planned(layout)
  with checkpoint.Store(folder, KEEPING, print) as store:
    state = store.restore(shapes)
  assert_same(state, states[2])
  for got, want in zip(
    jax.tree.leaves(state), jax.tree.leaves(shapes), strict=True
  ):
    assert got.sharding == want.sharding


def test_empty_folder_has_nothing_to_restore(tmp_path):
  _, shapes = planned()
  with checkpoint.Store(tmp_path, KEEPING, print) as store:
    assert store.restore(shapes) is None


def test_truncation_of_any_file_falls_back_with_one_line(
  saved, tmp_path, capfd, caplog
):
  folder, shapes, states = saved
  kinds = files(folder / 'checkpoints' / '2')
  assert len(kinds) >= 8, kinds
  for number, (kind, name) in enumerate(kinds.items()):
    if kind == 'commit_success.txt':
      continue  # The one that says nothing; its loss costs nothing.
    for size in (0, (folder / 'checkpoints' / '2' / name).stat().st_size // 2):
      copy = tmp_path / f'{number}-{size}'
      shutil.copytree(folder, copy)
      os.truncate(copy / 'checkpoints' / '2' / name, size)
      said = []
      with checkpoint.Store(copy, KEEPING, said.append) as store:
        state = store.restore(shapes)
        assert_same(state, states[1])
        assert len(said) == 1, (kind, said)
        assert 'going back to step 1' in said[0]
        assert '\n' not in said[0]
        assert store.steps() == [1]
  assert capfd.readouterr() == ('', '')
  assert not caplog.records


def test_one_changed_bit_in_any_file_falls_back_with_one_line(
  saved, tmp_path, capfd, caplog
):
  folder, shapes, states = saved
  # Orbax writes the time of the commit into the first, and nobody reads either.
  unguarded = {'_CHECKPOINT_METADATA', 'commit_success.txt', 'sums.json'}
  kinds = {k: v for k, v in files(folder / 'checkpoints' / '2').items()}
  guarded = [name for kind, name in kinds.items() if kind not in unguarded]
  assert len(guarded) >= 6, kinds
  for number, name in enumerate(guarded):
    copy = tmp_path / str(number)
    shutil.copytree(folder, copy)
    path = copy / 'checkpoints' / '2' / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    said = []
    with checkpoint.Store(copy, KEEPING, said.append) as store:
      assert_same(store.restore(shapes), states[1])
    assert len(said) == 1 and '\n' not in said[0]
    assert f'{name} is not what was saved' in said[0]
    assert 'going back to step 1' in said[0]
  assert capfd.readouterr() == ('', '')
  assert not caplog.records


def test_step_that_was_unreadable_can_be_saved_again(saved, tmp_path):
  folder, shapes, states = saved
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  os.truncate(tmp_path / 'checkpoints' / '2' / 'sums.json', 3)
  plan, _ = planned()
  with checkpoint.Store(tmp_path, KEEPING, lambda _: None) as store:
    store.restore(shapes)
    assert (tmp_path / 'checkpoints' / '2.unreadable').is_dir()
    store.save(at(plan.init(shapes), 2), 2)
    store.wait()
    assert store.steps() == [1, 2]
    assert_same(store.restore(shapes), states[2])


def test_loading_leaves_a_folder_that_is_being_trained_alone(saved, tmp_path):
  folder, shapes, states = saved
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  os.truncate(tmp_path / 'checkpoints' / '2' / 'sums.json', 3)
  # A save that is under way.
  (tmp_path / 'checkpoints' / '3.orbax-checkpoint-tmp').mkdir()
  before = sorted(tmp_path.rglob('*'))
  said = []
  assert_same(checkpoint.load(tmp_path, shapes, said.append), states[1])
  assert sorted(tmp_path.rglob('*')) == before
  assert len(said) == 1


def test_loading_where_nothing_was_trained_is_none(tmp_path):
  _, shapes = planned()
  assert checkpoint.load(tmp_path, shapes) is None
  assert list(tmp_path.iterdir()) == []


def test_nothing_readable_starts_again(saved, tmp_path):
  folder, shapes, _ = saved
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  for step in '12':
    os.truncate(tmp_path / 'checkpoints' / step / 'sums.json', 0)
  said = []
  with checkpoint.Store(tmp_path, KEEPING, said.append) as store:
    assert store.restore(shapes) is None
  assert 'going back to step 1' in said[0]
  assert 'starting from step 0' in said[1]


def fails(error):
  def work(*_, **__):
    raise error

  return work


def assert_kept(folder):
  found = sorted(p.name for p in (folder / 'checkpoints').iterdir())
  assert found == ['1', '2']


@pytest.mark.parametrize(
  'error, kind',
  [
    (OSError(errno.ETIMEDOUT, 'timed out'), OSError),
    (OSError(errno.ESTALE, 'stale'), OSError),
    (PermissionError('ExpiredToken'), OSError),
    (MemoryError('out of memory'), RuntimeError),
    (ValueError('UNAVAILABLE: 503'), OSError),
  ],
)
@pytest.mark.parametrize('summed', [True, False])
def test_a_read_that_fails_in_passing_costs_no_checkpoint(
  saved, tmp_path, monkeypatch, error, kind, summed
):
  folder, shapes, states = saved
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  said = []
  with checkpoint.Store(tmp_path, KEEPING, said.append) as store:
    with monkeypatch.context() as patch:
      if summed:
        patch.setattr(checkpoint.sums, 'damage', fails(error))
      else:
        (tmp_path / 'checkpoints' / '2' / 'sums.json').unlink()
        patch.setattr(store._manager, 'restore', fails(error))
      with pytest.raises(kind, match=r'checkpoints/2 was not restored') as told:
        store.restore(shapes)
    assert type(told.value) is kind and '\n' not in str(told.value)
    assert_kept(tmp_path)
    # Once it can be read, it is.
    assert_same(store.restore(shapes), states[2])


def test_a_bad_block_is_damage(saved, tmp_path, monkeypatch):
  folder, shapes, states = saved
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  damage = checkpoint.sums.damage

  def bad(path, *hosts):
    if path.name == '2':
      raise OSError(errno.EIO, os.strerror(errno.EIO))
    return damage(path, *hosts)

  monkeypatch.setattr(checkpoint.sums, 'damage', bad)
  said = []
  with checkpoint.Store(tmp_path, KEEPING, said.append) as store:
    assert_same(store.restore(shapes), states[1])
    assert store.steps() == [1]
  assert len(said) == 1 and 'going back to step 1' in said[0]


def test_a_state_of_another_structure_is_told_and_kept(saved, tmp_path):
  folder, shapes, _ = saved
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  other = shapes.replace(params={'other': shapes.params})
  with (
    checkpoint.Store(tmp_path, KEEPING, print) as store,
    pytest.raises(ValueError, match=r'checkpoints/2 was not restored') as error,
  ):
    store.restore(other)
  assert '\n' not in str(error.value)
  assert_kept(tmp_path)


def test_an_error_on_another_host_is_raised_on_this_one(
  saved, tmp_path, monkeypatch
):
  folder, shapes, _ = saved
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  monkeypatch.setattr(checkpoint.device, 'any_host', lambda flag: True)
  with (
    checkpoint.Store(tmp_path, KEEPING, print) as store,
    pytest.raises(RuntimeError, match='on another host'),
  ):
    store.restore(shapes)
  assert_kept(tmp_path)


@pytest.mark.parametrize('whole', [True, False])
def test_without_sums_a_checkpoint_is_damaged_where_it_cannot_be_restored(
  saved, tmp_path, whole
):
  folder, shapes, states = saved
  shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
  newest = tmp_path / 'checkpoints' / '2'
  (newest / 'sums.json').unlink()
  if not whole:
    # TensorStore would leave threads behind.
    os.truncate(newest / 'default' / '_METADATA', 20)
  said = []
  with checkpoint.Store(tmp_path, KEEPING, said.append) as store:
    assert_same(store.restore(shapes), states[2 if whole else 1])
    assert store.steps() == ([1, 2] if whole else [1])
  assert 'has no sums.json; it is read unchecked' in said[0]
  assert len(said) == (1 if whole else 2)


def test_saves_are_kept_by_count_and_by_step(tmp_path):
  plan, shapes = planned()
  state = plan.init(shapes)
  keeping = Checkpoints(keep=2, keep_every=3)
  with checkpoint.Store(tmp_path, keeping, print) as store:
    for step in range(1, 9):
      store.save(state, step)
    store.wait()
    assert store.steps() == [3, 6, 7, 8]


def test_donating_the_state_after_a_save_does_not_change_it(tmp_path):
  plan, shapes = planned()
  state = plan.init(shapes)
  want = jax.tree.map(np.array, state)
  overwrite = jax.jit(
    lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0
  )
  with checkpoint.Store(tmp_path, KEEPING, print) as store:
    store.save(state, 1)
    for _ in range(20):
      state = overwrite(state)
    store.wait()
    assert_same(store.restore(shapes), want)


def test_save_goes_on_while_the_caller_does(tmp_path):
  plan, shapes = planned()
  state = plan.init(shapes)
  with checkpoint.Store(tmp_path, KEEPING, print) as store:
    store.save(state, 1)
    # Under its final name it is whole; until then it has another.
    before = store.folder / '1'
    assert not before.exists()
    store.wait()
    assert before.exists()


def test_full_disk_is_an_os_error_that_says_so(tmp_path):
  plan, shapes = planned()
  state = plan.init(shapes)

  def quoting():
    # What TensorStore raises: no OSError, the system's words inside.
    raise ValueError(f'RESOURCE_EXHAUSTED: ... {os.strerror(errno.ENOSPC)}')

  with checkpoint.Store(tmp_path, KEEPING, print) as store:
    store.save(state, 1)
    store.wait()
    store._options.async_options.post_finalization_callback = quoting
    store._manager = store._open()
    with pytest.raises(OSError) as error:
      store.save(state, 2)
      store.wait()
    assert error.value.errno == errno.ENOSPC
    store.clear()
    assert store.steps() == [1]
    assert [p.name for p in store.folder.iterdir()] == ['1']
