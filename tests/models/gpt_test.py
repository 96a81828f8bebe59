"""What must hold of every GPT, whatever its fields."""

# Shapes: B batch, T positions, D width, V vocabulary, L depth.
from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl import tree
from bigdl.layers import stack
from bigdl.models.gpt import GPT, SIZES, tiny

SMALL = GPT(depth=2, width=12, heads=2, vocab=17, length=9, stack='scan')
CLOSE: dict[str, Any] = {
  'rtol': 2e-4,
  'atol': 2e-5,
}  # Float32, some dozen operations deep.


def tokens_of(model, rows=2, seed=0):
  shape = (rows, model.length)
  return np.random.default_rng(seed).integers(0, model.vocab, shape, np.int32)


def weights_of(model, seed=0, size=0.4):
  """Returns parameters of which none is what initialisation makes of it."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32)
  )['params']

  def draw(path, leaf):
    near = 1 if path.endswith('scale') else 0
    return jnp.asarray(near + size * rng.normal(size=leaf.shape), leaf.dtype)

  return tree.map_with_path(draw, shapes)


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, tokens, segments=None, positions=None):
  return model.apply({'params': params}, tokens, segments, positions)


@functools.partial(jax.jit, static_argnums=0)
def loss_and_grads(model, params, tokens):
  def loss(params):
    logits = model.apply({'params': params}, tokens)
    return jnp.square(jax.nn.log_softmax(logits)).mean()

  return jax.value_and_grad(loss)(params)


def assert_trees_close(a, b, **tolerance):
  for (path, x), (_, y) in zip(tree.items(a), tree.items(b), strict=True):
    np.testing.assert_allclose(x, y, err_msg=path, **tolerance)


@pytest.mark.parametrize(
  ('block', 'attention'), [('pre', 'tiled'), ('parallel', 'xla')]
)
def test_future_tokens_get_exactly_zero_gradient(block, attention):
  # Every position has a token of its own, and the head is not the table.
  model = SMALL.clone(
    vocab=70, length=70, tied=False, block=block, attention=attention
  )
  tokens = jnp.arange(70, dtype=jnp.int32)[None]
  params = weights_of(model)

  @jax.jit
  @jax.vmap
  def pull(t):
    def output(table):
      changed = {**params, 'embed': {'embedding': table}}
      return jnp.square(model.apply({'params': changed}, tokens)[0, t]).sum()

    return jnp.abs(jax.grad(output)(params['embed']['embedding'])).max(-1)

  reach_TT = np.asarray(pull(jnp.arange(70)))
  np.testing.assert_array_equal(np.triu(reach_TT, 1), 0)
  assert (reach_TT[np.tril_indices(70)] > 0).all()


@pytest.mark.parametrize(
  ('kind', 'remat'),
  [('loop', 'none'), ('scan', 'full'), ('loop', 'dots')],
)
def test_depth_by_loop_scan_or_remat_is_one_function(kind, remat):
  plain = SMALL.clone(activation='relu')
  tokens, params = tokens_of(plain), weights_of(plain)
  want_loss, want = loss_and_grads(plain, params, tokens)
  model = plain.clone(stack=kind, remat=remat)
  if kind == 'loop':
    params, want = stack.to_loop(params), stack.to_loop(want)
    assert 'blocks_1' in params
  loss, grads = loss_and_grads(model, params, tokens)
  np.testing.assert_allclose(loss, want_loss, rtol=1e-6)
  assert_trees_close(grads, want, rtol=1e-4, atol=1e-6)


def test_remat_recomputes_what_plain_depth_keeps():
  params, tokens = weights_of(SMALL), tokens_of(SMALL)

  def saved(remat):
    model = SMALL.clone(remat=remat)

    def pull(params):
      return jax.vjp(
        lambda p: model.apply({'params': p}, tokens).sum(), params
      )[1]

    return tree.bytes_of(jax.eval_shape(pull, params))

  assert saved('full') < saved('dots') < saved('none')


@pytest.mark.parametrize('kv_heads', [1, 2])
def test_shared_keys_and_values_are_repeated_ones(kv_heads):
  grouped = SMALL.clone(heads=4, kv_heads=kv_heads, position='rotary', width=16)
  params, tokens = weights_of(grouped), tokens_of(grouped)

  def repeat(path, leaf):
    if '/key/' not in path and '/value/' not in path:
      return leaf
    heads = leaf.reshape(*leaf.shape[:-1], kv_heads, 4)
    heads = jnp.repeat(heads, 4 // kv_heads, axis=-2)
    return heads.reshape(*leaf.shape[:-1], 16)

  whole = grouped.clone(kv_heads=4)
  repeated = tree.map_with_path(repeat, params)
  np.testing.assert_allclose(
    run(grouped, params, tokens), run(whole, repeated, tokens), **CLOSE
  )


def scaled(params, factor, pattern):
  return jax.tree.map(
    lambda x, hit: factor * x if hit else x, params, tree.mask(params, pattern)
  )


@pytest.mark.parametrize('part', ['query', 'key'])
def test_query_key_norm_forgets_the_scale_of_both(part):
  model = SMALL.clone(qk_norm=True, norm_epsilon=1e-12)
  params, tokens = weights_of(model), tokens_of(model)
  want = run(model, params, tokens)
  larger = scaled(params, 7.0, f'attention/{part}/')
  np.testing.assert_allclose(run(model, larger, tokens), want, **CLOSE)
  # Its own scale is not forgotten.
  sharper = scaled(params, 7.0, f'attention/{part}_norm/scale')
  assert np.abs(run(model, sharper, tokens) - want).max() > 0.1


@pytest.mark.parametrize('fraction', [1.0, 0.5])
def test_rotary_positions_matter_by_their_differences(fraction):
  model = SMALL.clone(
    width=16, position='rotary', rotary_fraction=fraction, rotary_base=100.0
  )
  params, tokens = weights_of(model), tokens_of(model)
  t = jnp.broadcast_to(jnp.arange(9), tokens.shape)
  want = run(model, params, tokens)
  np.testing.assert_allclose(run(model, params, tokens, None, t), want, **CLOSE)
  for shift in (3, 40):
    moved = run(model, params, tokens, None, t + shift)
    np.testing.assert_allclose(moved, want, **CLOSE)
  assert np.abs(run(model, params, tokens, None, 2 * t) - want).max() > 0.1


def test_sinusoidal_positions_are_absolute_and_none_are_ignored():
  t = jnp.broadcast_to(jnp.arange(9), (2, 9))
  for position, moves in (('sinusoidal', True), ('none', False)):
    model = SMALL.clone(position=position)
    params, tokens = weights_of(model), tokens_of(model)
    near = run(model, params, tokens, None, t)
    far = run(model, params, tokens, None, t + 3)
    assert (np.abs(near - far).max() > 0.1) == moves


def test_a_free_head_with_the_embeddings_weights_is_a_tied_one():
  free = SMALL.clone(tied=False)
  params, tokens = weights_of(SMALL), tokens_of(SMALL)
  assert 'head' not in params
  kernel = params['embed']['embedding'].T
  want = run(SMALL, params, tokens)
  same = run(free, {**params, 'head': {'kernel': kernel}}, tokens)
  np.testing.assert_allclose(same, want, **CLOSE)
  other = run(free, {**params, 'head': {'kernel': 2 * kernel}}, tokens)
  np.testing.assert_allclose(other, 2 * want, **CLOSE)


def test_softcap_bounds_the_logits_and_the_scores():
  params, tokens = weights_of(SMALL, size=2.0), tokens_of(SMALL)
  raw = run(SMALL, params, tokens)
  capped = run(SMALL.clone(softcap=3.0), params, tokens)
  assert np.abs(raw).max() > 6 > 3 >= np.abs(capped).max() > 2
  np.testing.assert_allclose(capped, 3 * np.tanh(raw / 3), **CLOSE)
  # Scores of at most 1e-4 make attention the mean over what is visible.
  flat = run(SMALL.clone(attention_softcap=1e-4), params, tokens)
  zero = scaled(params, 0.0, 'attention/query/')
  np.testing.assert_allclose(
    flat, run(SMALL, zero, tokens), rtol=0.01, atol=0.1
  )
  assert np.abs(flat - raw).max() > 1


@pytest.mark.parametrize('position', ['learned', 'sinusoidal', 'rotary'])
def test_packed_documents_are_as_if_alone(position):
  model = SMALL.clone(position=position, kv_heads=1)
  params, tokens = weights_of(model), tokens_of(model, rows=1)
  segments = jnp.array([[1, 1, 1, 2, 2, 2, 2, 0, 0]])
  packed = run(model, params, tokens, segments)
  for start, stop in ((0, 3), (3, 7)):
    alone = run(model, params, tokens[:, start:stop])
    np.testing.assert_allclose(packed[:, start:stop], alone, **CLOSE)
  together = run(model, params, tokens)
  assert np.abs(packed - together)[:, 3:].max() > 0.01


@pytest.mark.parametrize('attention', ['xla', 'tiled'])
def test_a_changed_token_changes_nothing_in_another_document(attention):
  model = SMALL.clone(length=70, attention=attention)
  params, tokens = weights_of(model), tokens_of(model, rows=1)
  segments = jnp.repeat(jnp.array([[1, 2]]), 35, axis=1)
  before = run(model, params, tokens, segments)
  # A copy: the first run may not have read its tokens yet.
  changed = tokens.copy()
  changed[0, 3] = (tokens[0, 3] + 1) % model.vocab
  after = run(model, params, changed, segments)
  np.testing.assert_array_equal(before[:, 35:], after[:, 35:])
  assert np.abs(before - after)[:, 3:35].min(-1).max() > 0


@pytest.mark.parametrize(
  'fields',
  [
    {'position': 'learned', 'stack': 'loop', 'block': 'post'},
    {'position': 'sinusoidal', 'qk_norm': True, 'attention_softcap': 2.0},
    {'position': 'rotary', 'kv_heads': 2, 'block': 'parallel'},
    {'position': 'none', 'kv_heads': 1, 'tied': False, 'softcap': 5.0},
  ],
  ids=lambda fields: fields['position'],
)
def test_decoding_with_a_cache_is_the_full_forward_pass(fields):
  model = SMALL.clone(heads=4, width=16, **fields)
  params, tokens = weights_of(model), tokens_of(model)
  want = run(model, params, tokens)

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
  cache, got = step({}, tokens[:, :4], 0)
  parts = [got]
  for t in range(4, 9):
    cache, got = step(cache, tokens[:, t : t + 1], jnp.int32(t))
    parts.append(got)
  np.testing.assert_allclose(jnp.concatenate(parts, 1), want, **CLOSE)
  keys = [x for p, x in tree.items(cache) if p.endswith('keys')]
  heads = model.kv_heads or 4
  assert all(x.shape[-4:] == (2, heads, 11, 4) for x in keys)


def test_a_prompt_longer_than_the_cache_is_refused():
  params, tokens = weights_of(SMALL), tokens_of(SMALL)
  with pytest.raises(ValueError, match='9 tokens must fit in capacity=8'):
    SMALL.apply(
      {'params': params},
      tokens,
      0,
      capacity=8,
      method='decode',
      mutable=['cache'],
    )


def test_bfloat16_computes_over_float32_weights():
  model = SMALL.clone(dtype='bfloat16')
  tokens, params = tokens_of(model), weights_of(model, size=0.2)
  # What initialisation gives is float32, and so is what the gradient is.
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype('float32')}
  _, grads = jax.eval_shape(
    functools.partial(loss_and_grads, model), params, tokens
  )
  assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype('float32')}
  hidden = functools.partial(model.apply, method='hidden')
  x_BTD = jax.eval_shape(hidden, {'params': params}, tokens)
  assert x_BTD.dtype == jnp.bfloat16
  half = run(model, params, tokens)
  assert half.dtype == jnp.float32
  whole = run(SMALL, params, tokens)
  error = np.abs(half - whole).max()
  assert 0 < error < 0.02 * np.abs(whole).max()


def test_float64_is_kept_throughout():
  with jax.enable_x64(True):
    model = SMALL.clone(dtype='float64', param_dtype='float64')
    params, tokens = weights_of(model), tokens_of(model)
    assert {x.dtype for x in jax.tree.leaves(params)} == {np.dtype('float64')}
    wide = run(model, params, tokens)
    narrow = run(
      SMALL, jax.tree.map(lambda x: x.astype('float32'), params), tokens
    )
    assert wide.dtype == jnp.float64
    assert 1e-9 < np.abs(wide - narrow).max() < 1e-4


@pytest.mark.parametrize('weight_init', ['normal', 'fan_in'])
def test_what_each_layer_adds_starts_damped(weight_init):
  model = GPT(
    depth=8,
    width=64,
    heads=2,
    vocab=99,
    length=3,
    weight_init=weight_init,
    init_std=0.02,
    stack='scan',
  )
  tokens = jnp.zeros((1, 1), jnp.int32)
  params = jax.jit(model.init)(jax.random.key(0), tokens)['params']
  deviations = {k: float(jnp.std(v)) for k, v in tree.items(params)}
  damp = 1 / 4  # 1 / sqrt(2 L).
  plain, hidden = (0.02, 0.02) if weight_init == 'normal' else (1 / 8, 1 / 16)
  expected = {
    'embed/embedding': 0.02,
    'blocks/attention/query/kernel': plain,
    'blocks/attention/value/kernel': plain,
    'blocks/mlp/up/kernel': plain,
    'blocks/attention/out/kernel': plain * damp,
    'blocks/mlp/down/kernel': hidden * damp,
    'blocks/mlp/up/bias': 0,
  }
  for path, value in expected.items():
    assert deviations[path] == pytest.approx(value, rel=0.05), path
  # Layers start apart from each other.
  kernel = params['blocks']['mlp']['up']['kernel']
  assert np.abs(kernel[0] - kernel[1]).max() > 0


def test_dropout_is_off_unless_asked_for():
  model = SMALL.clone(dropout=0.5)
  params, tokens = weights_of(model), tokens_of(model)
  np.testing.assert_array_equal(
    run(model, params, tokens), run(SMALL, params, tokens)
  )

  @jax.jit
  def noisy(seed):
    rngs = {'dropout': jax.random.key(seed)}
    return model.apply(
      {'params': params}, tokens, deterministic=False, rngs=rngs
    )

  np.testing.assert_array_equal(noisy(0), noisy(0))
  assert np.abs(noisy(0) - noisy(1)).max() > 0.1


def test_logits_are_those_of_the_hidden_states():
  model = SMALL.clone(softcap=2.0)
  variables, tokens = {'params': weights_of(model)}, tokens_of(model)
  x_BTD = model.apply(variables, tokens, method='hidden')
  assert x_BTD.shape == (2, 9, 12)
  np.testing.assert_allclose(
    model.apply(variables, x_BTD[:, 4], method='logits'),
    run(model, variables['params'], tokens)[:, 4],
    **CLOSE,
  )


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'width': 10, 'heads': 4}, 'heads=4 must divide width=10'),
    ({'heads': 4, 'kv_heads': 3}, 'kv_heads=3 must divide heads=4'),
    ({'depth': 0}, 'depth=0 must be at least 1'),
    ({'vocab': -1}, 'vocab=-1 must be at least 1'),
    ({'kv_heads': -2}, 'kv_heads=-2 must not be negative'),
    ({'head_width': -2}, 'head_width=-2 must not be negative'),
    ({'mlp_width': -8}, 'mlp_width=-8 must not be negative'),
    ({'softcap': -1.0}, 'softcap=-1.0 must not be negative'),
    (
      {'attention_softcap': -1.0},
      'attention_softcap=-1.0 must not be negative',
    ),
    ({'init_std': -0.1}, 'init_std=-0.1 must not be negative'),
    ({'norm_epsilon': 0.0}, 'norm_epsilon=0.0 must be positive'),
    ({'rotary_base': 0.0}, 'rotary_base=0.0 must be positive'),
    ({'dropout': 1.0}, r'dropout=1.0 must be in \[0, 1\)'),
    ({'rotary_fraction': 1.5}, r'rotary_fraction=1.5 must be in \(0, 1\]'),
    (
      {'position': 'rotary', 'head_width': 3},
      'rotary_fraction=1.0 of head_width=3 must be even',
    ),
    (
      {'position': 'sinusoidal', 'width': 9, 'heads': 3},
      'width=9 must be even for sinusoids',
    ),
    ({'activation': 'tanh'}, 'activation=tanh must be one of gelu, gelu_exact'),
    ({'block': 'sandwich'}, 'block=sandwich must be one of pre, post'),
    ({'norm': 'none'}, 'norm=none must be one of layernorm, rmsnorm'),
    ({'position': 'alibi'}, 'position=alibi must be one of learned'),
    ({'dtype': 'int8'}, 'dtype=int8 must be one of float32, bfloat16'),
    ({'param_dtype': 'fp8'}, 'param_dtype=fp8 must be one of float32'),
    ({'attention': 'flash'}, 'attention=flash must be one of auto, xla, tiled'),
    ({'stack': 'pile'}, 'stack=pile must be one of auto, loop, scan'),
    ({'remat': 'some'}, 'remat=some must be one of none, full, dots'),
    ({'weight_init': 'zeros'}, 'weight_init=zeros must be one of normal'),
  ],
  ids=lambda value: next(iter(value)) if isinstance(value, dict) else '',
)
def test_bad_fields_are_named_with_their_value(fields, message):
  with pytest.raises(ValueError, match=f'^{message}') as caught:
    SMALL.clone(**fields)
  assert '\n' not in str(caught.value)


def test_more_tokens_than_positions_are_refused():
  params, tokens = weights_of(SMALL), tokens_of(SMALL.clone(length=10))
  with pytest.raises(ValueError, match='^10 tokens must fit in length=9'):
    SMALL.apply({'params': params}, tokens)


def blocks_size(model):
  """Counts the matrices of the blocks, with no help from the model."""
  tokens = jnp.zeros((1, 1), jnp.int32)
  params = jax.eval_shape(
    model.clone(stack='scan').init, jax.random.key(0), tokens
  )['params']
  kernels = [
    x for p, x in tree.items(params) if p[:6] == 'blocks' and p[-6:] == 'kernel'
  ]
  return sum(x.size for x in kernels)


@pytest.mark.parametrize(
  'model',
  [
    GPT(),
    SIZES['llama2-70b'],
    SIZES['palm-8b'].clone(head_width=64),
  ],
  ids=['gpt2', 'grouped', 'multi_query'],
)
def test_scale_climbs_a_ladder_of_sizes(model):
  factors = (0.03, 0.1, 0.3, 1, 3, 10, 30)
  rungs = [model.scale(factor) for factor in factors]
  assert rungs[3] == model
  sizes = [blocks_size(rung) for rung in rungs]
  for factor, size in zip(factors, sizes, strict=True):
    assert size / sizes[3] == pytest.approx(factor, rel=0.1)
  for small, large in zip(rungs, rungs[1:], strict=False):
    assert small.width < large.width
    assert small.depth <= large.depth
  for rung in rungs:
    assert rung.width / rung.heads == pytest.approx(
      model.width / model.heads, rel=0.1
    )
    assert rung.head_width == model.head_width
    if model.kv_heads > 1:
      assert rung.heads // rung.kv_heads == model.heads // model.kv_heads
    else:
      assert rung.kv_heads == model.kv_heads
    if model.mlp_width:
      assert rung.mlp_width / rung.width == pytest.approx(
        model.mlp_width / model.width, rel=0.05
      )
    aspect = (rung.width / rung.depth) / (model.width / model.depth)
    assert 0.5 < aspect < 2
    assert rung.vocab == model.vocab


@pytest.mark.parametrize('factor', [0, -1, float('nan')])
def test_scale_by_nothing_is_refused(factor):
  with pytest.raises(ValueError, match=f'factor={factor} must be positive'):
    GPT().scale(factor)


def test_tiny_is_a_gpt_that_runs():
  model, inputs = tiny()
  params = jax.jit(model.init)(jax.random.key(0), *inputs)['params']
  logits = run(model, params, *inputs)
  assert logits.shape == (2, 12, 29)
  # Fresh weights know nothing: the loss is that of guessing.
  loss = -jax.nn.log_softmax(logits).mean()
  assert float(loss) == pytest.approx(np.log(29), abs=0.05)
