"""Folders on a disk or in an object store: `gs://bucket/run`, `s3://bucket/run`.

An object store has no rename, no append and no lock, but a put is seen whole or
not at all, and one that demands that nothing be there yet tells who was first:
https://cloud.google.com/storage/docs/request-preconditions and
https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html.
The functions here promise what both kinds can keep. Endpoint, region and
credentials are those of the store's own tools (AWS_ENDPOINT_URL, AWS_PROFILE,
GOOGLE_APPLICATION_CREDENTIALS and the like).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import errno
import fnmatch
import functools
import importlib
import os
import pathlib
import shutil
import tempfile
from typing import Any, cast
import uuid

# What reaches a store, and the extra of bigdl that installs it.
PACKAGES = {'gs': 'gcsfs', 's3': 's3fs'}

Path = str | os.PathLike


@dataclasses.dataclass(frozen=True)
class Entry:
  """One file: its size, and what its store knows of its content."""

  size: int  # Bytes.
  tag: str | None = (
    None  # Changes whenever the object is written; None on disk.
  )


def is_remote(path: Path) -> bool:
  """Returns whether a path is of an object store."""
  return '://' in os.fspath(path)


def folder(path: Path) -> pathlib.Path:
  """Returns a path with the methods of `pathlib.Path`, wherever it leads.

  Raises:
    ValueError: No such kind of store, or its package is not installed.
  """
  text = os.fspath(path)
  if not is_remote(text):
    return pathlib.Path(text)
  _filesystem(text.partition('://')[0])
  if not text.partition('://')[2].strip('/'):
    raise ValueError(f'{text} must name a bucket, as s3://bucket/folder')
  from etils import epath

  # It has the methods, though it is no subclass.
  return cast(pathlib.Path, epath.Path(text.rstrip('/')))


def filesystem(path: Path) -> Any:
  """Returns the fsspec file system of a remote path."""
  return _filesystem(os.fspath(path).partition('://')[0])


@functools.cache
def _filesystem(scheme: str) -> Any:
  if scheme not in PACKAGES:
    known = ', '.join(f'{name}://' for name in PACKAGES)
    raise ValueError(f'{scheme}:// must be a path on a disk or one of {known}')
  try:
    importlib.import_module(PACKAGES[scheme])
  except ImportError as error:
    extra = {'gs': 'gcs'}.get(scheme, scheme)
    raise ValueError(
      f"{scheme}:// needs the package {PACKAGES[scheme]}: pip install 'bigdl"
      f"[{extra}]'"
    ) from error
  import fsspec

  # What other processes write must be seen; epath gets the same instance.
  for name in {'gs': ('gs', 'gcs')}.get(scheme, (scheme,)):
    fsspec.config.conf.setdefault(name, {})['use_listings_cache'] = False
  return fsspec.filesystem(scheme)


def check(path: Path) -> None:
  """Raises ValueError where a remote folder cannot be reached or listed."""
  if not is_remote(path):
    return
  place = os.fspath(folder(path))
  bucket = place.partition('://')[2].partition('/')[0]
  store = filesystem(path)
  try:
    try:
      store.ls(place)
    except FileNotFoundError:  # Of the folder, or of the whole bucket.
      store.ls(bucket)
  except FileNotFoundError as error:
    raise ValueError(
      f'{path}: there is no bucket {bucket}, or it is not yours'
    ) from error
  except Exception as error:  # Each store has its own.
    line = f'{type(error).__name__}: {error}'.split('\n')[0][:160]
    raise ValueError(f'{path} cannot be reached: {line}') from error


def read(path: Path) -> str | None:
  """Returns the text of a file, or None where there is no such file."""
  data = read_bytes(path)
  return None if data is None else data.decode()


def read_bytes(path: Path) -> bytes | None:
  """Returns the content of a file, or None where there is no such file."""
  try:
    if is_remote(path):
      # In one request: `open` fails where the object is replaced meanwhile.
      return filesystem(path).cat_file(os.fspath(path))
    return pathlib.Path(path).read_bytes()
  except FileNotFoundError:
    return None


def write(path: Path, text: str) -> None:
  """Writes the file whole or not at all, over one that is there.

  After a loss of power the one or the other is there.
  """
  if is_remote(path):
    filesystem(path).pipe_file(os.fspath(path), text.encode())
    return
  place = pathlib.Path(path)
  temporary = place.with_name(f'.{place.name}')
  try:
    _put(temporary, text)
    os.replace(temporary, place)
  finally:
    temporary.unlink(missing_ok=True)


def _put(path: pathlib.Path, text: str) -> None:
  """Writes a file, and returns once it is on the disk.

  Some file systems else give a file its name before its content.
  """
  with open(path, 'w', encoding='utf-8') as file:
    file.write(text)
    file.flush()
    try:
      os.fsync(file.fileno())
    except OSError as error:
      # The file system does not know the call.
      if error.errno not in (errno.EINVAL, errno.ENOSYS):
        raise


def create(path: Path, text: str) -> bool:
  """Writes a file that must not be there; returns whether it was not.

  Of any number of processes that create one name, one is told True. Nobody sees
  half of the text.
  """
  if is_remote(path):
    try:
      filesystem(path).pipe_file(os.fspath(path), text.encode(), mode='create')
    except FileExistsError:
      return False
    return True
  place = pathlib.Path(path)
  temporary = place.with_name(f'.{place.name}.{uuid.uuid4().hex[:12]}')
  try:
    _put(temporary, text)
    # A link is made once, over NFS too, where O_EXCL once was not.
    os.link(temporary, place)
  except FileExistsError:
    # NFS may have lost the answer to a call that made it: open(2).
    return temporary.stat().st_nlink == 2
  finally:
    temporary.unlink(missing_ok=True)
  return True


def remove(path: Path) -> None:
  """Removes a file or a folder with all that is in it, if it is there."""
  if not is_remote(path):
    place = pathlib.Path(path)
    if place.is_dir():
      shutil.rmtree(place, ignore_errors=True)
    else:
      place.unlink(missing_ok=True)
    return
  store = filesystem(path)
  try:
    store.rm(os.fspath(path), recursive=True)
  except FileNotFoundError:
    return


def rename(old: Path, new: Path) -> None:
  """Moves a folder; in an object store each object is copied, then removed."""
  if not is_remote(old):
    os.rename(old, new)
    return
  names = list(entries(old))
  store = filesystem(old)
  store.copy([f'{old}/{name}' for name in names], [f'{new}/{n}' for n in names])
  store.rm([f'{old}/{name}' for name in names])


def entries(path: Path) -> dict[str, Entry]:
  """Returns the files below a folder, by their path in it, in order."""
  if not is_remote(path):
    root = pathlib.Path(path)
    return {
      file.relative_to(root).as_posix(): Entry(file.stat().st_size)
      for file in sorted(root.rglob('*'))
      if file.is_file()
    }
  store = filesystem(path)
  root_name = store._strip_protocol(os.fspath(path)).rstrip('/')
  found = store.find(root_name, detail=True)
  return {
    name[len(root_name) + 1 :]: Entry(int(info['size'] or 0), _tag(info))
    for name, info in sorted(found.items())
    # Some tools mark a folder by an empty object.
    if not name.endswith('/') and len(name) > len(root_name)
  }


def _tag(info: dict[str, Any]) -> str | None:
  """Returns what a listing says of the content of an object.

  GCS lists the MD5 of every object that was not joined of others, and the CRC-32C
  of each; S3 an ETag, which is the MD5 unless it was uploaded in parts.
  """
  for name in ('md5Hash', 'crc32c', 'ETag'):
    if info.get(name):
      return f'{name.lower()}:{str(info[name]).strip(chr(34))}'
  return None


def send(file: pathlib.Path, path: Path) -> None:
  """Copies a local file to a remote path, whole or not at all."""
  filesystem(path).put_file(os.fspath(file), os.fspath(path))


@contextlib.contextmanager
def nearby(path: Path, patterns: Sequence[str]) -> Iterator[Path]:
  """Yields a path on a disk: itself, or a copy of some files of a remote one.

  Args:
    path: A folder.
    patterns: Which of its files are copied, such as `cells/*/record.json`.
  """
  if not is_remote(path):
    yield path
    return
  check(path)
  names = [
    name
    for name in entries(path)
    if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)
  ]
  with tempfile.TemporaryDirectory(prefix='bigdl-') as scratch:
    files = [pathlib.Path(scratch, *name.split('/')) for name in names]
    for file in files:
      file.parent.mkdir(parents=True, exist_ok=True)
    if names:
      sources = [f'{path}/{name}' for name in names]
      filesystem(path).get(sources, [os.fspath(file) for file in files])
    try:
      yield pathlib.Path(scratch)
    except ValueError as error:
      # It is the folder that the user knows.
      raise ValueError(str(error).replace(scratch, os.fspath(path))) from error
