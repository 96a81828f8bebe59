"""Trained weights on disk: of a run, of a sweep's best cell, of a model folder.

A model folder holds `model.json` and the parameters in safetensors, as `bigdl
convert` writes it; see `bigdl.tensors`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
import dataclasses
import json
import os
import pathlib
from typing import Any

from bigdl import config, storage, tensors, tree
from bigdl.experiment import Experiment
from bigdl.parallel.layout import Layout
from bigdl.train import checkpoint, program, record

Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Weights:
  """A module and its parameters by path, each read when it is asked for."""

  folder: pathlib.Path  # Where they were found.
  model: Any  # Linen module; its `stack` is that of the entries.
  entries: Mapping[str, Any]  # `tensors.Pending` or arrays.

  def params(self) -> dict[str, Any]:
    """Returns all parameters of `model`, nested."""
    return tensors.nested(
      {
        k: v.make() if isinstance(v, tensors.Pending) else v
        for k, v in self.entries.items()
      }
    )


def find(path: str | os.PathLike) -> pathlib.Path:
  """Returns the folder itself, or the best finished cell of a sweep's folder.

  Raises:
    ValueError: It holds neither a model, nor a run, nor a sweep.
  """
  path = storage.folder(path)
  if not path.is_dir():
    raise ValueError(f'{path}: no such folder')
  if storage.is_remote(path) and (path / tensors.MODEL).exists():
    raise ValueError(f'{path}: a model folder must be copied to a disk first')
  if any((path / name).is_file() for name in (tensors.MODEL, 'config.json')):
    return path
  losses = {}
  for file in sorted(path.glob('cells/*/record.json')):
    row = json.loads(file.read_text())
    if row.get('status') == 'finished' and row.get('loss') is not None:
      losses[file.parent] = row['loss']
  if not losses:
    raise ValueError(
      f'{path} holds neither {tensors.MODEL}, nor config.json, nor a finished'
      ' cell of a sweep'
    )
  return min(losses, key=lambda cell: losses[cell])


def open(path: str | os.PathLike, say: Say = print) -> Weights:
  """Returns the weights at a path; those of a model folder are not read yet.

  Args:
    path: Folder of a model, a run, or a sweep.
    say: Takes one line about each checkpoint that cannot be read.
  """
  folder = find(path)
  if (folder / tensors.MODEL).is_file():
    model, entries = tensors.read_model(folder)
    return Weights(folder, model, entries)
  experiment, params = restore(folder, say)
  return Weights(folder, experiment.model, dict(tree.items(params)))


def load(
  path: str | os.PathLike, like: Any, say: Say = print
) -> dict[str, Any]:
  """Returns parameters of the shapes of `like`, as nested numpy arrays.

  Args:
    path: Folder of a model, a run, or a sweep.
    like: Parameters or `jax.ShapeDtypeStruct`s, of a loop or of a scan.
    say: Takes one line about each checkpoint that cannot be read.

  Raises:
    ValueError: Lists the parameters that are missing, unknown or misshapen.
  """
  weights = open(path, say)
  shapes = dict(tree.items(like))
  flat, left = tensors.arrange(weights.entries, shapes)
  faults = [f'missing {k}' for k in shapes if k not in flat]
  faults += [f'unknown {k}' for k in left]
  if faults:
    raise ValueError(f'{weights.folder} does not fit: {"; ".join(faults)}')
  return tensors.nested(flat)


def experiment_of(folder: pathlib.Path) -> Experiment:
  """Returns the experiment that a run folder records."""
  experiment = config.from_json(record.read_json(folder / 'config.json'))
  if not isinstance(experiment, Experiment):
    raise ValueError(f'{folder / "config.json"} is of no run of bigdl')
  return experiment


def restore(folder: pathlib.Path, say: Say = print) -> tuple[Experiment, Any]:
  """Returns the experiment of a run and the weights that it is scored with.

  The model's `stack` is that of the weights, the layout one device.

  Args:
    folder: The run folder.
    say: Takes one line about each checkpoint that cannot be read.

  Raises:
    ValueError: No checkpoint can be read.
  """
  experiment = experiment_of(folder)
  problems: list[str] = []
  stacks: tuple[str, ...] = ('',)
  if hasattr(experiment.model, 'stack'):
    # A run of another kind of device may have stacked its layers another way.
    stacks = tuple(dict.fromkeys((experiment.model.stack, 'loop', 'scan')))
  for stack in stacks:
    model = experiment.model
    model = model.clone(stack=stack) if stack else model
    changed = dataclasses.replace(
      experiment, model=model, layout=Layout(data=1)
    )
    plan = program.Program(changed, changed.layout.mesh())
    said: list[str] = []
    state = checkpoint.load(folder, plan.state_shapes(), said.append)
    if state is not None:
      for line in said:
        say(line)
      return changed, changed.optimizer.averaged(state.opt, state.params)
    problems = problems or said
  why = problems[0] if problems else 'it has not saved one yet'
  raise ValueError(f'{folder} has no checkpoint that can be read: {why}')
