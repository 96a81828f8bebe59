"""Checksums of the files of a checkpoint, by which damage is noticed.

On a disk each host reads back what it has just written and notes its XXH3-64
(https://xxhash.com, version 0.8), which is as fast as memory and misses damage
with a chance of 2**-64. A CRC-32C would be worth less: most of these files end
in one of their own, so that those of all whole files are the same number. An
object store keeps a checksum of every object and gives it with the listing, so
that nothing is read.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent import futures
import json
import os
import pathlib
import re
from typing import Any

import xxhash

from bigdl import storage

FILE = 'sums.json'
PIECE = 'sums.{}.json'
# Orbax writes the time of the commit into it after all else is summed.
GROWS = '_CHECKPOINT_METADATA'
MISSING = f'{FILE} is missing'
BLOCK = 4 << 20  # Bytes read at a time.
THREADS = 4

Sums = dict[str, dict[str, Any]]


def write_piece(folder: pathlib.Path, host: int) -> None:
  """Notes the sums of the files that are this host's alone.

  Orbax has each host write its arrays under `ocdbt.process_HOST`, before the
  first of the hosts joins them.

  Args:
    folder: Of the item, inside that of the step.
    host: The index of this process.
  """
  own = re.compile(rf'ocdbt\.process_{host}(?!\d)[^/]*/')
  names = [name for name in storage.entries(folder) if own.match(name)]
  storage.write(
    folder / PIECE.format(host), json.dumps(_measure(folder, names))
  )


def write(folder: pathlib.Path, final: pathlib.Path) -> None:
  """Notes the sums of all files, of which other hosts have noted their own.

  Args:
    folder: Of the step, while it is being written.
    final: What it will be called.
  """
  found = storage.entries(folder)
  files: Sums = {}
  if storage.is_remote(folder):
    files = {k: {'size': e.size, 'tag': e.tag} for k, e in found.items()}
  else:
    for name in [n for n in found if re.search(r'(^|/)sums\.\d+\.json$', n)]:
      piece, above = folder / name, os.path.dirname(name)
      own = json.loads(piece.read_text())
      files |= {os.path.join(above, k): v for k, v in own.items()}
      piece.unlink()
      del found[name]
    files |= _measure(folder, [name for name in found if name not in files])
  for name in files:
    if os.path.basename(name) == GROWS:
      files[name]['tag'] = None
  body = {'folder': os.fspath(final), 'files': dict(sorted(files.items()))}
  storage.write(folder / FILE, json.dumps(body))


def damage(folder: pathlib.Path, host: int = 0, hosts: int = 1) -> str | None:
  """Returns what is wrong with a checkpoint's files, or None.

  All hosts look at the sizes of all files; each reads a share of the content.

  Args:
    folder: Of the step.
    host: The index of this process.
    hosts: How many share the work.

  Raises:
    OSError: A file cannot be read.
    ValueError: The list of sums is not what `write` has written.
  """
  text = storage.read(folder / FILE)
  if text is None:
    return MISSING
  body = json.loads(text)
  files: Sums = body['files']
  found = storage.entries(folder)
  for name, known in files.items():
    entry = found.get(name)
    if entry is None or _lacks(name, entry.size, known['size']):
      size = 'no' if entry is None else entry.size
      return f'{name} has {size} of {known["size"]} bytes'
    # An ETag depends on how the object was uploaded: a copy has another.
    kind = (known['tag'] or '').partition(':')[0]
    comparable = entry.tag and entry.tag.partition(':')[0] == kind
    moved = kind == 'etag' and body['folder'] != os.fspath(folder)
    if comparable and not moved and entry.tag != known['tag']:
      return f'{name} is not what was saved: {entry.tag}, not {known["tag"]}'
  if storage.is_remote(folder):
    return None
  summed = [k for k, v in files.items() if (v['tag'] or '').startswith('xxh3:')]
  share = _share(summed, files, host, hosts)
  for name, now in _measure(folder, share).items():
    if now['tag'] != files[name]['tag']:
      return (
        f'{name} is not what was saved: {now["tag"]}, not {files[name]["tag"]}'
      )
  return None


def _lacks(name: str, size: int, known: int) -> bool:
  return size < known if os.path.basename(name) == GROWS else size != known


def _share(names: list[str], files: Sums, host: int, hosts: int) -> list[str]:
  """Returns one host's part of the files, about as many bytes as another's."""
  loads = [0] * hosts
  mine = []
  for name in sorted(names, key=lambda n: (-files[n]['size'], n)):
    least = loads.index(min(loads))
    loads[least] += files[name]['size']
    if least == host:
      mine.append(name)
  return mine


def _measure(folder: pathlib.Path, names: Iterable[str]) -> Sums:
  """Returns size and checksum of files, reading several at a time."""
  names = list(names)
  with futures.ThreadPoolExecutor(THREADS) as pool:
    paths = [folder / name for name in names]
    return dict(zip(names, pool.map(_sum, paths), strict=True))


def _sum(path: pathlib.Path) -> dict[str, Any]:
  """Returns size and XXH3-64 of a file."""
  digest, size = xxhash.xxh3_64(), 0
  with open(path, 'rb', buffering=0) as file:
    while block := file.read(BLOCK):
      digest.update(block)
      size += len(block)
  return {'size': size, 'tag': f'xxh3:{digest.hexdigest()}'}
