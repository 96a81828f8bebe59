"""What each instruction of a compiled program computes and moves.

FLOPs are of matrix products and convolutions, 2 a multiply-add, as
`scaling.count` counts them in a trace; of a convolution only those where the
window lies inside the (dilated) input, since the compiler of TPUs writes
batched products as convolutions that are mostly padding.

Bytes are what crosses to and from main memory if each instruction reads its
operands once and writes its result once: of an array that is only sliced, the
slices; of one that is updated in place, the update; of what stays in on-chip
memory, nothing.
"""

# Shapes: M, N free dimensions of a product, K its contracted ones.
from __future__ import annotations

from collections.abc import Iterator
import dataclasses
import functools
import math
import re

import numpy as np

from bigdl.compiling.hlo import Computation, Instruction, Module

# Name shapes or hand values on; nothing is moved.
_FREE = frozenset(
  {
    'parameter',
    'constant',
    'tuple',
    'get-tuple-element',
    'bitcast',
    'after-all',
    'partition-id',
    'replica-id',
    'opt-barrier',
    'optimization-barrier',
    'add-dependency',
    'copy-done',
    'async-done',
    'async-update',
    'iota',
  }
)
# Their time is that of the computations they call.
CONTROL = frozenset({'while', 'conditional', 'call'})
_SLICES = frozenset({'dynamic-slice', 'slice', 'gather'})
# What groups of devices do together.
KINDS = (
  'all-gather',
  'reduce-scatter',
  'all-reduce',
  'ragged-all-to-all',
  'all-to-all',
  'collective-permute',
  'collective-broadcast',
)
# Of them the network is the limit, and what passes through memory is less.
COLLECTIVES = frozenset(
  name + end
  for name in (*KINDS, 'send', 'recv')
  for end in ('', '-start', '-done')
)
# They run beside what follows them.
PREFETCHES = frozenset({'copy-start', 'async-start', 'slice-start'})
_PALLAS = ('tpu_custom_call', '__gpu$xla.gpu.triton', 'mosaic_gpu')


@dataclasses.dataclass(frozen=True)
class Product:
  """A matrix product, or what of a convolution is one."""

  flops: int
  M: int
  N: int
  K: int
  results: int  # Elements of its result.


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A custom kernel, into which the compiler cannot see."""

  name: str
  executions: int
  operands: tuple[tuple[int, ...], ...]  # Shapes.
  results: tuple[tuple[int, ...], ...]
  flops: int | None  # Of one execution, where its author wrote them down.


def products(
  module: Module, computation: Computation, instruction: Instruction
) -> Iterator[Product]:
  """Yields the products that one instruction computes, fused ones included."""
  if instruction.opcode == 'dot':
    yield _dot(computation, instruction)
  elif instruction.opcode == 'convolution':
    yield _convolution(computation, instruction)
  elif instruction.opcode == 'custom-call':
    found = _library_product(computation, instruction)
    if found is not None:
      yield found
  else:
    for inner, each in parts(module, instruction):
      yield from products(module, inner, each)


def parts(
  module: Module, instruction: Instruction
) -> Iterator[tuple[Computation, Instruction]]:
  """Yields what an instruction calls, unless it is a loop or a branch."""
  if instruction.opcode in CONTROL:
    return
  for names in instruction.called.values():
    for name in names:
      inner = module.computations.get(name)
      if inner is not None:
        for each in inner:
          yield inner, each


def flops(module: Module) -> int:
  """Returns FLOPs of products that one device executes in a step."""
  total = 0
  for name, times in module.executions.items():
    computation = module.computations[name]
    for each in computation:
      if each.opcode in ('dot', 'convolution', 'custom-call'):
        total += times * sum(
          p.flops for p in products(module, computation, each)
        )
  return total


def cycles(module: Module) -> int | None:
  """Returns the compiler's estimated cycles of a step, outside its kernels.

  None where it gave no estimates, as before code is generated. What is fused
  is estimated with the fusion that holds it.
  """
  inside = fused(module)
  known = [
    times * each.cycles
    for name, times in module.executions.items()
    if name not in inside
    for each in module.computations[name]
    if each.cycles is not None
  ]
  return sum(known) if known else None


def fused(module: Module) -> frozenset[str]:
  """Returns the computations that are part of one instruction."""
  found: set[str] = set()
  for computation in module.computations.values():
    for each in computation:
      if each.opcode not in CONTROL:
        for names in each.called.values():
          found.update(names)
  return frozenset(found)


def kernels(module: Module) -> tuple[Kernel, ...]:
  """Returns the custom kernels (Pallas) of a step."""
  found = []
  for name, times in module.executions.items():
    computation = module.computations[name]
    for each in computation:
      if is_kernel(each):
        found.append(kernel(computation, each, times))
  return tuple(found)


def is_kernel(instruction: Instruction) -> bool:
  target = instruction.attribute('custom_call_target').strip('"')
  return instruction.opcode == 'custom-call' and target in _PALLAS


def kernel(computation: Computation, each: Instruction, times: int) -> Kernel:
  """Returns what is known of one custom kernel."""
  named = re.search(r'op_name="([^"]*)"', each.attributes)
  cost = re.search(r'"?flops"?\s*:\s*"?(\d+)', each.attributes)
  shapes = [computation.instructions[n].arrays for n in each.operands]
  return Kernel(
    name=named.group(1) if named else each.name,
    executions=times,
    operands=tuple(a.dims for arrays in shapes for a in arrays),
    results=tuple(a.dims for a in each.arrays),
    flops=int(cost.group(1)) if cost and int(cost.group(1)) else None,
  )


def kernel_flops(found: Kernel) -> float:
  """Returns FLOPs of one execution of a kernel of attention.

  Its products are two T x S x K a head forward; backward, with the scores
  computed anew, three for queries and four for keys and values, or five for all
  in one (Dao et al., 2022, arXiv:2205.14135, algorithms 1 and 4). Half of that
  where the scope is that of causal attention. Nothing for another kernel.
  """
  if found.flops:
    return float(found.flops)
  # What comes before queries and keys are tables of blocks that are masked.
  name = found.name.lower()
  arrays = [dims for dims in found.operands if len(dims) >= 4]
  if len(arrays) < 3 or not re.search('attention|mha|mqa|flash', name):
    return 0.0
  query, key = arrays[0], arrays[1]
  products = 2
  if 'dkv' in name or 'bwd' in name:
    products = 4 if 'dkv' in name else 5
  elif 'dq' in name:
    products = 3
  work = 2 * products * math.prod(query[:-1]) * key[-2] * query[-1]
  return work / 2 if 'causal_attention' in name else float(work)


def _shape(computation, name) -> tuple[int, ...]:
  return computation.instructions[name].arrays[0].dims


def _dot(computation, each) -> Product:
  left = _shape(computation, each.operands[0])
  return _contract(
    left,
    each.arrays[0].dims,
    each.integers('lhs_contracting_dims'),
    each.integers('lhs_batch_dims'),
  )


def _contract(left, result, contracting, batch) -> Product:
  K = math.prod(left[i] for i in contracting)
  B = math.prod(left[i] for i in batch)
  M = math.prod(n for i, n in enumerate(left) if i not in contracting) // B
  size = math.prod(result)
  return Product(2 * size * K, M, size // max(1, B * M), K, size)


def _library_product(computation, each) -> Product | None:
  """A product that cuBLAS or oneDNN computes."""
  target = each.attribute('custom_call_target')
  if 'gemm' not in target and 'matmul' not in target:
    return None

  def numbers(key):
    found = re.search(rf'"{key}":\[([^\]]*)\]', each.attributes)
    return (
      tuple(int(n) for n in re.findall(r'\d+', found.group(1))) if found else ()
    )

  left = computation.instructions[each.operands[0]].arrays[0]
  contracting = numbers('lhs_contracting_dimensions') or (len(left.dims) - 1,)
  batch = numbers('lhs_batch_dimensions')
  return _contract(left.dims, each.arrays[0].dims, contracting, batch)


def _convolution(computation, each) -> Product:
  left = computation.instructions[each.operands[0]].arrays[0]
  right = _shape(computation, each.operands[1])
  result = each.arrays[0].dims
  labels = re.fullmatch(r'(\w+)_(\w+)->(\w+)', each.attribute('dim_labels'))
  assert labels, each.attributes
  of_left, of_right, of_result = labels.groups()
  valid = 1
  for dim in sorted(set(of_result) - set('bf')):
    valid *= _positions(
      left.dims[of_left.index(dim)],
      right[of_right.index(dim)],
      result[of_result.index(dim)],
      *_window(each.attribute('window'), int(dim)),
    )
  inputs = right[of_right.index('i')]  # Those of one group.
  outputs = result[of_result.index('f')]
  rows = result[of_result.index('b')]
  groups = int(each.attribute('batch_group_count') or 1)
  multiplied = inputs * outputs * rows * valid // groups
  return Product(2 * multiplied, rows, outputs, inputs, math.prod(result))


def _window(text: str, dim: int) -> tuple[int, int, int, int]:
  """Returns stride, low padding, dilation of input and window along a dim."""

  def part(key, otherwise):
    found = re.search(rf'\b{key}=([\dx_\-]+)', text)
    return found.group(1).split('x')[dim] if found else otherwise

  return (
    int(part('stride', '1')),
    int(part('pad', '0_0').split('_')[0]),
    int(part('lhs_dilate', '1')),
    int(part('rhs_dilate', '1')),
  )


@functools.lru_cache(maxsize=4096)
def _positions(size, window, result, stride, low, dilate, spread) -> int:
  """Returns how often the window meets the input along one dimension."""
  at = np.arange(result)[:, None] * stride - low
  at = at + np.arange(window)[None] * spread
  inside = (at >= 0) & (at % dilate == 0) & (at // dilate < size)
  return int(inside.sum())


def moved(module: Module, computation: Computation, each: Instruction) -> int:
  """Returns bytes that one instruction reads from and writes to main memory."""
  if each.opcode in _FREE | CONTROL | COLLECTIVES:
    return 0
  if each.opcode in PREFETCHES:
    # One side of it is on the chip; it moves what arrives.
    return min((a.bytes for a in each.arrays if a.dims), default=0)
  inputs = [computation.instructions.get(name) for name in each.operands]
  inner = None
  if each.opcode == 'fusion':
    inner = module.computations[each.called['calls'][0]]
  total = 0
  for number, given in enumerate(inputs):
    if given is not None:
      total += _read(module, each, inner, number, given)
  return total + _written(each, inner, computation)


def _read(module, each, inner, number, given) -> int:
  whole = sum(a.bytes for a in given.arrays if a.space == 0)
  if not whole:
    return 0
  if inner is not None:
    return min(whole, _used(module, inner, number))
  if each.opcode in _SLICES and number == 0:
    return min(whole, each.bytes)
  if each.opcode == 'dynamic-update-slice' and number == 0:
    return 0
  return whole


def _used(module: Module, inner: Computation, number: int) -> int:
  """Returns bytes of a fusion's operand that it reads."""
  parameter = inner.parameters.get(number)
  if parameter is None:
    return 0
  total = 0
  names = [parameter.name]
  while names:
    name = names.pop()
    for user in inner:
      if name not in user.operands:
        continue
      if user.opcode == 'bitcast':
        names.append(user.name)
      elif user.opcode in _SLICES and user.operands[0] == name:
        total += user.bytes
      elif user.opcode == 'dynamic-update-slice' and user.operands[0] == name:
        continue
      elif user.opcode in COLLECTIVES or user.opcode == 'tuple':
        continue
      elif user.opcode == 'fusion':
        deeper = module.computations[user.called['calls'][0]]
        at = user.operands.index(name)
        total += _used(module, deeper, at)
      else:
        return parameter.bytes
  return total


def _written(each, inner, computation) -> int:
  if inner is None:
    if each.opcode == 'dynamic-update-slice':
      return computation.instructions[each.operands[1]].bytes
    return sum(a.bytes for a in each.arrays if a.space == 0)
  roots = [inner.root]
  if inner.root.opcode == 'tuple':
    roots = [inner.instructions[name] for name in inner.root.operands]
  total = 0
  for root, array in zip(roots, each.arrays, strict=False):
    while root.opcode == 'bitcast':
      root = inner.instructions[root.operands[0]]
    if array.space:
      continue
    if root.opcode == 'dynamic-update-slice':
      total += inner.instructions[root.operands[1]].bytes
    elif root.opcode not in COLLECTIVES | {'parameter'}:
      total += array.bytes
  return total
