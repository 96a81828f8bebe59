"""What the loop tells the world: log records, progress, the run's record."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
import errno
import math
import pathlib
from typing import Any

import jax
import numpy as np

from bigdl.experiment import Experiment
from bigdl.train import clock, evaluate, guard, log, record

Progress = Callable[[dict[str, Any]], None]
# What MFU counts: matrix products only, the causal half of attention.
MFU_FLOPS = 'matmul_causal'


class Diverged(Exception):
  """Numbers are such that the run ends here."""


class Rewound(Exception):
  """Numbers are such that the run goes back to a checkpoint."""

  def __init__(self, step: int, reason: str):
    super().__init__(reason)
    self.step, self.reason = step, reason


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
    watch: clock.Clock,  # Of this start; it gets what earlier ones counted.
    before: dict,  # The record of an earlier start, or {}.
    config: dict,
    facts: dict,
    device: dict,
    on_progress: Progress | None,
    say: Callable[[str], None],
  ):
    e = experiment
    self._experiment, self._folder, self._config = e, folder, config
    self._primary = jax.process_index() == 0
    self._names, self._rates = names, rates
    self._loss = names.index('loss')
    self._finite = [names.index(n) for n in guard.FINITE if n in names]
    self._facts, self._before, self._device = facts, before, device
    self._progress, self._say = on_progress, say
    self._units = e.batch * e.objective.units(e.data.spec())
    self._skipped = before.get('skipped', 0)
    self.rewinds: tuple[guard.Rewind, ...] = ()
    self.stopped_by: str | None = None
    self.clock = watch
    self._resume(log.read(folder), start)
    self._log = self._open(start)
    self._mark = self._start = start, self.clock.seconds

  def _resume(self, lines: list[dict[str, Any]], start: int) -> None:
    """Gives the clock what earlier starts counted, and what they lost.

    A start that was killed has logged updates since it last wrote the record.
    """
    before = self._before
    seconds, wall = before.get('seconds', 0.0), before.get('wall_seconds', 0.0)
    # Of the time before there were parts, it is known how much trained.
    known = {'train': seconds, 'start': wall - seconds}
    self.clock.add(before.get('goodput_parts') or known)
    times = [r['seconds'] for r in lines if 'seconds' in r]
    since = max(0.0, times[-1] - seconds) if times else 0.0
    self.clock.add({'train': since})
    kept = _seconds_at(lines, start)
    if before.get('step') == start:
      kept = seconds
    self.clock.lose(seconds + since - kept)

  def _open(self, step: int) -> log.Log:
    return log.Log(
      self._folder,
      self._experiment.logs,
      step=step,
      config=self._config,
      primary=self._primary,
    )

  def __enter__(self) -> Book:
    self._log.__enter__()
    return self

  def __exit__(self, *error) -> None:
    self._log.__exit__(*error)

  def flush(self) -> None:
    """Returns once all records are where the run folder is."""
    self._log.flush()

  def rewind(self, step: int, rewinds: tuple[guard.Rewind, ...]) -> None:
    """Goes back to that step: what was logged after it is dropped."""
    self.rewinds = rewinds
    self._log.__exit__()
    kept = _seconds_at(self._log.records, step)
    self.clock.lose(self.clock.seconds - kept)
    self._log = self._open(step)
    self._mark = self._start = step, self.clock.seconds

  def observe(self, step: int, vector: jax.Array) -> None:
    """Takes the metrics of an update, waiting until it is done.

    Raises:
      Diverged: The loss or the gradient is not finite, or the loss leaps, and
        the guard of the run says stop, or has no patience left.
      Rewound: The same, and the guard says rewind.
    """
    # The loop's only transfer to the host.
    values = np.asarray(vector).tolist()
    verdict, reason = self._judge(step, values)
    if verdict != guard.FINE:
      self._act(verdict, step, reason, values)
    if guard.SKIPPED in self._names:
      self._skipped = int(values[self._names.index(guard.SKIPPED)])
    if step in self._rates:
      self._record(step, values)

  def _judge(self, step: int, values: list[float]) -> tuple[int, str]:
    for index in self._finite:
      if not math.isfinite(values[index]):
        name = self._names[index]
        return guard.NONFINITE, f'{name} is {values[index]} at step {step}'
    if guard.VERDICT not in self._names:
      return guard.FINE, ''
    verdict = int(values[self._names.index(guard.VERDICT)])
    if verdict == guard.NONFINITE:
      return verdict, f'a parameter is not finite at step {step}'
    if verdict == guard.SPIKE:
      by = values[self._names.index(guard.DEVIATIONS)]
      return verdict, (
        f'loss {values[self._loss]:.4f} at step {step} is {by:.3g} robust'
        f' deviations above the last {self._experiment.guard.window}'
      )
    return guard.FINE, ''

  def _act(self, verdict, step, reason, values) -> None:
    """Does what the guard says about a bad update."""
    rule = self._experiment.guard
    action = rule.nonfinite if verdict == guard.NONFINITE else rule.action
    if action == 'rewind':
      raise Rewound(step, reason)
    if action == 'stop':
      raise Diverged(reason)
    count = int(values[self._names.index(guard.IN_A_ROW)])
    if count > rule.patience:
      raise Diverged(
        f'{reason}, and {count - 1} updates before it were skipped'
      )
    if count == 1:
      self._say(f'{reason}: skipped')

  def broken(self, step: int) -> None:
    """Takes the news that a parameter is not finite, which raises."""
    reason = f'a parameter is not finite at step {step}'
    if self._experiment.guard.nonfinite == 'rewind':
      raise Rewound(step, reason)
    raise Diverged(reason)

  def _record(self, step: int, values: list[float]) -> None:
    seconds = self.clock.seconds
    since, then = self._mark
    self._mark = (step, seconds)
    rate = (step - since) * self._units / max(seconds - then, 1e-9)
    mfu = self._mfu(rate)
    metrics = dict(zip(self._names, values, strict=True))
    for name in ('weight', guard.VERDICT, guard.IN_A_ROW):
      metrics.pop(name, None)
    if guard.SKIPPED in metrics:
      # An update that was skipped has numbers that JSON has not.
      metrics = {k: v for k, v in metrics.items() if math.isfinite(v)}
    loss = {'loss': metrics.pop('loss')} if 'loss' in metrics else {}
    self._log.write(
      {
        'step': step,
        **loss,
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
    parts = self.clock.parts()
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
      'wall_seconds': sum(parts.values()),
      'goodput': clock.goodput(parts),
      'goodput_parts': parts,
      'starts': self._before.get('starts', 0) + 1,
      'skipped': self._skipped,
      'rewinds': [dataclasses.asdict(r) for r in self.rewinds],
      'peak_flops': facts.get('peak_flops'),
      'peak_note': facts.get('peak_note'),
      'device': f'{self._device["count"]}x {self._device["kind"]}',
      'stopped_by': self.stopped_by,
      'message': message,
    }
    if self._primary:
      try:
        record.write_json(self._folder / 'record.json', value)
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


def _seconds_at(lines: list[dict[str, Any]], step: int) -> float:
  """Returns how long the updates up to a step took, by the log."""
  known = [(r['step'], r['seconds']) for r in lines if 'seconds' in r]
  steps, seconds = zip((0, 0.0), *known, strict=True)
  return float(np.interp(step, steps, seconds))


def _train_loss(records: list[dict[str, Any]], steps: int) -> float | None:
  """Returns the mean logged loss of the last twentieth of the run."""
  losses = [r for r in records if 'loss' in r]
  if not losses:
    return None
  late = [r['loss'] for r in losses if r['step'] > 0.95 * steps]
  return float(np.mean(late or [losses[-1]['loss']]))
