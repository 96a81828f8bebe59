"""GPT-2's weights under the names of Hugging Face, to and from parameters.

Names and shapes are those of `transformers.GPT2LMHeadModel`: kernels lie
`[inputs, outputs]` as ours do, queries, keys and values are one matrix, and the
tied head is listed beside the embedding. Checkpoints of the bare `GPT2Model`,
whose names lack `transformer.`, load as well.
Differs from it: nothing but dropout, which is left to the caller.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
import functools
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bigdl import tree
from bigdl.layers import stack
from bigdl.layers.mlp import Activation
from bigdl.models.gpt import GPT

Weights = Mapping[str, Any]

_ACTIVATIONS: dict[str, Activation] = {
  'gelu_new': 'gelu',
  'gelu_pytorch_tanh': 'gelu',
  'gelu': 'gelu_exact',
  'relu': 'relu',
}
# GPT2Config's defaults, which its JSON leaves out.
_DEFAULTS = {
  'n_layer': 12,
  'n_embd': 768,
  'n_head': 12,
  'vocab_size': 50257,
  'n_positions': 1024,
  'n_inner': None,
  'activation_function': 'gelu_new',
  'layer_norm_epsilon': 1e-5,
  'tie_word_embeddings': True,
}
# What GPT cannot be, and so must have this value where it is given.
_FIXED = {
  'model_type': 'gpt2',
  'scale_attn_weights': True,
  'scale_attn_by_inverse_layer_idx': False,
  'add_cross_attention': False,
}
# What a GPT must be for GPT-2 to compute the same.
_FIELDS = {
  'block': 'pre',
  'norm': 'layernorm',
  'bias': True,
  'position': 'learned',
  'qk_norm': False,
  'embed_scale': False,
  'softcap': 0,
  'attention_softcap': 0,
}
# Older checkpoints carry the causal mask.
_MASKS = re.compile(r'\.attn\.(masked_)?bias$')


class _Tensor(NamedTuple):
  """One tensor of the state dict, and where its columns are kept here."""

  name: str
  paths: tuple[str, ...]  # Several are side by side along the last axis.
  transposed: bool = False


def model_of(config: Mapping[str, Any]) -> GPT:
  """Returns the GPT that a Hugging Face `config.json` of GPT-2 describes."""
  for name, value in _FIXED.items():
    if config.get(name, value) != value:
      raise ValueError(f'{name}={config[name]} must be {value} for a GPT')
  given = {k: config.get(k, v) for k, v in _DEFAULTS.items()}
  activation = given['activation_function']
  if activation not in _ACTIVATIONS:
    raise ValueError(
      f'activation_function={activation} must be one of '
      f'{", ".join(_ACTIVATIONS)}'
    )
  return GPT(
    depth=given['n_layer'],
    width=given['n_embd'],
    heads=given['n_head'],
    vocab=given['vocab_size'],
    length=given['n_positions'],
    mlp_width=given['n_inner'] or 0,
    activation=_ACTIVATIONS[activation],
    norm_epsilon=given['layer_norm_epsilon'],
    tied=given['tie_word_embeddings'],
  )


def from_hf(state_dict: Weights, model: GPT) -> dict[str, Any]:
  """Returns the parameters of `model`, as numpy arrays of its `param_dtype`.

  Args:
    state_dict: Arrays by the names of `GPT2LMHeadModel` or `GPT2Model`.
    model: Says the shapes, and whether blocks are a loop or a scan.

  Raises:
    ValueError: Lists all tensors that are missing, unknown or misshapen.
  """
  shapes = _shapes(model)
  named = _prefixed(state_dict)
  tensors = list(_tensors(model))
  copy = 'lm_head.weight' if model.tied else None
  if copy and copy not in named and _WTE in named:
    named[copy] = named[_WTE]
  expected = {t.name: _shape(t, shapes) for t in tensors}
  _compare(
    {k: tuple(v.shape) for k, v in named.items()},
    expected,
    {t.name: ', '.join(t.paths) for t in tensors},
  )
  if copy and not np.array_equal(named[copy], named[_WTE]):
    raise ValueError(f'{copy} must equal {_WTE}, since model.tied=True')
  flat: dict[str, np.ndarray] = {}
  for tensor in tensors:
    value = np.asarray(named[tensor.name]).astype(jnp.dtype(model.param_dtype))
    value = value.T if tensor.transposed else value
    ends = np.cumsum([shapes[path][-1] for path in tensor.paths])
    parts = np.split(value, ends[:-1], axis=-1)
    flat.update(zip(tensor.paths, parts, strict=True))
  if stack.resolve(model.stack) == 'scan':
    flat = _stacked(flat, model.depth)
  return _nested(flat)


def to_hf(params: Any, model: GPT) -> dict[str, np.ndarray]:
  """Returns arrays by the names of `GPT2LMHeadModel`; undoes `from_hf`.

  Args:
    params: Parameters of `model`, as a loop or a scan has them.
    model: Must compute what GPT-2 does.

  Raises:
    ValueError: Lists all parameters that are missing, unknown or misshapen.
  """
  shapes = _shapes(model)
  flat = _unstacked({k: np.asarray(v) for k, v in tree.items(params)})
  tensors = list(_tensors(model))
  names = {path: t.name for t in reversed(tensors) for path in t.paths}
  _compare({k: v.shape for k, v in flat.items()}, shapes, names)
  state = {}
  for tensor in tensors:
    value = np.concatenate([flat[path] for path in tensor.paths], axis=-1)
    state[tensor.name] = value.T if tensor.transposed else value
  return state


_WTE = 'transformer.wte.weight'
_PARENTS = {'attn': 'attention/', 'mlp': 'mlp/'}


def _tensors(model: GPT) -> Iterator[_Tensor]:
  """Yields every tensor of the state dict, in its order."""
  for name, value in _FIELDS.items():
    if getattr(model, name) != value:
      raise ValueError(
        f'{name}={getattr(model, name)} must be {value} for GPT-2 weights'
      )
  if model.activation not in _ACTIVATIONS.values():
    raise ValueError(
      f'activation={model.activation} must be one of '
      f'{", ".join(sorted(set(_ACTIVATIONS.values())))} for GPT-2 weights'
    )
  if (model.kv_heads or model.heads) != model.heads:
    raise ValueError(
      f'kv_heads={model.kv_heads} must be heads={model.heads} for GPT-2 weights'
    )
  if model.head_width and model.head_width * model.heads != model.width:
    raise ValueError(
      f'head_width={model.head_width} must be width / heads for GPT-2 weights'
    )
  yield _Tensor(_WTE, ('embed/embedding',))
  yield _Tensor('transformer.wpe.weight', ('positions/embedding',))
  norm = {'weight': 'scale', 'bias': 'bias'}
  dense = {'weight': 'kernel', 'bias': 'bias'}
  layers = (
    ('ln_1', ('attention_norm',), norm),
    ('attn.c_attn', ('query', 'key', 'value'), dense),
    ('attn.c_proj', ('out',), dense),
    ('ln_2', ('mlp_norm',), norm),
    ('mlp.c_fc', ('up',), dense),
    ('mlp.c_proj', ('down',), dense),
  )
  for i in range(model.depth):
    for theirs, ours, leaves in layers:
      inside = _PARENTS.get(theirs.split('.')[0], '')
      for leaf, own in leaves.items():
        paths = tuple(f'blocks_{i}/{inside}{part}/{own}' for part in ours)
        yield _Tensor(f'transformer.h.{i}.{theirs}.{leaf}', paths)
  for leaf, own in norm.items():
    yield _Tensor(f'transformer.ln_f.{leaf}', (f'final_norm/{own}',))
  if model.tied:
    yield _Tensor('lm_head.weight', ('embed/embedding',))
  else:
    yield _Tensor('lm_head.weight', ('head/kernel',), transposed=True)


@functools.lru_cache(maxsize=16)
def _shapes(model: GPT) -> dict[str, tuple[int, ...]]:
  """The shape of each parameter, of blocks in a loop; nothing is allocated."""
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  init = model.clone(stack='loop').init
  variables = jax.eval_shape(init, jax.random.key(0), tokens)
  return {k: tuple(v.shape) for k, v in tree.items(variables['params'])}


def _shape(tensor, shapes):
  *lead, _ = shapes[tensor.paths[0]]
  shape = (*lead, sum(shapes[path][-1] for path in tensor.paths))
  return shape[::-1] if tensor.transposed else shape


def _prefixed(state_dict: Weights) -> dict[str, Any]:
  """The state dict under `GPT2LMHeadModel`'s names, without causal masks."""
  named = {k: v for k, v in state_dict.items() if not _MASKS.search(k)}
  bare = not any(k.startswith('transformer.') for k in named)
  return {
    f'transformer.{k}' if bare and k != 'lm_head.weight' else k: v
    for k, v in named.items()
  }


def _compare(given, expected, others) -> None:
  """Raises one line that lists what differs, under both names."""

  def both(name):
    return f'{name} ({others[name]})' if name in others else name

  faults = [f'missing {both(k)}' for k in expected if k not in given]
  faults += [f'unknown {both(k)}' for k in given if k not in expected]
  faults += [
    f'misshapen {both(k)} {list(given[k])}, expected {list(shape)}'
    for k, shape in expected.items()
    if k in given and given[k] != shape
  ]
  if faults:
    raise ValueError(f'GPT-2 weights do not fit: {"; ".join(faults)}')


def _stacked(flat, depth):
  """Puts `blocks_0/...`, `blocks_1/...` into `blocks/...`."""
  rest = {k: v for k, v in flat.items() if not k.startswith('blocks_')}
  for path in flat:
    if path.startswith('blocks_0/'):
      name = path.removeprefix('blocks_0/')
      parts = [flat[f'blocks_{i}/{name}'] for i in range(depth)]
      rest[f'blocks/{name}'] = np.stack(parts)
  return rest


def _unstacked(flat):
  """Undoes `_stacked`; what is not stacked stays."""
  loop = {}
  for path, value in flat.items():
    if path.startswith('blocks/'):
      for i, part in enumerate(value):
        loop[path.replace('blocks', f'blocks_{i}', 1)] = part
    else:
      loop[path] = value
  return loop


def _nested(flat):
  nested: dict[str, Any] = {}
  for path, value in flat.items():
    *parents, leaf = path.split('/')
    node = nested
    for name in parents:
      node = node.setdefault(name, {})
    node[leaf] = value
  return nested
