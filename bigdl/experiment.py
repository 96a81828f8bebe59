"""Experiment: one frozen value that names a whole run."""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Literal

from flax import linen as nn

from bigdl.data.base import Source
from bigdl.objectives.base import Objective
from bigdl.optim.base import Optimizer
from bigdl.parallel.layout import Layout


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """Scores held-out rows during and after training."""

  data: Source | None = None  # None: no evaluation.
  rows: int = 512  # The first so many rows; 0 takes all of one epoch.
  batch: int = 0  # Rows at a time; 0 takes the training batch.
  every: int = 0  # Steps between evaluations; 0 evaluates at the end only.


@dataclasses.dataclass(frozen=True)
class Checkpoints:
  """When State is saved and how many saves are kept."""

  every: int = 1000  # Steps between saves; 0 saves at the end only.
  keep: int = 2  # The latest so many are kept.
  keep_every: int = 0  # Multiples of this step are kept for good; 0: none.


@dataclasses.dataclass(frozen=True)
class Logs:
  """Where metrics go besides `metrics.jsonl`, which is always written."""

  every: int = 10  # Steps between records.
  tensorboard: bool = True
  wandb: str = ''  # Project name; '' is off.
  mlflow: str = ''  # Experiment name; '' is off.


@dataclasses.dataclass(frozen=True)
class Start:
  """The weights that a run starts from; those it does not find start fresh.

  To put a head on a model, `rename=(('^', 'body/'),)` says where its weights go.
  """

  folder: str = ''  # Of a run, a sweep (its best cell), a model; '': none.
  drop: str = ''  # Paths, as the folder has them, that are not taken.
  # Pairs of a regular expression and what replaces it, in the folder's paths.
  rename: tuple[tuple[str, str], ...] = ()

  def __post_init__(self):
    patterns = [('drop', self.drop), *(('rename', p) for p, _ in self.rename)]
    for name, pattern in patterns:
      try:
        re.compile(pattern)
      except re.error as error:
        raise ValueError(
          f'start.{name}={pattern!r} must be a regular expression: {error}'
        ) from error
    if not self.folder and (self.drop or self.rename):
      raise ValueError('start.folder must say where the weights are')


Action = Literal['stop', 'skip', 'rewind']


@dataclasses.dataclass(frozen=True)
class Guard:
  """What a run does about bad numbers and about data that do not come.

  stop: the run ends as diverged. skip: the update is not applied. rewind: the
  run goes back to a checkpoint and on past the batches that led here (Chowdhery
  et al., 2022, arXiv:2204.02311, section 5.1). A resume repeats what was done;
  where a rewind ends depends on the checkpoints that there are.
  """

  nonfinite: Action = 'stop'  # At a loss or gradient that is not finite.
  # A loss so many robust deviations (1.4826 MAD) above the median of the last
  # `window` is a spike; 0 looks for none.
  spike: float = 0.0
  window: int = 128  # Updates.
  action: Action = 'rewind'  # At a spike.
  back: int = 100  # Updates before the trouble that a rewind undoes, at least.
  ahead: int = 100  # Batches after it that a rewind passes over as well.
  patience: int = (
    5  # Skips in a row, or rewinds in all; one more stops the run.
  )
  slow: float = 30.0  # Seconds over one batch until it is reported; 0: never.
  hung: float = 0.0  # Seconds over one batch until the run stops; 0: never.

  def __post_init__(self):
    for name in ('spike', 'slow', 'hung'):
      value = getattr(self, name)
      if not 0 <= value < math.inf:
        raise ValueError(f'guard.{name}={value} must be 0 or more, and finite')
    for name, least in (('window', 8), ('back', 0), ('ahead', 0)):
      value = getattr(self, name)
      if value < least:
        raise ValueError(f'guard.{name}={value} must be at least {least}')
    if self.patience < 0:
      raise ValueError(f'guard.patience={self.patience} must be at least 0')


@dataclasses.dataclass(frozen=True)
class Experiment:
  """One run: what is trained, on what, how, for how long.

  D, the data a run sees, is `steps * batch * objective.units(data.spec())`.
  """

  model: nn.Module
  objective: Objective
  data: Source
  optimizer: Optimizer
  steps: int  # Parameter updates.
  batch: int  # Rows per update, over all devices.
  start: Start = Start()
  evaluation: Evaluation = Evaluation()
  layout: Layout = Layout()
  accumulate: int = 1  # Microbatches per update.
  checkpoints: Checkpoints = Checkpoints()
  logs: Logs = Logs()
  guard: Guard = Guard()
  seed: int = 0

  def __post_init__(self):
    for name in ('steps', 'batch', 'accumulate'):
      value = getattr(self, name)
      if value < 1:
        raise ValueError(f'{name}={value} must be at least 1')
    if self.batch % self.accumulate:
      raise ValueError(
        f'accumulate={self.accumulate} must divide batch={self.batch}'
      )

  def check(self) -> None:
    """Raises ValueError where data and model disagree; opens the data."""
    self.optimizer.check(self.steps)
    self.objective.check(self.model, self.data.spec(), self.data.facts())
    held_out = self.evaluation.data
    if held_out is not None:
      self.objective.check(self.model, held_out.spec(), held_out.facts())

  @property
  def units(self) -> int:
    """D: units of data (tokens, images) that the whole run sees."""
    return self.steps * self.batch * self.objective.units(self.data.spec())
