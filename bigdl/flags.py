"""Flags: text from the command line into the fields of frozen values.

An override names a path of fields (`--model.depth=6`). All overrides of one
command are applied in one rebuild, innermost first, so that every
`__post_init__` validates final values.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
import dataclasses
import inspect
import re
import textwrap
import typing
from typing import Any

from bigdl import values


@dataclasses.dataclass(frozen=True)
class _Leaf:
  """A field's new value, told apart from a dict of changes below it."""

  value: Any


def parse(
  cls: type,
  argv: Sequence[str],
  *,
  verb: str,
  positional: Sequence[str] = (),
  rest: Callable[[dict[str, Any]], Any] | None = None,
) -> tuple[Any, list[str]]:
  """Returns a verb's own flags as a `cls`, and the arguments left over.

  Prints help and raises SystemExit(0) where `-h` or `--help` is among them.

  Args:
    cls: Frozen dataclass; a field without default is a required flag.
    argv: What follows the verb.
    verb: The verb, for help and messages.
    positional: Fields that may be given without `--name=`, in this order.
    rest: What unknown flags override: they are then returned, not refused.
      Called for help only, with the flags that were given; returns the value
      (or its class) whose fields are to be listed.
  """
  known = values.hints(cls)
  names = [f.name for f in values.fields(cls)]
  given: dict[str, Any] = {}
  left: list[str] = []
  free = list(positional)
  wants_help = False
  tokens = list(argv)
  while tokens:
    token = tokens.pop(0)
    if token in ('-h', '--help'):
      wants_help = True
      continue
    if not token.startswith('--'):
      if not free:
        raise ValueError(f'{token!r}: unexpected argument of {verb}')
      key = free.pop(0)
      given[key] = _read([token], known[key], key)
      continue
    name, equals, text = token[2:].partition('=')
    key = name.replace('-', '_')
    if key not in names:
      if rest is None:
        raise ValueError(values.unknown(name, names))
      left += [token, *([] if equals else _words(tokens))]
      continue
    texts = [text] if equals else _words(tokens, one=known[key])
    given[key] = _read(texts, known[key], key)
    free = [f for f in free if f != key]
  if wants_help:
    print(_help(cls, verb, positional, rest(given) if rest else None))
    raise SystemExit(0)
  for field in values.fields(cls):
    if field.name not in given and values.required(field):
      for token in left:
        name = token[2:].partition('=')[0]
        if token.startswith('--') and values.nearest(name, [field.name]):
          raise ValueError(values.unknown(name, names))
      raise ValueError(f'--{field.name} is required; see bigdl {verb} --help')
  return cls(**given), left


def override(value: Any, args: Sequence[str], *, also: Sequence[str] = ()):
  """Returns `value` with fields replaced, in one rebuild.

  Args:
    value: A frozen dataclass; fields nest.
    args: `--path.to.field=text` or `--path.to.field text`; a tuple takes
      several words or one with commas, a bool none, `None` is `none`.
    also: Names beside the fields that a misspelt flag may have meant.
  """
  changes: dict[str, Any] = {}
  tokens = list(args)
  while tokens:
    token = tokens.pop(0)
    if not token.startswith('--'):
      raise ValueError(f'{token!r}: unexpected argument; flags begin with --')
    name, equals, text = token[2:].partition('=')
    path = name.replace('-', '_')
    texts = [text] if equals else _words(tokens)
    node = {p: (v, h) for p, v, h in values.walk(value)}.get(path)
    if node is None:
      raise ValueError(
        values.unknown(name, [p for p, _, _ in values.walk(value)] + [*also])
      )
    *parents, last = path.split('.')
    tree = changes
    for part in parents:
      tree = tree.setdefault(part, {})
      if isinstance(tree, _Leaf):
        raise ValueError(f'--{path}: --{".".join(parents)} is set as well')
    tree[last] = _Leaf(_read(texts, _hint(*node), path, node[0]))
  return _rebuild(value, changes)


def comments(cls: type) -> dict[str, str]:
  """Returns what the source says of each field, in a comment or docstring."""
  found: dict[str, str] = {}
  for base in reversed(cls.__mro__):
    if base is object or base.__module__.startswith('flax.'):
      continue
    try:
      source = textwrap.dedent(inspect.getsource(base))
      (node,) = ast.parse(source).body
    except (OSError, TypeError, SyntaxError, ValueError):
      continue
    lines, doc = source.splitlines(), inspect.cleandoc(base.__doc__ or '')
    for item in getattr(node, 'body', []):
      if not isinstance(item, ast.AnnAssign):
        continue
      if isinstance(item.target, ast.Name):
        note = _comment(lines, item) or _entry(doc, item.target.id)
        if note:
          found[item.target.id] = note
  return found


def _words(tokens: list[str], *, one: Any = None) -> list[str]:
  """Takes from `tokens` the words of one flag, given without `=`.

  With the flag's type as `one`, takes what that type needs: one word, or none
  for a bool. Else takes all up to the next flag.
  """
  taken: list[str] = []
  while tokens and not tokens[0].startswith('--'):
    if one is bool and tokens[0].lower() not in values.WORDS:
      break
    taken.append(tokens.pop(0))
    if one is not None and typing.get_origin(one) is not tuple:
      break
  return taken


def _hint(value: Any, hint: Any) -> Any:
  """Returns the annotation, or the value's own type where it says nothing."""
  plain = isinstance(value, bool | int | float | str)
  return type(value) if plain and hint in (Any, object) else hint


def _read(texts: list[str], hint: Any, path: str, now: Any = None) -> Any:
  """Returns the value that `texts` spell, or raises with path and type."""
  try:
    return values.convert(texts, hint)
  except ValueError:
    pass
  if not texts:
    raise ValueError(f'--{path} needs a value: {values.spell(hint)}')
  text = ' '.join(texts)
  if callable(now) and not values.nested(now):
    raise ValueError(f'--{path}={text}: set it in the experiment file')
  if values.nested(now):
    kind = type(now).__name__
    raise ValueError(
      f'--{path}={text}: expected its fields (--{path}.… of {kind}); '
      'another type is chosen in the experiment file'
    )
  raise ValueError(f'--{path}={text}: expected {values.spell(hint)}')


def _rebuild(value: Any, changes: Any) -> Any:
  if isinstance(changes, _Leaf):
    return changes.value
  if isinstance(value, tuple):
    return tuple(
      _rebuild(v, changes[str(i)]) if str(i) in changes else v
      for i, v in enumerate(value)
    )
  new = {k: _rebuild(getattr(value, k), c) for k, c in changes.items()}
  return dataclasses.replace(value, **new) if new else value


def _help(cls: type, verb: str, positional: Sequence[str], more: Any) -> str:
  required = [f.name for f in values.fields(cls) if values.required(f)]
  usage = ' '.join(
    n.upper() if n in positional else f'--{n}=…' for n in required
  )
  lines = [f'usage: bigdl {verb} {usage}'.rstrip() + ' …', '']
  lines += [inspect.cleandoc(cls.__doc__ or ''), '', 'flags:']
  lines += _table(cls)
  if more is not None:
    kind = more if isinstance(more, type) else type(more)
    lines += ['', f'fields of {kind.__name__}, each of which can be set:']
    lines += _table(more)
  return '\n'.join(lines)


def _table(value: Any, path: str = '') -> list[str]:
  """Returns one line a field: flag, type, default (or value), meaning."""
  kind = value if isinstance(value, type) else type(value)
  known, notes, lines = values.hints(kind), comments(kind), []
  for field in values.fields(value):
    name = f'{path}.{field.name}' if path else field.name
    hint, shown = known.get(field.name, Any), ''
    if isinstance(value, type):
      now = field.default
      if field.default_factory is not dataclasses.MISSING:
        now = field.default_factory()
      if values.required(field):
        shown = ' (required)'
    else:
      now = getattr(value, field.name)
    items: tuple = now if isinstance(now, tuple) else ()
    items = items if any(map(values.nested, items)) else ()
    if values.nested(now):
      label = f'  --{name}.…  {type(now).__name__}'
    elif items:
      label = f'  --{name}.0.…  {len(items)} of {values.spell(hint)}'
    else:
      shown = shown or f' = {getattr(now, "__name__", None) or repr(now)}'
      label = f'  --{name}  {values.spell(hint)}{shown}'
    lines += _line(label, notes.get(field.name, ''))
    if values.nested(now):
      lines += _table(now, name)
    for i, item in enumerate(items):
      lines += _table(item, f'{name}.{i}')
  return lines


def _line(label: str, note: str, *, column: int = 44) -> list[str]:
  if not note:
    return [label]
  wrapped = textwrap.wrap(note, 100 - column)
  first = [label] if len(label) > column - 2 else []
  if not first:
    first, wrapped = [label.ljust(column) + wrapped[0]], wrapped[1:]
  return first + [' ' * column + w for w in wrapped]


def _comment(lines: list[str], item: ast.AnnAssign) -> str:
  """Returns the comment that ends a field's line, or the lines above it."""
  start, end = item.lineno - 1, (item.end_lineno or item.lineno) - 1
  tail = lines[end].encode()[item.end_col_offset or 0 :].decode().strip()
  if tail.startswith('#'):
    return tail.lstrip('# ')
  above: list[str] = []
  while start and lines[start - 1].strip().startswith('#'):
    start -= 1
    above.insert(0, lines[start].strip().lstrip('# '))
  return ' '.join(above)


def _entry(doc: str, name: str) -> str:
  """Returns what a docstring lists under `name:`, with indented lines after."""
  match = re.search(rf'^( *){name}: (.+(?:\n\1  +.+)*)', doc, re.MULTILINE)
  return ' '.join(match[2].split()) if match else ''
