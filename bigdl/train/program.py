"""The compiled parts of a run: first state, one update, held-out score."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from bigdl.experiment import Experiment
from bigdl.objectives.base import State
from bigdl.parallel import fitting, pipeline, rules, scope
from bigdl.parallel.layout import ROW_AXES
from bigdl.train import batches, evaluate, guard
from bigdl.train.batches import Watch


class Weights(Protocol):
  """Weights that a run starts from."""

  def put(self, params: Any, shapes: Any) -> Any:
    """Returns the parameters with those weights in their places."""


@dataclasses.dataclass(frozen=True)
class Program:
  """An experiment laid out over a mesh; nothing is compiled before its use."""

  experiment: Experiment
  mesh: Mesh

  def __post_init__(self):
    e = self.experiment
    if not 0 <= e.seed < 2**32:
      raise ValueError(f'seed={e.seed} must be in [0, 2**32)')
    shape = self.mesh.shape
    parts = math.prod(shape[axis] for axis in ROW_AXES)
    whose = 'devices' if parts == self.mesh.size else 'parts of rows'
    sizes = ' x '.join(
      f'{k}={v}' for k, v in shape.items() if v > 1 or k in ROW_AXES
    )
    stages = pipeline.schedule(e.layout, shape['pipeline'])
    for name, rows in (
      ('batch', e.batch),
      ('batch/accumulate', e.batch // e.accumulate),
      ('evaluation.batch', e.evaluation.batch or e.batch),
    ):
      if rows % parts:
        raise ValueError(
          f'{name}={rows} must be divisible by the {parts} {whose} of layout'
          f' {sizes}'
        )
      pipeline.check_rows(stages, name, rows, parts=parts)
    pipeline.check(stages, e.model)
    fitting.check(e.model, shape)
    if shape['context'] > 1:
      spec = e.data.spec()
      units = e.objective.units(spec)
      fitting.check_length(e.model, spec, units, shape)

  @property
  def batch_sharding(self) -> NamedSharding:
    return rules.batch_sharding(self.mesh)

  @property
  def replicated(self) -> NamedSharding:
    return NamedSharding(self.mesh, PartitionSpec())

  def key(self) -> jax.Array:
    """Returns the key that all randomness of the run is folded from."""
    make = jax.jit(jax.random.key, out_shardings=self.replicated)
    return make(np.uint32(self.experiment.seed))

  def key_shape(self) -> jax.ShapeDtypeStruct:
    """Returns what `key` is like; devices that are not here have no other."""
    key = jax.eval_shape(jax.random.key, np.uint32(0))
    return jax.ShapeDtypeStruct((), key.dtype, sharding=self.replicated)

  def batch_shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
    size, spec = self.experiment.batch, self.experiment.data.spec()
    return {
      name: jax.ShapeDtypeStruct(
        (size, *row.shape), row.dtype, sharding=self.batch_sharding
      )
      for name, row in spec.items()
    }

  def batches(self) -> Callable[[int], batches.Batch]:
    """Returns the function from an update's number to its batch on devices."""
    data, size = self.experiment.data, self.experiment.batch
    own_rows = batches.own_rows(self.batch_sharding, size)
    shards, own = batches.shards(own_rows, size)
    place = batches.Placer(self.batch_sharding, size)

    def batch(step):
      parts = [
        data.batch(step, size=size, shard=shard, shards=shards) for shard in own
      ]
      if len(parts) == 1:
        return place(parts[0])
      return place(
        {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
      )

    return batch

  @functools.cached_property
  def _first(self) -> tuple[Callable, Callable]:
    """Returns what makes params and extra, and what makes step and opt.

    Two programs: the first is the same for all runs of one model, so that the
    compile cache has it; the second is small and holds lr and steps. As they
    are the same functions each time, JAX traces them once.
    """
    e, shapes = self.experiment, self.batch_shapes()

    def params(key):
      batch = {k: jnp.zeros(s.shape, s.dtype) for k, s in shapes.items()}
      return e.objective.init(e.model, key, batch)

    def opt(params):
      return jnp.zeros((), jnp.int32), e.optimizer.make(e.steps).init(params)

    return params, opt

  def state_shapes(self) -> State:
    """Returns shape, dtype and sharding of all that is trained."""
    first_params, first_opt = self._first
    with scope.entered(self.experiment.layout, self.mesh):
      params, extra = jax.eval_shape(first_params, self.key_shape())
      step, opt = jax.eval_shape(first_opt, params)
    shapes = State(step, params, opt, extra)
    return jax.tree.map(
      lambda s, sharding: jax.ShapeDtypeStruct(
        s.shape, s.dtype, sharding=sharding
      ),
      shapes,
      rules.state_shardings(
        self.mesh, shapes, rules=self.experiment.layout.rules
      ),
    )

  def init(self, shapes: State, given: Weights | None = None) -> State:
    """Returns the state before the first update, from given weights if any."""
    first_params, first_opt = self._first
    at = jax.tree.map(lambda s: s.sharding, shapes)
    with scope.entered(self.experiment.layout, self.mesh):
      make = jax.jit(first_params, out_shardings=(at.params, at.extra))
      params, extra = make(self.key())
      if given is not None:
        params = given.put(params, shapes.params)
      make = jax.jit(first_opt, out_shardings=(at.step, at.opt))
      step, opt = make(params)
    return State(step, params, opt, extra)

  def memory_shapes(self) -> guard.Memory:
    """Returns shape, dtype and sharding of the guard's memory."""
    return {
      name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self.replicated)
      for name, x in guard.fresh(self.experiment.guard).items()
    }

  def place_memory(self, memory: guard.Memory) -> guard.Memory:
    """Returns the guard's memory on the devices; all hosts give the same."""
    return {k: self._copied(x) for k, x in memory.items()}

  def _copied(self, x: np.ndarray) -> jax.Array:
    return jax.make_array_from_callback(
      x.shape, self.replicated, lambda index: x[index]
    )

  def update(self, shapes: State) -> tuple[Callable, list[str]]:
    """Compiles one update, `(state, batch, key) -> (state, metrics)`.

    The state is donated; it has the guard's memory beside it where the guard
    is part of the update (`guard.is_compiled`). Metrics are one vector, in the order of the names
    returned beside, so that a step costs a single fetch.
    """
    traced, names = self.trace(shapes)
    with scope.entered(self.experiment.layout, self.mesh):
      return traced.lower().compile(), names

  def trace(self, shapes: State) -> tuple[Any, list[str]]:
    """Returns the update as `jax.jit(...).trace` does, and the metrics' names.

    The devices of the mesh need not be here.
    """
    e = self.experiment
    tx = e.optimizer.make(e.steps)
    model: Any = e.model
    if e.optimizer.is_partial:
      model = _Held(e.model, e.optimizer.hold)
    names: list[str] = []

    def step(state, batch, key):
      key = jax.random.fold_in(key, state.step)

      def update(state):
        return e.objective.update(
          model, tx, state, batch, key, accumulate=e.accumulate
        )

      if guard.is_compiled(e.guard):
        state, metrics = guard.judged(e.guard, update, state)
      else:
        state, metrics = update(state)
      names[:] = sorted(metrics)
      vector = jnp.stack([jnp.asarray(metrics[k], float) for k in names])
      return state, vector

    if guard.is_compiled(e.guard):
      shapes = guard.enter(shapes, self.memory_shapes())
    shardings = jax.tree.map(lambda s: s.sharding, shapes)
    with scope.entered(self.experiment.layout, self.mesh):
      traced = jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(shardings, self.batch_sharding, self.replicated),
        out_shardings=(shardings, self.replicated),
      ).trace(shapes, self.batch_shapes(), self.key_shape())
    return traced, names

  def finite(self) -> Callable[[State], jax.Array]:
    """Returns the function that tells whether all parameters are finite."""

    def check(params):
      leaves = [jnp.isfinite(x).all() for x in jax.tree.leaves(params)]
      return jnp.stack(leaves).all()

    compiled = jax.jit(check, out_shardings=self.replicated)
    return lambda state: compiled(state.params)

  def evaluator(self, watch: Watch | None = None) -> evaluate.Evaluator | None:
    """Returns what scores held-out rows by the averaged weights.

    Args:
      watch: What is said and done about rows that do not come.
    """
    e = self.experiment
    if e.evaluation.data is None:
      return None

    def measure(state, batch):
      params = e.optimizer.averaged(state.opt, state.params)
      return e.objective.measures(e.model, params, state.extra, batch)

    return evaluate.Evaluator(
      measure,
      e.evaluation.data,
      rows=e.evaluation.rows,
      batch=e.evaluation.batch or e.batch,
      sharding=self.batch_sharding,
      layout=e.layout,
      watch=watch,
    )

  def learning_rates(self) -> dict[int, float]:
    """Returns the learning rate of each update that is logged."""
    e = self.experiment
    every = e.logs.every
    steps = {1, e.steps, *range(every, e.steps, every)} if every else {e.steps}
    rate = jax.jit(jax.vmap(lambda s: e.optimizer.learning_rate(s, e.steps)))
    index = np.asarray(sorted(steps), np.int32)
    rates = np.asarray(rate(index - 1), float).tolist()
    return dict(zip(index.tolist(), rates, strict=True))


class _Held:
  """A model in which the parameters that never move have no gradient."""

  def __init__(self, model: Any, hold: Callable[[Any], Any]):
    self._model, self._hold = model, hold

  def __getattr__(self, name: str) -> Any:
    return getattr(self._model, name)

  def apply(self, variables: Any, *args: Any, **kwargs: Any) -> Any:
    held = {**variables, 'params': self._hold(variables['params'])}
    return self._model.apply(held, *args, **kwargs)
