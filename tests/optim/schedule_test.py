"""Schedules against their formulas, written here in numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl.optim.schedule import WSD, Constant, Cosine, InverseSquareRoot

STEPS = 200
ALL = [
  WSD(warmup=10, decay=0.25),
  WSD(warmup=0.1, decay=0.5, shape='1-sqrt', floor=0.2),
  WSD(warmup=0, decay=1.0, shape='cosine'),
  Cosine(warmup=10, floor=0.05),
  InverseSquareRoot(warmup=10),
  Constant(warmup=10),
]
RTOL = 2e-6  # A few roundings of float32.


def curve(schedule, steps=STEPS):
  return np.asarray(jax.vmap(lambda t: schedule(t, steps))(jnp.arange(steps)))


@pytest.mark.parametrize('schedule', ALL[:1] + ALL[3:], ids=repr)
def test_warmup_rises_evenly_from_a_first_share_to_the_peak(schedule):
  np.testing.assert_allclose(
    curve(schedule)[:10], np.arange(1, 11) / 10, rtol=RTOL
  )


@pytest.mark.parametrize('schedule', ALL, ids=repr)
def test_no_share_is_above_one_or_below_zero(schedule):
  shares = curve(schedule)
  assert shares.max() <= 1
  assert shares.min() > 0


@pytest.mark.parametrize('kind', [WSD, Cosine, InverseSquareRoot, Constant])
def test_a_warmup_below_one_is_a_share_of_the_run(kind):
  np.testing.assert_allclose(
    curve(kind(warmup=0.1)), curve(kind(warmup=20)), rtol=RTOL
  )


@pytest.mark.parametrize('shape', ['linear', '1-sqrt', 'cosine'])
@pytest.mark.parametrize('floor', [0.0, 0.3])
def test_wsd_is_flat_and_then_falls_in_its_shape(shape, floor):
  x = np.arange(50) / 50
  fall = {
    'linear': 1 - x,
    '1-sqrt': 1 - np.sqrt(x),
    'cosine': np.cos(np.pi * x / 2) ** 2,
  }[shape]
  shares = curve(WSD(warmup=10, decay=0.25, shape=shape, floor=floor))
  assert (shares[10:151] == 1).all()
  np.testing.assert_allclose(
    shares[150:], floor + (1 - floor) * fall, rtol=RTOL, atol=1e-6
  )


def test_cosine_falls_from_the_end_of_the_warmup_to_the_floor():
  x = np.arange(190) / 190
  np.testing.assert_allclose(
    curve(Cosine(warmup=10, floor=0.1))[10:],
    0.1 + 0.9 * np.cos(np.pi * x / 2) ** 2,
    rtol=RTOL,
  )


def test_inverse_square_root_halves_when_the_updates_are_four_times_as_many():
  shares = curve(InverseSquareRoot(warmup=10))
  np.testing.assert_allclose(shares[39], 1 / 2, rtol=RTOL)
  np.testing.assert_allclose(shares[159], 1 / 4, rtol=RTOL)


def test_constant_stays_at_the_peak():
  assert (curve(Constant(warmup=3))[2:] == 1).all()


@pytest.mark.parametrize('schedule', ALL, ids=repr)
def test_traced_step_and_length_give_the_same_shares(schedule):
  traced = jax.jit(jax.vmap(schedule, in_axes=(0, None)))
  np.testing.assert_allclose(
    traced(jnp.arange(STEPS), jnp.int32(STEPS)), curve(schedule), rtol=1e-5
  )


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda: WSD(warmup=-1), 'warmup=-1 must not be negative'),
    (lambda: WSD(decay=1.5), r'decay=1.5 must be in \[0, 1\]'),
    (lambda: Cosine(floor=2), r'floor=2 must be in \[0, 1\]'),
    (
      lambda: WSD(warmup=0.5, decay=0.6),
      'warmup=0.5 and decay=0.6 must fit in one run',
    ),
    (
      lambda: Constant(warmup=11).check(10),
      'warmup=11 updates must fit in steps=10',
    ),
    (
      lambda: WSD(warmup=9, decay=0.2).check(10),
      'warmup=9 updates and decay=0.2 of them must fit in steps=10',
    ),
  ],
)
def test_a_schedule_that_cannot_be_is_refused_by_name_and_value(make, message):
  with pytest.raises(ValueError, match=f'^{message}$'):
    make()


@pytest.mark.parametrize('steps', [1, 2, 3])
def test_the_defaults_suit_the_shortest_runs(steps):
  for kind in (WSD, Cosine, InverseSquareRoot, Constant):
    kind().check(steps)
    assert np.isfinite(curve(kind(), steps)).all()
    assert curve(kind(), steps).max() > 0
