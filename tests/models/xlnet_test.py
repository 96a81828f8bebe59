"""Which tokens XLNet's two streams see, and what it costs."""

# Shapes: B batch, T positions, P predicted ones, D width, V vocabulary.
from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl import tree
from bigdl.models import xlnet
from bigdl.models.xlnet import XLNet
from bigdl.objectives.permutation_lm import PermutationLM
from bigdl.scaling import count

T = 9
ORDER = np.array([[3, 0, 7, 5, 1, 8, 2, 6, 4]], np.int32)
TOKENS = (np.arange(T, dtype=np.int32) * 5 % 23)[None]


@functools.cache
def ready(causal=False):
  """Returns a model and parameters that are far from zero."""
  model = XLNet(depth=2, width=8, heads=2, vocab=23, causal=causal)
  params = jax.jit(model.init)(jax.random.key(0), TOKENS)['params']
  rng = np.random.default_rng(1)
  moved = tree.map_with_path(
    lambda _, x: x + 0.5 * rng.normal(size=x.shape).astype('f'), params
  )
  return model, moved


@functools.partial(jax.jit, static_argnums=0)
def sees(model, params, order, at):
  """Returns `[P, T]`: which tokens' vectors move each output, of one row.

  Outputs are those of the query stream at `at`, or of content where that is
  None. Tokens are told apart by a row of the table each.
  """
  tokens = jnp.arange(T)[None]

  def outputs(table):
    changed = {**params, 'embed': {'embedding': table}}
    x = model.apply(
      {'params': changed}, tokens, order=order, targets_at=at, method='hidden'
    )
    return x[0] @ jnp.cos(jnp.arange(x.shape[-1]))

  slopes = jax.jacrev(outputs)(params['embed']['embedding'])[:, :T]
  return jnp.abs(slopes).max(-1) > 0


def test_queries_see_only_what_comes_before_them_in_the_order():
  model, params = ready()
  at = np.array([[5, 1, 0, 7]], np.int32)
  want = ORDER[0] < ORDER[0][at[0]][:, None]
  got = sees(model, params, ORDER, at)
  np.testing.assert_array_equal(got, want)
  # The first in order sees nothing, not even itself.
  assert not np.any(got[1])


def test_content_sees_itself_too():
  model, params = ready()
  want = ORDER[0] <= ORDER[0][:, None]
  np.testing.assert_array_equal(sees(model, params, ORDER, None), want)


def test_tokens_of_one_rank_see_each_other():
  model, params = ready()
  order = np.maximum(ORDER, 4)
  want = order[0] <= order[0][:, None]
  np.testing.assert_array_equal(sees(model, params, order, None), want)


def test_without_an_order_content_sees_all_or_all_before_it():
  model, params = ready()
  assert np.all(sees(model, params, None, None))
  causal, params = ready(causal=True)
  got = sees(causal, params, None, None)
  np.testing.assert_array_equal(got, np.tri(T, dtype=bool))
  at = np.array([[4, 0, 8]], np.int32)
  np.testing.assert_array_equal(
    sees(causal, params, None, at), np.arange(T) < at[0][:, None]
  )
  # Both hold where both are asked for.
  np.testing.assert_array_equal(
    sees(causal, params, ORDER, None),
    (ORDER[0] <= ORDER[0][:, None]) & np.tri(T, dtype=bool),
  )


@functools.partial(jax.jit, static_argnums=0)
def run(model, params, *inputs):
  return model.apply({'params': params}, *inputs)


def test_packed_documents_do_not_see_each_other():
  model, params = ready()
  segments = np.array([[1, 1, 1, 1, 2, 2, 2, 2, 2]], np.int32)
  order = np.array([[0, 0, 1, 2, 0, 0, 1, 2, 0]], np.int32)
  at = np.array([[2, 3, 6, 7]], np.int32)
  both = run(model, params, TOKENS, segments, segments - 1, order, at)
  # All of one type, and in one document: distances are what they were.
  for part, own in ((slice(0, 4), slice(0, 2)), (slice(4, 9), slice(2, 4))):
    types = segments[:, part] - 1
    alone = run(
      model, params, TOKENS[:, part], None, types, order[:, part],
      at[:, own] - part.start,
    )  # fmt: skip
    np.testing.assert_allclose(both[:, own], alone, rtol=1e-4, atol=1e-5)


def test_types_matter_by_whether_they_are_the_same():
  model, params = ready()
  types = (np.arange(T) > 3).astype(np.int32)[None]
  plain, same, turned, other = (
    run(model, params, TOKENS, None, t)
    for t in (None, 0 * types, 1 - types, types)
  )
  np.testing.assert_allclose(turned, other, rtol=1e-5, atol=1e-5)
  assert np.abs(same - other).max() > 1e-3
  # One type adds as much to all scores of a query.
  np.testing.assert_allclose(same, plain, rtol=1e-4, atol=1e-5)


def test_where_a_text_begins_does_not_matter():
  model, params = ready()
  padded = np.pad(TOKENS, ((0, 0), (3, 0)))
  segments = (np.arange(T + 3) >= 3).astype(np.int32)[None]
  shifted = run(model, params, padded, segments)[:, 3:]
  np.testing.assert_allclose(
    shifted, run(model, params, TOKENS), rtol=1e-4, atol=1e-5
  )


def test_the_ledger_counts_both_streams():
  D, V, P, L = 16, 29, 3, 2
  model, _ = xlnet.tiny()
  spec = {
    name: jax.ShapeDtypeStruct((size,), jnp.dtype(kind))
    for name, size, kind in (
      ('tokens', 12, 'int32'),
      ('order', 12, 'int32'),
      ('targets_at', P, 'int32'),
      ('targets', P, 'int32'),
      ('weight', P, 'float32'),
    )
  }
  size, N = 12, 12 + P
  # Query, out and MLP of both streams, key and value of content, and W_R of
  # each distance; products of each pair: by content, by distance, of values.
  layer = N * (2 + 8) * D * D + size * 2 * D * D + (2 * size - 1) * D * D
  layer += 3 * N * size * D
  want = 3 * 2 * (L * layer + P * D * V)
  rate = count.flops_per_unit(model, PermutationLM(), spec, xla=False)
  full = rate['matmul_full']
  assert full is not None and full * size == pytest.approx(want, rel=1e-12)
  counts = count.params(model, PermutationLM(), spec)
  # One table is both embedding and head.
  assert counts['total'] - counts['nonembedding'] == V * D


@pytest.mark.parametrize(
  ('fields', 'message'),
  [
    ({'heads': 3}, '^heads=3 must divide width=16'),
    ({'width': 15, 'heads': 1}, '^width=15 must be even'),
    ({'depth': 0}, '^depth=0 must be at least 1'),
    ({'activation': 'tanh'}, '^activation=tanh must be one of'),
    ({'attention': 'cudnn'}, '^attention=cudnn must be one of auto, xla'),
    ({'dropout': 1.0}, '^dropout=1.0 must be in'),
    ({'norm_epsilon': 0.0}, '^norm_epsilon=0.0 must be positive'),
  ],
)
def test_fields_that_cannot_be_are_refused(fields: dict[str, Any], message):
  with pytest.raises(ValueError, match=message):
    xlnet.tiny()[0].clone(**fields)


def test_targets_need_an_order():
  model, params = ready()
  with pytest.raises(ValueError, match='^targets_at needs an order'):
    model.apply({'params': params}, TOKENS, targets_at=TOKENS[:, :2])


def test_dropout_changes_what_is_trained_and_nothing_else():
  model, params = ready()
  noisy = model.clone(dropout=0.5)

  @functools.partial(jax.jit, static_argnums=(0, 2))
  def outputs(model, seed, deterministic):
    rngs = {'dropout': jax.random.key(seed)}
    return model.apply(
      {'params': params}, TOKENS, deterministic=deterministic, rngs=rngs
    )

  want = run(model, params, TOKENS)
  np.testing.assert_allclose(
    outputs(noisy, 0, True), want, rtol=1e-4, atol=1e-5
  )
  one, other = outputs(noisy, 0, False), outputs(noisy, 1, False)
  assert np.abs(one - other).max() > 1e-2
