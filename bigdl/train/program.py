"""The compiled parts of a run: first state, one update, held-out score."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import functools
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
import numpy as np

from bigdl.experiment import Experiment
from bigdl.objectives.base import State
from bigdl.parallel import rules
from bigdl.train import batches, evaluate


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
    sizes = ' x '.join(f'{k}={v}' for k, v in self.mesh.shape.items())
    for name, rows in (
      ('batch', e.batch),
      ('batch/accumulate', e.batch // e.accumulate),
      ('evaluation.batch', e.evaluation.batch or e.batch),
    ):
      if rows % self.mesh.size:
        raise ValueError(
          f'{name}={rows} must be divisible by the {self.mesh.size} devices'
          f' of layout {sizes}'
        )

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
    first, end = batches.own_rows(self.batch_sharding, size)
    own = end - first
    place = batches.Placer(self.batch_sharding, size)
    return lambda step: place(
      data.batch(step, size=size, shard=first // own, shards=size // own)
    )

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
    with jax.set_mesh(self.mesh):
      params, extra = jax.eval_shape(first_params, self.key())
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
    with jax.set_mesh(self.mesh):
      make = jax.jit(first_params, out_shardings=(at.params, at.extra))
      params, extra = make(self.key())
      if given is not None:
        params = given.put(params, shapes.params)
      make = jax.jit(first_opt, out_shardings=(at.step, at.opt))
      step, opt = make(params)
    return State(step, params, opt, extra)

  def update(self, shapes: State) -> tuple[Callable, list[str]]:
    """Compiles one update, `(state, batch, key) -> (state, metrics)`.

    The state is donated. Metrics are one vector, in the order of the names
    returned beside, so that a step costs a single fetch.
    """
    e = self.experiment
    tx = e.optimizer.make(e.steps)
    model: Any = e.model
    if e.optimizer.is_partial:
      model = _Held(e.model, e.optimizer.hold)
    names: list[str] = []

    def step(state, batch, key):
      key = jax.random.fold_in(key, state.step)
      state, metrics = e.objective.update(
        model, tx, state, batch, key, accumulate=e.accumulate
      )
      names[:] = sorted(metrics)
      vector = jnp.stack([jnp.asarray(metrics[k], float) for k in names])
      return state, vector

    shardings = jax.tree.map(lambda s: s.sharding, shapes)
    key = self.key()
    with jax.set_mesh(self.mesh):
      compiled = (
        jax.jit(
          step,
          donate_argnums=0,
          in_shardings=(shardings, self.batch_sharding, self.replicated),
          out_shardings=(shardings, self.replicated),
        )
        .lower(shapes, self.batch_shapes(), key)
        .compile()
      )
    return compiled, names

  def finite(self) -> Callable[[State], jax.Array]:
    """Returns the function that tells whether all parameters are finite."""

    def check(params):
      leaves = [jnp.isfinite(x).all() for x in jax.tree.leaves(params)]
      return jnp.stack(leaves).all()

    compiled = jax.jit(check, out_shardings=self.replicated)
    return lambda state: compiled(state.params)

  def evaluator(self) -> evaluate.Evaluator | None:
    """Returns what scores held-out rows by the averaged weights."""
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
