"""ViT: an encoder of images cut into patches.

Dosovitskiy et al., 2020, arXiv:2010.11929, eq. 1-4; the fields' defaults are
ViT-B/16. `SIZES` names models of this and later papers; `_vit_sizes` cites each.
Fixed two-dimensional sinusoids: Beyer et al., 2022, arXiv:2205.01580, section 2.
Differs from the paper: no dropout of attention probabilities.
"""

# Shapes: B batch, H and W an image's height and width, C channels, P patches
# (and the class token before them, where there is one), D width, N classes.
from __future__ import annotations

from collections.abc import Mapping
import functools
import math
from typing import Any, Literal, get_args

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigdl.layers import adapter, ladder
from bigdl.layers import stack as stacks
from bigdl.layers.attention import Attention, AttentionKind
from bigdl.layers.block import Block
from bigdl.layers.dense import Dense
from bigdl.layers.embed import Embed
from bigdl.layers.mlp import GATED, MLP, Activation
from bigdl.layers.norm import Norm, NormKind
from bigdl.layers.stack import RematKind, StackKind
from bigdl.models import _vit_sizes

PoolKind = Literal['token', 'mean']
PositionKind = Literal['learned', 'sinusoidal']
ViTBlockKind = Literal['pre', 'parallel']
ResizeKind = Literal['bicubic', 'bilinear']
InitKind = Literal['normal', 'fan_in']
FloatKind = Literal['float32', 'bfloat16', 'float16', 'float64']

_KINDS = {
  'pool': PoolKind,
  'position': PositionKind,
  'block': ViTBlockKind,
  'activation': Activation,
  'norm': NormKind,
  'resize': ResizeKind,
  'weight_init': InitKind,
  'dtype': FloatKind,
  'param_dtype': FloatKind,
  'attention': AttentionKind,
  'stack': StackKind,
  'remat': RematKind,
}
# Where the kernel of bicubic interpolation bends, as PyTorch has it.
_CUBIC = -0.75


class ViT(nn.Module):
  """Reads images and gives each a logit a class.

  The defaults are ViT-B/16's 86.6 million parameters.
  """

  depth: int = 12  # Blocks.
  width: int = 768  # Of the residual stream.
  heads: int = 12
  patch: int = 16  # Pixels on a side.
  image_size: int = 224  # Pixels on a side of the images trained on.
  channels: int = 3
  classes: int = 1000  # 0: no head; features are returned.
  head_width: int = 0  # 0: width / heads.
  mlp_width: int = 0  # Hidden width of the MLP; 0: 4 width.
  pool: PoolKind = 'token'  # What represents the image.
  representation: int = 0  # Width of a tanh layer under the head; 0: none.
  position: PositionKind = 'learned'
  resize: ResizeKind = 'bicubic'  # Of positions, for images of other sizes.
  block: ViTBlockKind = 'pre'
  activation: Activation = 'gelu_exact'
  norm: NormKind = 'layernorm'
  norm_epsilon: float = 1e-6
  bias: bool = True  # In projections and LayerNorms.
  qkv_bias: bool = True  # Of queries, keys and values, where there is `bias`.
  qk_norm: bool = False  # Normalise queries and keys, head by head.
  mean: tuple[float, ...] = (0.5,)  # Of uint8 images / 255: one, or a channel.
  std: tuple[float, ...] = (0.5,)
  dropout: float = 0.0  # Of embeddings and of what each layer adds.
  adapter: int = 0  # Width of the adapters in each block; 0: none.
  weight_init: InitKind = 'normal'  # 'fan_in': weights ~ N(0, 1 / inputs).
  init_std: float = 0.02  # Of embeddings, and of weights under 'normal'.
  dtype: FloatKind = 'float32'  # Of compute; logits are float32 or wider.
  param_dtype: FloatKind = 'float32'  # Of the master weights.
  attention: AttentionKind = 'auto'  # What computes it; 'auto': by device.
  stack: StackKind = 'auto'  # 'auto': a loop on CPU, else a scan.
  remat: RematKind = 'none'  # What the backward pass recomputes.

  def __post_init__(self):
    super().__post_init__()
    for name, kind in _KINDS.items():
      value, allowed = getattr(self, name), get_args(kind)
      if value not in allowed:
        raise ValueError(f'{name}={value} must be one of {", ".join(allowed)}')
    for name in ('depth', 'width', 'heads', 'patch', 'image_size', 'channels'):
      if getattr(self, name) < 1:
        raise ValueError(f'{name}={getattr(self, name)} must be at least 1')
    for name in (
      'classes',
      'head_width',
      'mlp_width',
      'representation',
      'adapter',
    ):
      if getattr(self, name) < 0:
        raise ValueError(f'{name}={getattr(self, name)} must not be negative')
    if self.image_size % self.patch:
      raise ValueError(
        f'patch={self.patch} must divide image_size={self.image_size}'
      )
    if not self.head_width and self.width % self.heads:
      raise ValueError(f'heads={self.heads} must divide width={self.width}')
    if self.position == 'sinusoidal' and (self.width % 4 or self.width < 8):
      raise ValueError(
        f'width={self.width} must be 8, 12, 16, … for sinusoids in the plane'
      )
    for name in ('mean', 'std'):
      if len(getattr(self, name)) not in (1, self.channels):
        raise ValueError(
          f'{name}={getattr(self, name)} must hold one number or one for each'
          f' of channels={self.channels}'
        )
    if not min(self.std) > 0:
      raise ValueError(f'std={self.std} must be positive')
    if not 0 <= self.dropout < 1:
      raise ValueError(f'dropout={self.dropout} must be in [0, 1)')
    if not self.init_std >= 0:
      raise ValueError(f'init_std={self.init_std} must not be negative')
    if not self.norm_epsilon > 0:
      raise ValueError(f'norm_epsilon={self.norm_epsilon} must be positive')

  @property
  def _mlp_width(self) -> int:
    return self.mlp_width or 4 * self.width

  @property
  def _head_width(self) -> int:
    return self.head_width or self.width // self.heads

  @property
  def grid(self) -> int:
    """Patches on a side of the images trained on."""
    return self.image_size // self.patch

  def setup(self):
    types: dict[str, Any] = {
      'dtype': self.dtype,
      'param_dtype': self.param_dtype,
    }
    small = nn.initializers.normal(self.init_std)
    init = small
    if self.weight_init == 'fan_in':
      init = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
    norm = functools.partial(
      Norm, kind=self.norm, bias=self.bias, epsilon=self.norm_epsilon, **types
    )
    layer: dict[str, Any] = {'kernel_init': init, 'out_init': init, **types}
    block = functools.partial(
      Block,
      attention=functools.partial(
        Attention,
        heads=self.heads,
        kv_heads=self.heads,
        head_width=self._head_width,
        causal=False,
        bias=self.bias,
        qkv_bias=self.qkv_bias,
        qk_norm=norm if self.qk_norm else None,
        kind=self.attention,
        **layer,
      ),
      mlp=functools.partial(
        MLP,
        hidden=self._mlp_width,
        activation=self.activation,
        bias=self.bias,
        **layer,
      ),
      norm=norm,
      kind=self.block,
      dropout=self.dropout,
      adapter=adapter.maker(self.adapter, **types),
    )
    # A convolution whose windows do not overlap is a product of patches.
    self.patches = Dense(self.width, kernel_init=init, **types)
    if self.pool == 'token':
      self.token = Embed(1, self.width, table_init=small, **types)
    if self.position == 'learned':
      rows = self.grid**2 + (self.pool == 'token')
      self.positions = Embed(rows, self.width, table_init=small, **types)
    self.drop = nn.Dropout(self.dropout)
    self.blocks = stacks.build(block, self.depth, kind=self.stack)
    self.final_norm = norm()
    if self.representation:
      self.before_head = Dense(self.representation, kernel_init=init, **types)
    if self.classes:
      # As the paper's code: every class is as likely at first.
      self.head = Dense(
        self.classes, kernel_init=nn.initializers.zeros, **types
      )

  def __call__(
    self, image_BHWC: jax.Array, deterministic: bool = True
  ) -> jax.Array:
    """Returns logits `[B, N]` in float32 or wider; features without a head.

    Args:
      image_BHWC: Images: uint8, which are scaled to (x / 255 - mean) / std, or
        floats, which are taken as they are. Positions are interpolated for
        other sizes than `image_size`.
      deterministic: Whether dropout is off; otherwise rngs need 'dropout'.

    Raises:
      ValueError: `patch` does not divide the image, or channels differ.
    """
    x_BD = self.features(image_BHWC, deterministic)
    if self.classes:
      x_BD = self.head(x_BD)
    return x_BD.astype(jnp.promote_types(x_BD.dtype, jnp.float32))

  def features(
    self, image_BHWC: jax.Array, deterministic: bool = True
  ) -> jax.Array:
    """Returns what the head is given: `[B, D]`, or `[B, representation]`."""
    x_BPD = self.hidden(image_BHWC, deterministic)
    x_BD = x_BPD[:, 0] if self.pool == 'token' else x_BPD.mean(1)
    return jnp.tanh(self.before_head(x_BD)) if self.representation else x_BD

  def hidden(
    self, image_BHWC: jax.Array, deterministic: bool = True
  ) -> jax.Array:
    """Returns the stream `[B, P, D]` after the last norm, class token first."""
    x_BPD = self.patches(self._cut(image_BHWC))
    rows, columns = (n // self.patch for n in image_BHWC.shape[1:3])
    if self.pool == 'token':
      token_BPD = self.token(jnp.zeros((len(x_BPD), 1), jnp.int32))
      x_BPD = jnp.concatenate([token_BPD, x_BPD], axis=1)
    x_BPD = x_BPD + self._places(rows, columns)
    x_BPD = self.drop(x_BPD, deterministic=deterministic)
    x_BPD = stacks.run(
      self.blocks,
      x_BPD,
      depth=self.depth,
      remat=self.remat,
      deterministic=deterministic,
    )
    return self.final_norm(x_BPD)

  def _cut(self, image_BHWC):
    """Returns the pixels of each patch, row by row: `[B, P, patch² C]`."""
    B, H, W, C = image_BHWC.shape
    if C != self.channels:
      raise ValueError(f'images of {C} channels, channels={self.channels}')
    if H % self.patch or W % self.patch:
      raise ValueError(f'patch={self.patch} must divide images of {H} x {W}')
    if jnp.issubdtype(image_BHWC.dtype, jnp.integer):
      wide = jnp.promote_types(self.dtype, jnp.float32)
      mean, std = (jnp.asarray(x, wide) for x in (self.mean, self.std))
      image_BHWC = (image_BHWC.astype(wide) / 255 - mean) / std
    rows, columns = H // self.patch, W // self.patch
    x = image_BHWC.astype(self.dtype)
    x = x.reshape(B, rows, self.patch, columns, self.patch, C).swapaxes(2, 3)
    return x.reshape(B, rows * columns, -1)

  def _places(self, rows, columns):
    """Returns what is added to each position, `[P, D]`."""
    extra = int(self.pool == 'token')
    if self.position == 'sinusoidal':
      table_PD = jnp.asarray(_sinusoids(rows, columns, self.width), self.dtype)
      return jnp.pad(table_PD, ((extra, 0), (0, 0)))
    table_PD = self.positions(jnp.arange(extra + self.grid**2))
    return _resized(table_PD, extra, (rows, columns), self.resize)

  def scale(self, factor: float) -> ViT:
    """Returns a ViT of about `factor` times the non-embedding parameters.

    Head width and the ratio of MLP to width stay; depth and width grow
    together, width in steps of a head. Patch and image size stay.
    """
    return ladder.rung(self, factor, size=_size, widen=_widen)


def _size(model: ViT) -> int:
  """The weights of all matrices but the head."""
  attention = 4 * model.width * model.heads * model._head_width
  matrices = 3 if model.activation in GATED else 2
  block = attention + matrices * model.width * model._mlp_width
  pixels = model.patch**2 * model.channels
  return model.depth * block + model.width * (pixels + model.representation)


def _widen(model: ViT, heads: int) -> ViT:
  wide = ladder.widen(model, heads)
  ratio = model.representation / model.width
  return wide.clone(representation=round(ratio * wide.width))


def _sinusoids(rows: int, columns: int, width: int) -> np.ndarray:
  """Returns `[P, D]`: sines and cosines of x, then of y, a quarter each."""
  rates = 10_000.0 ** -np.linspace(0, 1, width // 4)
  y, x = np.mgrid[:rows, :columns].reshape(2, -1, 1) * rates
  return np.concatenate([np.sin(x), np.cos(x), np.sin(y), np.cos(y)], axis=1)


def _resized(table_PD, extra, size, kind):
  """Returns the table with its square of patches interpolated to `size`."""
  side = math.isqrt(len(table_PD) - extra)
  if size == (side, side):
    return table_PD
  down, across = (
    jnp.asarray(_weights(side, n, kind), table_PD.dtype) for n in size
  )
  square = table_PD[extra:].reshape(side, side, -1)
  square = jnp.einsum('hH,wW,HWD->hwD', down, across, square)
  return jnp.concatenate(
    [table_PD[:extra], square.reshape(-1, square.shape[2])]
  )


def _weights(old: int, new: int, kind: ResizeKind) -> np.ndarray:
  """Returns `[new, old]`: what each new place takes of the old ones.

  Centres of pixels are aligned, nothing is smoothed when there are fewer, and
  beyond an edge the place at the edge counts again.
  """
  at = (np.arange(new) + 0.5) * old / new - 0.5
  first = np.floor(at).astype(int)
  reach = (-1, 0, 1, 2) if kind == 'bicubic' else (0, 1)
  weights = np.zeros((new, old))
  for step in reach:
    far = np.abs(at - (first + step))
    share = 1 - far
    if kind == 'bicubic':
      near = (_CUBIC + 2) * far**3 - (_CUBIC + 3) * far**2 + 1
      beyond = _CUBIC * (far**3 - 5 * far**2 + 8 * far - 4)
      share = np.where(far <= 1, near, beyond)
    place = np.clip(first + step, 0, old - 1)
    np.add.at(weights, (np.arange(new), place), share)
  return weights


def resize_positions(params: Mapping[str, Any], model: ViT) -> dict[str, Any]:
  """Returns parameters for `model`, positions interpolated to its image size.

  Args:
    params: Of a ViT that differs from `model` in nothing but `image_size`.
    model: With learned positions.
  """
  if model.position != 'learned':
    return dict(params)
  table_PD = jnp.asarray(params['positions']['embedding'])
  extra = int(model.pool == 'token')
  size = (model.grid, model.grid)
  table_PD = _resized(table_PD, extra, size, model.resize)
  return {**params, 'positions': {'embedding': table_PD}}


# Published sizes by name, such as 'vit-b/16'; none is allocated.
SIZES: dict[str, ViT] = {
  name: ViT(**fields) for name, fields in _vit_sizes.FIELDS.items()
}


def tiny() -> tuple[ViT, tuple[jax.Array, ...]]:
  """Returns the smallest honest ViT and its inputs."""
  model = ViT(
    depth=2, width=16, heads=2, patch=4, image_size=8, channels=1, classes=5
  )
  image_BHWC = jnp.arange(128, dtype=jnp.uint8).reshape(2, 8, 8, 1) * 37
  return model, (image_BHWC,)
