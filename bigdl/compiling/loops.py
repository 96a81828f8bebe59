"""How often the loops of a compiled program run.

On CPU and GPU the number stands beside a loop. For TPU it is found by
evaluating the few integers that count: where the counter starts, what one round
adds, what the condition compares it with.
"""

from __future__ import annotations

import dataclasses
import math
import re

from bigdl.compiling.instructions import Computation, Instruction

Computations = dict[str, Computation]

_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


def rounds(
  computations: Computations, computation: Computation, loop: Instruction
) -> int | None:
  """Returns how many rounds a `while` runs, or None where it is not clear.

  Args:
    computations: All of the program.
    computation: The one that the loop is in.
    loop: The `while`.
  """
  known = _TRIPS.search(loop.attributes)
  return (
    int(known.group(1)) if known else _rounds(computations, computation, loop)
  )


# Of each parameter its value: an integer, a tuple of values, or None.
_Values = dict[int, object]


def _rounds(computations, computation, loop) -> int | None:
  condition = computations[loop.called['condition'][0]]
  body = computations[loop.called['body'][0]]
  start = _Tuple(computations, computation, computation.operand(loop, 0), {})
  # The state as the first round finds it, and as it leaves it.
  compared = _compared(computations, condition, {0: start})
  if compared is None:
    return None
  direction, first, bound = compared
  after = _Tuple(computations, body, body.root, {0: start})
  again = _compared(computations, condition, {0: after})
  if again is None or again[2] != bound or again[1] == first:
    return None
  step = again[1] - first
  if direction == 'NE':
    rounds, rest = divmod(bound - first, step)
    return rounds if not rest and rounds >= 0 else None
  distance = (
    bound - first + (direction in ('LE', 'GE')) * (1 if step > 0 else -1)
  )
  if (step > 0) != (direction in ('LT', 'LE')):
    return None
  return max(0, math.ceil(distance / step))


def _compared(computations, condition, values):
  """Returns how a condition compares, its left and its right integer."""
  root, computation = condition.root, condition
  while root.opcode in ('fusion', 'copy', 'bitcast'):
    if root.opcode == 'fusion':
      inner = computations[root.called['calls'][0]]
      values = {
        n: _value(
          computations, computation, computation.operand(root, n), values
        )
        for n in range(len(root.operands))
      }
      root, computation = inner.root, inner
    else:
      root = computation.operand(root, 0)
  if root.opcode != 'compare':
    return None
  left, right = (
    _value(computations, computation, computation.operand(root, n), values)
    for n in (0, 1)
  )
  if not isinstance(left, int) or not isinstance(right, int):
    return None
  direction = root.attribute('direction')
  return direction, left, right


@dataclasses.dataclass(frozen=True)
class _Tuple:
  """A tuple whose elements are evaluated when they are asked for."""

  computations: Computations
  computation: Computation
  instruction: Instruction
  values: _Values

  def element(self, index: int) -> object:
    instruction = self.instruction
    while instruction.opcode in ('copy', 'opt-barrier', 'optimization-barrier'):
      instruction = self.computation.operand(instruction, 0)
    if instruction.opcode == 'tuple':
      inner = self.computation.operand(instruction, index)
      return _value(self.computations, self.computation, inner, self.values)
    if instruction.opcode == 'parameter':
      given = self.values.get(int(instruction.literal))
      return given.element(index) if isinstance(given, _Tuple) else None
    if instruction.opcode == 'fusion':
      called = self.computations[instruction.called['calls'][0]]
      inputs: _Values = {
        n: _value(
          self.computations,
          self.computation,
          self.computation.operand(instruction, n),
          self.values,
        )
        for n in range(len(instruction.operands))
      }
      return _Tuple(self.computations, called, called.root, inputs).element(
        index
      )
    if instruction.opcode == 'while':
      # What a loop hands on unchanged is what it was given.
      start = self.computation.operand(instruction, 0)
      body = self.computations[instruction.called['body'][0]]
      if _unchanged(body, index):
        return _Tuple(
          self.computations, self.computation, start, self.values
        ).element(index)
    return None


def _unchanged(body: Computation, index: int) -> bool:
  if body.root.opcode != 'tuple':
    return False
  kept = body.operand(body.root, index)
  return (
    kept.opcode == 'get-tuple-element'
    and body.operand(kept, 0).opcode == 'parameter'
    and kept.integers('index') == (index,)
  )


_PASSED_ON = (
  'copy',
  'bitcast',
  'convert',
  'reshape',
  'copy-done',
  'copy-start',
)


def _value(computations, computation, instruction, values) -> object:
  """Returns an integer, a `_Tuple`, or None for all else."""
  opcode = instruction.opcode
  if opcode == 'constant':
    number = re.fullmatch(r'\s*(-?\d+)\s*', instruction.literal)
    return int(number.group(1)) if number else None
  if opcode == 'parameter':
    return values.get(int(instruction.literal))
  if opcode in _PASSED_ON:
    return _value(
      computations, computation, computation.operand(instruction, 0), values
    )
  if opcode == 'get-tuple-element':
    given = computation.operand(instruction, 0)
    index = instruction.integers('index')[0]
    return _Tuple(computations, computation, given, values).element(index)
  if opcode in ('add', 'subtract', 'multiply'):
    left, right = (
      _value(
        computations, computation, computation.operand(instruction, n), values
      )
      for n in (0, 1)
    )
    if not isinstance(left, int) or not isinstance(right, int):
      return None
    return {
      'add': left + right,
      'subtract': left - right,
      'multiply': left * right,
    }[opcode]
  if opcode in ('fusion', 'call'):
    key = 'calls' if opcode == 'fusion' else 'to_apply'
    called = computations[instruction.called[key][0]]
    inputs = {
      n: _value(
        computations, computation, computation.operand(instruction, n), values
      )
      for n in range(len(instruction.operands))
    }
    return _value(computations, called, called.root, inputs)
  if opcode in ('tuple', 'while'):
    return _Tuple(computations, computation, instruction, values)
  return None
