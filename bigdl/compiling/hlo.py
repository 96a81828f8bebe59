"""A compiled program, read from the text that XLA prints of it.

The text of a scheduled module, as `Compiled.as_text()` gives it for CPU and GPU
and as XLA dumps it for TPU, where no other form can be had without the device.
A loop's body is one computation, however often it runs; `Module.executions`
says how often that is.
"""

from __future__ import annotations

import dataclasses
import functools
import re

from bigdl.compiling import instructions, loops
from bigdl.compiling.instructions import Array, Computation, Instruction

__all__ = ('Array', 'Computation', 'Instruction', 'Module', 'parse')

_HEADER = re.compile(r'^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$')


@dataclasses.dataclass(frozen=True)
class Module:
  """A program for one device of those that run it together."""

  computations: dict[str, Computation]
  entry: str

  @functools.cached_property
  def executions(self) -> dict[str, int]:
    """How often each computation runs in one run of the program.

    Of a conditional every branch counts as if it were taken: an upper bound.
    """
    return self._walk[0]

  @functools.cached_property
  def unresolved(self) -> tuple[str, ...]:
    """Loops whose number of rounds was not found; they count as one."""
    return self._walk[1]

  @functools.cached_property
  def _walk(self):
    runs: dict[str, int] = {}
    unknown: set[str] = set()

    def visit(name: str, times: int):
      runs[name] = runs.get(name, 0) + times
      computation = self.computations[name]
      for instruction in computation:
        rounds = 1
        if instruction.opcode == 'while':
          found = self.trips(computation, instruction)
          rounds = 1 if found is None else found
          if found is None:
            unknown.add(instruction.name)
        for names in instruction.called.values():
          for called in names:
            if called in self.computations:
              visit(called, times * rounds)

    visit(self.entry, 1)
    return runs, tuple(sorted(unknown))

  def trips(self, computation: Computation, loop: Instruction) -> int | None:
    """Returns how many rounds a `while` runs, or None where it is not clear."""
    return loops.rounds(self.computations, computation, loop)


def parse(text: str) -> Module:
  """Reads the text of one module.

  Raises:
    ValueError: The text has no ENTRY computation.
  """
  computations: dict[str, Computation] = {}
  entry, name = '', ''
  lines: list[str] = []

  def close():
    if name:
      spelled = instructions.spelled(lines)
      found = [instructions.parse(line) for line in spelled]
      computations[name] = Computation(
        name, {i.name: i for i in found if i is not None}
      )

  for line in text.splitlines():
    head = _HEADER.match(line)
    if head and not line.startswith(' '):
      close()
      name, lines = head.group(2), []
      entry = name if head.group(1) else entry
    elif instructions.is_instruction(line):
      lines.append(line)
    elif lines and line.strip() and line != '}':
      # Some custom calls carry text of several lines.
      lines[-1] += '\n' + line
  close()
  if not entry:
    raise ValueError(f'hlo: {text[:60]!r}… has no ENTRY computation')
  return Module(computations, entry)
