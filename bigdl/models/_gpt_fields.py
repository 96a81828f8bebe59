"""What the fields of a GPT may be, and the sentence for what they may not.

`gpt.GPT` calls `check` when it is made, before anything is compiled.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from bigdl.layers.attention import AttentionKind
from bigdl.layers.block import BlockKind
from bigdl.layers.mlp import Activation
from bigdl.layers.norm import NormKind
from bigdl.layers.relative import RelativeKind
from bigdl.layers.stack import RematKind, StackKind

PositionKind = Literal[
  'learned', 'sinusoidal', 'fairseq', 'rotary', 'relative', 'none'
]
InitKind = Literal['normal', 'fan_in']
FloatKind = Literal['float32', 'bfloat16', 'float16', 'float64']

_KINDS = {
  'activation': Activation,
  'block': BlockKind,
  'norm': NormKind,
  'position': PositionKind,
  'weight_init': InitKind,
  'dtype': FloatKind,
  'param_dtype': FloatKind,
  'attention': AttentionKind,
  'stack': StackKind,
  'remat': RematKind,
}
_AT_LEAST_ONE = ('depth', 'width', 'heads', 'vocab', 'length')
_NOT_NEGATIVE = (
  'kv_heads',
  'head_width',
  'mlp_width',
  'window',
  'dense_every',
  'adapter',
  'softcap',
  'attention_softcap',
  'init_std',
)
_POSITIVE = ('norm_epsilon', 'rotary_base', 'logit_scale')
# What attention with relative positions can be.
_RELATIVE: dict[str, tuple[Any, ...]] = {
  'kv_heads': (0,),
  'qk_norm': (False,),
  'attention_softcap': (0,),
  'window': (0,),
  'attention': get_args(RelativeKind),
}


def check(model: Any) -> None:
  """Raises ValueError, in one line, for a field that is out of its range."""
  for name, kind in _KINDS.items():
    value, allowed = getattr(model, name), get_args(kind)
    if value not in allowed:
      raise ValueError(f'{name}={value} must be one of {", ".join(allowed)}')
  for name in _AT_LEAST_ONE:
    if getattr(model, name) < 1:
      raise ValueError(f'{name}={getattr(model, name)} must be at least 1')
  for name in _NOT_NEGATIVE:
    if not getattr(model, name) >= 0:
      raise ValueError(f'{name}={getattr(model, name)} must not be negative')
  for name in _POSITIVE:
    if not getattr(model, name) > 0:
      raise ValueError(f'{name}={getattr(model, name)} must be positive')
  if not 0 <= model.dropout < 1:
    raise ValueError(f'dropout={model.dropout} must be in [0, 1)')
  if not model.head_width and model.width % model.heads:
    raise ValueError(f'heads={model.heads} must divide width={model.width}')
  if model.kv_heads and model.heads % model.kv_heads:
    raise ValueError(
      f'kv_heads={model.kv_heads} must divide heads={model.heads}'
    )
  _check_positions(model)


def _check_positions(model):
  if not 0 < model.rotary_fraction <= 1:
    raise ValueError(
      f'rotary_fraction={model.rotary_fraction} must be in (0, 1]'
    )
  if model.position == 'rotary' and (model._rotated < 2 or model._rotated % 2):
    raise ValueError(
      f'rotary_fraction={model.rotary_fraction} of '
      f'head_width={model._head_width} must be even and at least 2'
    )
  if (
    model.position in ('sinusoidal', 'fairseq', 'relative') and model.width % 2
  ):
    raise ValueError(f'width={model.width} must be even for sinusoids')
  if model.position == 'fairseq' and model.width < 4:
    raise ValueError(
      f'width={model.width} must be at least 4 for position=fairseq'
    )
  if model.position == 'relative':
    for name, possible in _RELATIVE.items():
      value = getattr(model, name)
      if value not in possible:
        raise ValueError(
          f'{name}={value} must be {" or ".join(map(str, possible))} for'
          ' position=relative'
        )
