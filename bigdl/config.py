"""Experiment files: load one, override its fields, record it as JSON.

An experiment file is a program. It defines `get_config(arg)`, which returns an
Experiment, and `get_sweep(base, arg)` where it sweeps, which plans cells from
that experiment (overrides applied); `FILE:ARG` names a variant.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import hashlib
import inspect
import numbers
import os
import pathlib
import pkgutil
import re
import sys
import traceback
import types
from typing import Any

from bigdl import flags, values

# Folders of loaded experiment files, where their imports are looked for last.
_folders: list[str] = []


def load_module(spec: str) -> tuple[types.ModuleType, str]:
  """Returns the module at `FILE[:ARG]`, and ARG ('' where there is none)."""
  match = re.fullmatch(r'(.+?\.py)(?::(.*))?', spec, re.DOTALL)
  path, arg = (match[1], match[2] or '') if match else (spec, '')
  return _import_file(pathlib.Path(path), f'config={path}'), arg


def call(
  module: types.ModuleType, name: str, arg: str = '', *, given: Sequence = ()
) -> Any:
  """Returns what the experiment file's function `name` returns for `arg`.

  What is `given` comes before ARG among its arguments. Raises ValueError, in one line that names the file, for whatever goes wrong.
  """
  path = _shorten(str(module.__file__))
  function = getattr(module, name, None)
  if not callable(function):
    raise ValueError(f'config={path} defines no {name}(arg)')
  takes = len(inspect.signature(function).parameters)
  if takes < len(given):
    raise ValueError(f'config={path}: {name}() takes no experiment to start at')
  if arg and takes == len(given):
    raise ValueError(f'config={path}:{arg}: {name}() takes no argument')
  with_arg = f'{path}:{arg}' if arg else path
  try:
    return function(*given, *([arg] if arg else []))
  except ValueError as e:
    raise ValueError(f'config={with_arg}: {e}') from e
  except Exception as e:
    raise ValueError(f'config={_where(e, path)}') from e


def load(
  spec: str, overrides: Sequence[str] = (), *, also: Sequence[str] = ()
) -> Any:
  """Returns the Experiment of `FILE[:ARG]` with fields overridden.

  Args:
    spec: `FILE` or `FILE:ARG`.
    overrides: `--model.depth=6` and the like; see `flags.override`.
    also: Flags of the command, for the message on a misspelt one.
  """
  module, arg = load_module(spec)
  experiment = call(module, 'get_config', arg)
  if 'Experiment' not in {c.__name__ for c in type(experiment).__mro__}:
    raise ValueError(
      f'config={spec}: get_config returned {type(experiment).__name__}, '
      'expected Experiment'
    )
  values.check_types(experiment)
  return flags.override(experiment, overrides, also=also)


def to_json(value: Any) -> Any:
  """Returns a value of plain dicts, lists and scalars that can be rebuilt.

  A dataclass becomes its fields and `_type`; a function or dtype a `_name`. A
  field whose default cannot be written (a closure) and is unchanged is left
  out, and the default is taken again by `from_json`.
  """
  return _record(value, '')


def from_json(tree: Any) -> Any:
  """Returns the value that `to_json` recorded; strict.

  Only dataclasses are instantiated. ValueError for an unknown type or field.
  """
  return _build(tree, '')


def differences(
  here: Any, there: Any, *, other: str = 'the folder'
) -> list[str]:
  """Returns one line for each field in which two records differ."""
  return list(_differences(here, there, '', other))


def _import_file(path: pathlib.Path, what: str) -> types.ModuleType:
  """Imports a file under a name that depends on nothing but its path."""
  if not path.is_file():
    raise ValueError(f'{what}: no such file{_neighbour(path)}')
  file = str(path.resolve())
  source = path.read_bytes()
  for module in list(sys.modules.values()):
    # A file that another one imported already must not yield a second class.
    if type(module) is types.ModuleType and module.__name__ != '__main__':
      known = vars(module)
      same = known.get('__source__', source) == source
      if known.get('__file__') == file and same:
        return module
  digest = hashlib.sha256(file.encode()).hexdigest()[:8]
  stem = re.sub(r'\W', '_', path.stem)
  name = f'bigdl_file_{stem}_{digest}'
  folder = os.path.dirname(file)
  if folder not in _folders:
    _folders.append(folder)
    # Last, so that a file here shadows no installed package.
    sys.path.append(folder)
  module = types.ModuleType(name)
  module.__file__ = file
  module.__dict__['__source__'] = source
  # dataclasses look their module up by name while it is being executed.
  before, sys.modules[name] = sys.modules.get(name), module
  try:
    # Not through importlib: its byte-code cache goes by whole seconds.
    exec(compile(source, file, 'exec'), module.__dict__)
  except Exception as e:
    del sys.modules[name]
    if before is not None:
      sys.modules[name] = before
    raise ValueError(f'config={_where(e, _shorten(file))}') from e
  return module


def _neighbour(path: pathlib.Path) -> str:
  if not path.parent.is_dir():
    return ''
  names = [p.name for p in path.parent.glob('*.py')]
  close = values.nearest(path.name, names)
  return f'; nearest is {path.parent / close}' if close else ''


def _shorten(file: str) -> str:
  here = os.getcwd() + os.sep
  return file.removeprefix(here)


def _where(error: Exception, path: str) -> str:
  """Returns `FILE:LINE: Error: message` for an error in an experiment file."""
  line = getattr(error, 'lineno', None)
  file = getattr(error, 'filename', None)
  if line is None or file is None or _shorten(file) != path:
    frames = traceback.extract_tb(error.__traceback__)
    own = [f.lineno for f in frames if _shorten(f.filename) == path]
    line = own[-1] if own else None
  place = path if line is None else f'{path}:{line}'
  return f'{place}: {type(error).__name__}: {getattr(error, "msg", error)}'


def _record(value: Any, path: str) -> Any:
  if value is None or isinstance(value, bool | str):
    return value
  if isinstance(value, numbers.Integral):
    return int(value)
  if isinstance(value, numbers.Real):
    return float(value)
  if isinstance(value, tuple):
    return [_record(v, f'{path}.{i}') for i, v in enumerate(value)]
  if isinstance(value, Mapping):
    return {str(k): _record(v, f'{path}.{k}') for k, v in value.items()}
  if isinstance(value, type) or not dataclasses.is_dataclass(value):
    return {'_name': _record_name(value, path)}
  tree = {'_type': _name_class(type(value))}
  for field in values.fields(value):
    item = getattr(value, field.name)
    inner = f'{path}.{field.name}' if path else field.name
    try:
      tree[field.name] = _record(item, inner)
    except ValueError:
      if item is not field.default:
        raise
  return tree


def _record_name(value: Any, path: str) -> str:
  """Returns the dotted name of a function or dtype, from which it is got."""
  inner = getattr(value, '__qualname__', None) or getattr(value, '__name__', '')
  # The modules that define jax's functions are private and move about.
  for public in ('jax.nn', 'jax.numpy', 'flax.linen'):
    module = sys.modules.get(public)
    if inner and getattr(module, inner, None) is value:
      return f'{public}:{inner}'
  name = f'{getattr(value, "__module__", None)}:{inner}'
  file = getattr(sys.modules.get(name.partition(':')[0]), '__file__', None)
  if inner and file and name.startswith('bigdl_file_'):
    name = f'{file}:{inner}'
  try:
    if inner and _resolve(name) is value:
      return name
  except ValueError:
    pass
  raise ValueError(
    f'{path}={value!r} cannot be recorded: expected a number, text, tuple, '
    'dataclass, or a function that can be imported by name'
  )


def _name_class(cls: type) -> str:
  """Returns `package.module:Class`, or `FILE:Class` from an experiment."""
  file = getattr(sys.modules.get(cls.__module__), '__file__', None)
  if file:
    local = '.' not in cls.__module__ and os.path.dirname(file) in _folders
    if local or cls.__module__.startswith('bigdl_file_'):
      return f'{file}:{cls.__qualname__}'
  return f'{cls.__module__}.{cls.__qualname__}'


def _resolve(name: str) -> Any:
  """Returns the object recorded under `module:name` or `FILE.py:name`."""
  match = re.fullmatch(r'(.+\.py):([\w.]+)', name)
  try:
    if not match:
      return pkgutil.resolve_name(name)
    module: Any = _import_file(_find(pathlib.Path(match[1])), 'type')
    for part in match[2].split('.'):
      module = getattr(module, part)
    return module
  except (ImportError, AttributeError, ValueError) as e:
    raise ValueError(f'{name} is not here: {e}') from e


def _find(path: pathlib.Path) -> pathlib.Path:
  """Returns the path, or where it lies below here if its tree was moved."""
  if not path.is_file():
    for i in range(1, len(path.parts)):
      tail = pathlib.Path(*path.parts[i:])
      if tail.is_file():
        return tail
  return path


def _build(tree: Any, path: str) -> Any:
  if isinstance(tree, list):
    return tuple(_build(v, f'{path}.{i}') for i, v in enumerate(tree))
  if not isinstance(tree, dict):
    return tree
  if '_name' in tree:
    return _resolve(tree['_name'])
  inner = {k: f'{path}.{k}' if path else k for k in tree}
  if '_type' not in tree:
    return {k: _build(v, inner[k]) for k, v in tree.items()}
  cls = _resolve(tree['_type'])
  if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
    raise ValueError(f'{inner["_type"]}={tree["_type"]!r} is not a dataclass')
  names = [f.name for f in values.fields(cls)]
  given = {k: v for k, v in tree.items() if k != '_type'}
  for name in given:
    if name not in names:
      close = values.nearest(name, names)
      hint = f'; nearest is {close}' if close else ''
      raise ValueError(f'{inner[name]}: no such field of {cls.__name__}{hint}')
  built = {k: _build(v, inner[k]) for k, v in given.items()}
  hints = values.hints(cls)
  for name, value in built.items():
    if not values.fits(value, hints[name]):
      expected = values.spell(hints[name])
      raise ValueError(f'{inner[name]}={value!r}: expected {expected}')
  try:
    return cls(**built)
  except TypeError as e:
    raise ValueError(f'{path or "record"}: {e}') from e


def _differences(here: Any, there: Any, path: str, other: str) -> Iterator[str]:
  lists = isinstance(here, list) and isinstance(there, list)
  if lists and any(isinstance(v, dict) for v in [*here, *there]):
    here = {str(i): v for i, v in enumerate(here)}
    there = {str(i): v for i, v in enumerate(there)}
  if not (isinstance(here, dict) and isinstance(there, dict)):
    if here != there:
      yield f'{path}: {_show(here)} here, {_show(there)} in {other}'
    return
  if _kind(here) != _kind(there):
    yield f'{path or "type"}: {_kind(here)} here, {_kind(there)} in {other}'
    return
  for name in [*here, *(k for k in there if k not in here)]:
    inner = f'{path}.{name}' if path else name
    if name in ('_type', '_name'):
      continue
    if name not in here or name not in there:
      place = 'here' if name in here else f'in {other}'
      value = here.get(name, there.get(name))
      yield f'{inner}: {_show(value)} {place} only'
    else:
      yield from _differences(here[name], there[name], inner, other)


def _kind(tree: dict) -> str | None:
  """Returns a record's type; of a file only the last part, as it may move."""
  name = tree.get('_type', tree.get('_name'))
  return name.rpartition('/')[2] if name and '.py:' in name else name


def _show(value: Any) -> str:
  if isinstance(value, dict):
    return str(_kind(value))
  return repr(value)
