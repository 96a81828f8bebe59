"""Finds the files that extend the package, and the `tiny()` each ends in.

A file of `bigdl/models` (`objectives`, `data`, `optim`) must define `tiny()` if
it defines something to use: a public class of its folder's kind of which no
method is left to a subclass (its whole body is `raise NotImplementedError`).
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
import importlib
import inspect
import pkgutil
import textwrap
from types import ModuleType
from typing import Any


def modules(package: str) -> Iterator[ModuleType]:
  """Yields the modules of a package, of its folders too, but for its base."""
  folder = importlib.import_module(package)
  for found in pkgutil.walk_packages(folder.__path__, f'{package}.'):
    if found.name.rpartition('.')[2] != 'base' and not found.ispkg:
      yield importlib.import_module(found.name)


def defined(module: ModuleType, kind: type) -> list[type]:
  """Returns the classes of that kind that a module defines to be used."""
  return [
    value
    for name, value in vars(module).items()
    if inspect.isclass(value)
    and issubclass(value, kind)
    and value.__module__ == module.__name__
    and name[0] != '_'
    and not is_abstract(value)
  ]


def is_abstract(cls: type) -> bool:
  """Returns whether a method is left to a subclass."""
  methods = (inspect.getattr_static(cls, name) for name in dir(cls))
  return any(_is_left_out(m) for m in methods if inspect.isfunction(m))


def _is_left_out(method: Callable[..., Any]) -> bool:
  # The one name that such a body refers to; others need not be parsed.
  if 'NotImplementedError' not in method.__code__.co_names:
    return False
  source = textwrap.dedent(inspect.getsource(method))
  body = ast.parse(source).body[0].body  # type: ignore[attr-defined]
  doc = isinstance(body[0], ast.Expr) and isinstance(
    body[0].value, ast.Constant
  )
  rest = [ast.unparse(line) for line in body[doc:]]
  return rest in (
    ['raise NotImplementedError'],
    ['raise NotImplementedError()'],
  )


def tinies(package: str, kind: type) -> dict[str, Callable[[], Any]]:
  """Returns `tiny` by module name, for the modules that define one."""
  return {
    m.__name__: m.tiny for m in modules(package) if callable(_tiny(m, kind))
  }


def missing(package: str, kind: type) -> list[str]:
  """Returns a sentence for each file that should define `tiny()`."""
  return [
    f'{m.__name__} defines {names[0]} and no tiny()'
    for m in modules(package)
    if (names := [c.__name__ for c in defined(m, kind)])
    and not callable(_tiny(m, kind))
  ]


def _tiny(module: ModuleType, kind: type) -> Any:
  # A part that is not of the kind (a tokenizer) may have a tiny() of its own.
  return getattr(module, 'tiny', None) if defined(module, kind) else None
