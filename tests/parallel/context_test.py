"""Attention over split positions is attention: by all-to-all, and by a ring."""

# Shapes: B rows, T positions, H heads, G key-value heads, K head width.
from __future__ import annotations

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl.layers import attention, cross, relative, split
from bigdl.parallel import scope
from bigdl.parallel.layout import Layout

CLOSE = 2e-6  # Absolute, of values and gradients near 1 in float32.
B, T, H, K = 4, 16, 4, 8

ALL_TO_ALL = Layout(data=2, context=4)
RING = Layout(data=1, context=8)
# Two heads on each device, which four parts cannot share.
RING_OF_HEADS = Layout(data=1, context=4, tensor=2)
LAYOUTS = {'all-to-all': ALL_TO_ALL, 'ring': RING, 'heads': RING_OF_HEADS}

CASES = {
  'causal': {},
  'both sides': {'causal': False},
  'packed': {'packed': True},
  'packed, both sides': {'packed': True, 'causal': False},
  'banded': {'window': 5},
  'capped': {'softcap': 2.0},
  'shared heads': {'groups': 2},
  'one for all': {'groups': 1, 'packed': True, 'window': 7},
}


def inputs(groups=H, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(0), 4)
  shapes = [(B, T, n, K) for n in (H, groups, groups, H)]
  return [
    jax.random.normal(key, shape, dtype)
    for key, shape in zip(keys, shapes, strict=True)
  ]


def segments():
  starts = np.random.default_rng(0).integers(0, 5, (B, T)) == 0
  return jnp.asarray(np.cumsum(starts, axis=1), jnp.int32)


def attended(kind='auto', packed=False, groups=H, **options):
  """Returns what maps q, k, v, do to values and gradients."""
  segments_BT = segments() if packed else None

  def attend(q, k, v):
    return attention.attend(
      q, k, v, segments_BT=segments_BT, kind=kind, **options
    )

  def run(q, k, v, do):
    o, back = jax.vjp(attend, q, k, v)
    return o, *back(do)

  return run


def under(layout, run, arrays):
  with scope.entered(layout, layout.mesh()):
    return jax.device_get(jax.jit(run)(*arrays))


@pytest.mark.parametrize(
  ('layout', 'case'),
  [
    *[('ring', case) for case in CASES],
    *[
      ('all-to-all', case) for case in ('packed', 'both sides', 'shared heads')
    ],
    *[('heads', case) for case in ('banded', 'one for all')],
  ],
)
def test_values_and_gradients_are_those_of_whole_positions(layout, case):
  options = CASES[case]
  arrays = inputs(options.get('groups', H))
  want = jax.jit(attended('xla', **options))(*arrays)
  found = under(LAYOUTS[layout], attended(**options), arrays)
  for a, b in zip(found, want, strict=True):
    np.testing.assert_allclose(a, b, atol=CLOSE, rtol=0)


@pytest.mark.parametrize(
  ('layout', 'one', 'other'),
  [
    ('all-to-all', 'all-to-all', 'collective-permute'),
    ('ring', 'collective-permute', 'all-to-all'),
    ('heads', 'collective-permute', 'all-to-all'),
  ],
)
def test_heads_enough_are_exchanged_and_too_few_go_round(layout, one, other):
  layout = LAYOUTS[layout]
  x = jax.ShapeDtypeStruct((B, T, H, K), jnp.float32)
  with scope.entered(layout, layout.mesh()):

    def run(q, k, v):
      q, k, v = map(split.heads, (q, k, v))
      return attention.attend(q, k, v)

    text = jax.jit(run).lower(x, x, x).compile().as_text()
  assert one in text
  assert other not in text
  # No device ever has all of the keys.
  assert 'all-gather' not in text


def test_a_ring_keeps_the_dtype_of_compute():
  arrays = inputs(dtype=jnp.bfloat16)
  found = under(RING, attended(), arrays)
  want = jax.jit(attended('xla'))(*(x.astype(jnp.float32) for x in arrays))
  for a, b in zip(found, want, strict=True):
    assert a.dtype == jnp.bfloat16
    np.testing.assert_allclose(a.astype(np.float32), b, atol=0.1, rtol=0.05)


def test_a_stack_of_stages_may_be_mapped_over():
  arrays = inputs()
  stages = [jnp.stack([x, x / 2, -x]) for x in arrays]
  want = jax.jit(jax.vmap(attended('xla')))(*stages)
  found = under(RING, jax.vmap(attended()), stages)
  for a, b in zip(found, want, strict=True):
    np.testing.assert_allclose(a, b, atol=4 * CLOSE, rtol=0)


def test_positions_that_cannot_be_split_are_named():
  arrays = [x[:, :12] for x in inputs()]
  with pytest.raises(ValueError) as error:
    under(RING, attended(), arrays)
  assert str(error.value) == 'layout.context=8 must divide length=12'


def test_keys_of_another_sequence_are_seen_whole():
  q, k, v, do = inputs()
  k, v = (x[:, :12].swapaxes(1, 2) for x in (k, v))
  seen = jnp.asarray(np.random.default_rng(0).random((B, T, 12)) < 0.7)
  seen = seen.at[..., 0].set(True)

  def run(q, k, v, do):
    o, back = jax.vjp(lambda *x: cross.attend(*x, seen), q, k, v)
    return o, *back(do)

  want = jax.jit(run)(q, k, v, do)
  for a, b in zip(under(RING, run, (q, k, v, do)), want, strict=True):
    np.testing.assert_allclose(a, b, atol=CLOSE, rtol=0)


class Relative(nn.Module):
  """Attention by distance with parameters of its own."""

  @nn.compact
  def __call__(self, x_BTD):
    return relative.RelativeAttention(heads=4, head_width=8)(x_BTD)


def test_distances_are_those_of_whole_positions():
  x = jax.random.normal(jax.random.key(1), (B, T, 32))
  params = jax.jit(Relative().init)(jax.random.key(0), x)
  run = jax.value_and_grad(lambda p, x: (Relative().apply(p, x) ** 2).sum())
  want = jax.jit(run)(params, x)
  found = under(ALL_TO_ALL, run, (params, x))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-5),
    found,
    jax.device_get(want),
  )


def test_too_few_heads_for_distances_are_named():
  x = jnp.zeros((B, T, 32))
  with scope.entered(RING, RING.mesh()), pytest.raises(ValueError) as error:
    jax.eval_shape(Relative().init, jax.random.key(0), x)
  assert str(error.value) == (
    'heads=4 must be divisible by layout.tensor x layout.context=8 for relative'
    ' positions'
  )
