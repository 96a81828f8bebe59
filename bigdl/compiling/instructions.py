"""Instructions of a compiled program, as XLA prints them, one a line.

Grammar: openxla.org/xla/hlo_dsl; what is not in there (memory spaces in
layouts, backend configurations) was read off compilers of 2025 and 2026.
"""

from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
import math
import re

_BITS = {'pred': 8, 'token': 0, 'opaque': 0}
_ARRAY = re.compile(r'\b([a-z]+\d*[a-z\d]*)\[([\d,<=\s]*)\](\{[^{}]*\})?')
_LINE = re.compile(r'^\s+(ROOT )?%?([\w.\-]+) = (.*)$', re.S)
_OPCODE = re.compile(r'\s([a-z][\w\-]*)\(')
_NAME = re.compile(r'%([\w.\-]+)')
_ELEMENT = re.compile(r'%([\w.\-]+)((?:#\d+)+)')
_CALLED = re.compile(
  r'(calls|to_apply|body|condition|branch_computations|called_computations'
  r'|true_computation|false_computation)=(\{[^}]*\}|%?[\w.\-]+)'
)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
# What the compiler of TPUs prints where it has no estimate.
_NO_CYCLES = 2**62


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of a result: its type, its shape, the memory it lies in."""

  dtype: str
  dims: tuple[int, ...]
  space: int = 0  # 0: the device's main memory; others are on the chip.

  @property
  def bytes(self) -> int:
    bits = _BITS.get(self.dtype)
    if bits is None:
      found = re.search(r'\d+', self.dtype)
      assert found, self.dtype
      bits = int(found.group())
    return math.ceil(math.prod(self.dims) * bits / 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation."""

  name: str
  opcode: str
  arrays: tuple[Array, ...]  # Of the result; several for a tuple.
  operands: tuple[str, ...]
  literal: str  # What stands between the parentheses.
  attributes: str  # What follows them.
  root: bool = False

  @functools.cached_property
  def called(self) -> dict[str, tuple[str, ...]]:
    """Names of the computations it calls, by the attribute that says so."""
    return {
      key: tuple(re.findall(r'[\w.\-]+', names))
      for key, names in _CALLED.findall(self.attributes)
    }

  @property
  def bytes(self) -> int:
    """Bytes of the result."""
    return sum(array.bytes for array in self.arrays)

  @property
  def cycles(self) -> int | None:
    """The compiler's estimate of one execution, where it has one."""
    found = _CYCLES.search(self.attributes)
    cycles = int(found.group(1)) if found else _NO_CYCLES
    return cycles if cycles < _NO_CYCLES else None

  def attribute(self, name: str) -> str:
    """Returns the value of `name=value`, braces and all; '' where none is."""
    found = re.search(rf'\b{name}=(\{{[^{{}}]*\}}|[^\s,]+)', self.attributes)
    return found.group(1) if found else ''

  def integers(self, name: str) -> tuple[int, ...]:
    """Returns the numbers of `name={1,2}`."""
    return tuple(int(n) for n in re.findall(r'-?\d+', self.attribute(name)))


@dataclasses.dataclass(frozen=True)
class Computation:
  """A sequence of instructions; where scheduled, in the order they run in."""

  name: str
  instructions: dict[str, Instruction]

  def __iter__(self) -> Iterator[Instruction]:
    return iter(self.instructions.values())

  @functools.cached_property
  def root(self) -> Instruction:
    for instruction in self:
      if instruction.root:
        return instruction
    raise ValueError(f'hlo: computation {self.name} has no ROOT')

  @functools.cached_property
  def parameters(self) -> dict[int, Instruction]:
    """The parameters by number."""
    return {int(i.literal): i for i in self if i.opcode == 'parameter'}

  def operand(self, instruction: Instruction, number: int) -> Instruction:
    return self.instructions[instruction.operands[number]]


def is_instruction(line: str) -> bool:
  """Returns whether an instruction begins on a line of text."""
  return _LINE.match(line) is not None


def spelled(lines: list[str]) -> list[str]:
  """Returns the lines with each element of a tuple that is used on its own line.

  Where XLA of jax 0.10 prints a `get-tuple-element`, that of 0.11 prints `%x#1`
  among the operands.
  """
  wanted = {m[1] for line in lines for m in _ELEMENT.finditer(line)}
  if not wanted:
    return lines
  shapes: dict[str, str] = {}
  found: list[str] = []

  def spell(match: re.Match) -> str:
    name = match[1]
    for index in match[2].split('#')[1:]:
      inner = f'{name}.element_{index}'
      if inner not in shapes:
        shapes[inner] = _elements(shapes[name])[int(index)]
        found.append(
          f'  %{inner} = {shapes[inner]} get-tuple-element(%{name}),'
          f' index={index}'
        )
      name = inner
    return f'%{name}'

  for line in lines:
    own = _LINE.match(line)
    if own and own[2] in wanted:
      opcode = _OPCODE.search(own[3])
      shapes[own[2]] = own[3][: opcode.start()] if opcode else ''
    found.append(_ELEMENT.sub(spell, line))
  return found


def _elements(shape: str) -> list[str]:
  """Returns the shapes of the elements of a tuple's."""
  inside = re.sub(r'/\*.*?\*/', '', shape).strip()[1:-1]
  parts, depth, begin = [], 0, 0
  for at, letter in enumerate(inside):
    depth += (letter in '([{') - (letter in ')]}')
    if letter == ',' and not depth:
      parts.append(inside[begin:at].strip())
      begin = at + 1
  return [*parts, inside[begin:].strip()]


def parse(line: str) -> Instruction | None:
  """Returns the instruction of one line; None for what is none."""
  found = _LINE.match(line)
  assert found
  rest = found.group(3)
  opcode = _OPCODE.search(rest)
  if opcode is None:
    return None
  end = _closing(rest, opcode.end())
  literal = rest[opcode.end() : end]
  return Instruction(
    name=found.group(2),
    opcode=opcode.group(1),
    arrays=_arrays(rest[: opcode.start()]),
    operands=tuple(_NAME.findall(literal)),
    literal=literal,
    attributes=rest[end + 1 :],
    root=bool(found.group(1)),
  )


def _closing(text: str, start: int) -> int:
  """Returns where the parenthesis closes that was opened before `start`."""
  depth = 1
  for found in re.finditer(r'[()]', text[start:]):
    depth += 1 if found.group() == '(' else -1
    if not depth:
      return start + found.start()
  return len(text)


def _arrays(shape: str) -> tuple[Array, ...]:
  found = []
  for dtype, dims, layout in _ARRAY.findall(shape):
    sizes = tuple(int(n) for n in re.findall(r'\d+', dims))
    space = re.search(r'S\((\d+)\)', layout)
    found.append(Array(dtype, sizes, int(space.group(1)) if space else 0))
  return tuple(found)
