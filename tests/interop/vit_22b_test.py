"""ViT-22B's parallel block against a twin in torch, with shared random weights.

No class of `transformers` has it: the twin is written from Dehghani et al., 2023,
arXiv:2302.05442, section 2, eq. 1 to 4, out of torch's own layers.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch import nn
import torch.nn.functional as F

from bigdl import tensors, tree
from bigdl.layers import stack as stacks
from bigdl.models.vit import SIZES

# Absolute in float32; in float64 a share of the largest entry of the array.
SINGLE, DOUBLE = 1e-4, 1e-8
# As the published size but for what makes it large.
SMALL = SIZES['vit-22b/14'].clone(
  depth=2, width=12, heads=3, mlp_width=20, patch=3, image_size=9, classes=5
)


class Block(nn.Module):
  """x + Attention(norm x) + MLP(norm x), one norm, queries and keys normed."""

  def __init__(self):
    super().__init__()
    width, hidden, head = SMALL.width, SMALL.mlp_width, SMALL.width // 3
    self.norm = nn.RMSNorm(width, eps=SMALL.norm_epsilon)
    self.query_norm = nn.RMSNorm(head, eps=SMALL.norm_epsilon)
    self.key_norm = nn.RMSNorm(head, eps=SMALL.norm_epsilon)
    self.query, self.key, self.value = (
      nn.Linear(width, width, bias=False) for _ in range(3)
    )
    self.out = nn.Linear(width, width)
    self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

  def forward(self, x):
    y = self.norm(x)

    def heads(layer):
      return layer(y).unflatten(-1, (SMALL.heads, -1)).transpose(1, 2)

    attended = F.scaled_dot_product_attention(
      self.query_norm(heads(self.query)),
      self.key_norm(heads(self.key)),
      heads(self.value),
    )
    attended = self.out(attended.transpose(1, 2).flatten(2))
    return x + attended + self.down(F.gelu(self.up(y)))


class Twin(nn.Module):
  def __init__(self):
    super().__init__()
    side, width = SMALL.patch, SMALL.width
    self.patches = nn.Conv2d(SMALL.channels, width, side, stride=side)
    self.positions = nn.Embedding(SMALL.grid**2, width)
    self.blocks = nn.ModuleList(Block() for _ in range(SMALL.depth))
    self.final_norm = nn.RMSNorm(width, eps=SMALL.norm_epsilon)
    self.head = nn.Linear(width, SMALL.classes)

  def forward(self, image):
    x = self.patches(image).flatten(2).transpose(1, 2) + self.positions.weight
    for block in self.blocks:
      x = block(x)
    return self.head(self.final_norm(x).mean(1))


# What our paths are called there, part by part.
NAMES = {
  'attention': '',
  'mlp': '',
  'attention_norm': 'norm',
  'scale': 'weight',
  'kernel': 'weight',
  'embedding': 'weight',
}


def named(path: str) -> str:
  parts = path.replace('blocks_', 'blocks/').split('/')
  return '.'.join(filter(None, (NAMES.get(p, p) for p in parts)))


def ours(path: str, value: np.ndarray) -> np.ndarray:
  """Returns a torch tensor as our parameter lies."""
  if path == 'patches/kernel':
    return value.transpose(2, 3, 1, 0).reshape(-1, SMALL.width)
  return value.T if path.endswith('kernel') else value


@functools.partial(jax.jit, static_argnums=0)
def step(model, params, image, label):
  def loss(params):
    logits = model.apply({'params': params}, image)
    logs = jax.nn.log_softmax(logits)
    return -jnp.take_along_axis(logs, label[:, None], 1).mean(), logits

  return jax.value_and_grad(loss, has_aux=True)(params)


def errors(seed: int, dtype: str, stack: str) -> tuple[float, float]:
  """Returns the largest ones, absolute and relative to each array's size."""
  torch.manual_seed(seed)
  kind = getattr(torch, dtype)
  peer = Twin().to(kind)
  with torch.no_grad():
    for name, value in peer.named_parameters():
      value.copy_(torch.randn_like(value) * 0.4 + (1 if 'norm' in name else 0))
  rng = np.random.default_rng(seed)
  image = rng.normal(size=(3, 9, 9, 3)).astype(dtype)
  label = rng.integers(0, SMALL.classes, 3)
  logits = peer(torch.from_numpy(image.transpose(0, 3, 1, 2).copy()))
  loss = F.cross_entropy(logits, torch.from_numpy(label))
  loss.backward()

  model = SMALL.clone(dtype=dtype, param_dtype=dtype, stack='loop')
  shapes = jax.eval_shape(model.init, jax.random.key(0), image)['params']
  theirs = dict(peer.named_parameters())
  paths = {path: named(path) for path in tree.paths(shapes)}
  assert sorted(paths.values()) == sorted(theirs)
  flat = {p: ours(p, theirs[n].detach().numpy()) for p, n in paths.items()}
  want = {p: ours(p, theirs[n].grad.numpy()) for p, n in paths.items()}
  params = tensors.nested(flat)
  if stack == 'scan':
    model, params = model.clone(stack='scan'), stacks.to_scan(params)
    want = dict(tree.items(stacks.to_scan(tensors.nested(want))))
  (found, given), grads = step(model, params, image, label)
  pairs = [(found, loss.item()), (given, logits.detach().numpy())]
  for path, grad in tree.items(grads):
    assert np.abs(want[path]).max() > 1e-3, path
    pairs.append((grad, want[path]))
  gaps = [(np.abs(a - b).max(), np.abs(b).max()) for a, b in pairs]
  return max(float(g) for g, _ in gaps), max(float(g / m) for g, m in gaps)


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('stack', ['loop', 'scan'])
def test_logits_loss_and_gradients_are_the_twins_in_float64(seed, stack):
  with jax.enable_x64(True):
    _, relative = errors(seed, 'float64', stack)
  assert relative < DOUBLE


@pytest.mark.parametrize('seed', [0, 1])
def test_logits_loss_and_gradients_are_the_twins_in_float32(seed):
  absolute, _ = errors(seed, 'float32', 'loop')
  assert absolute < SINGLE
