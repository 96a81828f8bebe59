"""GPT with banded layers that alternate with dense ones, and relative ones."""

# Shapes: B batch, T positions, D width, V vocabulary.
from __future__ import annotations

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import model_battery
import numpy as np
import pytest

from bigdl import tree
from bigdl.layers import stack
from bigdl.models.gpt import GPT, SIZES, tiny
from bigdl.objectives.causal_lm import CausalLM
from bigdl.scaling import count

# Five blocks: in turns of two or three, some are left over.
BANDED = GPT(
  depth=5,
  width=8,
  heads=2,
  vocab=17,
  length=9,
  window=3,
  dense_every=2,
  stack='loop',
)
CLOSE: dict[str, Any] = {'rtol': 2e-4, 'atol': 2e-5}


def banded():
  """Returns the smallest banded GPT and its inputs."""
  model, inputs = tiny()
  return model.clone(depth=3, window=5, dense_every=2), inputs


def relative():
  """Returns the smallest GPT with relative positions, and its inputs."""
  model, inputs = tiny()
  return model.clone(position='relative', qkv_bias=False), inputs


CHECKS = [
  model_battery.check_scan_is_loop,
  model_battery.check_remat_is_plain,
  model_battery.check_sharded_is_single,
  model_battery.check_traced_flops_are_executed_flops,
  model_battery.check_bfloat16_is_close,
]


@pytest.mark.parametrize('make', [banded, relative], ids=lambda f: f.__name__)
@pytest.mark.parametrize('check', CHECKS, ids=lambda f: f.__name__)
def test_what_holds_for_every_model_holds_for(check, make):
  check(make)


def weights_of(model, seed=0):
  rng = np.random.default_rng(seed)
  tokens = jnp.zeros((1, 1), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), tokens)['params']
  return tree.map_with_path(
    lambda path, x: jnp.asarray(
      path.endswith('scale') + 0.4 * rng.normal(size=x.shape), x.dtype
    ),
    shapes,
  )


def tokens_of(model, rows=2):
  shape = (rows, model.length)
  return np.random.default_rng(0).integers(0, model.vocab, shape, np.int32)


@pytest.mark.parametrize('every', [0, 2, 3, 7])
def test_turns_of_a_scan_are_those_of_a_loop(every):
  loop = BANDED.clone(dense_every=every)
  params, tokens = weights_of(loop), tokens_of(loop)
  scan = loop.clone(stack='scan')
  want = jax.jit(loop.apply)({'params': params}, tokens)
  got = jax.jit(scan.apply)({'params': stack.to_scan(params)}, tokens)
  np.testing.assert_allclose(got, want, **CLOSE)
  dense = loop.clone(window=0).apply({'params': params}, tokens)
  assert np.abs(dense - want)[:, 3:].max() > 0.1
  # The band is not left before the fourth position.
  np.testing.assert_allclose(dense[:, :3], want[:, :3], **CLOSE)


@pytest.mark.parametrize('stack_kind', ['loop', 'scan'])
@pytest.mark.parametrize(
  ('every', 'depth', 'reach'), [(0, 1, 3), (0, 2, 5), (2, 2, 9), (1, 1, 9)]
)
def test_a_band_reaches_as_far_as_its_layers(every, depth, reach, stack_kind):
  model = BANDED.clone(
    depth=depth, dense_every=every, vocab=9, tied=False, stack=stack_kind
  )
  # Every position has a token of its own, and the head is not the table.
  params, tokens = weights_of(model), jnp.arange(9, dtype=jnp.int32)[None]

  def output(table):
    changed = {**params, 'embed': {'embedding': table}}
    return jnp.square(model.apply({'params': changed}, tokens)[0, -1]).sum()

  pull = jax.jit(jax.grad(output))(params['embed']['embedding'])
  seen = np.abs(pull).max(-1) > 0
  np.testing.assert_array_equal(seen, np.arange(9) >= 9 - reach)


@pytest.mark.parametrize('kind', ['loop', 'scan'])
@pytest.mark.parametrize('position', ['rotary', 'relative', 'fairseq'])
def test_decoding_with_a_cache_is_the_full_forward_pass(kind, position):
  window = 0 if position == 'relative' else 3
  model = BANDED.clone(stack=kind, position=position, window=window, depth=3)
  params, tokens = weights_of(model), tokens_of(model)
  want = jax.jit(model.apply)({'params': params}, tokens)

  @jax.jit
  def step(cache, tokens, start):
    x, kept = model.apply(
      {'params': params, **cache},
      tokens,
      start,
      capacity=11,
      method='decode',
      mutable=['cache'],
    )
    return kept, model.apply({'params': params}, x, method='logits')

  # A prompt of four, then token by token.
  cache, got = step({}, tokens[:, :4], jnp.int32(0))
  parts = [got]
  for t in range(4, 9):
    cache, got = step(cache, tokens[:, t : t + 1], jnp.int32(t))
    parts.append(got)
  np.testing.assert_allclose(jnp.concatenate(parts, 1), want, **CLOSE)


class Adds(nn.Module):
  """Adds ones, of which dropout leaves twos and zeros."""

  @nn.compact
  def __call__(self, x, **told):
    return x + nn.Dropout(0.5, deterministic=False)(jnp.ones_like(x))


class Tower(nn.Module):
  def setup(self):
    self.blocks = stack.build(Adds, 4, kind='scan')

  def __call__(self, x):
    turns = ({'a': 0}, {'a': 1}, {'a': 2})
    return stack.run(self.blocks, x, depth=4, remat='none', turns=turns)


def test_blocks_that_take_turns_drop_different_entries():
  x = Tower().apply({}, jnp.zeros(256), rngs={'dropout': jax.random.key(0)})
  # A sum of four independent ones; the same mask would give 0 or 8 alone.
  counts = np.bincount(np.asarray(x, int) // 2, minlength=5) / 256
  np.testing.assert_allclose(
    counts, [1 / 16, 1 / 4, 3 / 8, 1 / 4, 1 / 16], atol=0.1
  )


@pytest.mark.parametrize('attention', ['xla', 'tiled'])
@pytest.mark.parametrize('every', [0, 2])
def test_the_ledger_counts_the_band_exactly(every, attention):
  model = BANDED.clone(length=70, dense_every=every, attention=attention)
  spec = {'tokens': jax.ShapeDtypeStruct((71,), jnp.int32)}

  def flops(model):
    return count.flops_per_unit(model, CausalLM(), spec, xla=False)

  dense, own = flops(model.clone(window=0)), flops(model)
  assert own['matmul_full'] == dense['matmul_full']
  # Query t sees min(t, 3) keys, t from 1 to 70, in place of t: twice 2 FLOPs for
  # each of 8 coordinates of all heads, thrice for training.
  hidden = sum(t - min(t, 3) for t in range(1, 71))
  layers = 5 if not every else 2
  saved = 3 * layers * hidden * 4 * 8 / 70
  assert dense['matmul_causal'] - own['matmul_causal'] == pytest.approx(saved)


def test_gpt3_spends_less_on_attention_than_if_it_were_dense():
  model = SIZES['gpt3-125m']
  spec = {'tokens': jax.ShapeDtypeStruct((2049,), jnp.int32)}
  shares = []
  for m in (model, model.clone(window=0)):
    rate = count.flops_per_unit(m, CausalLM(), spec, xla=False)
    shares.append(rate['matmul_causal'])
  # Six layers of twelve see 240 keys of 1024.5 on average.
  band = sum(min(t, 256) for t in range(1, 2049)) / 2048
  saved = 3 * 6 * 4 * 768 * (1024.5 - band)
  assert shares[1] - shares[0] == pytest.approx(saved)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'window': -1}, 'window=-1 must not be negative'),
    ({'dense_every': -2}, 'dense_every=-2 must not be negative'),
    ({'logit_scale': 0.0}, 'logit_scale=0.0 must be positive'),
    (
      {'position': 'fairseq', 'width': 2},
      'width=2 must be at least 4 for position=fairseq',
    ),
    (
      {'position': 'relative', 'window': 4},
      'window=4 must be 0 for position=relative',
    ),
    (
      {'position': 'relative', 'kv_heads': 1},
      'kv_heads=1 must be 0 for position=relative',
    ),
    (
      {'position': 'relative', 'attention': 'cudnn'},
      'attention=cudnn must be auto or xla or tiled for position=relative',
    ),
  ],
)
def test_bad_fields_are_named_with_their_value(fields, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    GPT(**{'width': 8, 'heads': 2, **fields})


def test_segments_and_bands_are_both_kept():
  model = BANDED.clone(window=2, dense_every=0, depth=2)
  params, tokens = weights_of(model), tokens_of(model, rows=1)
  run = functools.partial(jax.jit(model.apply), {'params': params})
  packed = run(tokens, jnp.array([[1] * 4 + [2] * 5]))
  np.testing.assert_allclose(packed[:, 4:], run(tokens[:, 4:]), **CLOSE)
