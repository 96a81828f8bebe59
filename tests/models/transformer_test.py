"""The Transformer: its sizes, what sees what, and its cache."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl import tree
from bigdl.models.transformer import SIZES, Transformer
from bigdl.objectives.seq2seq import Seq2Seq
from bigdl.scaling import count

SMALL = Transformer(
  depth=1, decoder_depth=2, width=8, heads=2, mlp_width=12, vocab=17, length=8
)
FORMS = {
  'vaswani': {},
  'blenderbot': {'block': 'pre', 'position': 'learned', 'head_bias': True},
  'small': {'position': 'learned', 'embed_norm': True, 'activation': 'silu'},
}
SOURCE, TARGET = 7, 6  # Positions.


def batch(seed=0, rows=2):
  rng = np.random.default_rng(seed)
  source = rng.integers(0, 17, (rows, SOURCE), np.int32)
  tokens = rng.integers(0, 17, (rows, TARGET), np.int32)
  return jnp.asarray(source), jnp.asarray(tokens)


@functools.cache
def made(form='vaswani', stack='loop'):
  """Returns the model and parameters that initialisation does not make."""
  model = SMALL.clone(**FORMS[form], stack=stack)
  params = jax.jit(model.init)(jax.random.key(0), *batch())['params']
  leaves, structure = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  moved = [
    x + 0.3 * jax.random.normal(k, x.shape)
    for x, k in zip(leaves, keys, strict=True)
  ]
  return model, jax.tree.unflatten(structure, moved)


@functools.partial(jax.jit, static_argnums=0, static_argnames='method')
def apply(model, params, *inputs, method=None):
  return model.apply({'params': params}, *inputs, method=method)


def logits_of(source, tokens, *segments, form='vaswani'):
  model, params = made(form)
  return apply(model, params, source, tokens, *segments)


@pytest.mark.parametrize(
  ('name', 'size'),
  [
    # d V + 6 (3 152 384 + 4 204 032), and so on: see the formula below.
    ('transformer-base', 63_082_496),
    ('transformer-big', 214_245_376),
    ('blenderbot-90m', 87_508_992),
    ('blenderbot-2.7b', 2_696_268_800),
    ('blenderbot-9.4b', 9_431_810_048),
  ],
)
def test_published_sizes_have_the_published_counts(name, size):
  model = SIZES[name].clone(stack='scan')
  token = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), token, token)
  assert tree.size(shapes['params']) == size == formula(model)


def formula(m):
  """The count of parameters by hand."""
  d, f = m.width, m.mlp_width or 4 * m.width
  attention, mlp, norm = 4 * (d * d + d), 2 * d * f + f + d, 2 * d
  total = m.vocab * d
  total += m.depth * (attention + mlp + 2 * norm)
  total += (m.decoder_depth or m.depth) * (2 * attention + mlp + 3 * norm)
  if m.position == 'learned':
    total += 2 * m.length * d
  return total + 2 * norm * (m.embed_norm + (m.block == 'pre'))


def test_a_target_token_moves_what_follows_it_alone():
  source, tokens = batch()
  plain = logits_of(source, tokens)
  for t in (1, TARGET - 1):
    changed = logits_of(source, tokens.at[:, t].add(1) % 17)
    np.testing.assert_array_equal(changed[:, :t], plain[:, :t])
    assert (np.abs(changed - plain)[:, t:].max(-1) > 1e-4).all()


def test_every_source_token_moves_every_target_position():
  source, tokens = batch()
  plain = logits_of(source, tokens)
  for s in (0, SOURCE - 1):
    changed = logits_of(source.at[:, s].add(1) % 17, tokens)
    assert (np.abs(changed - plain).max(-1) > 1e-4).all()


def test_padding_changes_nothing_that_counts():
  source, tokens = batch()
  lengths = np.array([[4, 3], [SOURCE, TARGET]])
  source_segments = jnp.asarray(np.arange(SOURCE) < lengths[:, :1], jnp.int32)
  segments = jnp.asarray(np.arange(TARGET) < lengths[:, 1:], jnp.int32)
  got = logits_of(source, tokens, source_segments, segments)
  want = logits_of(source[:, :4], tokens[:, :3])
  np.testing.assert_allclose(got[0, :3], want[0], atol=1e-5)
  want = logits_of(source, tokens)
  np.testing.assert_allclose(got[1], want[1], atol=1e-5)
  # Without segments of the target, all of the source that is no padding.
  open_end = logits_of(source, tokens, source_segments)
  np.testing.assert_allclose(open_end[0, :3], got[0, :3], atol=1e-5)


def test_packed_pairs_are_pairs_alone():
  source, tokens = batch()
  source_segments = jnp.asarray([[1, 1, 1, 1, 2, 2, 2]] * 2)
  segments = jnp.asarray([[1, 1, 2, 2, 2, 2]] * 2)
  got = logits_of(source, tokens, source_segments, segments)
  first = logits_of(source[:, :4], tokens[:, :2])
  second = logits_of(source[:, 4:], tokens[:, 2:])
  np.testing.assert_allclose(got[:, :2], first, atol=1e-5)
  np.testing.assert_allclose(got[:, 2:], second, atol=1e-5)


@functools.partial(jax.jit, static_argnums=0)
def decode(model, variables, tokens, start, **memory):
  """Returns the logits of the next tokens, and the cache."""
  hidden, state = model.apply(
    variables,
    tokens,
    start,
    capacity=TARGET,
    method='decode',
    mutable=['cache'],
    **memory,
  )
  return model.apply(variables, hidden, method='logits'), state


def decoded(model, params, source, tokens, segments, steps):
  """Returns logits of target tokens, cut into steps, by way of the cache."""
  memory = apply(model, params, source, segments, method='encode')
  given = {'memory_BSD': memory, 'memory_segments': segments}
  state, start, found = {}, 0, []
  for size in steps:
    piece = tokens[:, start : start + size]
    logits, state = decode(
      model, {'params': params, **state}, piece, jnp.int32(start), **given
    )
    given, start = {}, start + size
    found.append(logits)
  return jnp.concatenate(found, axis=1)


@pytest.mark.parametrize(
  ('form', 'stack'),
  [('blenderbot', 'scan'), ('small', 'loop')],
)
def test_logits_by_cache_are_those_of_the_full_forward(form, stack):
  model, params = made(form, stack)
  source, tokens = batch()
  segments = jnp.asarray([[1] * SOURCE, [1] * 4 + [0] * 3])
  want = apply(model, params, source, tokens, segments)
  got = decoded(model, params, source, tokens, segments, (4, 1, 1))
  np.testing.assert_allclose(got, want, atol=1e-5)


def test_rows_of_the_cache_may_stand_at_positions_of_their_own():
  model, params = made()
  source, tokens = batch()
  want = logits_of(source, tokens)
  memory = apply(model, params, source, method='encode')
  _, state = decode(
    model,
    {'params': params},
    tokens[:, :4],
    jnp.zeros(2, jnp.int32),
    memory_BSD=memory,
  )
  # The second row has read two tokens fewer than the first.
  at = jnp.asarray([4, 2], jnp.int32)
  one = jnp.take_along_axis(tokens, at[:, None], 1)
  got, _ = decode(model, {'params': params, **state}, one, at)
  np.testing.assert_allclose(got[:, 0], want[jnp.arange(2), at], atol=1e-5)


def test_the_table_serves_source_target_and_head():
  _, params = made()
  tables = [p for p in tree.paths(params) if 'embed' in p]
  assert tables == ['embed/embedding']


def test_positions_can_be_given():
  source, tokens = batch()
  plain = logits_of(source, tokens)
  same = logits_of(source, tokens, None, None, jnp.arange(TARGET))
  np.testing.assert_array_equal(plain, same)
  moved = logits_of(source, tokens, None, None, jnp.arange(TARGET) + 1)
  assert np.abs(moved - plain).max() > 1e-3


def test_dropout_is_of_embeddings_and_layers():
  model, params = made()
  source, tokens = batch()
  noisy = model.clone(dropout=0.5)
  want = logits_of(source, tokens)
  np.testing.assert_array_equal(apply(noisy, params, source, tokens), want)

  @jax.jit
  def run(key):
    return noisy.apply(
      {'params': params},
      source,
      tokens,
      deterministic=False,
      rngs={'dropout': key},
    )

  one, other = (run(jax.random.key(k)) for k in (0, 1))
  assert np.abs(one - other).max() > 1e-3


def test_the_ledger_counts_the_products_of_both_stacks():
  S, T = 8, 7
  spec = {
    'source': jax.ShapeDtypeStruct((S,), jnp.int32),
    'tokens': jax.ShapeDtypeStruct((T + 1,), jnp.int32),
  }
  d, f, L, M = 8, 12, 1, 2
  flops = count.flops_per_unit(SMALL, Seq2Seq(), spec, xla=False)
  encoder = L * (S * (4 * d * d + 2 * d * f) + 2 * S * S * d)
  look_back, look_across = 2 * T * T * d, 2 * T * S * d
  decoder = T * (6 * d * d + 2 * d * f) + S * 2 * d * d + look_across
  head = T * d * 17
  want = encoder + M * (decoder + look_back) + head
  assert flops['matmul_full'] * T == 6 * want
  masked = M * look_back * (T + 1) / (2 * T)
  assert flops['matmul_causal'] * T == pytest.approx(
    6 * (encoder + M * decoder + masked + head)
  )
  sizes = count.params(SMALL, Seq2Seq(), spec)
  assert sizes['total'] - sizes['nonembedding'] == 17 * d


@pytest.mark.parametrize('depths', [(6, 0), (2, 24), (6, 2)])
def test_a_ladder_keeps_the_ratio_of_the_stacks(depths):
  base = Transformer(
    depth=depths[0], decoder_depth=depths[1], width=256, heads=4
  )
  assert base.scale(1.0) == base
  ratio = (depths[1] or depths[0]) / depths[0]
  for factor in (4.0, 16.0):
    rung = base.scale(factor)
    own = rung.decoder_depth or rung.depth
    assert abs(own - ratio * rung.depth) <= 0.5
    assert rung.width // rung.heads == 64
    small, large = (formula(m) - m.vocab * m.width for m in (base, rung))
    assert large / small == pytest.approx(factor, rel=0.15)


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'heads': 3}, 'heads=3 must divide width=8'),
    ({'block': 'parallel'}, 'block=parallel must be one of pre, post'),
    ({'width': 7, 'heads': 1}, 'width=7 must be even for sinusoids'),
    ({'begin': 17}, r'begin=17 must be in \[0, 17\)'),
    ({'decoder_depth': -1}, 'decoder_depth=-1 must not be negative'),
    ({'dropout': 1.0}, r'dropout=1.0 must be in \[0, 1\)'),
    ({'norm_epsilon': 0.0}, 'norm_epsilon=0.0 must be positive'),
    ({'depth': 0}, 'depth=0 must be at least 1'),
  ],
)
def test_bad_fields_are_refused_in_one_line(fields, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    SMALL.clone(**fields)


def test_what_does_not_fit_is_refused():
  source, tokens = batch()
  long = jnp.zeros((2, 9), jnp.int32)
  with pytest.raises(
    ValueError, match='^source of 9 tokens must fit in length'
  ):
    logits_of(long, tokens)
  with pytest.raises(
    ValueError, match='^target of 9 tokens must fit in length'
  ):
    logits_of(source, long)
  model, params = made()
  with pytest.raises(ValueError, match='^6 tokens must fit in capacity=4'):
    model.apply(
      {'params': params},
      tokens,
      0,
      capacity=4,
      method='decode',
      mutable=['cache'],
    )
