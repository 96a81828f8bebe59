"""Hashes of what a cell is made of: its config and the code that trains it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
import functools
import hashlib
import json
import pathlib
import re
from typing import Any

import bigdl

DIGITS = 16


def of(value: Any) -> str:
  """Returns a hash of JSON values; the order of keys does not matter."""
  text = json.dumps(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


@functools.cache
def package() -> str:
  """Returns a hash of all Python source of `bigdl`, as the disk has it now."""
  root = pathlib.Path(bigdl.__file__).parent
  return of(
    [[str(p.relative_to(root)), _digest(p)] for p in sorted(_code(root))]
  )


def _code(root: pathlib.Path) -> Iterator[pathlib.Path]:
  return (p for p in root.rglob('*.py') if p.name[0] != '.')


def _digest(file: pathlib.Path) -> str:
  return hashlib.sha256(file.read_bytes()).hexdigest()


def files(configs: Iterable[Any]) -> dict[str, str]:
  """Returns a hash of each file whose classes or functions configs name.

  Args:
    configs: Experiments, as `config.to_json` gives them.
  """
  found: set[str] = set()
  for tree in configs:
    found |= set(_named(tree))
  return {
    name: _digest(pathlib.Path(name))[:DIGITS]
    for name in sorted(found)
    if pathlib.Path(name).is_file()
  }


def _named(tree: Any) -> Iterator[str]:
  if isinstance(tree, list):
    for value in tree:
      yield from _named(value)
  elif isinstance(tree, dict):
    for key, value in tree.items():
      match = key in ('_type', '_name') and re.match(r'(.+\.py):', str(value))
      if match:
        yield match[1]
      else:
        yield from _named(value)


def code(configs: Iterable[Any]) -> dict[str, str]:
  """Returns a hash of `bigdl` and of each file of their own that configs name."""
  return {'bigdl': package(), **files(configs)}


def changes(then: dict[str, str], now: dict[str, str]) -> str:
  """Returns in words which code is not what it was, '' where all is.

  A file that is somewhere else now is compared by its name.
  """
  here = {pathlib.Path(name).name: value for name, value in now.items()}
  words = []
  for name, value in then.items():
    other = now.get(name, here.get(pathlib.Path(name).name))
    if other != value:
      words.append(f'{name} ({value[:8]} then, {(other or "absent")[:8]} now)')
  return ', '.join(words)
