"""Numbers of texts and images."""

from __future__ import annotations

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl.models.bert import BERT
from bigdl.models.head import Regressor
from bigdl.objectives.regress import Regress

OBJECTIVE = Regress()


class Given(nn.Module):
  """Predicts what the first tokens say, times a weight."""

  outputs: int = 1

  @nn.compact
  def __call__(self, tokens_BT, segments=None, deterministic=True):
    w = self.param('w', nn.initializers.ones, ())
    return w * tokens_BT[:, : self.outputs].astype(jnp.float32)


BATCH = {
  'tokens': jnp.asarray([[1, 9], [2, 9], [4, 9], [7, 9]], jnp.int32),
  'target': jnp.asarray([2.0, 2.0, 1.0, 9.0]),
  'segments': jnp.asarray([[1, 1], [1, 0], [1, 1], [0, 0]], jnp.int32),
}


def spec(batch):
  return {
    k: jax.ShapeDtypeStruct(v.shape[1:], v.dtype) for k, v in batch.items()
  }


def test_the_loss_is_half_the_squared_error_of_rows_that_count():
  model = Given()
  params, extra = OBJECTIVE.init(model, jax.random.key(0), BATCH)
  loss, (_, metrics) = OBJECTIVE.loss(
    model, params, extra, BATCH, jax.random.key(1)
  )
  errors = np.array([-1.0, 0.0, 3.0])
  assert loss == pytest.approx((errors**2).mean() / 2)
  assert metrics['weight'] == 3
  want = np.corrcoef([1, 2, 4], [2, 2, 1])[0, 1]
  assert metrics['pearson'] == pytest.approx(want, rel=1e-5)
  sums, weight = OBJECTIVE.measures(model, params, extra, BATCH)
  np.testing.assert_allclose(sums['loss'], [0.5, 0, 4.5, 0])
  np.testing.assert_allclose(sums['mae'], [1, 0, 3, 0])
  np.testing.assert_array_equal(weight, [1, 1, 1, 0])


def test_a_head_learns_a_number_of_a_text():
  body = BERT(depth=1, width=8, heads=2, vocab=11, length=4)
  model = Regressor(body)
  tokens = jax.random.randint(jax.random.key(0), (32, 4), 0, 11)
  target = (tokens == 3).sum(1) - 0.4
  batch = {'tokens': tokens, 'target': target, 'weight': jnp.ones(32)}
  params, _ = OBJECTIVE.init(model, jax.random.key(1), batch)
  OBJECTIVE.check(model, spec(batch), {})

  @jax.jit
  def step(params):
    def loss(p):
      return OBJECTIVE.loss(model, p, {}, batch, jax.random.key(0))

    (value, _), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return jax.tree.map(lambda p, g: p - 0.3 * g, params, grads), value

  losses = []
  for _ in range(150):
    params, value = step(params)
    losses.append(float(value))
  assert losses[-1] < 0.7 * float(target.var()) / 2


@pytest.mark.parametrize(
  ('changes', 'model', 'words'),
  [
    ({'target': None}, Given(), 'expected target and image or tokens'),
    ({'target': BATCH['tokens'][:, 0]}, Given(), 'must be a float or K'),
    ({}, Given(outputs=2), r'Given returns \(1, 2\) for a row, expected 1'),
  ],
)
def test_data_that_does_not_fit_is_refused(changes, model, words):
  batch = {k: v for k, v in {**BATCH, **changes}.items() if v is not None}
  with pytest.raises(ValueError, match=words):
    OBJECTIVE.check(model, spec(batch), {})
