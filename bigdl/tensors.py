"""Named arrays on disk, in shards of safetensors, read and written one by one.

A folder holds `model.safetensors`, or shards named
`model-00001-of-00003.safetensors` and so on, with
`model.safetensors.index.json`, which says in which shard each tensor is.
That is the layout of Hugging Face. A model folder of ours has it too: tensors
are named by their paths, and `model.json` says what module they belong to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import re
import shutil
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from safetensors import numpy as files

from bigdl import config, tree

MODEL = 'model.json'
FILE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
SHARD_BYTES = 5 * 10**9

_DTYPES: dict[str, Any] = {
  'F64': np.float64,
  'F32': np.float32,
  'F16': np.float16,
  'BF16': ml_dtypes.bfloat16,
  'I64': np.int64,
  'I32': np.int32,
  'I16': np.int16,
  'I8': np.int8,
  'U8': np.uint8,
  'BOOL': np.bool_,
}
FLOATS = ('float64', 'float32', 'float16', 'bfloat16')


@dataclasses.dataclass(frozen=True)
class Pending:
  """An array that is made when `numpy.asarray` asks for it, and not kept."""

  shape: tuple[int, ...]
  dtype: np.dtype
  make: Callable[[], np.ndarray]

  def __array__(self, dtype: Any = None, copy: bool | None = None):
    value = self.make()
    return value if dtype is None else value.astype(dtype)

  def __getitem__(self, index: Any) -> np.ndarray:
    return self.make()[index]


def read(folder: pathlib.Path) -> dict[str, Pending]:
  """Returns the tensors of a folder by name; no value is read yet.

  Raises:
    ValueError: A file is missing or damaged, or the index names a tensor that
      its shard has not.
  """
  if (folder / INDEX).is_file():
    try:
      index = json.loads((folder / INDEX).read_text())['weight_map']
      shards = sorted(set(index.values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise ValueError(f'{folder / INDEX} is not an index: {error}') from error
  elif (folder / FILE).is_file():
    index, shards = None, [FILE]
  else:
    raise ValueError(f'{folder} holds neither {FILE} nor {INDEX}')
  found: dict[str, Pending] = {}
  for shard in shards:
    found |= _entries(folder / shard)
  lost = [k for k in index or () if k not in found]
  if lost:
    raise ValueError(f'{folder / INDEX} names what no shard holds: {lost[0]}')
  return found


def _entries(path: pathlib.Path) -> dict[str, Pending]:
  if not path.is_file():
    raise ValueError(f'{path} is missing')
  found = {}
  try:
    with safetensors.safe_open(path, 'numpy') as file:
      for name in file.keys():
        part = file.get_slice(name)
        kind = part.get_dtype()
        if kind not in _DTYPES:
          raise ValueError(f'{path}: {name} is {kind}, which is not read here')
        found[name] = Pending(
          tuple(part.get_shape()),
          np.dtype(_DTYPES[kind]),
          functools.partial(_value, path, name),
        )
  except safetensors.SafetensorError as error:
    raise ValueError(f'{path} is damaged: {error}') from error
  return found


def _value(path: pathlib.Path, name: str) -> np.ndarray:
  # Opened each time: pages of a file that stays mapped count as memory used.
  with safetensors.safe_open(path, 'numpy') as file:
    return file.get_tensor(name)


def write(
  folder: pathlib.Path,
  tensors: Mapping[str, Any],
  *,
  dtype: str = '',
  shard_bytes: int = SHARD_BYTES,
) -> int:
  """Writes tensors into a folder, a shard at a time; returns their bytes.

  Args:
    folder: Exists already.
    tensors: Arrays or `Pending`; each is asked for once.
    dtype: Of floats on disk; '' leaves them as they are.
    shard_bytes: A shard holds at most so many, or one tensor.
  """
  types = {k: _stored(v.dtype, dtype) for k, v in tensors.items()}
  sizes = {
    k: math.prod(v.shape) * types[k].itemsize for k, v in tensors.items()
  }
  shards: list[list[str]] = []
  room = 0
  for name, size in sizes.items():
    if not shards or size > room:
      shards.append([])
      room = shard_bytes
    shards[-1].append(name)
    room -= size
  index: dict[str, str] = {}
  for number, names in enumerate(shards, 1):
    file = f'model-{number:05}-of-{len(shards):05}.safetensors'
    index |= dict.fromkeys(names, FILE if len(shards) == 1 else file)
    # Torch's loaders ask for this mark.
    files.save_file(
      {k: _contiguous(tensors[k], types[k]) for k in names},
      folder / index[names[0]],
      metadata={'format': 'pt'},
    )
  total = sum(sizes.values())
  if len(shards) > 1:
    content = {'metadata': {'total_size': total}, 'weight_map': index}
    (folder / INDEX).write_text(json.dumps(content, indent=2) + '\n')
  return total


def read_model(folder: pathlib.Path) -> tuple[Any, dict[str, Pending]]:
  """Returns the module of a model folder, and its parameters by path.

  They are laid out as the module's `stack` says.
  """
  file = folder / MODEL
  try:
    module = config.from_json(json.loads(file.read_text()))
  except ValueError as error:
    raise ValueError(f'{file}: {error}') from error
  return module, read(folder)


def write_model(
  folder: pathlib.Path, model: Any, params: Any, **options: Any
) -> int:
  """Writes a model folder's files; returns the bytes of the tensors.

  Args:
    folder: Exists already.
    model: A linen module; its `stack`, where it has one, is that of `params`.
    params: Nested dict of arrays.
    **options: Those of `write`.
  """
  text = json.dumps(config.to_json(model), indent=2)
  (folder / MODEL).write_text(text + '\n')
  return write(folder, dict(tree.items(params)), **options)


@contextlib.contextmanager
def whole(
  folder: pathlib.Path, *, force: bool = False
) -> Iterator[pathlib.Path]:
  """Yields a folder to fill, which becomes `folder` when all went well.

  Args:
    folder: What it shall be called; its parents are made.
    force: Whether it may replace what is there.

  Raises:
    ValueError: There is something already.
  """
  # What a link stands for is replaced, and the link left alone.
  folder = folder.resolve()
  taken = folder.exists() and not (
    folder.is_dir() and not any(folder.iterdir())
  )
  if taken and not force:
    raise ValueError(f'{folder} is not empty; --force replaces it')
  folder.parent.mkdir(parents=True, exist_ok=True)
  part = folder.with_name(f'.{folder.name}.{os.getpid()}')
  # A process of this number may have been killed here before.
  shutil.rmtree(part, ignore_errors=True)
  part.mkdir()
  try:
    yield part
    if taken and not folder.is_dir():
      folder.unlink()
    elif folder.is_dir():
      old = folder.with_name(f'.{folder.name}.{os.getpid()}.old')
      os.rename(folder, old)
      try:
        os.rename(part, folder)
      except OSError:
        os.rename(old, folder)
        raise
      shutil.rmtree(old)
      return
    os.rename(part, folder)
  finally:
    shutil.rmtree(part, ignore_errors=True)


def _stored(kind: np.dtype, dtype: str) -> np.dtype:
  kind = np.dtype(kind)
  if not dtype or kind.name not in FLOATS:
    return kind
  return np.dtype(ml_dtypes.bfloat16 if dtype == 'bfloat16' else dtype)


def _contiguous(value: Any, kind: np.dtype) -> np.ndarray:
  return np.ascontiguousarray(np.asarray(value), kind).reshape(value.shape)


def stacked(path: str) -> Iterator[tuple[str, int]]:
  """Yields where a loop's parameter may lie in a scan: path and index.

  `blocks_3/mlp/up/kernel` may be row 3 of `blocks/mlp/up/kernel`.
  """
  for match in re.finditer(r'_(\d+)/', path):
    yield f'{path[: match.start()]}/{path[match.end() :]}', int(match[1])


def slot(
  flat: dict[str, np.ndarray], path: str, shapes: Mapping[str, Any]
) -> np.ndarray | None:
  """Returns the part of `flat` to write a loop's parameter into.

  Arrays of `flat` are made on first use, with shape and dtype of `shapes`,
  which may be those of a loop or of a scan; None where neither has the path.
  """
  index: tuple[Any, ...] = (...,)
  if path not in shapes:
    found = [(k, i) for k, i in stacked(path) if k in shapes]
    if not found or found[0][1] >= shapes[found[0][0]].shape[0]:
      return None
    path, index = found[0][0], (found[0][1], ...)
  if path not in flat:
    flat[path] = np.empty(shapes[path].shape, shapes[path].dtype)
  return flat[path][index]


def arrange(
  entries: Mapping[str, Any], shapes: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], list[str]]:
  """Returns entries in the form of `shapes`, and names of what is left over.

  Blocks of a loop are stacked, those of a scan cut, as `shapes` has them.
  What `shapes` has and `entries` lack is absent from the result.

  Raises:
    ValueError: Lists every entry that is misshapen, or a stack that is there
      in part only.
  """
  cut: dict[str, list[tuple[str, int]]] = {}
  for path in shapes:
    for whole, i in stacked(path):
      cut.setdefault(whole, []).append((path, i))
  flat: dict[str, np.ndarray] = {}
  filled: dict[str, int] = {}
  faults, left = [], []
  for path, entry in entries.items():
    into = slot(flat, path, shapes)
    if into is not None:
      if into.shape != tuple(entry.shape):
        faults.append(_misshapen(path, entry.shape, into.shape))
        continue
      into[...] = np.asarray(entry)
      if path not in shapes:
        whole = next(k for k, _ in stacked(path) if k in shapes)
        filled[whole] = filled.get(whole, 0) + 1
      continue
    parts = [p for p in cut.get(path, []) if p[0] not in entries]
    if not parts:
      left.append(path)
      continue
    depth = 1 + max(i for _, i in parts)
    want = (depth, *shapes[parts[0][0]].shape)
    if tuple(entry.shape) != want:
      faults.append(_misshapen(path, entry.shape, want))
      continue
    value = np.asarray(entry)
    for part, i in parts:
      flat[part] = value[i].astype(shapes[part].dtype)
  for path, count in filled.items():
    if count != len(flat[path]):
      faults.append(f'{path} has {count} of {len(flat[path])} layers')
  if faults:
    raise ValueError(f'weights do not fit: {"; ".join(faults)}')
  return flat, left


def _misshapen(path: str, given: Any, want: Any) -> str:
  return f'misshapen {path} {list(given)}, expected {list(want)}'


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
  """Returns the nested dict of values by path."""
  root: dict[str, Any] = {}
  for path, value in flat.items():
    *parents, leaf = path.split('/')
    node = root
    for name in parents:
      node = node.setdefault(name, {})
    node[leaf] = value
  return root
