"""One table of tensors, read both ways, whatever the model's stacks."""

from __future__ import annotations

import dataclasses
import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl import tree
from bigdl.interop import base
from bigdl.layers import stack as stacks
from bigdl.tensors import Pending


class Layer(nn.Module):
  """One matrix, applied to the stream."""

  width: int

  @nn.compact
  def __call__(self, x):
    return nn.Dense(self.width, name='dense')(x)


class Two(nn.Module):
  """Two stacks of other names, a table, and a head that may be tied."""

  depth: int = 2
  width: int = 4
  vocab: int = 5
  tied: bool = True
  stack: stacks.StackKind = 'loop'
  rise: float = 0.0

  def setup(self):
    layer = functools.partial(Layer, self.width)
    self.table = nn.Embed(self.vocab, self.width)
    self.encoder = stacks.build(layer, self.depth, kind=self.stack)
    self.decoder = stacks.build(layer, self.depth + 1, kind=self.stack)
    if not self.tied:
      self.head = nn.Dense(self.vocab, use_bias=False)

  def __call__(self, tokens):
    x = self.table(tokens)
    x = stacks.run(self.encoder, x, depth=self.depth, remat='none')
    x = stacks.run(self.decoder, x, depth=self.depth + 1, remat='none')
    return self.table.attend(x) if self.tied else self.head(x)


def tensors_of(model):
  table = ('table/embedding',)
  yield base.Tensor('body.table', table)
  for name, depth in (('encoder', model.depth), ('decoder', model.depth + 1)):
    for i in range(depth):
      path = f'{name}_{i}/dense'
      yield base.Tensor(
        f'body.{name}.{i}.weight',
        (f'{path}/kernel',),
        turned=True,
        # Theirs has its rows in the other order.
        read=lambda x: x[::-1],
        write=lambda x: x[::-1],
      )
      yield base.Tensor(f'body.{name}.{i}.bias', (f'{path}/bias',))
  if model.tied:
    yield base.Tensor('out', table, copy=True)
  else:
    yield base.Tensor('out', ('head/kernel',), turned=True)


FAMILY = base.Family(
  name='Two',
  architectures=('TwoModel',),
  model_of=lambda config: Two(**config),
  config_of=lambda model: {'depth': model.depth},
  tensors=tensors_of,
  ignored=r'\.mask$',
  prefix='body',
)


def state_of(model, seed=0):
  rng = np.random.default_rng(seed)
  loop, _ = base.shapes_of(model, FAMILY)
  state = {}
  for tensor in tensors_of(model):
    shape = loop[tensor.paths[0]].shape
    shape = shape[::-1] if tensor.turned else shape
    state[tensor.name] = rng.normal(size=shape).astype(np.float32)
  if model.tied:
    state['out'] = state['body.table']
  return state


@pytest.mark.parametrize('tied', [True, False])
@pytest.mark.parametrize('stack', ['loop', 'scan'])
def test_stacks_of_any_name_come_back_as_they_went(stack, tied):
  model = Two(stack=stack, tied=tied)
  state = state_of(model)
  params = base.from_hf(state, model, FAMILY)
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 1), jnp.int32)
  )['params']
  assert jax.tree.map(np.shape, params) == jax.tree.map(
    lambda x: x.shape, shapes
  )
  # A weight is where its path says, turned and in our order of rows.
  kernel = state['body.decoder.2.weight'][::-1].T
  flat = dict(tree.items(params))
  if stack == 'loop':
    ours = flat['decoder_2/dense/kernel']
  else:
    ours = flat['decoder/dense/kernel'][2]
  np.testing.assert_array_equal(ours, kernel)
  back = base.to_hf(params, model, FAMILY)
  assert list(back) == list(state)
  jax.tree.map(np.testing.assert_array_equal, back, state)


def test_loop_and_scan_compute_the_same():
  tokens = jnp.arange(5)[None]
  state = state_of(Two())
  loop, scan = (
    Two(stack=s).apply(
      {'params': base.from_hf(state, Two(stack=s), FAMILY)}, tokens
    )
    for s in ('loop', 'scan')
  )
  np.testing.assert_allclose(loop, scan, atol=1e-5)


def test_parameters_are_arrays_of_their_own():
  state = state_of(Two())
  params = base.from_hf(state, Two(), FAMILY)
  before = params['table']['embedding'].copy()
  state['body.table'][:] = 0
  np.testing.assert_array_equal(params['table']['embedding'], before)


def test_each_tensor_is_asked_for_once_and_alone():
  state, asked = state_of(Two()), []

  def ask(name):
    asked.append(name)
    return state[name]

  waiting = {
    k: Pending(v.shape, v.dtype, functools.partial(ask, k))
    for k, v in state.items()
  }
  params = base.from_hf(waiting, Two(), FAMILY)
  assert sorted(asked) == sorted(state)
  # And none to say what would be written.
  pending = base.pending(
    jax.tree.map(lambda x: Pending(x.shape, x.dtype, None), params),
    Two(),
    FAMILY,
  )
  assert {k: v.shape for k, v in pending.items()} == {
    k: v.shape for k, v in state.items() if k != 'out'
  }


def test_a_copy_may_be_absent_or_stand_for_the_original():
  state = state_of(Two())
  want = base.from_hf(state, Two(), FAMILY)
  for name in ('out', 'body.table'):
    part = {k: v for k, v in state.items() if k != name}
    got = base.from_hf(part, Two(), FAMILY)
    jax.tree.map(np.testing.assert_array_equal, got, want)
  state['out'] = state['out'] + 1
  with pytest.raises(ValueError, match='^out must equal body.table'):
    base.from_hf(state, Two(), FAMILY)
  del state['out'], state['body.table']
  with pytest.raises(ValueError, match=r'missing body.table \(table/emb'):
    base.from_hf(state, Two(), FAMILY)


def test_names_without_the_prefix_and_buffers_are_understood():
  state = state_of(Two())
  want = base.from_hf(state, Two(), FAMILY)
  bare = {k.removeprefix('body.'): v for k, v in state.items()}
  bare['encoder.0.mask'] = np.zeros(3)
  got = base.from_hf(bare, Two(), FAMILY)
  jax.tree.map(np.testing.assert_array_equal, got, want)
  bare['encoder.0.masks'] = np.zeros(3)
  with pytest.raises(ValueError, match='^Two weights do not fit: unknown enc'):
    base.from_hf(bare, Two(), FAMILY)


def test_all_that_does_not_fit_is_in_one_line():
  state = state_of(Two())
  del state['body.encoder.1.bias']
  state['body.extra'] = np.zeros(1)
  state['body.decoder.0.weight'] = np.zeros((4, 3))
  with pytest.raises(ValueError) as caught:
    base.from_hf(state, Two(), FAMILY)
  assert str(caught.value) == (
    'Two weights do not fit: missing body.encoder.1.bias '
    '(encoder_1/dense/bias); unknown body.extra; misshapen '
    'body.decoder.0.weight (decoder_0/dense/kernel) [4, 3], expected [4, 4]'
  )


def test_a_parameter_that_the_family_forgets_is_named():
  short = dataclasses.replace(
    FAMILY, tensors=lambda model: list(tensors_of(model))[1:-1]
  )
  with pytest.raises(ValueError, match='no tensor for table/embedding$'):
    base.from_hf(state_of(Two()), Two(), short)


def test_fields_that_a_family_has_not_are_refused_whatever_they_are():
  free = ('depth', 'width', 'vocab', 'tied')
  base.check_fields(Two(depth=7, stack='scan'), 'Two', free=free)
  with pytest.raises(ValueError, match='^rise=1.0 must be 0.0 for Two weights'):
    base.check_fields(Two(rise=1.0), 'Two', free=free)
  with pytest.raises(ValueError, match='^rise=0.0 must be 2.0 for Two weights'):
    base.check_fields(Two(), 'Two', free=free, rise=2.0)
