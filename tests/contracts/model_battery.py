"""What holds for every model; each check is given the `tiny` of its file.

`tiny()` returns the module and a tuple of inputs, rows first. Parameters are
drawn and then moved at random, so that biases and zero-initialised layers count.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
import json
import typing
from typing import Any, NamedTuple
from unittest import mock

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigdl import config, tree, values
from bigdl.layers import stack as stacks
from bigdl.objectives.base import Objective
from bigdl.parallel import rules
from bigdl.parallel.layout import Layout
from bigdl.scaling import count

Tiny = Callable[[], tuple[nn.Module, tuple[jax.Array, ...]]]

CLOSE = 1e-5  # Of the largest entry, in float32.
HALF = 0.05  # The same, of bfloat16 compute.
# Elementwise work that XLA counts beside products, in a model scaled up.
ELEMENTWISE = 0.15
# And in one that cannot be: there it may be as much again as the products.
ELEMENTWISE_TINY = 2.0
SCALED_UP = 500.0
# A ladder has steps, the wider the closer.
STEP_TINY, STEP = 0.35, 0.15


class Ready(NamedTuple):
  model: nn.Module
  inputs: tuple[jax.Array, ...]
  params: Any
  rest: dict[str, Any]  # Other collections, such as batch statistics.


@functools.cache
def ready(tiny: Tiny) -> Ready:
  model, inputs = tiny()
  keys = jax.random.split(jax.random.key(0), 3)
  rngs = {'params': keys[0], 'dropout': keys[1]}
  variables = jax.jit(model.init)(rngs, *inputs)
  params, rest = variables['params'], {**variables}
  del rest['params']
  return Ready(model, inputs, move(params, keys[2]), rest)


def move(params: Any, key: jax.Array) -> Any:
  leaves, structure = jax.tree.flatten(params)
  keys = jax.random.split(key, len(leaves))
  return jax.tree.unflatten(
    structure,
    [
      x + 0.05 * jax.random.normal(k, x.shape, x.dtype)
      for x, k in zip(leaves, keys, strict=True)
    ],
  )


def outputs(model, params, rest, inputs) -> list[jax.Array]:
  return jax.tree.leaves(model.apply({'params': params, **rest}, *inputs))


def probe(model, params, rest, inputs) -> jax.Array:
  """A scalar that no symmetry of the outputs (such as of softmax) hides."""
  total = jnp.zeros(())
  for i, x in enumerate(outputs(model, params, rest, inputs)):
    weights = jax.random.normal(jax.random.key(i), x.shape[1:])
    total += (x.astype(jnp.float32) * weights).mean()
  return total


@functools.cache
def learned(model, tiny: Tiny) -> tuple[Any, Any]:
  """Returns probe and gradient of that variant of the tiny model."""
  own = ready(tiny)
  params = own.params
  if stacked(model) != stacked(own.model):
    params = restack(model, params)
  step = jax.jit(jax.value_and_grad(functools.partial(probe, model)))
  return step(params, own.rest, own.inputs)


def stacked(model) -> bool:
  kind = getattr(model, 'stack', None)
  return kind is not None and stacks.resolve(kind) == 'scan'


def restack(model, params):
  return stacks.to_scan(params) if stacked(model) else stacks.to_loop(params)


def close(a: Any, b: Any, limit: float = CLOSE) -> None:
  def leaf(path, x, y):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    most = max(np.abs(y).max(), 1e-3)
    np.testing.assert_allclose(x, y, rtol=0, atol=limit * most, err_msg=path)

  tree.map_with_path(leaf, a, b)


def check_outputs_are_finite_floats_with_a_row_each(tiny: Tiny) -> None:
  model, inputs, params, rest = ready(tiny)
  for x in jax.tree.leaves(params):
    assert x.dtype == jnp.float32, 'master weights are float32'
  found = outputs(model, params, rest, inputs)
  assert found, 'a model returns something'
  for x in found:
    assert x.dtype in (jnp.float32, jnp.float64), x.dtype
    assert x.shape[0] == inputs[0].shape[0], (x.shape, inputs[0].shape)
    assert np.isfinite(x).all()
  said = jax.eval_shape(functools.partial(outputs, model), params, rest, inputs)
  assert [x.shape for x in said] == [x.shape for x in found]


def check_inputs_and_parameters_matter(tiny: Tiny) -> None:
  model, inputs, params, rest = ready(tiny)
  plain = outputs(model, params, rest, inputs)
  for other in (
    outputs(model, move(params, jax.random.key(5)), rest, inputs),
    outputs(model, params, rest, turned(inputs)),
  ):
    pairs = zip(plain, other, strict=True)
    assert any(not np.allclose(x, y, atol=1e-4) for x, y in pairs)


def turned(inputs, by: int = 1):
  """The same values elsewhere in their rows, so that they stay valid."""
  return tuple(
    jnp.roll(x, by, axis=1) if x.ndim > 1 else jnp.roll(x, by) for x in inputs
  )


def check_jit_is_eager(tiny: Tiny) -> None:
  model, inputs, params, rest = ready(tiny)
  run = functools.partial(outputs, model)
  close(jax.jit(run)(params, rest, inputs), run(params, rest, inputs))


def check_gradients_are_finite_and_reach_every_parameter(tiny: Tiny) -> None:
  _, grads = learned(ready(tiny).model, tiny)
  for path, g in tree.items(grads):
    assert np.isfinite(g).all(), f'{path} has a gradient that is not finite'
    assert np.any(g), f'{path} has no gradient'


def check_scan_is_loop(tiny: Tiny) -> None:
  """Where the module has the field `stack`."""
  model, inputs, params, _ = ready(tiny)
  if not hasattr(model, 'stack'):
    return
  loop, scan = (model.clone(stack=kind) for kind in ('loop', 'scan'))
  one, many = learned(scan, tiny), learned(loop, tiny)
  close(one[0], many[0])
  close(one[1], stacks.to_scan(many[1]))
  start = jax.eval_shape(scan.init, jax.random.key(0), *inputs)['params']
  looped = stacks.to_loop(params) if stacked(model) else params
  assert tree.paths(start) == tree.paths(stacks.to_scan(looped))
  assert tree.paths(start) != tree.paths(looped), 'both are the same program'


def check_remat_is_plain(tiny: Tiny) -> None:
  """Where the module has the field `remat`; in a loop and in a scan."""
  own = ready(tiny)
  if not hasattr(own.model, 'remat'):
    return
  hint = values.hints(type(own.model))['remat']
  kinds = [k for k in typing.get_args(hint) if k != 'none']
  assert kinds
  plain = learned(own.model.clone(remat='none'), tiny)
  for kind in kinds:
    model = own.model.clone(remat=kind)
    close(learned(model, tiny), plain)
    trace = jax.make_jaxpr(functools.partial(probe, model))
    assert 'remat' in str(trace(own.params, own.rest, own.inputs)), kind


def check_sharded_is_single(tiny: Tiny) -> None:
  model, inputs, params, rest = ready(tiny)
  parts = [turned(inputs, i) for i in range(8)]
  rows = tuple(jnp.concatenate(xs) for xs in zip(*parts, strict=True))
  step = jax.value_and_grad(functools.partial(probe, model))
  want = jax.jit(step)(params, rest, rows)
  mesh = Layout(data=2, fsdp=4).mesh()
  with mock.patch.object(rules, 'SMALLEST', 1):
    shardings = rules.state_shardings(mesh, params)
  whole = [s.is_fully_replicated for s in jax.tree.leaves(shardings)]
  assert not all(whole), 'no parameter can be split'
  with jax.set_mesh(mesh):
    placed = jax.device_put(params, shardings)
    got = jax.jit(step)(
      placed, rest, jax.device_put(rows, rules.batch_sharding(mesh))
    )
  close(jax.device_get(got), jax.device_get(want))


@dataclasses.dataclass(frozen=True)
class Probe(Objective):
  """Trains a model on its bare inputs, `0`, `1`, ...: one unit a row."""

  unit = 'row'

  def units(self, spec):
    return 1

  def init(self, model, key, batch):
    variables = {**model.init({'params': key, 'dropout': key}, *_args(batch))}
    return variables.pop('params'), variables

  def loss(self, model, params, extra, batch, key):
    loss = probe(model, params, extra, _args(batch))
    return loss, (extra, {'loss': loss, 'weight': jnp.float32(1)})


def _args(batch):
  return tuple(batch[str(i)] for i in range(len(batch)))


def spec_of(inputs) -> dict[str, jax.ShapeDtypeStruct]:
  return {
    str(i): jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
    for i, x in enumerate(inputs)
  }


def check_traced_flops_are_executed_flops(tiny: Tiny) -> None:
  """The ledger's products against XLA's count of the unrolled forward pass.

  XLA counts elementwise operations too: its number is the larger one, by no
  more than a share that is small in a model scaled up 500 times.
  """
  model, inputs, *_ = ready(tiny)
  scaled = hasattr(model, 'scale')
  if scaled:
    model = model.scale(SCALED_UP)
  known = {f.name for f in dataclasses.fields(model)}
  plain = {'stack': 'loop', 'attention': 'xla', 'remat': 'none'}
  plain = {k: v for k, v in plain.items() if k in known}
  rate = count.flops_per_unit(model, Probe(), spec_of(inputs), xla=False)
  traced = rate['matmul_full']
  assert traced is not None
  model = model.clone(**plain)
  row = tuple(jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype) for x in inputs)
  start = jax.eval_shape(model.init, jax.random.key(0), *row)
  lowered = jax.jit(model.apply).lower(start, *row)
  executed = lowered.cost_analysis()['flops']
  # Training is three times forward.
  extra = executed / (traced / 3) - 1
  assert 0 <= extra < (ELEMENTWISE if scaled else ELEMENTWISE_TINY), extra


def check_ledger_counts_the_parameters_there_are(tiny: Tiny) -> None:
  model, inputs, params, _ = ready(tiny)
  counts = count.params(model, Probe(), spec_of(inputs))
  assert counts['total'] == tree.size(params)
  assert 0 < counts['nonembedding'] <= counts['nonembedding_head']
  assert counts['nonembedding_head'] <= counts['total']


def check_scale_multiplies_the_parameters(tiny: Tiny) -> None:
  """Where the module has a method `scale`."""
  model, inputs, *_ = ready(tiny)
  if not hasattr(model, 'scale'):
    return

  def grows(model, factor, step):
    sizes = [
      count.params(m, Probe(), spec_of(inputs))['nonembedding']
      for m in (model, model.scale(factor))
    ]
    ratio = sizes[1] / sizes[0]
    assert abs(ratio / factor - 1) < step, f'scale({factor}) gave {ratio:.2f}'

  grows(model, 1.0, 1e-9)
  grows(model, 2.0, STEP_TINY)
  large = model.scale(64.0)
  for factor in (0.5, 2.0, 4.0):
    grows(large, factor, STEP)
  assert type(large) is type(model)


def check_bfloat16_is_close(tiny: Tiny) -> None:
  """Where the module has the field `dtype`, which is of compute alone."""
  model, inputs, params, rest = ready(tiny)
  if not hasattr(model, 'dtype'):
    return
  half = model.clone(dtype='bfloat16')
  start = jax.eval_shape(half.init, jax.random.key(0), *inputs)['params']
  assert {x.dtype for x in jax.tree.leaves(start)} == {jnp.dtype('float32')}
  run = jax.jit(outputs, static_argnums=0)
  whole, rough = (run(m, params, rest, inputs) for m in (model, half))
  assert all(x.dtype == jnp.float32 for x in rough)
  close(rough, whole, HALF)
  pairs = zip(rough, whole, strict=True)
  assert any(np.any(x != y) for x, y in pairs), 'dtype changes nothing'


def check_record_rebuilds_the_model(tiny: Tiny) -> None:
  model = ready(tiny).model
  text = json.dumps(config.to_json(model))
  assert config.from_json(json.loads(text)) == model == tiny()[0]


CHECKS = [f for name, f in list(globals().items()) if name.startswith('check_')]
