"""What the loop tells the world: log records, progress, the run's record."""

from __future__ import annotations

from collections.abc import Callable
import errno
import math
import pathlib
import time
from typing import Any

import jax
import numpy as np

from bigdl.experiment import Experiment
from bigdl.train import clock, evaluate, log, record

Progress = Callable[[dict[str, Any]], None]
# What MFU counts: matrix products only, the causal half of attention.
MFU_FLOPS = 'matmul_causal'
# Metrics that must stay finite.
FINITE = ('loss', 'grad_norm')


class Diverged(Exception):
  """A number that must be finite is not."""


class Book:
  """Keeps `metrics.jsonl` and `record.json` of a run in step with the loop."""

  def __init__(
    self,
    experiment: Experiment,
    folder: pathlib.Path,
    *,
    names: list[str],  # Of the metrics, in the order of the step's vector.
    rates: dict[int, float],  # Learning rate by step, for the steps to log.
    start: int,
    began: float,  # `time.perf_counter` when this start began.
    before: dict,  # The record of an earlier start, or {}.
    config: dict,
    facts: dict,
    device: dict,
    on_progress: Progress | None,
  ):
    e = experiment
    self._experiment = e
    self._path = folder / 'record.json'
    self._primary = jax.process_index() == 0
    self._names, self._rates = names, rates
    self._loss = names.index('loss')
    self._finite = [names.index(n) for n in FINITE if n in names]
    self._facts, self._before, self._device = facts, before, device
    self._progress = on_progress
    self._units = e.batch * e.objective.units(e.data.spec())
    self._log = log.Log(
      folder, e.logs, step=start, config=config, primary=self._primary
    )
    seconds = [r['seconds'] for r in self._log.records if 'seconds' in r]
    self.clock = clock.Clock(seconds[-1] if seconds else 0.0)
    self._began = began
    self._mark = (start, self.clock.seconds)
    self._start = self._mark

  def __enter__(self) -> Book:
    self._log.__enter__()
    return self

  def __exit__(self, *error) -> None:
    self._log.__exit__(*error)

  def observe(self, step: int, vector: jax.Array) -> None:
    """Takes the metrics of an update, waiting until it is done.

    Raises:
      Diverged: The loss or the gradient is not finite.
    """
    # The loop's only transfer to the host.
    values = np.asarray(vector).tolist()
    for index in self._finite:
      if not math.isfinite(values[index]):
        raise Diverged(
          f'{self._names[index]} is {values[index]} at step {step}'
        )
    if step in self._rates:
      self._record(step, values)

  def _record(self, step: int, values: list[float]) -> None:
    seconds = self.clock.seconds
    since, then = self._mark
    self._mark = (step, seconds)
    rate = (step - since) * self._units / max(seconds - then, 1e-9)
    mfu = self._mfu(rate)
    metrics = dict(zip(self._names, values, strict=True))
    metrics.pop('weight', None)
    self._log.write(
      {
        'step': step,
        'loss': metrics.pop('loss'),
        **metrics,
        'lr': self._rates[step],
        'seconds': seconds,
        'tokens_per_second': rate,
        'mfu': mfu,
      }
    )
    if self._progress:
      first, zero = self._start
      steps = self._experiment.steps
      self._progress(
        {
          'step': step,
          'steps': steps,
          'loss': values[self._loss],
          'tokens_per_second': rate,
          'mfu': mfu,
          'eta_seconds': (steps - step) * (seconds - zero) / (step - first),
        }
      )

  def _mfu(self, rate: float) -> float | None:
    flops = self._facts.get('flops_per_unit', {}).get(MFU_FLOPS)
    peak = self._facts.get('peak_flops')
    return rate * flops / peak if flops and peak else None

  def has_score(self, step: int) -> bool:
    """Returns whether the log has the held-out loss at that step."""
    return any(
      r['step'] == step and 'eval_loss' in r for r in self._log.records
    )

  def score(self, step: int, score: evaluate.Score) -> None:
    """Takes a held-out loss; raises Diverged where it is not finite."""
    if not math.isfinite(score.loss):
      raise Diverged(f'held-out loss is {score.loss} at step {step}')
    self._log.write(
      {
        'step': step,
        'eval_loss': score.loss,
        'eval_se': score.se,
        'eval_bits_per_byte': score.bits_per_byte,
        **{
          f'eval_{name}{ending}': value
          for name, pair in score.more.items()
          for ending, value in zip(('', '_se'), pair, strict=True)
        },
      }
    )

  def write(self, status: str, step: int, message: str = '') -> dict:
    """Writes `record.json` and returns its content."""
    e, facts = self._experiment, self._facts
    units = e.steps * self._units
    per_unit = facts.get('flops_per_unit', {})
    records = self._log.records
    last = [r for r in records if r['step'] == e.steps and 'eval_loss' in r]
    score = last[-1] if last else {}
    seconds = self.clock.seconds
    first, zero = self._start
    # Of this start; an earlier one may have had another machine.
    rate = (step - first) * self._units / max(seconds - zero, 1e-9)
    wall = time.perf_counter() - self._began
    value = {
      'status': status,
      'step': step,
      'steps': e.steps,
      'units': units,
      'batch': e.batch,
      'lr': e.optimizer.lr,
      'seed': e.seed,
      'loss': score.get('eval_loss'),
      'loss_se': score.get('eval_se'),
      'bits_per_byte': score.get('eval_bits_per_byte'),
      'measures': _measures(score),
      'train_loss': _train_loss(records, e.steps),
      'unit': e.objective.unit,
      'params': facts.get('params', {}),
      'flops_per_unit': per_unit,
      'flops': {k: v and v * units for k, v in per_unit.items()},
      'budget': facts.get('budget'),
      'tokens_per_second': rate,
      'mfu': self._mfu(rate),
      'mfu_flops': MFU_FLOPS,
      'seconds': seconds,
      'wall_seconds': self._before.get('wall_seconds', 0.0) + wall,
      'peak_flops': facts.get('peak_flops'),
      'peak_note': facts.get('peak_note'),
      'device': f'{self._device["count"]}x {self._device["kind"]}',
      'message': message,
    }
    if self._primary:
      try:
        record.write_json(self._path, value)
      except OSError as error:
        # The disk is full; the record that is there says `running`.
        if error.errno != errno.ENOSPC:
          raise
    return value


def _measures(score: dict[str, Any]) -> dict[str, Any]:
  """Returns what the objective measures beside the loss, and `_se` of each."""
  own = ('eval_loss', 'eval_se', 'eval_bits_per_byte')
  return {
    name.removeprefix('eval_'): value
    for name, value in score.items()
    if name.startswith('eval_') and name not in own
  }


def _train_loss(records: list[dict[str, Any]], steps: int) -> float | None:
  """Returns the mean logged loss of the last twentieth of the run."""
  losses = [r for r in records if 'loss' in r]
  if not losses:
    return None
  late = [r['loss'] for r in losses if r['step'] > 0.95 * steps]
  return float(np.mean(late or [losses[-1]['loss']]))
