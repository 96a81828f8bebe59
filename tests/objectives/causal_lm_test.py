"""The causal-LM objective: its loss, its gradient, and what it never builds."""

# Shapes: B rows, T positions, D width, V vocabulary.
from __future__ import annotations

import re

from flax import linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
import numpy as np
import optax
import pytest

from bigdl.models.gpt import GPT
from bigdl.objectives.base import State
from bigdl.objectives.causal_lm import CausalLM
from bigdl.parallel.layout import Layout
from bigdl.parallel.rules import batch_sharding
from bigdl.scaling import count

B, T, V = 4, 7, 23
MODEL = GPT(depth=1, width=8, heads=2, vocab=V, length=T)
KEY = jax.random.key(0)
RTOL = 1e-6


def packed(rows=B, length=T, vocab=V):
  rng = np.random.default_rng(0)
  tokens = rng.integers(0, vocab, (rows, length + 1), np.int32)
  segments = np.sort(rng.integers(1, 4, (rows, length + 1), np.int32), axis=1)
  segments[0, -3:] = 0
  return {'tokens': tokens, 'segments': segments}


def plain_batch():
  return {'tokens': packed()['tokens']}


BATCHES = {'packed': packed(), 'plain': plain_batch()}
PARAMS = CausalLM().init(MODEL, jax.random.key(1), BATCHES['plain'])[0]


def reference(params, batch, z_loss=0.0, model=MODEL):
  """Mean cross-entropy over whole logits, as in any textbook."""
  tokens, segments = batch['tokens'], batch.get('segments')
  inside = None if segments is None else segments[:, :-1]
  logits_BTV = model.apply({'params': params}, tokens[:, :-1], inside)
  log_p_BTV = jax.nn.log_softmax(logits_BTV)
  index_BT = tokens[:, 1:]
  loss_BT = -jnp.take_along_axis(log_p_BTV, index_BT[..., None], -1)[..., 0]
  loss_BT += z_loss * jax.nn.logsumexp(logits_BTV, axis=-1) ** 2
  if segments is None:
    return loss_BT.mean()
  counts_BT = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
  return (loss_BT * counts_BT).sum() / counts_BT.sum()


def value_and_grad(objective, params, batch, model=MODEL, key=KEY):
  def loss(params):
    return objective.loss(model, params, {}, batch, key)

  (total, (_, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(params)
  return total, metrics, grads


def close(a, b, rtol=RTOL, atol=1e-7):
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b
  )


@pytest.mark.parametrize('z_loss', [0.0, 0.1])
@pytest.mark.parametrize('kind', BATCHES)
@pytest.mark.parametrize('chunk', [0, 1, 2, 3, 7, 100])
def test_any_chunk_gives_the_loss_and_gradient_of_the_textbook(
  chunk, kind, z_loss
):
  batch = BATCHES[kind]
  expected = jax.value_and_grad(reference)(PARAMS, batch, z_loss)
  objective = CausalLM(z_loss=z_loss, chunk=chunk)
  total, _, grads = value_and_grad(objective, PARAMS, batch)
  close((total, grads), expected)


@pytest.mark.parametrize('chunk', [3, 7])
def test_a_gradient_is_scaled_by_what_becomes_of_the_loss(chunk):
  def tripled(params):
    loss, _ = CausalLM(chunk=chunk).loss(
      MODEL, params, {}, BATCHES['packed'], KEY
    )
    return 3 * loss

  once = value_and_grad(CausalLM(), PARAMS, BATCHES['packed'])[2]
  close(jax.grad(tripled)(PARAMS), jax.tree.map(lambda g: 3 * g, once))


@pytest.mark.parametrize('tied', [True, False])
def test_a_free_head_gets_its_gradient_too(tied):
  model = MODEL.clone(tied=tied)
  params = CausalLM().init(model, KEY, BATCHES['plain'])[0]
  expected = jax.grad(reference)(params, BATCHES['plain'], model=model)
  got = value_and_grad(CausalLM(chunk=2), params, BATCHES['plain'], model)[2]
  close(got, expected)


@pytest.mark.parametrize('chunk', [3, 7])
def test_the_reported_loss_is_without_the_z_loss(chunk):
  batch = BATCHES['packed']
  total, metrics, _ = value_and_grad(
    CausalLM(z_loss=0.1, chunk=chunk), PARAMS, batch
  )
  plain = reference(PARAMS, batch)
  close(metrics['loss'], plain)
  close(metrics['z_loss'], reference(PARAMS, batch, 0.1) - plain, rtol=1e-5)
  close(total, metrics['loss'] + metrics['z_loss'])


@pytest.mark.parametrize('chunk', [3, 7])
def test_weight_and_accuracy_count_targets_inside_documents(chunk):
  batch = BATCHES['packed']
  _, metrics, _ = value_and_grad(CausalLM(chunk=chunk), PARAMS, batch)
  segments, targets = batch['segments'], batch['tokens'][:, 1:]
  counts = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] > 0)
  logits = MODEL.apply(
    {'params': PARAMS}, batch['tokens'][:, :-1], segments[:, :-1]
  )
  right = np.asarray(logits.argmax(-1)) == targets
  assert metrics['weight'] == counts.sum() < targets.size
  close(metrics['accuracy'], right[counts].mean())


def test_tokens_of_another_document_change_nothing():
  batch = packed()
  batch['segments'][:, :4] = 1
  batch['segments'][:, 4:] = 2
  other = {**batch, 'tokens': batch['tokens'].copy()}
  other['tokens'][:, :3] = (other['tokens'][:, :3] + 1) % V
  # The last token of the first document is an input to none of its targets.
  masks = [
    {**b, 'segments': np.where(b['segments'] == 1, 0, 2)}
    for b in (batch, other)
  ]
  for mask in masks:
    mask['segments'] = mask['segments'].astype(np.int32)
  a, b = (value_and_grad(CausalLM(), PARAMS, m) for m in masks)
  close(a[0], b[0])


def test_padding_changes_neither_loss_nor_gradient():
  batch = packed()
  padding = {
    'tokens': np.full((2, T + 1), 5, np.int32),
    'segments': np.zeros((2, T + 1), np.int32),
  }
  longer = {k: np.concatenate([batch[k], padding[k]]) for k in batch}
  for chunk in (3, 7):
    objective = CausalLM(chunk=chunk)
    close(
      value_and_grad(objective, PARAMS, longer),
      value_and_grad(objective, PARAMS, batch),
    )


def test_a_batch_without_targets_has_no_loss_and_no_gradient():
  batch = {**packed(), 'segments': np.zeros((B, T + 1), np.int32)}
  total, metrics, grads = value_and_grad(CausalLM(chunk=3), PARAMS, batch)
  assert total == metrics['weight'] == 0
  assert not any(np.asarray(g).any() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize('chunk', [0, 3])
def test_scores_of_rows_add_up_to_the_loss_and_do_not_mix(chunk):
  objective, batch = CausalLM(z_loss=0.5, chunk=chunk), BATCHES['packed']
  losses, weights = objective.score(MODEL, PARAMS, {}, batch)
  assert losses.dtype == weights.dtype == jnp.float32
  assert losses.shape == weights.shape == (B,)
  close(losses.sum() / weights.sum(), reference(PARAMS, batch))
  row = {k: v[1:2] for k, v in batch.items()}
  alone, weight = objective.score(MODEL, PARAMS, {}, row)
  close((losses[1:2], weights[1:2]), (alone, weight))


def test_dropout_draws_from_the_key_in_training_only():
  model = MODEL.clone(dropout=0.5)
  batch = BATCHES['plain']
  totals = [
    value_and_grad(CausalLM(), PARAMS, batch, model, jax.random.key(k))[0]
    for k in (1, 1, 2)
  ]
  assert totals[0] == totals[1] != totals[2]
  losses, weights = CausalLM().score(model, PARAMS, {}, batch)
  close(losses.sum() / weights.sum(), reference(PARAMS, batch))


def test_bfloat16_compute_sums_its_losses_in_float32():
  half = MODEL.clone(dtype='bfloat16')
  for chunk in (3, 7):
    total, metrics, grads = value_and_grad(
      CausalLM(chunk=chunk), PARAMS, BATCHES['plain'], half
    )
    assert total.dtype == metrics['loss'].dtype == jnp.float32
    assert all(g.dtype == jnp.float32 for g in jax.tree.leaves(grads))
    expected = jax.value_and_grad(reference)(
      PARAMS, BATCHES['plain'], model=half
    )
    close((total, grads), expected, rtol=0.02, atol=2e-4)


def test_float64_stays_float64():
  with jax.enable_x64(True):
    model = MODEL.clone(dtype='float64', param_dtype='float64')
    batch = BATCHES['packed']
    params = CausalLM().init(model, KEY, batch)[0]
    total, _, grads = value_and_grad(CausalLM(chunk=3), params, batch, model)
    expected = jax.value_and_grad(reference)(params, batch, model=model)
    assert grads['embed']['embedding'].dtype == jnp.float64
    close(grads, expected[1], rtol=1e-6, atol=1e-9)
    close(total, expected[0])


class Wide(nn.Module):
  """Nothing but an embedding and a head of many tokens."""

  vocab: int = 4096
  length: int = 64

  def setup(self):
    self.embed = nn.Embed(self.vocab, 8)

  def __call__(self, tokens_BT, deterministic=True):
    return self.logits(self.hidden(tokens_BT))

  def hidden(self, tokens_BT, deterministic=True):
    return self.embed(tokens_BT)

  def logits(self, x):
    return self.embed.attend(x)


def compiled(objective, rows=2, model=None):
  model = model or Wide()
  tokens = jax.ShapeDtypeStruct((rows, model.length + 1), jnp.int32)
  params = jax.eval_shape(
    lambda t: objective.init(model, KEY, {'tokens': t})[0], tokens
  )

  def step(params, tokens):
    return value_and_grad(objective, params, {'tokens': tokens}, model)

  return jax.jit(step).lower(params, tokens).compile()


def test_chunks_take_a_fraction_of_the_memory_of_whole_logits():
  whole, parts = compiled(CausalLM(chunk=64)), compiled(CausalLM(chunk=4))
  saved = (
    whole.memory_analysis().temp_size_in_bytes
    - parts.memory_analysis().temp_size_in_bytes
  )
  # Two arrays the size of the logits are gone, less those of one chunk.
  assert saved > 0.8 * 2 * (2 * 64 * 4096 * 4)


def test_logits_of_a_whole_batch_appear_nowhere_in_the_program():
  def sizes(objective):
    text = compiled(objective).as_text()
    shapes = re.findall(r'(?:f32|bf16)\[([\d,]+)\]', text)
    return {int(np.prod([int(n) for n in s.split(',')])) for s in shapes}

  logits = 2 * 64 * 4096
  assert logits in sizes(CausalLM(chunk=64))
  assert max(sizes(CausalLM(chunk=16))) <= logits // 4


def chunk_of(rows, length, vocab):
  """The chunk that is chosen, read off the shapes the head is given."""
  seen = []

  class Spy(Wide):
    def logits(self, x):
      seen.append(x.shape[1])
      return super().logits(x)

  jax.eval_shape(
    lambda: value_and_grad(
      CausalLM(),
      {'embed': {'embedding': jnp.zeros((vocab, 8))}},
      {'tokens': jnp.zeros((rows, length + 1), jnp.int32)},
      Spy(vocab=vocab, length=length),
    )
  )
  return min(seen)


def test_small_logits_are_computed_at_once():
  assert chunk_of(16, 128, 256) == 128


def test_large_logits_are_cut_into_equal_parts_within_bounds():
  for rows, length, vocab in [(8, 1024, 8192), (4, 250, 50257), (3, 96, 99999)]:
    chunk = chunk_of(rows, length, vocab)
    assert chunk < length
    assert length % chunk == 0
    assert rows * chunk * vocab * 4 < 2**27


def test_a_mesh_lets_every_device_take_a_chunk_of_its_own():
  assert chunk_of(8, 1024, 8192) == 32
  with jax.set_mesh(Layout().mesh()):
    assert chunk_of(8, 1024, 8192) == 256


@pytest.mark.parametrize('chunk', [2, 3, 7])
def test_rows_stay_on_their_devices(chunk):
  mesh = Layout(data=8).mesh()
  objective, model = CausalLM(chunk=chunk), MODEL
  batch = packed(rows=8)
  whole = NamedSharding(mesh, PartitionSpec())

  def step(params, batch):
    return value_and_grad(objective, params, batch, model)

  fn = jax.jit(
    step, in_shardings=(whole, batch_sharding(mesh)), out_shardings=whole
  )
  text = fn.lower(PARAMS, batch).compile().as_text()
  assert 'all-reduce' in text
  for collective in ('all-gather', 'all-to-all', 'collective-permute'):
    assert collective not in text
  close(fn(PARAMS, batch), step(PARAMS, batch), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('length', [7, 12])
@pytest.mark.parametrize('chunk', [2, 3, 5])
def test_the_ledger_counts_the_same_work_in_any_chunks(length, chunk):
  model = MODEL.clone(length=length)
  spec = {'tokens': jax.ShapeDtypeStruct((length + 1,), jnp.int32)}
  for what in (count.flops_per_unit, count.params):
    options = {'xla': False} if what is count.flops_per_unit else {}
    assert what(model, CausalLM(chunk=chunk), spec, **options) == what(
      model, CausalLM(chunk=length), spec, **options
    )


def test_a_row_holds_one_target_less_than_tokens():
  assert CausalLM().units({'tokens': jax.ShapeDtypeStruct((9,), 'int32')}) == 8


@pytest.mark.parametrize(
  ('row', 'facts', 'message'),
  [
    (
      {'tokens': ((8,), 'int32')},
      {'vocab': 50257},
      'data vocab=50257 is larger than model.vocab=23',
    ),
    (
      {'tokens': ((9,), 'int32')},
      {},
      'data length=8 is larger than model.length=7',
    ),
    (
      {'image': ((8, 8), 'uint8'), 'label': ((), 'int32')},
      {},
      'data rows hold image, label, expected tokens',
    ),
    (
      {'tokens': ((8,), 'float32')},
      {},
      r'data tokens=float32\[8\] must be integers \[T \+ 1\]',
    ),
    ({'tokens': ((1,), 'int32')}, {}, 'data rows of 1 token hold no target'),
  ],
)
def test_data_that_does_not_fit_the_model_is_refused(row, facts, message):
  spec = {k: jax.ShapeDtypeStruct(*v) for k, v in row.items()}
  with pytest.raises(ValueError, match=f'^{message}$'):
    CausalLM().check(MODEL, spec, facts)


def test_data_with_fewer_tokens_and_shorter_rows_fits():
  spec = {'tokens': jax.ShapeDtypeStruct((5,), jnp.int32)}
  CausalLM().check(MODEL, spec, {'vocab': V - 1})


@pytest.mark.parametrize('name', ['chunk', 'z_loss'])
def test_negative_fields_are_refused(name):
  with pytest.raises(ValueError, match=f'^{name}=-1 must not be negative$'):
    CausalLM(**{name: -1})


def test_the_gradient_norm_of_an_update_is_that_of_the_loss():
  objective, batch = CausalLM(), BATCHES['packed']
  grads = value_and_grad(objective, PARAMS, batch)[2]
  tx = optax.sgd(0.1)
  state = State(jnp.int32(0), PARAMS, tx.init(PARAMS), {})
  after, metrics = objective.update(MODEL, tx, state, batch, KEY)
  close(metrics['grad_norm'], optax.tree.norm(grads))
  close(after.params, jax.tree.map(lambda p, g: p - 0.1 * g, PARAMS, grads))
  assert after.step == 1
