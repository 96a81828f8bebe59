"""The few operations on a shared folder that workers of many machines agree by.

Exclusive creation is the one that matters: of all that create a name at once,
exactly one succeeds. On a POSIX folder it is `link(2)`, which NFS carries out on
the server (open(2), under O_EXCL); in a bucket a conditional put, which S3 and
GCS offer through fsspec (`pipe_file(mode='create')`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import datetime
import errno
import fcntl
import os
import pathlib
import socket
import time
from typing import Protocol
import uuid

from bigdl import storage

# A mark is overwritten in place, and is padded so that none is cut short.
MARK_BYTES = 1024


class Store(Protocol):
  """A folder that several machines see; names are relative, with `/`."""

  @property
  def url(self) -> str:
    """Where it is, for messages."""

  def read(self, name: str) -> bytes | None:
    """Returns the content of a file, or None where there is none."""

  def names(self, folder: str) -> list[str]:
    """Returns the names in a folder, [] where there is none."""

  def write(self, name: str, data: bytes) -> None:
    """Writes a file whole or not at all."""

  def create(
    self, name: str, data: bytes, unlocked: bytes | None = None
  ) -> Held | None:
    """Writes a file whole if there is none of that name, else returns None.

    Args:
      name: Of the file.
      data: What it says.
      unlocked: What it says instead where its creator cannot hold it, so that
        `held` knows nothing; None for the same.
    """

  def mark(self, name: str, data: bytes) -> None:
    """Overwrites a short file; a reader may see it half written."""

  def age(self, name: str) -> float | None:
    """Returns seconds since the file changed, if the clocks agree."""

  def remove(self, name: str) -> None:
    """Removes a file if it is there."""

  def held(self, name: str) -> bool | None:
    """Returns whether a process of this machine holds a file; None: unknown."""


@dataclasses.dataclass(frozen=True)
class Held:
  """A file just created; while its creator lives, `Store.held` tells so."""

  release: Callable[[], None] = lambda: None


def open_folder(url: str | os.PathLike) -> Store:
  """Returns the store at a path, or at a URL such as `s3://bucket/sweep`."""
  if storage.is_remote(url):
    storage.check(url)
    return Bucket(os.fspath(url).rstrip('/'))
  return Local(pathlib.Path(url))


def host() -> str:
  """Returns a name of this machine and its current boot.

  Processes for which it is equal share a kernel, and so its file locks.
  """
  try:
    boot = pathlib.Path('/proc/sys/kernel/random/boot_id').read_text().strip()
  except OSError:
    boot = f'{uuid.getnode():x}'
  return f'{socket.gethostname()} {boot}'


@dataclasses.dataclass(frozen=True)
class Local:
  """A folder of the file system, which may be shared over NFS or Lustre."""

  root: pathlib.Path

  @property
  def url(self) -> str:
    return str(self.root)

  def read(self, name: str) -> bytes | None:
    try:
      return (self.root / name).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
      return None

  def names(self, folder: str) -> list[str]:
    try:
      return os.listdir(self.root / folder)
    except (FileNotFoundError, NotADirectoryError):
      return []

  def write(self, name: str, data: bytes) -> None:
    part = self._part(name, data, durable=True)
    try:
      os.replace(part, self.root / name)
    finally:
      part.unlink(missing_ok=True)

  def create(
    self, name: str, data: bytes, unlocked: bytes | None = None
  ) -> Held | None:
    path = self.root / name
    part = self._part(name, data)
    other = data if unlocked is None else unlocked
    # NFS locks a file for one process only where it is open for writing, as it
    # takes byte-range locks instead: flock(2).
    descriptor = os.open(part, os.O_RDWR)
    try:
      # Locked before it has its name: no one sees it without its holder.
      try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError:
        part.write_bytes(other)
      if not _link(part, path, other):
        os.close(descriptor)
        return None
    except BaseException:
      os.close(descriptor)
      raise
    finally:
      part.unlink(missing_ok=True)
    return Held(release=_once(lambda: os.close(descriptor)))

  @contextlib.contextmanager
  def turn(self, name: str) -> Iterator[None]:
    """Waits until no other process has a turn at the same name."""
    path = self.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'a') as file:
      # Where the file system has no locks, all take their turn at once.
      with contextlib.suppress(OSError):
        fcntl.flock(file, fcntl.LOCK_EX)
      yield

  def _part(self, name: str, data: bytes, durable: bool = False):
    path = self.root / name
    part = path.with_name(f'.{path.name}.{uuid.uuid4().hex[:12]}')
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
      with open(part, 'wb') as file:
        file.write(data)
        file.flush()
        if durable:
          os.fsync(file.fileno())
    except BaseException:
      part.unlink(missing_ok=True)
      raise
    return part

  def mark(self, name: str, data: bytes) -> None:
    # In place, because an NFS client looks anew at the content of a file that
    # it opens, yet may remember for a minute which file a name stands for.
    if len(data) > MARK_BYTES:
      raise ValueError(f'{name}: {len(data)} bytes, at most {MARK_BYTES}')
    flags = os.O_WRONLY | os.O_CREAT
    descriptor = os.open(self.root / name, flags, 0o666)
    try:
      os.pwrite(descriptor, data.ljust(MARK_BYTES), 0)
    finally:
      os.close(descriptor)

  def age(self, name: str) -> float | None:
    try:
      return max(0.0, time.time() - (self.root / name).stat().st_mtime)
    except OSError:
      return None

  def remove(self, name: str) -> None:
    (self.root / name).unlink(missing_ok=True)

  def held(self, name: str) -> bool | None:
    try:
      with open(self.root / name, 'rb') as file:
        # Shared, so that two who ask at once do not take each other for it.
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
      return True
    except OSError:
      return None
    return False


@dataclasses.dataclass(frozen=True)
class Bucket:
  """A folder of an object store, such as `s3://bucket/sweep`."""

  url: str

  def read(self, name: str) -> bytes | None:
    text = storage.read(f'{self.url}/{name}')
    return None if text is None else text.encode()

  def names(self, folder: str) -> list[str]:
    files = storage.filesystem(self.url)
    try:
      found = files.ls(f'{self.url}/{folder}', detail=False)
    except FileNotFoundError:
      return []
    return [path.rstrip('/').rpartition('/')[2] for path in found]

  def write(self, name: str, data: bytes) -> None:
    storage.write(f'{self.url}/{name}', data.decode())

  def create(
    self, name: str, data: bytes, unlocked: bytes | None = None
  ) -> Held | None:
    text = (data if unlocked is None else unlocked).decode()
    made = storage.create(f'{self.url}/{name}', text)
    return Held() if made else None

  def mark(self, name: str, data: bytes) -> None:
    self.write(name, data)

  def age(self, name: str) -> float | None:
    try:
      changed = storage.filesystem(self.url).modified(f'{self.url}/{name}')
    except (FileNotFoundError, NotImplementedError):
      return None
    now = datetime.datetime.now(datetime.UTC)
    return max(0.0, (now - changed.astimezone(datetime.UTC)).total_seconds())

  def remove(self, name: str) -> None:
    storage.remove(f'{self.url}/{name}')

  def held(self, name: str) -> bool | None:
    del name
    return None


def _link(part: pathlib.Path, path: pathlib.Path, other: bytes) -> bool:
  """Gives a file its final name; returns False where that name is taken.

  Where there are no links it is another file, without the lock, and says `other`.
  """
  try:
    os.link(part, path)
  except FileExistsError:
    # NFS may have lost the answer to a first call that did it: open(2).
    return part.stat().st_nlink == 2
  except OSError as error:
    if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
      raise
    # A file system without links; a reader may see the file still empty.
    try:
      with open(path, 'xb') as file:
        file.write(other)
    except FileExistsError:
      return False
  return True


def _once(act: Callable[[], None]) -> Callable[[], None]:
  left = [act]
  return lambda: left.pop()() if left else None
