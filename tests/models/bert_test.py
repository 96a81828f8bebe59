"""What must hold of every BERT, whatever its fields."""

# Shapes: B batch, T positions, D width, V vocabulary, K guessed positions.
from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl import tree
from bigdl.models.bert import BERT, SIZES

SMALL = BERT(depth=1, width=12, heads=2, vocab=17, length=9, stack='loop')
# Float32, some dozen operations deep.
CLOSE: dict[str, Any] = {'rtol': 2e-4, 'atol': 2e-5}
SEGMENTS = np.array([[1] * 4 + [2] * 5, [5] * 3 + [1] * 4 + [0] * 2], np.int32)

# To the integer: what is no head of pretraining, pooler included.
BODIES = {
  'bert-base': 109_482_240,
  'bert-large': 335_141_888,
  # As in Google's list of the models of Turc et al.: 4.4, 11.3, 29.1, 41.7 M,
  # which leaves the heads out.
  'bert-tiny': 4_385_920,
  'bert-mini': 11_170_560,
  'bert-small': 28_763_648,
  'bert-medium': 41_373_184,
  'roberta-base': 124_645_632,
  'roberta-large': 355_359_744,
  'ernie-1.0-zh': 99_866_112,
  'ernie-3.0-base-zh': 117_944_832,
}
WITH_BOTH_HEADS = {'bert-base': 110_106_428, 'bert-large': 336_226_108}


def tokens_of(model, rows=2, seed=0):
  shape = (rows, model.length)
  return np.random.default_rng(seed).integers(0, model.vocab, shape, np.int32)


@functools.cache
def weights_of(model, size=0.4):
  """Returns parameters of which none is what initialisation makes of it."""
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    near = 1 if path.endswith('scale') else 0
    return jnp.asarray(near + size * rng.normal(size=leaf.shape), leaf.dtype)

  return tree.map_with_path(draw, shapes_of(model))


def shapes_of(model):
  tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
  return jax.eval_shape(model.init, jax.random.key(0), tokens)['params']


@functools.partial(jax.jit, static_argnums=0, static_argnames='method')
def run(model, *inputs, method=None, **options):
  params, *inputs = inputs
  return model.apply({'params': params}, *inputs, method=method, **options)


def hidden(model, tokens, *inputs, **options):
  params = weights_of(model)
  return np.array(
    run(model, params, tokens, *inputs, method='hidden', **options)
  )


@pytest.mark.parametrize('name', SIZES)
def test_counts_are_the_published_integers(name):
  model = SIZES[name].clone(stack='scan', classes=2)
  sizes = {k: np.prod(v.shape) for k, v in tree.items(shapes_of(model))}
  heads = sum(n for k, n in sizes.items() if k.startswith(('head/', 'sent')))
  assert sum(sizes.values()) - heads == BODIES[name]
  if name in WITH_BOTH_HEADS:
    assert sum(sizes.values()) == WITH_BOTH_HEADS[name]


def test_the_default_is_bert_base():
  assert SIZES['bert-base'] == BERT()


def test_every_position_hears_of_tokens_on_both_sides():
  tokens = tokens_of(SMALL, rows=1)
  other = tokens.copy()
  other[0, 4] += 1
  moved = np.abs(hidden(SMALL, tokens) - hidden(SMALL, other)).max(-1)[0]
  assert (moved > 1e-3).all()


@pytest.mark.parametrize('kind', ['learned', 'rotary'])
def test_packed_documents_are_as_if_alone(kind):
  model = SMALL.clone(position=kind)
  tokens = tokens_of(model)
  types = tokens % 2
  packed = hidden(model, tokens, SEGMENTS, types)
  for row, segments in enumerate(SEGMENTS):
    for document in set(segments) - {0}:
      at = segments == document
      alone = hidden(
        model, tokens[row : row + 1, at], None, types[row : row + 1, at]
      )
      np.testing.assert_allclose(packed[row, at], alone[0], **CLOSE)


def test_padding_is_heard_by_nobody():
  tokens = tokens_of(SMALL)
  other = np.where(SEGMENTS > 0, tokens, 16 - tokens)
  assert (tokens != other).any()
  a, b = (hidden(SMALL, x, SEGMENTS) for x in (tokens, other))
  np.testing.assert_array_equal(a[SEGMENTS > 0], b[SEGMENTS > 0])


def test_padding_on_the_right_leaves_positions_as_they_are():
  tokens = tokens_of(SMALL)
  segments = np.array([[1] * 6 + [0] * 3] * 2, np.int32)
  short = hidden(SMALL, tokens[:, :6])
  np.testing.assert_allclose(
    hidden(SMALL, tokens, segments)[:, :6], short, **CLOSE
  )


def test_given_positions_replace_those_counted():
  tokens = tokens_of(SMALL)
  counted = np.tile(np.arange(9), (2, 1))
  np.testing.assert_array_equal(
    hidden(SMALL, tokens, positions=counted), hidden(SMALL, tokens)
  )
  other = hidden(SMALL, tokens, positions=counted[:, ::-1])
  assert np.abs(other - hidden(SMALL, tokens)).max() > 0.1


def test_the_first_position_is_a_row_of_a_longer_table():
  model = SMALL.clone(first_position=2)
  params = weights_of(model)
  assert params['positions']['embedding'].shape == (11, 12)
  plain = {
    **params,
    'positions': {'embedding': params['positions']['embedding'][2:]},
  }
  tokens = tokens_of(model)
  np.testing.assert_allclose(
    run(model, params, tokens, SEGMENTS, method='hidden'),
    run(SMALL, plain, tokens, SEGMENTS, method='hidden'),
    **CLOSE,
  )


@pytest.mark.parametrize('name', ['types', 'tasks'])
def test_types_that_are_not_given_are_the_first(name):
  model = SMALL.clone(types=3, tasks=3)
  tokens = tokens_of(model)
  first = np.zeros_like(tokens)
  plain = hidden(model, tokens)
  np.testing.assert_array_equal(hidden(model, tokens, **{name: first}), plain)
  other = hidden(model, tokens, **{name: first + 2})
  assert np.abs(other - plain).max() > 0.1


@pytest.mark.parametrize('name', ['types', 'tasks'])
def test_types_are_refused_by_a_model_of_none(name):
  model = SMALL.clone(types=0)
  tokens = tokens_of(model)
  with pytest.raises(ValueError, match=f'^{name} are given to a .*{name}=0'):
    hidden(model, tokens, **{name: tokens})


def test_logits_of_the_guessed_positions_are_those_of_the_whole_row():
  model = SMALL.clone(embed_width=5)
  params, tokens = weights_of(model), tokens_of(model)
  logits_BTV, sentence_BC = run(model, params, tokens, SEGMENTS)
  assert logits_BTV.shape == (2, 9, 17)
  x_BTD = hidden(model, tokens, SEGMENTS)
  at_BK = np.array([[1, 5, 8], [0, 0, 2]])
  x_BKD = np.take_along_axis(x_BTD, at_BK[..., None], 1)
  np.testing.assert_allclose(
    run(model, params, x_BKD, method='logits'),
    np.take_along_axis(np.asarray(logits_BTV), at_BK[..., None], 1),
    **CLOSE,
  )
  np.testing.assert_allclose(
    run(model, params, x_BTD, method='sentence'), sentence_BC, **CLOSE
  )


def test_the_sentence_head_reads_the_first_position():
  params = weights_of(SMALL)
  x_BTD = hidden(SMALL, tokens_of(SMALL))
  pooled_BD = run(SMALL, params, x_BTD, method='pooled')
  assert pooled_BD.shape == (2, 12)
  assert np.abs(pooled_BD).max() <= 1
  x_BTD[:, 1:] = 0
  np.testing.assert_array_equal(
    pooled_BD, run(SMALL, params, x_BTD, method='pooled')
  )


def test_without_a_sentence_head_there_are_logits_alone():
  model = SMALL.clone(classes=0)
  assert not {'pooler', 'sentence_head'} & set(shapes_of(model))
  tokens = tokens_of(model)
  assert run(model, weights_of(model), tokens).shape == (2, 9, 17)
  with pytest.raises(ValueError, match='^classes=0'):
    run(model, weights_of(model), hidden(model, tokens), method='sentence')


def test_pre_norm_ends_in_a_norm_and_starts_without():
  model = SMALL.clone(block='pre')
  shapes = shapes_of(model)
  assert 'final_norm' in shapes
  assert 'embed_norm' not in shapes
  plain = tree.map_with_path(
    lambda path, x: (
      jnp.full_like(x, path.endswith('final_norm/scale'))
      if path.startswith('final_norm')
      else x
    ),
    weights_of(model),
  )
  x_BTD = run(model, plain, tokens_of(model), method='hidden')
  np.testing.assert_allclose(x_BTD.mean(-1), 0, atol=1e-5)
  np.testing.assert_allclose(x_BTD.std(-1), 1, atol=1e-3)


def test_rotary_positions_matter_by_their_differences():
  model = SMALL.clone(position='rotary')
  assert 'positions' not in shapes_of(model)
  tokens, counted = tokens_of(model), np.tile(np.arange(9), (2, 1))
  plain = hidden(model, tokens)
  moved = hidden(model, tokens, positions=counted + 5)
  np.testing.assert_allclose(moved, plain, **CLOSE)
  turned = hidden(model, tokens, positions=counted[:, ::-1])
  assert np.abs(turned - plain).max() > 0.1


@pytest.mark.parametrize('kind', ['normal', 'fan_in'])
def test_matrices_start_as_large_as_asked(kind):
  model = SMALL.clone(width=100, weight_init=kind, types=0, classes=0)
  init = jax.jit(model.init)
  params = init(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))['params']
  for layer in ('attention/query', 'mlp/down'):
    parent, name = layer.split('/')
    kernel = params['blocks_0'][parent][name]['kernel']
    want = 0.02 if kind == 'normal' else len(kernel) ** -0.5
    assert abs(kernel.std() / want - 1) < 0.05, layer
  assert abs(params['embed']['embedding'].std() - 0.02) < 0.003


def test_dropout_is_off_unless_asked_for():
  model = SMALL.clone(dropout=0.5)
  tokens = tokens_of(model)
  np.testing.assert_array_equal(hidden(model, tokens), hidden(SMALL, tokens))

  @jax.jit
  def dropped(key):
    return model.apply(
      {'params': weights_of(model)},
      tokens,
      deterministic=False,
      rngs={'dropout': key},
      method='hidden',
    )

  some, other = (dropped(jax.random.key(seed)) for seed in (0, 1))
  assert np.abs(some - other).max() > 0.1


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'heads': 5}, 'heads=5 must divide width=12'),
    ({'groups': 3}, 'groups=3 must divide depth=1'),
    ({'depth': 0}, 'depth=0 must be at least 1'),
    ({'classes': -1}, 'classes=-1 must be at least 0'),
    ({'activation': 'tanh'}, 'activation=tanh must be one of gelu, '),
    ({'block': 'sandwich'}, 'block=sandwich must be one of pre, post, '),
    ({'dropout': 1.0}, 'dropout=1.0 must be in'),
    ({'norm_epsilon': 0.0}, 'norm_epsilon=0.0 must be positive'),
  ],
)
def test_bad_fields_are_named_with_their_value(fields, message):
  with pytest.raises(ValueError, match=f'^{message}'):
    SMALL.clone(**fields)


def test_more_tokens_than_positions_are_refused():
  with pytest.raises(ValueError, match='^10 tokens must fit in length=9'):
    hidden(SMALL, np.zeros((1, 10), np.int32))


@pytest.mark.parametrize('factor', [0.01, 0.25, 1, 3, 20])
def test_scale_climbs_a_ladder_of_sizes(factor):
  model = SIZES['bert-base']

  def size(model):
    shapes = shapes_of(model.clone(stack='scan'))
    kept = [v for k, v in tree.items(shapes) if 'embedding' not in k]
    return tree.size(kept) - model.vocab

  scaled = model.scale(factor)
  assert abs(size(scaled) / size(model) / factor - 1) < 0.15
  assert scaled.width // scaled.heads == 64
  bend = scaled.width / scaled.depth / (model.width / model.depth)
  assert 0.4 < bend < 2.5
  if factor == 1:
    assert scaled == model
