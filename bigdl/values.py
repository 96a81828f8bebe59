"""Frozen values as trees of typed fields: list, spell, read and check them.

Linen modules are dataclasses and are treated as such, less the two fields that
flax adds (`parent`, `name`).
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import difflib
import inspect
import numbers
import re
import sys
import types
import typing
from typing import Any

WORDS = {'true': True, 'yes': True, '1': True}
WORDS |= {'false': False, 'no': False, '0': False}


def fields(cls: Any) -> list[dataclasses.Field]:
  """Returns the fields a person may set, without those flax adds."""
  kind = cls if isinstance(cls, type) else type(cls)
  linen = any(c.__module__ == 'flax.linen.module' for c in kind.__mro__)
  hidden = ('parent', 'name') if linen else ()
  return [f for f in dataclasses.fields(cls) if f.init and f.name not in hidden]


def hints(cls: type) -> dict[str, Any]:
  """Returns the annotation of every field; Any where it does not resolve."""
  found = {}
  for base in reversed(cls.__mro__):
    scope = vars(sys.modules.get(base.__module__, types))
    for name, hint in inspect.get_annotations(base).items():
      if isinstance(hint, str):
        # Names imported under TYPE_CHECKING do not exist at run time.
        try:
          hint = eval(hint, dict(scope), dict(vars(base)))
        except (NameError, AttributeError, TypeError):
          hint = Any
      found[name] = hint
  return found


def walk(value: Any, path: str = '') -> Iterator[tuple[str, Any, Any]]:
  """Yields `(path, value, annotation)` of every field, outer before inner."""
  if nested(value):
    known = hints(type(value))
    items = [
      (f.name, getattr(value, f.name), known.get(f.name, Any))
      for f in fields(value)
    ]
  elif isinstance(value, tuple) and any(nested(v) for v in value):
    items = [(str(i), v, type(v)) for i, v in enumerate(value)]
  else:
    return
  for name, item, hint in items:
    inner = f'{path}.{name}' if path else name
    yield inner, item, hint
    yield from walk(item, inner)


def nearest(name: str, names: Sequence[str]) -> str | None:
  """Returns the one of `names` that a misspelt `name` most likely meant."""

  def likeness(other: str) -> float:
    whole = difflib.SequenceMatcher(None, name, other).ratio()
    # A forgotten prefix (`--depth`) should find `model.depth`.
    tail = other.rpartition('.')[2]
    end = difflib.SequenceMatcher(None, name.rpartition('.')[2], tail).ratio()
    return max(whole, 0.9 * end) + 0.01 * whole

  best = max(names, key=likeness, default=None)
  return best if best is not None and likeness(best) > 0.5 else None


def unknown(name: str, names: Sequence[str]) -> str:
  close = nearest(name.replace('-', '_'), names)
  hint = f'; nearest is --{close}' if close else ''
  return f'--{name}: no such field{hint}'


def spell(hint: Any) -> str:
  """Returns a type in words: `int`, `tuple of float`, `'a' or 'b'`."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is typing.Annotated:
    return spell(args[0])
  if origin in (typing.Union, types.UnionType):
    return ' or '.join(spell(a) for a in args)
  if origin is typing.Literal:
    return ' or '.join(repr(a) for a in args)
  if origin is tuple and args[-1:] == (Ellipsis,):
    return f'tuple of {spell(args[0])}'
  if origin is tuple:
    return f'({", ".join(spell(a) for a in args)})'
  if hint in (None, type(None)):
    return 'None'
  if hint in (Any, object):
    return 'any'
  return getattr(origin or hint, '__name__', str(hint))


def check_types(value: Any) -> None:
  """Raises ValueError for a field whose value is not of its annotated type."""
  for path, leaf, hint in walk(value):
    if not fits(leaf, hint):
      raise ValueError(f'{path}={leaf!r}: expected {spell(hint)}')


def convert(texts: list[str], hint: Any) -> Any:
  """Returns the value that `texts` spell; ValueError if not of that type."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin is typing.Annotated:
    return convert(texts, args[0])
  if origin in (typing.Union, types.UnionType):
    # Text can spell anything, so str comes last.
    for member in sorted(args, key=lambda a: (a is str, a is not type(None))):
      try:
        return convert(texts, member)
      except ValueError:
        continue
    raise ValueError
  if hint is tuple or origin in (tuple, Sequence):
    return _convert_tuple(texts, args or (Any, Ellipsis))
  if hint is bool and not texts:
    return True
  if len(texts) != 1:
    raise ValueError
  (text,) = texts
  if origin is typing.Literal:
    return {str(a): a for a in args}[text] if text in map(str, args) else _no()
  if hint is type(None):
    return None if text.lower() in ('none', 'null') else _no()
  if hint is bool:
    return WORDS[text.lower()] if text.lower() in WORDS else _no()
  if hint is int:
    return _convert_int(text)
  if hint is float:
    return float(text)
  if hint is str:
    return text
  if hint in (Any, object) or hint is dict or origin in (dict, Mapping):
    try:
      return ast.literal_eval(text)
    except SyntaxError as e:
      raise ValueError from e
  raise ValueError


def nested(value: Any) -> bool:
  return dataclasses.is_dataclass(value) and not isinstance(value, type)


def required(field: dataclasses.Field) -> bool:
  missing = dataclasses.MISSING
  return field.default is missing and field.default_factory is missing


def _no() -> Any:
  raise ValueError


def _convert_int(text: str) -> int:
  # Large counts are written 1e9, which must not pass through a float first.
  match = re.fullmatch(r'([+-]?\d+)[eE]\+?(\d{1,2})', text)
  if match:
    return int(match[1]) * 10 ** int(match[2])
  return int(text)


def _convert_tuple(texts: list[str], args: tuple) -> tuple:
  if len(texts) == 1:
    inside = texts[0].strip('()[] ')
    texts = [t.strip(' \'"') for t in inside.split(',') if t.strip()]
  if args[-1:] == (Ellipsis,):
    args = args[:1] * len(texts)
  if len(texts) != len(args):
    raise ValueError
  return tuple(convert([t], a) for t, a in zip(texts, args, strict=True))


def fits(value: Any, hint: Any) -> bool:
  """Whether a value is of a type; True where the type is not a plain one."""
  origin, args = typing.get_origin(hint), typing.get_args(hint)
  if origin in (typing.Union, types.UnionType):
    return any(fits(value, a) for a in args)
  if origin is typing.Literal:
    return any(value == a and type(value) is type(a) for a in args)
  if origin is tuple:
    if not isinstance(value, tuple):
      return False
    if args[-1:] == (Ellipsis,):
      args = args[:1] * len(value)
    return len(value) == len(args) and all(map(fits, value, args))
  if hint is type(None):
    return value is None
  if hint in (bool, str):
    return isinstance(value, hint)
  if hint in (int, float):
    # numpy's scalars are numbers too; bool is an int only to Python.
    kind = numbers.Integral if hint is int else numbers.Real
    return isinstance(value, kind) and not isinstance(value, bool)
  if isinstance(hint, type) and dataclasses.is_dataclass(hint):
    return isinstance(value, hint)
  return True
