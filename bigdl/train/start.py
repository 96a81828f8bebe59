"""The weights that a run starts from, where they are not drawn afresh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
import dataclasses
import hashlib
import re
from typing import Any

import jax
import numpy as np

from bigdl import tensors, tree
from bigdl.experiment import Start
from bigdl.train import weights

Say = Callable[[str], None]
_SHOWN = 4  # Names of parameters in one line.


@dataclasses.dataclass(frozen=True)
class Given:
  """Parameters by path, and what the run's provenance says of them."""

  values: dict[str, np.ndarray]
  facts: dict[str, Any]

  def put(self, params: Any, shapes: Any) -> Any:
    """Returns the parameters with those given in their places.

    Args:
      params: Fresh ones.
      shapes: Their shapes, dtypes and shardings.
    """

    def place(path, fresh, shape):
      value = self.values.get(path)
      if value is None:
        return fresh
      return jax.make_array_from_callback(
        shape.shape, shape.sharding, lambda index: value[index]
      )

    return tree.map_with_path(place, params, shapes)


def load(start: Start, shapes: Any, say: Say) -> Given | None:
  """Returns the parameters that a run starts from, None for all fresh.

  Args:
    start: Where they are, and which are taken.
    shapes: The model's parameters.
    say: Takes one line about what is taken, fresh and left over.

  Raises:
    ValueError: A shape does not fit, a pattern matches nothing, or no parameter
      is one of the model's.
  """
  if not start.folder:
    return None
  try:
    found = weights.open(start.folder, say)
  except ValueError as error:
    raise ValueError(f'start.folder={start.folder}: {error}') from error
  entries = _select(start, found.entries)
  own = dict(tree.items(shapes))
  try:
    values, left = tensors.arrange(entries, own)
  except ValueError as error:
    raise ValueError(f'start.folder={start.folder}: {error}') from error
  if not values:
    raise ValueError(
      f'start.folder={start.folder} has none of the parameters: it has'
      f' {_few(left or list(entries))}, the model {_few(list(own))}'
      ' (start.rename translates)'
    )
  fresh = [path for path in own if path not in values]
  count = sum(value.size for value in values.values())
  say(
    f'start={start.folder}: {len(values)} parameters taken ({count:,} numbers);'
    f' {len(fresh)} start fresh{_listed(fresh)};'
    f' {len(left)} left over{_listed(left)}'
  )
  facts = {
    'folder': str(found.folder),
    'fingerprint': _fingerprint(values),
    'taken': sorted(values),
    'fresh': fresh,
    'left': left,
  }
  return Given(values, facts)


def _select(start, entries):
  """Returns what is not dropped, under our names."""
  paths = list(entries)
  if start.drop:
    paths = [path for path in paths if not re.search(start.drop, path)]
    if len(paths) == len(entries):
      raise ValueError(
        f'start.drop={start.drop!r} must match a parameter of {start.folder},'
        f' such as {_few(paths)}'
      )
  names = {path: path for path in paths}
  for pattern, replacement in start.rename:
    if not any(re.search(pattern, name) for name in names.values()):
      raise ValueError(
        f'start.rename={pattern!r} must match a parameter of {start.folder},'
        f' such as {_few(list(names.values()))}'
      )
    try:
      names = {
        path: re.sub(pattern, replacement, name) for path, name in names.items()
      }
    except (re.error, IndexError) as error:
      raise ValueError(
        f'start.rename={replacement!r} must be what replaces {pattern!r}:'
        f' {error}'
      ) from error
  renamed = {name: entries[path] for path, name in names.items()}
  if len(renamed) < len(names):
    raise ValueError(
      f'start.rename={start.rename} gives two parameters of {start.folder} one'
      ' name'
    )
  return renamed


def _fingerprint(values: dict[str, np.ndarray]) -> str:
  digest = hashlib.sha256()
  for path in sorted(values):
    value = np.ascontiguousarray(values[path])
    digest.update(f'{path} {value.dtype} {value.shape} '.encode())
    digest.update(value.tobytes())
  return digest.hexdigest()[:24]


def _few(names: Sequence[str]) -> str:
  return ', '.join(names[:_SHOWN]) + (', …' if len(names) > _SHOWN else '')


def _listed(names: Sequence[str]) -> str:
  return f' ({_few(names)})' if names else ''
