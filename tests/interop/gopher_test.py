"""The parts of Gopher and Chinchilla against `transformers` and torch.

No published class is a Gopher. Its attention, Transformer-XL's, is that of
`XLNetModel` with `attn_type='uni'`, whose blocks end in their norms.
"""

# Shapes: B batch, T positions, D width, H heads, K head width.
from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from bigdl import tree
from bigdl.layers import stack
from bigdl.layers.norm import Norm
from bigdl.models.gpt import GPT

SINGLE, DOUBLE = 1e-4, 1e-8
HEADS = 3


def reference(seed, dtype):
  """Returns the torch model; no weight is what initialisation makes of it."""
  torch.manual_seed(seed)
  config = transformers.XLNetConfig(
    vocab_size=37,
    d_model=12,
    n_layer=2,
    n_head=HEADS,
    d_inner=20,
    attn_type='uni',
    ff_activation='gelu',
    layer_norm_eps=1e-5,
    dropout=0.0,
  )
  model = transformers.XLNetModel(config).to(dtype).eval()
  with torch.no_grad():
    for key, value in model.named_parameters():
      value.copy_(torch.randn_like(value) * 0.3)
      if 'layer_norm' in key and key.endswith('weight'):
        value.add_(1)
  return model


def paths_of(i):
  """Returns their names of layer i by our paths, and which to turn."""
  theirs, ours = f'layer.{i}.', f'blocks_{i}/'
  names = {
    ours + 'attention/content_bias': theirs + 'rel_attn.r_w_bias',
    ours + 'attention/position_bias': theirs + 'rel_attn.r_r_bias',
  }
  for part, letter in zip(
    ('query', 'key', 'value', 'relative', 'out'), 'qkvro', strict=True
  ):
    names[f'{ours}attention/{part}/kernel'] = f'{theirs}rel_attn.{letter}'
  for norm, place in (('attention_norm', 'rel_attn'), ('mlp_norm', 'ff')):
    for leaf, own in (('weight', 'scale'), ('bias', 'bias')):
      names[f'{ours}{norm}/{own}'] = f'{theirs}{place}.layer_norm.{leaf}'
  for part, layer in (('up', 'layer_1'), ('down', 'layer_2')):
    for leaf, own in (('weight', 'kernel'), ('bias', 'bias')):
      names[f'{ours}mlp/{part}/{own}'] = f'{theirs}ff.{layer}.{leaf}'
  return names


NAMES = {
  'embed/embedding': 'word_embedding.weight',
  **paths_of(0),
  **paths_of(1),
}


def inward(path, value):
  """Returns their tensor as it lies here: kernels `[inputs, outputs]`."""
  if path.endswith('out/kernel'):
    return value.reshape(len(value), -1).T
  if path.startswith('blocks') and path.endswith('kernel'):
    return value.T if '/mlp/' in path else value.reshape(len(value), -1)
  return value


def ours(dtype, kind):
  # Its attention has no bias, GPT's has one after it: that one is zero here.
  return GPT(
    depth=2,
    width=12,
    heads=HEADS,
    vocab=37,
    length=11,
    mlp_width=20,
    activation='gelu_exact',
    block='post',
    position='relative',
    qkv_bias=False,
    dtype=dtype,
    param_dtype=dtype,
    stack=kind,
  )


def compare(seed, dtype, kind):
  """Returns the largest errors of hidden states and gradients."""
  peer = reference(seed, getattr(torch, dtype))
  model, T = ours(dtype, kind), 11
  rng = np.random.default_rng(seed)
  tokens = rng.integers(0, 37, (3, T), np.int32)
  segments = (np.arange(T) < np.array([[T], [T - 2], [6]])).astype(np.int32)
  real_BT = segments != 0
  weights_BTD = rng.normal(size=(3, T, 12)) * real_BT[..., None]

  out = []
  # Masks of padding are those of one row alone, where attention is causal.
  for row, real, weights in zip(tokens, segments, weights_BTD, strict=True):
    x_TD = peer(
      torch.from_numpy(row[None]).long(),
      attention_mask=torch.from_numpy(real[None]).to(getattr(torch, dtype)),
    ).last_hidden_state[0]
    (x_TD * torch.from_numpy(weights).to(x_TD.dtype)).sum().backward()
    out.append(x_TD.detach().numpy())
  want_BTD = np.stack(out)
  state = dict(peer.named_parameters())

  tokens_1 = jnp.zeros((1, 1), jnp.int32)
  shapes = jax.eval_shape(
    model.clone(stack='loop').init, jax.random.key(0), tokens_1
  )['params']

  def load(path, leaf):
    if path not in NAMES:
      assert path.endswith('attention/out/bias'), path
      return jnp.zeros(leaf.shape, leaf.dtype)
    value = inward(path, state[NAMES[path]].detach().numpy())
    assert value.shape == leaf.shape, path
    return jnp.asarray(value)

  params = tree.map_with_path(load, shapes)
  params = stack.to_scan(params) if kind == 'scan' else params

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def run(params):
    x_BTD = model.apply({'params': params}, tokens, segments, method='hidden')
    return (x_BTD * weights_BTD).sum(), x_BTD

  (_, x_BTD), grads = run(params)
  grads = dict(tree.items(stack.to_loop(grads) if kind == 'scan' else grads))
  pairs = [(x_BTD[real_BT], want_BTD[real_BT])]
  for path, name in NAMES.items():
    want = inward(path, state[name].grad.numpy())
    assert np.abs(want).max() > 1e-3, path
    pairs.append((grads[path], want))
  absolute = max(float(np.abs(a - b).max()) for a, b in pairs)
  relative = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
  return absolute, relative


@pytest.mark.parametrize('seed', [0, 1])
def test_relative_attention_is_xlnets_in_float32(seed):
  absolute, _ = compare(seed, 'float32', 'loop')
  assert absolute < SINGLE


@pytest.mark.parametrize('kind', ['loop', 'scan'])
def test_relative_attention_is_xlnets_in_float64(kind, monkeypatch):
  # It computes its sinusoids in float32.
  monkeypatch.setattr(torch.Tensor, 'float', lambda self: self.double())
  with jax.enable_x64(True):
    for seed in (0, 1):
      _, relative = compare(seed, 'float64', kind)
      assert relative < DOUBLE


def test_rmsnorm_is_torchs_with_its_gradients():
  rng = np.random.default_rng(0)
  x, scale, weights = (rng.normal(size=s) for s in ((4, 7), (7,), (4, 7)))
  peer = torch.nn.RMSNorm(7, eps=1e-5, dtype=torch.float64)
  with torch.no_grad():
    peer.weight.copy_(torch.from_numpy(scale))
  theirs = torch.from_numpy(x).requires_grad_()
  (peer(theirs) * torch.from_numpy(weights)).sum().backward()
  with jax.enable_x64(True):
    norm = Norm('rmsnorm', dtype='float64', param_dtype='float64')

    def total(x, scale):
      return (norm.apply({'params': {'scale': scale}}, x) * weights).sum()

    dx, dscale = jax.grad(total, argnums=(0, 1))(x, scale)
  np.testing.assert_allclose(dx, theirs.grad.numpy(), rtol=DOUBLE, atol=1e-12)
  np.testing.assert_allclose(dscale, peer.weight.grad.numpy(), rtol=DOUBLE)
