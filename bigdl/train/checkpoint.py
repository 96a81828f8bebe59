"""State on disk: asynchronous, atomic, written by all hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import errno
import json
import logging
import os
import pathlib
import shutil

import jax
from jax.experimental import multihost_utils
import orbax.checkpoint as ocp

from bigdl.experiment import Checkpoints
from bigdl.objectives.base import State
from bigdl.train import device

Say = Callable[[str], None]
FOLDER = 'checkpoints'
SIZES = 'sizes.json'


def load(
  workdir: str | os.PathLike, like: State, say: Say = print
) -> State | None:
  """Returns the newest State of a run that can be read, or None.

  The folder is left as it is: a process may be training in it.

  Args:
    workdir: The run folder.
    like: Shapes, dtypes and shardings, as `Program.state_shapes` has them.
    say: Takes one line about each checkpoint that cannot be read.
  """
  if not (pathlib.Path(workdir) / FOLDER).is_dir():
    return None
  with Store(workdir, Checkpoints(), say, read_only=True) as store:
    return store.restore(like)


def saved(workdir: str | os.PathLike) -> bool:
  """Returns whether a run has a checkpoint, readable or not."""
  return any((pathlib.Path(workdir) / FOLDER).glob('[0-9]*'))


class Store:
  """The checkpoints of one run folder, `workdir/checkpoints/STEP`.

  A save is written to a temporary folder and renamed once it is whole, so that
  a name that is a number is always a whole checkpoint. Use it as a context
  manager: leaving waits for the save that is under way.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    keeping: Checkpoints,
    say: Say,
    *,
    read_only: bool = False,
  ):
    self.folder = pathlib.Path(workdir).absolute() / FOLDER
    self._say = say
    self._read_only = read_only
    logging.getLogger('absl').addFilter(_not_orbax)
    self._options = ocp.CheckpointManagerOptions(
      max_to_keep=keeping.keep,
      keep_period=keeping.keep_every or None,
      cleanup_tmp_directories=not read_only,
      create=not read_only,
      read_only=read_only,
      enable_async_checkpointing=True,
      save_root_metadata=False,
      async_options=ocp.AsyncOptions(
        post_finalization_callback=self._write_sizes
      ),
    )
    self._saving = 0
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(self.folder, options=self._options)

  def __enter__(self) -> Store:
    return self

  def __exit__(self, kind: type | None, *_) -> None:
    # A second interrupt does not wait for a large save.
    if kind is not KeyboardInterrupt:
      try:
        self._manager.close()
      except Exception as error:  # Of the last save, after `wait` or instead.
        self.clear()
        self._say(f'the last save failed: {_line(error)}')
    logging.getLogger('absl').removeFilter(_not_orbax)

  def steps(self) -> list[int]:
    """Returns the steps that are saved, in order."""
    return sorted(self._manager.all_steps())

  def save(self, state: State, step: int) -> None:
    """Starts to save; the state may be donated as soon as this returns.

    Raises:
      OSError: The save before this one failed, or this one could not begin.
    """
    with _disk_errors():
      self._manager.wait_until_finished()
      self._saving = step
      self._manager.save(step, args=ocp.args.StandardSave(state), force=True)

  def wait(self) -> None:
    """Returns once the last save is whole; raises OSError where it failed."""
    with _disk_errors():
      self._manager.wait_until_finished()

  def clear(self) -> None:
    """Removes what a save that failed has left, to give its space back."""
    if jax.process_index() == 0:
      for path in self.folder.glob('*.orbax-checkpoint-tmp*'):
        shutil.rmtree(path, ignore_errors=True)
    self._manager = self._open()

  def restore(self, like: State) -> State | None:
    """Returns the newest State that can be read, or None.

    A checkpoint that cannot be read is renamed aside, `STEP.unreadable`, with
    one line that says so.

    Args:
      like: Shapes, dtypes and shardings (`jax.ShapeDtypeStruct`) to restore
        into; the mesh may differ from the one that saved.
    """
    rest = self.steps()
    while rest:
      step = rest.pop()
      state, problem = self._read(step, like)
      if not device.any_host(problem is not None):
        return state
      if not self._read_only:
        self._set_aside(step)
      self._say(
        f'checkpoint {self.folder / str(step)} cannot be read'
        f' ({problem or "on another host"}); '
        + (f'going back to step {rest[-1]}' if rest else 'starting from step 0')
      )
    return None

  def _write_sizes(self) -> None:
    """Notes the size of each file, before the folder gets its final name."""
    if jax.process_index() == 0:
      for folder in self.folder.glob(f'{self._saving}.orbax-checkpoint-tmp*'):
        (folder / SIZES).write_text(json.dumps(_sizes(folder)))

  def _read(self, step: int, like: State) -> tuple[State | None, str | None]:
    folder = self.folder / str(step)
    try:
      # Orbax meets a truncated file late, with traces from many threads.
      sizes = _sizes(folder)
      for name, size in json.loads((folder / SIZES).read_text()).items():
        # One file of orbax's own grows a little after this list is made.
        if sizes.get(name, -1) < size:
          return None, f'{name} has {sizes.get(name, "no")} of {size} bytes'
      args = ocp.args.StandardRestore(like)
      return self._manager.restore(step, args=args), None
    except Exception as error:  # Orbax, tensorstore, JSON and disk errors.
      return None, _line(error)

  def _set_aside(self, step: int) -> None:
    self._manager.close()
    if jax.process_index() == 0:
      aside = self.folder / f'{step}.unreadable'
      shutil.rmtree(aside, ignore_errors=True)
      os.rename(self.folder / str(step), aside)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(f'set aside {step}')
    self._manager = self._open()


def _sizes(folder: pathlib.Path) -> dict[str, int]:
  return {
    str(path.relative_to(folder)): path.stat().st_size
    for path in sorted(folder.rglob('*'))
    if path.is_file()
  }


def _line(error: Exception) -> str:
  return f'{type(error).__name__}: {error}'.split('\n')[0][:120]


def _not_orbax(entry: logging.LogRecord) -> bool:
  """Keeps orbax from printing the traces of the errors that it raises."""
  return 'orbax' not in entry.pathname


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
  """Turns whatever a full disk makes orbax raise into OSError(ENOSPC)."""
  full = os.strerror(errno.ENOSPC)
  try:
    yield
  except Exception as error:
    cause: BaseException | None = error
    while cause is not None:
      # TensorStore raises a ValueError that quotes the system.
      if full in str(cause):
        raise OSError(errno.ENOSPC, full) from error
      cause = cause.__cause__ or cause.__context__
    raise
