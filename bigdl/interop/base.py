"""Foreign weights in and out: one table of tensors a family, read both ways.

A family lists what its checkpoints call each tensor and where that is kept
here; `from_hf` and `to_hf` do the rest. Paths are those of a model whose blocks
are a loop (`blocks_3/attention/query/kernel`); parameters of a scan, where
`blocks/attention/query/kernel` has a leading axis, are cut and stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
import dataclasses
import functools
import re
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigdl import tensors as tensors_of
from bigdl import tree, values

Turn = Callable[[np.ndarray], np.ndarray]
Shapes = dict[str, jax.ShapeDtypeStruct]

# Fields that change how a model is trained or run, not what it computes.
_RUNTIME = (
  'dropout',
  'weight_init',
  'init_std',
  'dtype',
  'param_dtype',
  'attention',
  'stack',
  'remat',
)


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One tensor of a foreign state dict, and where it is kept here."""

  name: str  # Theirs.
  paths: tuple[str, ...]  # Ours; several lie side by side on the last axis.
  turned: bool = False  # Theirs is the transpose of ours.
  read: Turn | None = None  # Theirs to ours beyond that; applied first.
  write: Turn | None = None  # Undoes `read`.
  copy: bool = False  # Repeats one that is listed elsewhere; may be absent.

  def __post_init__(self):
    assert (self.read is None) == (self.write is None), self.name


def _one_token() -> tuple[Any, ...]:
  return (jax.ShapeDtypeStruct((1, 1), jnp.int32),)


@dataclasses.dataclass(frozen=True)
class Family:
  """What a file of this package knows of one kind of checkpoint."""

  name: str  # For messages.
  # Class names of Hugging Face's `config.json`; the first one is written.
  architectures: tuple[str, ...]
  # From the content of `config.json`, whose defaults may be left out; raises
  # ValueError for a field that the model cannot have.
  model_of: Callable[[Mapping[str, Any]], nn.Module]
  # Its inverse; raises ValueError for a field that the family has not.
  config_of: Callable[[Any], dict[str, Any]]
  tensors: Callable[[Any], Iterable[Tensor]]  # Of a model; may raise too.
  inputs: Callable[[], tuple[Any, ...]] = _one_token  # What `init` is shown.
  # The same, where it depends on the model.
  inputs_of: Callable[[Any], tuple[Any, ...]] | None = None
  ignored: str = ''  # Finds foreign names that hold no weight.
  # Leads the names of the body; checkpoints without a head lack it.
  prefix: str = ''
  # Regular expressions for what old checkpoints call otherwise, and its name now.
  renamed: tuple[tuple[str, str], ...] = ()


def from_hf(
  state_dict: Mapping[str, Any], model: nn.Module, family: Family
) -> dict[str, Any]:
  """Returns the parameters of `model` as a nested dict of numpy arrays.

  Tensors are asked for one at a time, so that a mapping of `tensors.Pending`
  never holds a second copy of all.

  Args:
    state_dict: Arrays, or `tensors.Pending`, under the family's names.
    model: Says shapes, dtypes, and whether blocks are a loop or a scan.
    family: Whose names they are.

  Raises:
    ValueError: Lists all tensors that are missing, unknown or misshapen, under
      both names; or names a copy that differs from its original.
  """
  tensors = list(family.tensors(model))
  loop, own = shapes_of(model, family)
  named, unknown = _match(state_dict, tensors, family)
  # Where the original is absent, a copy stands for it.
  firsts: dict[tuple[str, ...], Tensor] = {}
  for tensor in tensors:
    if tensor.name in named:
      firsts.setdefault(tensor.paths, tensor)
  faults = [
    f'missing {_both(t)}'
    for t in tensors
    if t.name not in named and not t.copy and t.paths not in firsts
  ]
  faults += [f'unknown {name}' for name in unknown]
  for tensor in tensors:
    want = _foreign_shape(tensor, loop)
    given = want
    if tensor.name in named:
      given = tuple(state_dict[named[tensor.name]].shape)
    if given != want:
      faults.append(
        f'misshapen {_both(tensor)} {list(given)}, expected {list(want)}'
      )
  _check(faults + _uncovered(tensors, loop), family)
  flat: dict[str, np.ndarray] = {}
  for tensor in tensors:
    if tensor.name not in named:
      continue
    first = firsts[tensor.paths]
    value = np.asarray(state_dict[named[tensor.name]])
    # Products are taken in the parameter's own type: sixteen bits lose some.
    value = _inward(value.astype(loop[tensor.paths[0]].dtype), tensor)
    ends = np.cumsum([loop[path].shape[-1] for path in tensor.paths])
    parts = np.split(value, ends[:-1], axis=-1)
    for path, part in zip(tensor.paths, parts, strict=True):
      into = tensors_of.slot(flat, path, own)
      assert into is not None, path
      if tensor is first:
        into[...] = part
      elif not np.array_equal(into, part.astype(into.dtype)):
        raise ValueError(
          f'{tensor.name} must equal {first.name}, whose weights it shares here'
        )
  return tensors_of.nested(flat)


def to_hf(params: Any, model: nn.Module, family: Family) -> dict[str, Any]:
  """Returns arrays under the family's names, copies included.

  Args:
    params: Parameters of `model`, as a loop or a scan has them.
    model: Must compute what the family does.
    family: Whose names to give.

  Raises:
    ValueError: Lists all parameters that are missing, unknown or misshapen.
  """
  waiting = pending(params, model, family, copies=True)
  return {name: np.asarray(value) for name, value in waiting.items()}


def pending(
  params: Any, model: nn.Module, family: Family, *, copies: bool = False
) -> dict[str, tensors_of.Pending]:
  """Returns what `to_hf` does, each array made only when it is asked for.

  Args:
    params: Parameters of `model`, as a loop or a scan has them.
    model: Must compute what the family does.
    family: Whose names to give.
    copies: Whether to list tensors that repeat another one.

  Raises:
    ValueError: Lists all parameters that are missing, unknown or misshapen.
  """
  tensors = list(family.tensors(model))
  loop, _ = shapes_of(model, family)
  flat = _cut(dict(tree.items(params)), loop)
  names = {p: t.name for t in reversed(tensors) for p in t.paths}

  def both(path):
    return f'{path} ({names[path]})' if path in names else path

  faults = [f'missing {both(k)}' for k in loop if k not in flat]
  faults += [f'unknown {both(k)}' for k in flat if k not in loop]
  faults += [
    f'misshapen {both(k)} {list(v.shape)}, expected {list(loop[k].shape)}'
    for k, v in flat.items()
    if k in loop and v.shape != loop[k].shape
  ]
  _check(faults + _uncovered(tensors, loop), family)

  def make(tensor):
    parts = [np.asarray(flat[path]) for path in tensor.paths]
    value = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
    return _outward(value, tensor)

  return {
    t.name: tensors_of.Pending(
      _foreign_shape(t, loop),
      flat[t.paths[0]].dtype,
      functools.partial(make, t),
    )
    for t in tensors
    if copies or not t.copy
  }


def check_fields(
  model: nn.Module, family: str, *, free: Iterable[str], **fixed: Any
) -> None:
  """Raises ValueError for a field by which a model is none of a family.

  Args:
    model: Every field of it counts, so that one that is added later cannot
      pass unseen.
    family: Its name, for the message.
    free: Fields that the family has as well.
    **fixed: What fields must be that must not have their default.
  """
  for field in values.fields(model):
    value, want = getattr(model, field.name), field.default
    if field.name in free or field.name in _RUNTIME:
      continue
    want = fixed.get(field.name, want)
    if value != want:
      raise ValueError(
        f'{field.name}={value} must be {want} for {family} weights'
      )


def check_widths(model: Any, family: str, **widths: int) -> None:
  """Raises ValueError for a model whose widths a family has not.

  Args:
    model: A field of 0 is the width that follows by itself.
    family: Its name, for the message.
    **widths: What each field must be otherwise.
  """
  for name, value in widths.items():
    if getattr(model, name) not in (value, 0):
      raise ValueError(
        f'{name}={getattr(model, name)} must be {value} for {family} weights'
      )


def one_of(name: str, value: Any, allowed: Mapping[str, Any]) -> Any:
  """Returns `allowed[value]`; ValueError says what a foreign field may be."""
  if value not in allowed:
    raise ValueError(f'{name}={value} must be one of {", ".join(allowed)}')
  return allowed[value]


def rotary_base(config: Mapping[str, Any], default: float) -> float:
  """Returns the base of rotary positions that a `config.json` gives.

  Raises:
    ValueError: Positions are scaled, or only part of a head rotates.
  """
  rope: Mapping[str, Any] = config.get('rope_parameters') or {}
  # So it was called before transformers 5.
  for given in (rope, config.get('rope_scaling') or {}):
    kind = given.get('rope_type', given.get('type', 'default'))
    if kind != 'default':
      raise ValueError(f'rope_type={kind} must be default for a GPT')
  for given in (rope, config):
    share = given.get('partial_rotary_factor') or 1.0
    if share != 1:
      raise ValueError(f'partial_rotary_factor={share} must be 1 for a GPT')
  return float(rope.get('rope_theta') or config.get('rope_theta') or default)


def shapes_of(model: nn.Module, family: Family) -> tuple[Shapes, Shapes]:
  """Returns shape and dtype by path: of blocks in a loop, and as `model` says.

  Nothing is allocated.
  """
  # Whether float64 exists depends on a setting of JAX.
  widest = jax.dtypes.canonicalize_dtype('float64')
  return _shapes_of(model, family, widest)


@functools.lru_cache(maxsize=16)
def _shapes_of(model, family, widest):
  def shapes(model):
    shown = family.inputs_of(model) if family.inputs_of else family.inputs()
    variables = jax.eval_shape(model.init, jax.random.key(0), *shown)
    return dict(tree.items(variables['params']))

  return shapes(_looped(model)), shapes(model)


def _looped(model: nn.Module) -> nn.Module:
  """The model, and whatever model is one of its fields, with a loop."""
  changes: dict[str, Any] = {}
  for field in values.fields(model):
    value = getattr(model, field.name)
    if isinstance(value, nn.Module):
      changes[field.name] = _looped(value)
    elif field.name == 'stack':
      changes['stack'] = 'loop'
  return model.clone(**changes) if changes else model


def _match(state_dict, tensors, family):
  """Returns given names by expected ones, and the unknown rest."""
  expected = {t.name for t in tensors}
  named, unknown = {}, []
  for name in state_dict:
    now = name
    for old, new in family.renamed:
      now = re.sub(old, new, now)
    longer = f'{family.prefix}.{now}'
    if now in expected:
      named[now] = name
    elif family.prefix and longer in expected and longer not in state_dict:
      named[longer] = name
    elif not (family.ignored and re.search(family.ignored, name)):
      unknown.append(name)
  return named, unknown


def _both(tensor: Tensor) -> str:
  return f'{tensor.name} ({", ".join(tensor.paths)})'


def _uncovered(tensors, loop) -> list[str]:
  """Says which parameters of ours the family has no tensor for."""
  covered = {path for tensor in tensors for path in tensor.paths}
  return [f'no tensor for {path}' for path in loop if path not in covered]


def _check(faults: list[str], family: Family) -> None:
  if faults:
    raise ValueError(f'{family.name} weights do not fit: {"; ".join(faults)}')


def _inward(value: np.ndarray, tensor: Tensor) -> np.ndarray:
  value = tensor.read(value) if tensor.read else value
  return value.T if tensor.turned else value


def _outward(value: np.ndarray, tensor: Tensor) -> np.ndarray:
  value = value.T if tensor.turned else value
  return tensor.write(value) if tensor.write else value


def _foreign_shape(tensor: Tensor, loop: Shapes) -> tuple[int, ...]:
  *lead, _ = loop[tensor.paths[0]].shape
  shape = (*lead, sum(loop[path].shape[-1] for path in tensor.paths))
  if not tensor.write:
    return shape[::-1] if tensor.turned else shape
  # A value of two bytes an entry at most, to see what becomes of its shape.
  return _outward(np.broadcast_to(np.float16(0), shape), tensor).shape


def _cut(leaves: dict[str, Any], loop: Shapes) -> dict[str, tensors_of.Pending]:
  """Returns each parameter, those of a scan as the blocks of a loop."""
  flat: dict[str, tensors_of.Pending] = {}
  wholes = {whole for path in loop for whole, _ in tensors_of.stacked(path)}

  def wait(leaf, *index):
    shape = tuple(leaf.shape[len(index) :])
    return tensors_of.Pending(
      shape,
      np.dtype(leaf.dtype),
      lambda: np.asarray(leaf[index] if index else leaf),
    )

  for path, leaf in leaves.items():
    if path in loop or path not in wholes:
      flat[path] = wait(leaf)
      continue
    names = path.split('/')
    cuts = [
      ('/'.join(names[:i]), '/'.join(names[i:])) for i in range(1, len(names))
    ]
    head, rest = next(c for c in cuts if f'{c[0]}_0/{c[1]}' in loop)
    for i in range(leaf.shape[0]):
      flat[f'{head}_{i}/{rest}'] = wait(leaf, i)
  return flat
