"""The sweep planner: budgets and models in, compute-matched experiments out.

An IsoFLOP grid (Hoffmann et al., 2022, arXiv:2203.15556, section 3.2) trains
several sizes at each compute budget, each to the end of its own schedule. A
cell's steps are chosen so that FLOPs per unit x D meets the budget to within
half a step.

N parameters, D units of data (tokens), C = FLOPs per unit x D.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
import dataclasses
import hashlib
import json
import math

from flax import linen as nn

from bigdl import config
from bigdl.experiment import Experiment
from bigdl.scaling import count

# Takes N and D; returns units (tokens) per update.
BatchRule = Callable[[float, float], float]
# Takes N, D and units (tokens) per update; returns the peak learning rate.
RateRule = Callable[[float, float, float], float]
Models = Sequence[nn.Module] | Callable[[float], Sequence[nn.Module]]

# Master weights, gradient and two Adam moments in float32.
BYTES_PER_PARAMETER = 16
XLA_MODELS = 24


def step_law_batch(n: float, d: float) -> float:
  """Tokens per update 0.58 D^0.571 (Li et al., 2025, arXiv:2503.04715, eq. 1).

  Fitted for 60 M to 1 B non-embedding parameters; `n` does not matter.
  """
  del n
  return 0.58 * d**0.571


def step_law_rate(n: float, d: float, batch: float) -> float:
  """Rate 1.79 N^-0.713 D^0.307 (Li et al., 2025, arXiv:2503.04715, eq. 1).

  N without embeddings, fitted for 60 M to 1 B at the batch size above.
  """
  del batch
  return 1.79 * n**-0.713 * d**0.307


def compute_batch(n: float, d: float) -> float:
  """Tokens per update 0.292 C^0.3271 (DeepSeek LLM, arXiv:2401.02954, eq. 1).

  With C = 6 N D; fitted for C of 1e17 to 2e19.
  """
  return 0.292 * (6 * n * d) ** 0.3271


def compute_rate(n: float, d: float, batch: float) -> float:
  """Rate 0.3118 C^-0.125 (DeepSeek LLM, 2024, arXiv:2401.02954, eq. 1).

  With C = 6 N D; fitted for C of 1e17 to 2e19. Its exponent is small enough to
  be followed down to C of 1e10, where the Step Law asks for rates above 0.1.
  """
  del batch
  return 0.3118 * (6 * n * d) ** -0.125


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run of a sweep."""

  name: str
  experiment: Experiment
  budget: float  # FLOPs, under the plan's convention.
  n: int  # Parameters, under the plan's convention.
  d: int  # Units of data the run sees.
  params: dict[str, int]
  flops_per_unit: dict[str, int | float | None]
  epochs: float  # Passes over the training data.
  memory: int  # Bytes on one device that holds the whole run.
  mismatch: float  # Planned FLOPs over the budget, less 1.

  @property
  def flops(self) -> dict[str, float | None]:
    """FLOPs of the whole run, by convention."""
    return {
      k: None if v is None else v * self.d
      for k, v in self.flops_per_unit.items()
    }

  @property
  def key(self) -> str:
    """A hash of the experiment: the same run has the same key anywhere."""
    return _hash(config.to_json(self.experiment))

  def seconds(self, peak: float, mfu: float) -> float:
    """Returns how long the run takes at that share of the peak FLOP/s."""
    return (
      float(self.flops_per_unit['matmul_causal'] or 0) * self.d / peak / mfu
    )


@dataclasses.dataclass(frozen=True)
class Plan(Sequence[Cell]):
  """The cells to train, by budget and size, and why others were dropped."""

  cells: tuple[Cell, ...]
  dropped: tuple[str, ...] = ()  # One sentence each, opening with the name.
  convention: str = 'matmul_causal'
  n: str = 'total'

  def __len__(self) -> int:
    return len(self.cells)

  def __iter__(self) -> Iterator[Cell]:
    return iter(self.cells)

  def __getitem__(self, index):
    return self.cells[index]


def ladder(model: nn.Module, factors: Iterable[float]) -> list[nn.Module]:
  """Returns `model.scale(factor)` for each factor, each model once."""
  scale = getattr(model, 'scale', None)
  if scale is None:
    raise ValueError(
      f'{type(model).__name__} has no scale(factor): give a list of models'
    )
  models: list[nn.Module] = []
  for factor in factors:
    if factor <= 0:
      raise ValueError(f'factor={factor} of a ladder must be positive')
    scaled = scale(factor)
    if scaled not in models:
      models.append(scaled)
  return models


def isoflop(
  base: Experiment,
  *,
  budgets: Sequence[float],
  models: Models,
  convention: str = 'matmul_causal',
  params: str = 'total',
  batch: int | BatchRule = compute_batch,
  lr: float | RateRule | None = compute_rate,
  min_steps: int = 100,
  max_epochs: float = 4.0,
  units_per_parameter: tuple[float, float] = (0.0, math.inf),
  multiple: int = 1,
  xla: bool | None = None,
) -> Plan:
  """Returns a cell for each budget and model that make a fair run together.

  Args:
    base: Everything that cells share; its cadences (evaluation, checkpoints,
      logs) are those of a run of `base.steps` and are scaled to each cell's.
    budgets: FLOPs per run, under `convention`.
    models: Modules, or a function from the budget to modules.
    convention: The `count.CONVENTIONS` name that budgets are matched in.
    params: Which count N is: total, nonembedding or nonembedding_head.
    batch: Rows per update, or a rule from N and D to units per update, which is
      rounded to a power of two of rows so that fewer programs are compiled.
    lr: Peak learning rate, a rule from N, D and units per update to it, or None
      for that of `base.optimizer`.
    min_steps: Cells of fewer updates are dropped: a schedule needs some.
    max_epochs: Cells that see their data more often are dropped. Up to four
      epochs cost next to nothing (Muennighoff et al., 2023, arXiv:2305.16264).
    units_per_parameter: Least and greatest D / N of a cell, which centre the
      sizes on where the optimum may be; others are not planned.
    multiple: Rows are a multiple of this: devices x `base.accumulate`.
    xla: Whether cells carry the `xla` count, which takes a second or two a
      model; None: where there are at most `XLA_MODELS` of them.
  """
  _check(budgets, convention, params)
  least, greatest = units_per_parameter
  if not 0 <= least < greatest:
    raise ValueError(
      f'units_per_parameter={units_per_parameter} must be two numbers, the'
      ' least D / N and a greater one'
    )
  spec = base.data.spec()
  epoch = len(base.data)
  grid = []
  for budget in sorted(map(float, set(budgets))):
    chosen = models(budget) if callable(models) else models
    if not chosen:
      raise ValueError(f'models={chosen!r} must name at least one model')
    grid += [(budget, model) for model in dict.fromkeys(chosen)]
  if xla is None:
    xla = len({model for _, model in grid}) <= XLA_MODELS
  cells, dropped = [], []
  for budget, model in grid:
    cell = _cell(
      dataclasses.replace(base, model=model),
      budget=budget,
      spec=spec,
      epoch=epoch,
      convention=convention,
      params=params,
      batch=batch,
      lr=lr,
      multiple=math.lcm(multiple, base.accumulate),
      xla=xla or convention == 'xla',
    )
    reason = _refusal(cell, min_steps, max_epochs)
    if not least <= cell.d / cell.n <= greatest:
      continue
    if reason:
      dropped.append(f'{cell.name}: {reason}')
    else:
      cells.append(cell)
  cells = _distinct(sorted(cells, key=lambda c: (c.budget, c.n, c.key)))
  return Plan(tuple(cells), tuple(dropped), convention, params)


def _check(budgets, convention, params):
  if convention not in count.CONVENTIONS:
    known = ', '.join(count.CONVENTIONS)
    raise ValueError(f'convention={convention!r} must be one of {known}')
  names = ('total', 'nonembedding', 'nonembedding_head')
  if params not in names:
    raise ValueError(f'params={params!r} must be one of {", ".join(names)}')
  if not budgets:
    raise ValueError('budgets=() must hold at least one number of FLOPs')
  for budget in budgets:
    if not (math.isfinite(budget) and budget > 0):
      raise ValueError(f'budget={budget} must be a positive number of FLOPs')


def _cell(
  base, *, budget, spec, epoch, convention, params, batch, lr, multiple, xla
) -> Cell:
  model, objective = base.model, base.objective
  sizes = count.params(model, objective, spec)
  per_unit = count.flops_per_unit(model, objective, spec, xla=xla)
  rate = per_unit[convention]
  if rate is None:
    raise ValueError(
      f'convention={convention!r} is not counted for a model of'
      f' {sizes["total"]:,} parameters: choose another'
    )
  n, units = sizes[params], objective.units(spec)
  rows = _rows(batch, n, budget / rate, units, multiple)
  steps = max(1, round(budget / (rate * rows * units)))
  d = steps * rows * units
  optimizer = base.optimizer
  if lr is not None:
    peak = lr(n, d, rows * units) if callable(lr) else lr
    # Four digits, so that a name or a table can show the whole value.
    optimizer = dataclasses.replace(optimizer, lr=float(f'{peak:.4g}'))
  per_row = count.activation_bytes(model, objective, spec)
  return Cell(
    name=_name(budget, n),
    experiment=_scaled(base, steps=steps, batch=rows, optimizer=optimizer),
    budget=budget,
    n=n,
    d=d,
    params=sizes,
    flops_per_unit=per_unit,
    epochs=steps * rows / epoch,
    memory=BYTES_PER_PARAMETER * sizes['total']
    + per_row * rows // base.accumulate,
    mismatch=rate * d / budget - 1,
  )


def _rows(batch, n, d, units, multiple) -> int:
  if not callable(batch):
    if batch < 1 or batch % multiple:
      raise ValueError(f'batch={batch} must be a multiple of {multiple}')
    return batch
  rows = batch(n, d) / units / multiple
  return multiple * 2 ** max(0, round(math.log2(rows)))


def _scaled(base, *, steps, batch, optimizer) -> Experiment:
  """Returns the experiment with its cadences at the same shares of the run."""

  def share(every):
    return every and max(1, round(every * steps / base.steps))

  evaluation = dataclasses.replace(
    base.evaluation, every=share(base.evaluation.every)
  )
  checkpoints = dataclasses.replace(
    base.checkpoints,
    every=share(base.checkpoints.every),
    keep_every=share(base.checkpoints.keep_every),
  )
  logs = dataclasses.replace(base.logs, every=share(base.logs.every))
  return dataclasses.replace(
    base,
    steps=steps,
    batch=batch,
    optimizer=optimizer,
    evaluation=evaluation,
    checkpoints=checkpoints,
    logs=logs,
  )


def _name(budget: float, n: int) -> str:
  return f'c{budget:.4g}_n{n}'.replace('e+', 'e')


def _distinct(cells: list[Cell]) -> list[Cell]:
  """Two shapes of equal size get the key of their experiment in the name."""
  names = [cell.name for cell in cells]
  return [
    dataclasses.replace(c, name=f'{c.name}_{c.key[:6]}')
    if names.count(c.name) > 1
    else c
    for c in cells
  ]


def _refusal(cell: Cell, min_steps: int, max_epochs: float) -> str:
  run = cell.experiment
  if run.steps < min_steps:
    return (
      f'{run.steps} steps of {run.batch} rows are fewer than'
      f' min_steps={min_steps}; a larger budget, a smaller model or a smaller'
      ' batch would give more.'
    )
  if cell.epochs > max_epochs:
    return (
      f'{cell.d:,} units are {cell.epochs:.2f} epochs of the data, more than'
      f' max_epochs={max_epochs:g}; more data, a smaller budget or a larger'
      ' model would give fewer.'
    )
  return ''


def to_plan(cells: Iterable[Cell]) -> dict:
  """Returns the plan as JSON values: the same plan, the same bytes."""
  plan = cells if isinstance(cells, Plan) else Plan(tuple(cells))
  entries = [
    {
      'name': c.name,
      'key': c.key,
      'budget': c.budget,
      'n': c.n,
      'd': c.d,
      'steps': c.experiment.steps,
      'batch': c.experiment.batch,
      'lr': c.experiment.optimizer.lr,
      'params': c.params,
      'flops_per_unit': c.flops_per_unit,
      'flops': c.flops,
      'epochs': c.epochs,
      'memory_bytes': c.memory,
      'mismatch': c.mismatch,
    }
    for c in plan
  ]
  body = {
    'schema': 1,
    'convention': plan.convention,
    'params': plan.n,
    'unit': plan[0].experiment.objective.unit if len(plan) else 'token',
    'budgets': sorted({c.budget for c in plan}),
    # Nats per unit that no model can get below, where the data know it.
    'entropy': plan[0].experiment.data.facts().get('entropy')
    if len(plan)
    else None,
    'cells': entries,
    'dropped': list(plan.dropped),
  }
  return {**body, 'hash': _hash(body)}


def _hash(value) -> str:
  text = json.dumps(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()[:16]


def table(
  cells: Iterable[Cell], *, peak: float | None = None, mfu: float = 0.35
) -> str:
  """Returns the plan as text, a line a cell; ETA where `peak` is known.

  Args:
    cells: A plan, or some of its cells.
    peak: FLOP/s of the devices together.
    mfu: The share of them that training is expected, or measured, to reach.
  """
  heads = ['cell', 'N', 'D', 'steps', 'batch', 'lr', 'epochs', 'off']
  heads += [*count.CONVENTIONS, 'memory', 'ETA']
  rows = [heads]
  for c in cells:
    run = c.experiment
    flops = c.flops
    rows.append(
      [
        c.name,
        f'{c.n:,}',
        f'{c.d:,}',
        f'{run.steps:,}',
        f'{run.batch}',
        f'{run.optimizer.lr:.3g}',
        f'{c.epochs:.2f}',
        f'{c.mismatch:+.2%}',
        *(_flops(flops[k]) for k in count.CONVENTIONS),
        _bytes(c.memory),
        clock(c.seconds(peak, mfu)) if peak else '?',
      ]
    )
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = [
    '  '.join(
      text.ljust(w) if i == 0 else text.rjust(w)
      for i, (text, w) in enumerate(zip(row, widths, strict=True))
    )
    for row in rows
  ]
  lines += [f'dropped {line}' for line in getattr(cells, 'dropped', ())]
  return '\n'.join(lines)


def _flops(value) -> str:
  return '-' if value is None else f'{value:.2e}'.replace('e+', 'e')


def _bytes(value: float) -> str:
  for unit in ('B', 'KiB', 'MiB', 'GiB'):
    if value < 1024:
      return f'{value:.3g} {unit}'
    value /= 1024
  return f'{value:.3g} TiB'


def clock(seconds: float) -> str:
  if seconds < 90:
    return f'{seconds:.0f} s'
  if seconds < 5400:
    return f'{seconds / 60:.0f} min'
  return f'{seconds / 3600:.1f} h'
