"""The batteries find what they look for: each is given something broken."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import itertools
import pathlib
import sys
import textwrap

from flax import linen as nn
import grain.python as grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bigdl.data.base import Source
from bigdl.layers import stack as stacks
from bigdl.layers.stack import RematKind, StackKind
from bigdl.objectives.base import Objective
from bigdl.optim.base import Optimizer
from bigdl.optim.schedule import WSD

sys.path.insert(0, str(pathlib.Path(__file__).parent))

import finding  # noqa: E402
import model_battery as models  # noqa: E402
import objective_battery as objectives  # noqa: E402
import optimizer_battery as optimizers  # noqa: E402
import source_battery as sources  # noqa: E402


class Layer(nn.Module):
  fault: str = ''
  remat: str = 'none'

  @nn.compact
  def __call__(self, x):
    y = nn.tanh(nn.Dense(x.shape[-1])(x))
    return x + (2 * y if self.fault == 'remat' and self.remat == 'full' else y)


class Net(nn.Module):
  """Layers in a loop or a scan; `fault` says what is wrong with it."""

  depth: int = 2
  width: int = 16
  stack: StackKind = 'loop'
  remat: RematKind = 'none'
  dtype: str = 'float32'
  fault: str = ''

  def setup(self):
    layer = functools.partial(Layer, self.fault, self.remat)
    self.enter = nn.Dense(self.width)
    self.blocks = stacks.build(layer, self.depth, kind=self.stack)
    self.leave = nn.Dense(4)

  def __call__(self, x_BD):
    dtype = 'float32' if self.fault == 'dtype' else self.dtype
    x = self.enter(x_BD.astype(dtype)).astype(dtype)
    remat = 'none' if self.fault == 'no remat' else self.remat
    many = self.stack == 'loop' and self.fault == 'flops'
    for _ in range(1 + many):
      x = stacks.run(self.blocks, x, depth=self.depth, remat=remat)
    one = jax.sharding.get_abstract_mesh().size < 2
    wrong = {
      'eager': not isinstance(x, jax.core.Tracer),
      'scan': self.stack == 'scan',
      'mesh': not one,
    }
    x = x * (1 + 1e-3 * wrong.get(self.fault, False))
    y = self.leave(x).astype('float32')
    return {
      'constant': y * 0 + self.leave.variables['params']['bias'].sum(),
      'half': y.astype('bfloat16'),
      'rows': y.mean(0),
      'infinite': jnp.sqrt(y - y),  # Its value is finite.
      'unused': x.astype('float32'),
    }.get(self.fault, y)

  def scale(self, factor):
    power = 1.0 if self.fault == 'scale' else 0.5
    return self.clone(width=max(2, round(self.width * factor**power)))


@functools.cache
def net(fault=''):
  x_BD = jnp.linspace(-1, 1, 10).reshape(2, 5)
  return lambda: (Net(fault=fault), (x_BD,))


@dataclasses.dataclass(frozen=True)
class Regress(Objective):
  """Squared error over rows that a mask lets count."""

  fault: str = ''
  unit = 'row'

  def units(self, spec):
    return 1

  def check(self, model, spec, facts):
    if 'x' not in spec and self.fault != 'check':
      raise ValueError(f'data rows hold {", ".join(spec)}, expected x')

  def init(self, model, key, batch):
    return model.init(key, batch['x'])['params'], {'calls': jnp.int32(0)}

  def score(self, model, params, extra, batch):
    y = model.apply({'params': params}, batch['x'])
    if self.fault == 'mixed':
      y = y - y.mean(0)
    error = jnp.square(y - batch['x'].sum(-1, keepdims=True)).mean(-1)
    if self.fault == 'mask':
      return error, jnp.ones_like(error)
    return error * batch['mask'], batch['mask']

  def loss(self, model, params, extra, batch, key):
    error, weight = self.score(model, params, extra, batch)
    loss = error.sum() / jnp.maximum(weight.sum(), 1)
    if self.fault == 'mesh' and jax.sharding.get_abstract_mesh().size > 1:
      loss = 1.001 * loss
    calls = extra['calls'] + (0.5 if self.fault == 'recompile' else 1)
    metrics = {'loss': loss, 'weight': weight.sum()}
    if self.fault == 'metric':
      metrics['odd'] = error
    sign = -1 if self.fault == 'ascent' else 1
    return sign * loss, ({'calls': calls}, metrics)


@functools.cache
def regress(fault=''):
  batch = {
    'x': jnp.sin(jnp.arange(16.0)).reshape(4, 4),
    'mask': jnp.array([1.0, 1, 1, 0]),
  }
  return lambda: (Regress(fault=fault), nn.Dense(4), batch)


@dataclasses.dataclass(frozen=True)
class Numbers(Source):
  """Rows of random numbers, shuffled afresh each epoch."""

  fault: str = ''
  seed: int = 0
  split: str = 'train'
  calls = itertools.count()

  def row(self, i):
    parts = [i, self.seed, self.split == 'train']
    if self.fault == 'seed':
      parts = [i, 0, parts[2]]
    if self.fault == 'epoch':
      parts[0] = i % len(self)
    if self.fault == 'state':
      parts.append(next(self.calls))
    tokens = np.random.default_rng(parts).integers(0, 9, 5)
    return {'tokens': tokens.astype(np.int32)}

  def dataset(self):
    return grain.MapDataset.source(range(40)).map(self.row)

  def rows(self, start, stop):
    rows = np.stack([self.row(i)['tokens'] for i in range(start, stop)])
    return {'tokens': rows}

  def spec(self):
    dtype = np.int64 if self.fault == 'spec' else np.int32
    return {'tokens': jax.ShapeDtypeStruct((5,), dtype)}

  def batch(self, step, *, size, shard=0, shards=1):
    if self.fault == 'all rows':
      whole = super().batch(step, size=size)['tokens']
      return {'tokens': np.split(whole, shards)[shard]}
    if self.fault == 'shards':
      return super().batch(step, size=size // shards)
    return super().batch(step, size=size, shard=shard, shards=shards)

  def facts(self):
    return {'vocab': 4 if self.fault == 'facts' else 9}

  def fingerprint(self):
    if self.fault == 'random fingerprint':
      return f'numbers-{next(self.calls)}'
    if self.fault == 'blind fingerprint':
      return 'numbers'
    return f'numbers-{self.split}-{self.seed}'


@functools.cache
def numbers(fault=''):
  return lambda: Numbers(fault=fault)


@dataclasses.dataclass(frozen=True)
class Descent(Optimizer):
  """Gradient descent with a mean of gradients nobody needs."""

  fault: str = ''

  def rule(self):
    def init(params):
      if self.fault == 'memory':
        leaves = [jnp.ones(1)] + [x.ravel() for x in jax.tree.leaves(params)]
        return jnp.concatenate(leaves)
      return jax.tree.map(jnp.zeros_like, params)

    def update(grads, state, params=None):
      if self.fault == 'dtype':
        state = jax.tree.map(lambda x: x.astype('bfloat16'), state)
      if self.fault == 'ascent':
        grads = jax.tree.map(lambda g: -g, grads)
      if self.fault == 'baked':
        grads = jax.tree.map(lambda g: g * self.lr, grads)
      if self.fault == 'zero':
        grads = jax.tree.map(lambda g: g / jnp.linalg.norm(g), grads)
      if self.fault == 'stuck':
        grads = {**grads, 'bias': 0 * grads['bias']}
      return grads, state

    return optax.GradientTransformation(init, update)


@functools.cache
def descent(fault=''):
  schedule = WSD(decay=0.9)
  optimizer = Descent(lr=0.03, schedule=schedule, weight_decay=0.0, fault=fault)
  return lambda: optimizer


SOUND = [
  (models, net()),
  (objectives, regress()),
  (sources, numbers()),
  (optimizers, descent()),
]
BROKEN = [
  (net, 'constant', models.check_inputs_and_parameters_matter),
  (net, 'half', models.check_outputs_are_finite_floats_with_a_row_each),
  (net, 'rows', models.check_outputs_are_finite_floats_with_a_row_each),
  (
    net,
    'infinite',
    models.check_gradients_are_finite_and_reach_every_parameter,
  ),
  (net, 'unused', models.check_gradients_are_finite_and_reach_every_parameter),
  (net, 'eager', models.check_jit_is_eager),
  (net, 'scan', models.check_scan_is_loop),
  (net, 'remat', models.check_remat_is_plain),
  (net, 'no remat', models.check_remat_is_plain),
  (net, 'mesh', models.check_sharded_is_single),
  (net, 'flops', models.check_traced_flops_are_executed_flops),
  (net, 'scale', models.check_scale_multiplies_the_parameters),
  (net, 'dtype', models.check_bfloat16_is_close),
  (regress, 'metric', objectives.check_loss_and_metrics_are_finite_scalars),
  (regress, 'ascent', objectives.check_loss_falls_on_a_fixed_batch),
  (regress, 'mask', objectives.check_masked_rows_change_nothing),
  (regress, 'mixed', objectives.check_scores_are_a_loss_and_a_weight_a_row),
  (regress, 'recompile', objectives.check_one_update_does_not_recompile),
  (regress, 'mesh', objectives.check_sharded_update_is_that_of_one_device),
  (regress, 'check', objectives.check_data_that_does_not_fit_is_refused),
  (numbers, 'state', sources.check_a_batch_is_a_function_of_its_step),
  (numbers, 'state', sources.check_threads_read_the_same_batches),
  (numbers, 'shards', sources.check_hosts_share_the_global_batch),
  (numbers, 'all rows', sources.check_hosts_read_their_own_rows_alone),
  (numbers, 'spec', sources.check_spec_is_that_of_the_rows),
  (numbers, 'state', sources.check_rows_are_the_ones_of_the_dataset),
  (
    numbers,
    'epoch',
    sources.check_an_epoch_does_not_repeat_the_order_of_training_rows,
  ),
  (numbers, 'facts', sources.check_facts_are_true_of_the_rows),
  (numbers, 'seed', sources.check_seed_moves_the_rows),
  (numbers, 'random fingerprint', sources.check_fingerprint_is_of_the_content),
  (numbers, 'blind fingerprint', sources.check_fingerprint_is_of_the_content),
  (descent, 'ascent', optimizers.check_four_bowls_are_descended),
  (descent, 'stuck', optimizers.check_four_bowls_are_descended),
  (descent, 'baked', optimizers.check_rate_and_length_are_data_not_code),
  (descent, 'memory', optimizers.check_state_lies_where_the_parameters_lie),
  (descent, 'dtype', optimizers.check_an_update_keeps_shapes_and_dtypes),
  (descent, 'zero', optimizers.check_gradients_of_zero_are_survived),
]


@pytest.mark.parametrize(
  ('check', 'tiny'),
  [(check, tiny) for battery, tiny in SOUND for check in battery.CHECKS],
)
def test_what_is_sound_passes_every_check(check, tiny):
  check(tiny)


@pytest.mark.parametrize(('make', 'fault', 'check'), BROKEN)
def test_what_is_broken_is_found(make, fault, check):
  with pytest.raises((AssertionError, pytest.fail.Exception)):
    check(make(fault))


FILES = {
  'base.py': 'from bigdl.data.base import Source\n',
  'parts.py': 'LENGTH = 3\ndef tiny(): return LENGTH\n',
  'abstract.py': """
    from bigdl.data.base import Source
    class Rows(Source):
      def documents(self):
        "Returns text."
        raise NotImplementedError
      def dataset(self): return self.documents()
      def fingerprint(self): return ''
    """,
  'whole.py': """
    from wares.abstract import Rows
    class Poems(Rows):
      def documents(self): return ['so much depends']
    def tiny(): return Poems()
    """,
  'deep/forgotten.py': """
    from wares.abstract import Rows
    class Prose(Rows):
      def documents(self):
        if not self: raise NotImplementedError
        return ['a paragraph']
    """,
}


def test_new_files_are_found_and_those_without_tiny_are_named(
  tmp_path, monkeypatch
):
  for name, text in FILES.items():
    path = tmp_path / 'wares' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
  (tmp_path / 'wares' / 'deep' / '__init__.py').write_text('')
  monkeypatch.syspath_prepend(tmp_path)
  importlib.invalidate_caches()
  assert list(finding.tinies('wares', Source)) == ['wares.whole']
  assert finding.missing('wares', Source) == [
    'wares.deep.forgotten defines Prose and no tiny()'
  ]
