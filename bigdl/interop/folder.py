"""Hugging Face folders, `config.json` and safetensors, in and out.

What a folder holds is told by `architectures` in its `config.json`; the files
of this package say which ones are known. Nothing is fetched, and pickled
weights (`pytorch_model.bin`) are not read.
"""

from __future__ import annotations

from collections.abc import Mapping
import dataclasses
import functools
import importlib
import json
import pathlib
import pkgutil
import shutil
import typing
from typing import Any

from flax import linen as nn

from bigdl import tensors
import bigdl.interop
from bigdl.interop import base

CONFIG = 'config.json'
# What the text or the image becomes on its way to the model; copied as it is.
BESIDE = (
  'tokenizer.json',
  'tokenizer_config.json',
  'special_tokens_map.json',
  'added_tokens.json',
  'vocab.json',
  'merges.txt',
  'vocab.txt',
  'spiece.model',
  'tokenizer.model',
  'sentencepiece.bpe.model',
  'source.spm',
  'target.spm',
  'preprocessor_config.json',
)


@dataclasses.dataclass(frozen=True)
class Foreign:
  """What a Hugging Face folder says before any weight is read."""

  folder: pathlib.Path
  architecture: str
  family: base.Family
  model: Any  # Linen module.


@functools.cache
def families() -> tuple[base.Family, ...]:
  """Returns what each file of this package knows, in the order of files."""
  names = sorted(m.name for m in pkgutil.iter_modules(bigdl.interop.__path__))
  modules = [importlib.import_module(f'bigdl.interop.{n}') for n in names]
  return tuple(m.FAMILY for m in modules if hasattr(m, 'FAMILY'))


def architectures() -> list[str]:
  """Returns the class names that are read and written, in order."""
  return sorted(a for family in families() for a in family.architectures)


def is_foreign(folder: pathlib.Path) -> bool:
  """Whether a folder's `config.json` is Hugging Face's, not of a run here."""
  config = _config(folder) if (folder / CONFIG).is_file() else {}
  return 'architectures' in config or 'model_type' in config


def describe(folder: pathlib.Path) -> Foreign:
  """Returns what a Hugging Face folder holds.

  Raises:
    ValueError: The architecture is not known, which lists those that are, or
      a field of the configuration cannot be had.
  """
  config = _config(folder)
  named = config.get('architectures') or ['none']
  named = [named] if isinstance(named, str) else named
  for family in families():
    if named[0] in family.architectures:
      try:
        model = family.model_of(config)
      except (ValueError, TypeError, KeyError, AttributeError) as error:
        # A field of another type than it must be, too.
        raise ValueError(f'{folder / CONFIG}: {error}') from error
      return Foreign(folder, named[0], family, model)
  raise ValueError(
    f'{folder / CONFIG}: architecture {named[0]} is not supported; these are:'
    f' {", ".join(architectures())}'
  )


def load(foreign: Foreign, *, dtype: str = '') -> tuple[Any, dict[str, Any]]:
  """Returns the module, its blocks in a loop, and its parameters.

  Args:
    foreign: What `describe` returned.
    dtype: Of the parameters; '' takes the module's own, float32.

  Raises:
    ValueError: Lists all tensors that are missing, unknown or misshapen.
  """
  model = foreign.model
  if hasattr(model, 'stack'):
    model = model.clone(stack='loop')
  shown = model
  if dtype and hasattr(model, 'param_dtype'):
    shown = model.clone(param_dtype=dtype)
  entries = tensors.read(foreign.folder)
  try:
    return model, base.from_hf(entries, shown, foreign.family)
  except ValueError as error:
    raise ValueError(f'{foreign.folder}: {error}') from error


def choose(
  model: nn.Module, architecture: str = ''
) -> tuple[base.Family, dict[str, Any]]:
  """Returns the family that can hold a model, and its `config.json`.

  Args:
    model: A linen module.
    architecture: Which class to write; '' takes the first family that fits.

  Raises:
    ValueError: None fits, which says why; or it is not known.
  """
  if architecture and architecture not in architectures():
    raise ValueError(
      f'architecture={architecture} is not supported; these are: '
      f'{", ".join(architectures())}'
    )
  reasons = []
  for family in families():
    if architecture and architecture not in family.architectures:
      continue
    if not isinstance(model, _module_of(family)):
      continue
    try:
      config = family.config_of(model)
    except ValueError as error:
      reasons.append(f'{family.name}: {error}')
      continue
    config = {'architectures': [family.architectures[0]], **config}
    written = config['architectures'][0]
    if architecture and written != architecture:
      reasons.append(
        f'{family.name}: this model is written as {written}, not {architecture}'
      )
      continue
    return family, config
  kind = type(model).__name__
  if not reasons:
    raise ValueError(
      f'no architecture holds a {kind}; supported are: '
      f'{", ".join(architectures())}'
    )
  raise ValueError(f'no architecture holds this {kind}: {"; ".join(reasons)}')


def _module_of(family: base.Family) -> type:
  """The class of module that a family's `config_of` is written for."""
  hints = typing.get_type_hints(family.config_of)
  hints.pop('return', None)
  return next(iter(hints.values()), nn.Module)


def save(
  folder: pathlib.Path,
  model: nn.Module,
  params: Any,
  *,
  architecture: str = '',
  dtype: str = '',
  shard_bytes: int = tensors.SHARD_BYTES,
) -> tuple[str, int]:
  """Writes a Hugging Face folder; returns the architecture and bytes.

  Args:
    folder: Exists already.
    model: Says what `params` mean.
    params: Nested dict of arrays or `tensors.Pending`, of a loop or a scan; a
      shard of them is held at a time.
    architecture: Which class to write; '' takes the first family that fits.
    dtype: Of floats on disk; '' leaves them as they are.
    shard_bytes: A file holds at most so many, or one tensor.
  """
  family, config = choose(model, architecture)
  waiting = base.pending(params, model, family)
  size = tensors.write(folder, waiting, dtype=dtype, shard_bytes=shard_bytes)
  kinds = {v.dtype.name for v in waiting.values()}
  config.setdefault('dtype', dtype or sorted(kinds & set(tensors.FLOATS))[0])
  text = json.dumps(config, indent=2, sort_keys=True)
  (folder / CONFIG).write_text(text + '\n')
  return config['architectures'][0], size


def copy_beside(source: pathlib.Path, folder: pathlib.Path) -> list[str]:
  """Copies the files of the tokenizer, where there are any; returns names."""
  names = [name for name in BESIDE if (source / name).is_file()]
  for name in names:
    shutil.copyfile(source / name, folder / name)
  return names


def _config(folder: pathlib.Path) -> Mapping[str, Any]:
  file = folder / CONFIG
  try:
    config = json.loads(file.read_text())
  except FileNotFoundError as error:
    raise ValueError(f'{file} is missing') from error
  except ValueError as error:
    raise ValueError(f'{file} is not JSON: {error}') from error
  if not isinstance(config, dict):
    raise ValueError(f'{file} must hold an object')
  return config
