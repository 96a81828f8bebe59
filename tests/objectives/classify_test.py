"""Cross-entropy of classes: by hand; smoothed, mixed, weighted; held out."""

from __future__ import annotations

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl.objectives.classify import Classify

CLOSE = 1e-6
KEY = jax.random.key(0)
LOGITS = np.array(
  [[2.0, 0.5, -1.0], [0.1, 0.3, 0.2], [-1.0, 0.0, 3.0], [0.0, 1.0, 0.5]],
  np.float32,
)
LABEL = np.array([0, 2, 2, 0], np.int32)


class Table(nn.Module):
  """Gives row i of its table to an image of value i."""

  classes: int = 3

  @nn.compact
  def __call__(self, image_BHWC, deterministic=True):
    table = self.param('table', nn.initializers.zeros, (4, self.classes))
    return table[image_BHWC[:, 0, 0, 0]]


def batch(**fields):
  image = np.arange(4, dtype=np.uint8)[:, None, None, None]
  return {'image': image, 'label': LABEL, **fields}


def loss_of(objective, rows):
  params = {'table': LOGITS}
  loss, (_, metrics) = objective.loss(Table(), params, {}, rows, KEY)
  assert metrics['loss'] == loss
  return float(loss), metrics


LOG_P = np.log(np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True))
OWN = -LOG_P[np.arange(4), LABEL]


def test_the_loss_is_the_cross_entropy_and_accuracy_the_share_of_first_labels():
  loss, metrics = loss_of(Classify(), batch())
  assert loss == pytest.approx(OWN.mean(), rel=CLOSE)
  assert metrics['accuracy'] == 0.5
  assert metrics['weight'] == 4


def test_smoothing_gives_a_share_to_all_classes_alike():
  target = 0.3 / 3 + 0.7 * np.eye(3)[LABEL]
  loss, _ = loss_of(Classify(smoothing=0.3), batch())
  assert loss == pytest.approx(-(target * LOG_P).sum(1).mean(), rel=CLOSE)


def test_mixed_rows_have_two_labels():
  second = np.array([1, 1, 2, 0], np.int32)
  mix = np.array([0.25, 0.5, 0.9, 0.1], np.float32)
  target = (
    mix[:, None] * np.eye(3)[LABEL] + (1 - mix[:, None]) * np.eye(3)[second]
  )
  loss, metrics = loss_of(Classify(), batch(label_2=second, mix=mix))
  assert loss == pytest.approx(-(target * LOG_P).sum(1).mean(), rel=CLOSE)
  first = LOGITS.argmax(1)
  right = mix * (first == LABEL) + (1 - mix) * (first == second)
  assert metrics['accuracy'] == pytest.approx(right.mean(), rel=CLOSE)


def test_rows_without_weight_do_not_count():
  weight = np.array([1, 0, 1, 0], np.float32)
  loss, metrics = loss_of(Classify(), batch(weight=weight))
  assert loss == pytest.approx(OWN[[0, 2]].mean(), rel=CLOSE)
  assert (metrics['accuracy'], metrics['weight']) == (1, 2)


def test_held_out_rows_are_scored_without_smoothing_and_with_their_error():
  weight = np.array([1, 1, 0, 2], np.float32)
  objective, params = Classify(smoothing=0.5), {'table': LOGITS}
  sums, found = objective.measures(Table(), params, {}, batch(weight=weight))
  np.testing.assert_allclose(sums['loss'], OWN * weight, rtol=CLOSE)
  np.testing.assert_array_equal(sums['error'], [0, 1, 0, 2])
  np.testing.assert_array_equal(found, weight)
  loss, again = objective.score(Table(), params, {}, batch(weight=weight))
  np.testing.assert_array_equal(loss, sums['loss'])
  np.testing.assert_array_equal(again, weight)


class Words(nn.Module):
  """Counts tokens of each type within real segments: a logit a class."""

  classes: int = 3

  @nn.compact
  def __call__(
    self, tokens_BT, segments=None, types=None, *, deterministic=True
  ):
    weight = self.param('weight', nn.initializers.ones, (self.classes,))
    real = tokens_BT * (segments != 0) * (1 + types)
    return real.sum(1)[:, None] * weight


def test_texts_are_given_with_their_segments_and_types():
  rows = {
    'tokens': np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.int32),
    'segments': np.array([[1, 1, 0], [1, 1, 1], [0, 0, 0]], np.int32),
    'types': np.array([[0, 1, 1], [0, 0, 0], [1, 1, 1]], np.int32),
    'label': np.array([0, 1, 2], np.int32),
  }
  params, _ = Classify().init(Words(), KEY, rows)
  weight = jnp.array([0.1, 0.0, -0.1])
  assert params['weight'].shape == weight.shape
  sums, found = Classify().measures(Words(), {'weight': weight}, {}, rows)
  logits = np.outer([1 + 2 * 2, 4 + 5 + 6, 0], weight)
  want = np.log(np.exp(logits).sum(1)) - logits[np.arange(3), [0, 1, 2]]
  # Nothing but padding in the last one.
  np.testing.assert_array_equal(found, [1, 1, 0])
  np.testing.assert_allclose(sums['loss'], want * [1, 1, 0], rtol=1e-5)


def spec(**changes):
  fields = {
    'image': jax.ShapeDtypeStruct((1, 1, 1), jnp.uint8),
    'label': jax.ShapeDtypeStruct((), jnp.int32),
    **changes,
  }
  return {k: v for k, v in fields.items() if v is not None}


@pytest.mark.parametrize(
  ('rows', 'facts', 'told'),
  [
    (spec(label=None), {}, 'data rows hold image, expected label and image'),
    (spec(image=None), {}, 'data rows hold label, expected'),
    (
      spec(label=jax.ShapeDtypeStruct((), jnp.float32)),
      {},
      'label=float32.* must be one integer',
    ),
    (spec(), {'classes': 4}, 'data classes=4 are more than model.classes=3'),
  ],
)
def test_data_that_does_not_fit_is_one_line(rows, facts, told):
  with pytest.raises(ValueError, match=told) as error:
    Classify().check(Table(), rows, facts)
  assert '\n' not in str(error.value)


def test_a_model_without_a_logit_for_each_class_is_refused():
  class Body(nn.Module):
    def __call__(self, image_BHWC, deterministic=True):
      return image_BHWC[:, 0]

  with pytest.raises(ValueError, match=r'Body returns \[1, 1, 1\]'):
    Classify().check(Body(), spec(), {'classes': 3})


def test_smoothing_must_leave_something_of_the_label():
  with pytest.raises(ValueError, match='smoothing=1.0 must be in'):
    Classify(smoothing=1.0)
