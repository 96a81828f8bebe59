"""The manifest of a sweep: all that a worker anywhere must know to train it.

`manifest.json` is written whole when a sweep is planned and never by workers;
how far cells are is told by their folders and by the files in `claims`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import dataclasses
import json
import math
from typing import Any

from bigdl.fleet import content
from bigdl.fleet.store import Store

FILE = 'manifest.json'
SCHEMA = 2
# Of a layout, what its number of devices is the product of.
_AXES = ('pipeline', 'data', 'fsdp', 'context', 'tensor')


@dataclasses.dataclass(frozen=True)
class Hash:
  """What a cell is, by content: the same hashes, the same numbers."""

  config: str  # Of the experiment as JSON.
  data: str  # Of the fingerprints of training and held-out data.
  code: str  # Of bigdl and the experiment's own files, when it was planned.
  facts: str  # Of what its record carries beside its own, and of its FLOPs.


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of a sweep."""

  name: str  # Of its folder, `cells/NAME`.
  hash: Hash
  data: Mapping[str, str | None]  # Fingerprints: train, held_out.
  steps: int
  flops: float  # Whole run, matmul_causal; 0 where it is not counted.
  facts: Mapping[str, Any]  # What its record carries beside the run's own.
  config: Mapping[str, Any]  # The experiment, as `config.to_json` gives it.

  @property
  def devices(self) -> int:
    """Devices that its layout takes; 0 for all there are."""
    layout = self.config.get('layout') or {}
    sizes = [layout.get(axis, 1) for axis in _AXES]
    return 0 if -1 in sizes else math.prod(sizes)


@dataclasses.dataclass(frozen=True)
class Manifest:
  """The cells of a sweep and the code they were planned with."""

  spec: str  # The experiment file, FILE or FILE:ARG.
  unit: str  # What data is counted in: token, image.
  code: Mapping[str, str]  # Hash of bigdl and of each file of the experiment.
  cells: tuple[Cell, ...]

  def __getitem__(self, name: str) -> Cell:
    return next(cell for cell in self.cells if cell.name == name)

  @property
  def costliest_first(self) -> list[Cell]:
    """The order to train in: the last to start makes all others wait."""
    return sorted(self.cells, key=lambda cell: cell.flops, reverse=True)

  def to_json(self) -> dict[str, Any]:
    return {'schema': SCHEMA, **dataclasses.asdict(self)}


def cell(
  name: str,
  *,
  config: dict[str, Any],
  data: Mapping[str, str | None],
  code: Mapping[str, str],
  flops: float | None,
  facts: Mapping[str, Any],
) -> Cell:
  """Returns a cell with its hashes.

  Args:
    name: Of its folder.
    config: The experiment, as `config.to_json` gives it.
    data: Fingerprints of `train` and `held_out` data.
    code: What `content.code` returns.
    flops: Of the whole run (matmul_causal).
    facts: What the record carries beyond what the loop knows.
  """
  # As it will be read again: tuples are lists there.
  config, data, facts = json.loads(json.dumps([config, dict(data), facts]))
  steps, flops = config['steps'], float(flops or 0)
  hashes = Hash(
    content.of(config),
    content.of(data),
    content.of(dict(code)),
    content.of([facts, flops]),
  )
  return Cell(name, hashes, data, steps, flops, facts, config)


def write(store: Store, made: Manifest) -> None:
  """Writes the manifest, unless the same is there already."""
  text = json.dumps(made.to_json(), indent=1) + '\n'
  if store.read(FILE) != text.encode():
    store.write(FILE, text.encode())


def find(store: Store) -> Manifest | None:
  """Returns the manifest of a sweep, or None where there is none.

  Raises:
    ValueError: It is not what was written: file, field, value, expectation.
  """
  data = store.read(FILE)
  if data is None:
    return None
  where = f'{store.url}/{FILE}'
  try:
    tree = json.loads(data)
  except ValueError as error:
    raise ValueError(f'{where} is not JSON: {error}') from error
  return _Reader(where).manifest(tree)


def read(store: Store) -> Manifest:
  """Returns the manifest of a sweep; ValueError where there is none."""
  found = find(store)
  if found is None:
    raise ValueError(
      f'workdir={store.url} holds no {FILE}: expected the folder of a sweep'
      ' that `bigdl sweep --plan_only` has planned'
    )
  return found


@dataclasses.dataclass(frozen=True)
class _Reader:
  """Checks what it reads, field by field, and says where it is not right."""

  where: str

  def manifest(self, tree: Any) -> Manifest:
    tree = self._fields(tree, '', ('schema', *_names(Manifest)))
    if tree['schema'] != SCHEMA:
      self._fail('schema', tree['schema'], f'{SCHEMA}, which this bigdl reads')
    for name in ('spec', 'unit'):
      self._text(tree[name], name)
    self._texts(tree['code'], 'code')
    if not isinstance(tree['cells'], list) or not tree['cells']:
      self._fail('cells', tree['cells'], 'a list of one cell or more')
    cells = tuple(
      self._cell(value, f'cells[{i}]', content.of(tree['code']))
      for i, value in enumerate(tree['cells'])
    )
    seen: dict[str, int] = {}
    for i, cell in enumerate(cells):
      first = seen.setdefault(cell.name, i)
      if first != i:
        self._fail(
          f'cells[{i}].name', cell.name, f'not the name of cells[{first}]'
        )
    return Manifest(tree['spec'], tree['unit'], tree['code'], cells)

  def _cell(self, tree: Any, path: str, code: str) -> Cell:
    tree = self._fields(tree, path, _names(Cell))
    name = tree['name']
    self._text(name, f'{path}.name')
    if not name or '/' in name or name[0] == '.':
      self._fail(f'{path}.name', name, 'the name of a folder')
    for field in ('facts', 'config'):
      if not isinstance(tree[field], dict):
        self._fail(f'{path}.{field}', tree[field], 'an object')
    self._texts(tree['data'], f'{path}.data', optional=True)
    steps, flops = tree['steps'], tree['flops']
    if type(steps) is not int or steps < 1:
      self._fail(f'{path}.steps', steps, 'a whole number above 0')
    if steps != tree['config'].get('steps'):
      inner = tree['config'].get('steps')
      self._fail(f'{path}.steps', steps, f'{inner}, as in its config')
    if not _is_number(flops) or flops < 0:
      self._fail(f'{path}.flops', flops, 'a number from 0')
    self._facts(tree['facts'], f'{path}.facts')
    hashes = self._fields(tree['hash'], f'{path}.hash', _names(Hash))
    found = Hash(
      content.of(tree['config']),
      content.of(tree['data']),
      code,
      content.of([tree['facts'], float(flops)]),
    )
    for field, value in dataclasses.asdict(found).items():
      if hashes[field] != value:
        self._fail(
          f'{path}.hash.{field}',
          hashes[field],
          f'{value}, which its {field} has (was it edited?)',
        )
    return Cell(**{**tree, 'hash': found})

  def _facts(self, facts: dict, path: str) -> None:
    for name in ('params', 'flops_per_unit'):
      value = facts.get(name)
      if value is not None and not isinstance(value, dict):
        self._fail(f'{path}.{name}', value, 'an object of numbers')
      for key, number in (value or {}).items():
        self._number(number, f'{path}.{name}.{key}')
    self._number(facts.get('budget'), f'{path}.budget')

  def _number(self, value: Any, path: str) -> None:
    if value is not None and not _is_number(value):
      self._fail(path, value, 'a number or null')

  def _fields(self, tree: Any, path: str, names: Sequence[str]) -> dict:
    if not isinstance(tree, dict):
      self._fail(path or 'the whole', tree, 'an object')
    lead = f'{path}.' if path else ''
    for name in names:
      if name not in tree:
        raise ValueError(f'{self.where}: {lead}{name} is missing')
    for name, value in tree.items():
      if name not in names:
        self._fail(lead + name, value, f'one of {", ".join(names)}')
    return tree

  def _text(self, value: Any, path: str) -> None:
    if not isinstance(value, str):
      self._fail(path, value, 'text')

  def _texts(self, tree: Any, path: str, optional: bool = False) -> None:
    if not isinstance(tree, dict):
      self._fail(path, tree, 'an object of texts')
    for name, value in tree.items():
      if not (optional and value is None):
        self._text(value, f'{path}.{name}')

  def _fail(self, path: str, value: Any, expected: str) -> None:
    shown = json.dumps(value)
    shown = shown if len(shown) <= 60 else f'{shown[:57]}...'
    raise ValueError(f'{self.where}: {path}={shown}: expected {expected}')


def _is_number(value: Any) -> bool:
  number = isinstance(value, int | float) and not isinstance(value, bool)
  return number and math.isfinite(value)


def _names(cls: type) -> tuple[str, ...]:
  return tuple(field.name for field in dataclasses.fields(cls))
