"""State on disk: asynchronous, atomic, written by all hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import errno
import logging
import os
import pathlib
from typing import Any, TypeVar

import jax
from jax.experimental import multihost_utils
import orbax.checkpoint as ocp

from bigdl import storage
from bigdl.experiment import Checkpoints
from bigdl.objectives.base import State
from bigdl.train import device, remote, sums

Say = Callable[[str], None]
T = TypeVar('T')
FOLDER = 'checkpoints'
ELSEWHERE = 'on another host'
# Of Abseil's status codes those that say nothing of what is stored:
# https://abseil.io/docs/cpp/guides/status-codes.
PASSING = (
  'ABORTED',
  'CANCELLED',
  'DEADLINE_EXCEEDED',
  'PERMISSION_DENIED',
  'RESOURCE_EXHAUSTED',
  'UNAUTHENTICATED',
  'UNAVAILABLE',
)


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
  if not (storage.folder(workdir) / FOLDER).is_dir():
    return None
  with Store(workdir, Checkpoints(), say, read_only=True) as store:
    return store.restore(like)


def saved(workdir: str | os.PathLike) -> bool:
  """Returns whether a run has a checkpoint, readable or not."""
  return any((storage.folder(workdir) / FOLDER).glob('[0-9]*'))


class _Summing(ocp.StandardCheckpointHandler):
  """Has each of several hosts note the checksums of the files it wrote."""

  async def async_save(
    self, directory: Any, item=None, save_args=None, args=None
  ) -> Any:
    written = await super().async_save(directory, item, save_args, args)
    if jax.process_count() == 1 or storage.is_remote(str(directory)):
      return written

    def note() -> None:
      # Orbax may make the folder while the arrays are still on their way.
      folder = getattr(directory, 'path', directory)
      sums.write_piece(pathlib.Path(folder), jax.process_index())

    return [ocp.future.ChainedFuture(written or [], note)]


class Store:
  """The checkpoints of one run folder, `workdir/checkpoints/STEP`.

  A save is written to a temporary folder and renamed once it is whole, so that
  a name that is a number is always a whole checkpoint; in an object store, one
  that has `commit_success.txt`. Use it as a context manager: leaving waits for
  the save that is under way.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    keeping: Checkpoints,
    say: Say,
    *,
    read_only: bool = False,
  ):
    root = storage.folder(workdir)
    if not storage.is_remote(workdir):
      root = root.absolute()
    self.folder = root / FOLDER
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
        post_finalization_callback=self._write_sums
      ),
      **remote.options(self.folder),
    )
    self._saving = 0
    self._manager = self._open()

  def _open(self) -> ocp.CheckpointManager:
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    handler = _Summing()
    registry.add(None, ocp.args.StandardSave, handler)
    registry.add(None, ocp.args.StandardRestore, handler)
    return ocp.CheckpointManager(
      self.folder, options=self._options, handler_registry=registry
    )

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

  def drop(self, after: int) -> None:
    """Removes the checkpoints of later steps; all hosts must call it."""
    self.wait()
    for step in self.steps():
      if step > after:
        self._manager.delete(step)

  def clear(self) -> None:
    """Removes what a save that failed has left, to give its space back."""
    if jax.process_index() == 0:
      for path in self.folder.glob('*.orbax-checkpoint-tmp*'):
        storage.remove(path)
    self._manager = self._open()

  def restore(self, like: State) -> State | None:
    """Returns the newest State that can be read, or None.

    A checkpoint whose files are damaged is renamed aside, `STEP.unreadable`,
    with one line that says so. One that has no checksums, as those of older
    versions, is damaged where it cannot be restored.

    Args:
      like: Shapes, dtypes and shardings (`jax.ShapeDtypeStruct`) to restore
        into; the mesh may differ from the one that saved.

    Raises:
      ValueError: The files are whole and yet are not such a state.
      OSError: The disk or the store did not answer, or not this time.
      RuntimeError: Another error, as of memory, or one on another host.
    """
    rest = self.steps()
    while rest:
      step = rest.pop()
      state, problem = self._read(step, like)
      if problem is None:
        return state
      if not self._read_only:
        self._set_aside(step)
      self._say(
        f'checkpoint {self.folder / str(step)} cannot be read ({problem}); '
        + (f'going back to step {rest[-1]}' if rest else 'starting from step 0')
      )
    return None

  def _write_sums(self) -> None:
    """Notes what each file holds, before the folder gets its final name."""
    if jax.process_index() == 0:
      final = self.folder / str(self._saving)
      for folder in self.folder.glob(f'{self._saving}.orbax-checkpoint-tmp*'):
        sums.write(folder, final)
      if storage.is_remote(final):
        sums.write(final, final)

  def _read(self, step: int, like: State) -> tuple[State | None, str | None]:
    """Returns the state that is saved, or what is wrong with its files."""
    path = self.folder / str(step)
    # Orbax meets a truncated file late, with traces from many threads, and
    # other damage to its arrays not at all.
    found, problem = _alike(
      path,
      lambda: sums.damage(path, jax.process_index(), jax.process_count()),
      may_be_damaged=True,
    )
    if problem is None and device.any_host(found not in (None, sums.MISSING)):
      problem = found or ELSEWHERE
    if problem is not None:
      return None, problem
    unsummed = device.any_host(found == sums.MISSING)
    if unsummed:
      self._say(f'checkpoint {path} has no {sums.FILE}; it is read unchecked')
    args = ocp.args.StandardRestore(like)
    return _alike(
      path,
      lambda: self._manager.restore(step, args=args),
      may_be_damaged=unsummed,
    )

  def _set_aside(self, step: int) -> None:
    self._manager.close()
    if jax.process_index() == 0:
      aside = self.folder / f'{step}.unreadable'
      storage.remove(aside)
      storage.rename(self.folder / str(step), aside)
    if jax.process_count() > 1:
      multihost_utils.sync_global_devices(f'set aside {step}')
    self._manager = self._open()


def _alike(
  path: pathlib.Path, work: Callable[[], T], *, may_be_damaged: bool
) -> tuple[T | None, str | None]:
  """Returns what comes of reading, or what is wrong with the files.

  The hosts wait for each other in orbax: all go on, or all return a problem, or
  all raise.
  """
  result, problem, raised = None, None, None
  try:
    result = work()
  except Exception as error:  # Of orbax, TensorStore, the disk, the store.
    if may_be_damaged and _is_of_the_files(path, error):
      problem = _line(error)
    else:
      raised = error
  if device.any_host(raised is not None):
    raise _untold(path, raised) from raised
  if device.any_host(problem is not None):
    return None, problem or ELSEWHERE
  return result, None


def _is_of_the_files(path: pathlib.Path, error: Exception) -> bool:
  """Returns whether an error says that what is stored is wrong or not there.

  Else it is of the network, of rights or of memory, and may not come again.
  """
  if isinstance(error, OSError):
    # Of a disk EIO is a bad block; s3fs has it for what it does not know.
    bad_block = error.errno == errno.EIO and not storage.is_remote(path)
    return bad_block or isinstance(error, FileNotFoundError)
  # TensorStore raises ValueError whatever has happened.
  return isinstance(error, ValueError | KeyError | TypeError) and not any(
    code in str(error) for code in PASSING
  )


def _untold(path: pathlib.Path, error: Exception | None) -> Exception:
  """Returns the error that names the checkpoint, which is left as it is."""
  if error is None:
    return RuntimeError(f'checkpoint {path} was not restored {ELSEWHERE}')
  text = f'checkpoint {path} was not restored and is kept: {_line(error)}'
  if isinstance(error, OSError):
    return OSError(text)
  if _is_of_the_files(path, error):
    return ValueError(text)
  return OSError(text) if isinstance(error, ValueError) else RuntimeError(text)


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
