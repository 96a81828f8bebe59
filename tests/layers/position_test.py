"""Positions: formulas, relativity, and documents in a row."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from bigdl.layers import position


def test_positions_restart_with_each_document():
  segments = jnp.array([[1, 1, 1, 2, 2, 0, 0], [3, 1, 1, 3, 3, 3, 3]])
  np.testing.assert_array_equal(
    position.segment_positions(segments),
    [[0, 1, 2, 0, 1, 0, 1], [0, 0, 1, 0, 1, 2, 3]],
  )


def test_sinusoids_are_their_formula():
  # Vaswani et al., section 3.5: sin(t / 10000^(2 i / d)), then cosines.
  out = position.sinusoid(jnp.array([0, 5, 1000]), 6)
  for row, t in zip(out, (0, 5, 1000), strict=True):
    angles = t / 10000 ** (np.arange(3) * 2 / 6)
    want = np.concatenate([np.sin(angles), np.cos(angles)])
    np.testing.assert_allclose(row, want, atol=1e-4)


def test_closed_sinusoids_fall_to_exactly_their_base():
  # Of 8 coordinates, rates are 1, 10000^(-1/3), 10000^(-2/3) and 1 / 10000.
  out = position.sinusoid(jnp.array([3, 700]), 8, closed=True)
  for row, t in zip(out, (3, 700), strict=True):
    angles = t * 10000 ** (-np.arange(4) / 3)
    want = np.concatenate([np.sin(angles), np.cos(angles)])
    np.testing.assert_allclose(row, want, atol=1e-4)
  assert out[1, 3] == pytest.approx(np.sin(0.07), rel=1e-5)


def test_rotations_turn_pairs_and_leave_the_rest():
  x = np.random.default_rng(0).normal(size=(1, 4, 2, 7))
  table = position.rotary(jnp.arange(4), 4, base=100.0)
  out = position.rotate(jnp.asarray(x), table)
  np.testing.assert_allclose(out[..., 4:], x[..., 4:], rtol=1e-6)
  # Coordinates i and i + 2 are one complex number, turned by t / 100^(2 i / 4).
  turn = np.exp(1j * np.arange(4)[:, None] / 100 ** (np.arange(2) / 2))
  z = (x[..., :2] + 1j * x[..., 2:4]) * turn[:, None]
  want = np.concatenate([z.real, z.imag], -1)
  np.testing.assert_allclose(out[..., :4], want, rtol=1e-5, atol=1e-6)


def test_products_of_rotated_vectors_depend_on_distance_alone():
  rng = np.random.default_rng(0)
  q, k = (jnp.asarray(rng.normal(size=(1, 1, 1, 8))) for _ in range(2))

  def score(t, s):
    a = position.rotate(q, position.rotary(jnp.array([t]), 8))
    b = position.rotate(k, position.rotary(jnp.array([s]), 8))
    return float((a * b).sum())

  assert score(9, 4) == pytest.approx(score(205, 200), abs=1e-4)
  assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-2)


def test_angles_are_float32_where_tables_have_16_bits():
  near, far = position.rotary(jnp.array([1000, 1001]), 4, dtype='bfloat16')[0]
  assert near.dtype == jnp.bfloat16
  np.testing.assert_allclose(near[0], np.cos(1000.0), atol=0.01)
  np.testing.assert_allclose(far[0], np.cos(1001.0), atol=0.01)
