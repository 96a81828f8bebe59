"""The forms a GPT takes against the same formulas written in numpy."""

# Shapes: B batch, T positions, S key positions, D width, V vocabulary, H heads,
# G key-value heads, K head width, R half the rotated width.
from __future__ import annotations

import functools
import math
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl import tree
from bigdl.layers.block import BlockKind
from bigdl.layers.mlp import Activation
from bigdl.layers.norm import NormKind
from bigdl.models.gpt import GPT, PositionKind

BASE = GPT(depth=1, width=12, heads=2, vocab=11, length=7, stack='loop')
FORMS: list[dict[str, Any]] = [
  {},
  {'norm': 'rmsnorm', 'position': 'rotary', 'activation': 'swiglu'},
  {'block': 'post', 'position': 'sinusoidal', 'activation': 'relu'},
  {
    'block': 'post',
    'norm': 'rmsnorm',
    'position': 'none',
    'activation': 'gelu_exact',
    'softcap': 4.0,
  },
  {
    'block': 'parallel',
    'position': 'rotary',
    'activation': 'geglu',
    'kv_heads': 1,
    'rotary_fraction': 0.5,
    'head_width': 8,
    'embed_scale': True,
    'bias': False,
  },
  {
    'block': 'parallel',
    'norm': 'rmsnorm',
    'position': 'learned',
    'activation': 'gelu_exact',
    'heads': 4,
    'kv_heads': 2,
    'attention_softcap': 1.5,
    'mlp_width': 10,
  },
  {
    'block': 'parallel_two_norms',
    'position': 'rotary',
    'activation': 'gelu',
    'tied': False,
    'qk_norm': True,
    'rotary_base': 50.0,
  },
  {
    'block': 'parallel_two_norms',
    'norm': 'rmsnorm',
    'position': 'sinusoidal',
    'activation': 'swiglu',
    'qk_norm': True,
    'norm_epsilon': 0.1,
    'bias': False,
  },
  # GPT-3's alternation, as GPT-Neo has it.
  {'depth': 3, 'window': 3, 'dense_every': 2, 'qkv_bias': False},
  # Gopher's.
  {
    'norm': 'rmsnorm',
    'position': 'relative',
    'qkv_bias': False,
    'head_width': 4,
    'activation': 'silu',
  },
  # InCoder's.
  {'position': 'fairseq', 'embed_scale': True, 'logit_scale': 0.5},
]


def dense(p, x):
  return x @ p['kernel'] + p.get('bias', 0)


def norm(model, p, x):
  if model.norm == 'layernorm':
    x = x - x.mean(-1, keepdims=True)
  x = x / np.sqrt((x**2).mean(-1, keepdims=True) + model.norm_epsilon)
  return x * p['scale'] + p.get('bias', 0)


def gelu(x):
  return x / 2 * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def mlp(model, p, x):
  act = {
    'gelu': gelu,
    'geglu': gelu,
    'gelu_exact': lambda x: x * (1 + np.vectorize(math.erf)(x / 2**0.5)) / 2,
    'relu': lambda x: np.maximum(x, 0),
    'silu': lambda x: x / (1 + np.exp(-x)),
    'swiglu': lambda x: x / (1 + np.exp(-x)),
  }[model.activation]
  if model.activation in ('swiglu', 'geglu'):
    return dense(p['down'], act(dense(p['gate'], x)) * dense(p['up'], x))
  return dense(p['down'], act(dense(p['up'], x)))


def rotate(model, x_BTHK):
  """Multiplies pairs of coordinates, as complex numbers, by exp(i t rate)."""
  T, K = x_BTHK.shape[1], x_BTHK.shape[-1]
  R = int(model.rotary_fraction * K) // 2
  rates_R = model.rotary_base ** (-np.arange(R) / R)
  turns = np.exp(1j * np.arange(T)[:, None, None] * rates_R)
  z = (x_BTHK[..., :R] + 1j * x_BTHK[..., R : 2 * R]) * turns
  return np.concatenate([z.real, z.imag, x_BTHK[..., 2 * R :]], -1)


def sinusoid(positions, width, last):
  """Rates fall from 1 to 10^-4, which is the one after `last` of `width`."""
  rates = 10_000 ** -(np.arange(width // 2) / last)
  angles = np.asarray(positions)[..., None] * rates
  return np.concatenate([np.sin(angles), np.cos(angles)], -1)


def attention(model, p, x, window):
  B, T, _ = x.shape
  H, K = model.heads, model.head_width or model.width // model.heads
  G = model.kv_heads or H
  q = dense(p['query'], x).reshape(B, T, H, K)
  k = dense(p['key'], x).reshape(B, T, G, K)
  v = dense(p['value'], x).reshape(B, T, G, K)
  if model.qk_norm:
    q, k = norm(model, p['query_norm'], q), norm(model, p['key_norm'], k)
  if model.position == 'rotary':
    q, k = rotate(model, q), rotate(model, k)
  u = v_bias = 0
  if model.position == 'relative':
    u, v_bias = p['content_bias'], p['position_bias']
    r_THK = sinusoid(range(T), model.width, model.width // 2)
    r_THK = (r_THK @ p['relative']['kernel']).reshape(T, H, K)
  o = np.zeros((B, T, H, K))
  for h in range(H):
    for t in range(T):
      g = h // (H // G)
      seen = np.s_[:, max(0, t + 1 - window) : t + 1, g]
      s_BS = np.einsum('BK,BSK->BS', (q + u)[:, t, h], k[seen]) / K**0.5
      if model.position == 'relative':
        # Distances t to 0 of keys 0 to t.
        s_BS += (q + v_bias)[:, t, h] @ r_THK[t::-1, h].T / K**0.5
      if model.attention_softcap:
        c = model.attention_softcap
        s_BS = c * np.tanh(s_BS / c)
      e_BS = np.exp(s_BS)
      w_BS = e_BS / e_BS.sum(-1, keepdims=True)
      o[:, t, h] = np.einsum('BS,BSK->BK', w_BS, v[seen])
  return dense(p['out'], o.reshape(B, T, H * K))


def block(model, p, x, window):
  n1 = functools.partial(norm, model, p['attention_norm'])
  a = functools.partial(attention, model, p['attention'], window=window)
  m = functools.partial(mlp, model, p['mlp'])
  if model.block == 'parallel':
    return x + a(n1(x)) + m(n1(x))
  n2 = functools.partial(norm, model, p['mlp_norm'])
  if model.block == 'parallel_two_norms':
    return x + a(n1(x)) + m(n2(x))
  if model.block == 'post':
    x = n1(x + a(x))
    return n2(x + m(x))
  x = x + a(n1(x))
  return x + m(n2(x))


def forward(model, params, tokens):
  """Returns logits in float64."""
  p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
  x = p['embed']['embedding'][tokens]
  if model.embed_scale:
    x = x * model.width**0.5
  T, D = x.shape[1:]
  if model.position == 'learned':
    x = x + p['positions']['embedding'][:T]
  if model.position == 'sinusoidal':
    x = x + sinusoid(range(T), D, D // 2)
  if model.position == 'fairseq':
    x = x + sinusoid(range(2, T + 2), D, D // 2 - 1)
  for i in range(model.depth):
    dense = not model.window or (
      model.dense_every and i % model.dense_every == 0
    )
    x = block(model, p[f'blocks_{i}'], x, T if dense else model.window)
  if model.block != 'post':
    x = norm(model, p['final_norm'], x)
  head = p['embed']['embedding'].T if model.tied else p['head']['kernel']
  c, x = model.softcap, model.logit_scale * x
  return c * np.tanh(x @ head / c) if c else x @ head


@pytest.mark.parametrize('fields', FORMS, ids=range(len(FORMS)))
def test_every_form_is_its_formula_with_gradients_everywhere(fields):
  model = BASE.clone(**fields)
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, model.vocab, (2, model.length), np.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)['params']
  # Biases start at zero and scales at one, where they would not be noticed.
  params = tree.map_with_path(
    lambda path, x: jnp.asarray(
      path.endswith('scale') + 0.4 * rng.normal(size=x.shape), x.dtype
    ),
    shapes,
  )

  @jax.jit
  @functools.partial(jax.value_and_grad, has_aux=True)
  def run(params):
    logits = model.apply({'params': params}, tokens)
    return jnp.square(jax.nn.log_softmax(logits)).sum(), logits

  (_, logits), grads = run(params)
  want = forward(model, params, tokens)
  np.testing.assert_allclose(logits, want, rtol=2e-4, atol=2e-5)
  for path, grad in tree.items(grads):
    assert np.isfinite(grad).all(), path
    # Softmax does not see what is added to all the scores of a query.
    if not (path.endswith('key/bias') and model.position != 'rotary'):
      assert np.abs(grad).max() > 1e-4, path


def test_the_forms_cover_each_kind_and_each_block_with_each_norm():
  models = [BASE.clone(**fields) for fields in FORMS]
  for name, kinds in (
    ('block', BlockKind),
    ('norm', NormKind),
    ('position', PositionKind),
    ('activation', Activation),
  ):
    assert {getattr(m, name) for m in models} == set(get_args(kinds))
  pairs = {(m.block, m.norm) for m in models}
  assert len(pairs) == len(get_args(BlockKind)) * len(get_args(NormKind))
