"""Writes text with a trained model: a run folder, or a cell of a sweep."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import sys
import time
from typing import Any

from bigdl import config, flags


@dataclasses.dataclass(frozen=True)
class Flags:
  """Writes text with a trained model: a run folder, or a cell of a sweep.

  Given a sweep's folder, takes its cell of lowest held-out loss. The text goes
  to stdout, the speed to stderr.
  """

  run: str  # Run folder that holds config.json and checkpoints.
  prompt: str = ''  # What the text begins with; '' begins a document.
  tokens: int = 256  # How many to write.
  samples: int = 1  # Texts, drawn independently.
  temperature: float = 0.8  # 0 takes the likeliest token each time.
  top_k: int = 0  # Draw from the so many likeliest tokens; 0: from all.
  top_p: float = 1.0  # Draw from the likeliest that hold this much probability.
  seed: int = 0  # Of what is drawn.


def main(argv: list[str]) -> int:
  """Runs `bigdl generate` and returns the exit code."""
  given, _ = flags.parse(Flags, argv, verb='generate', positional=('run',))
  for name in ('tokens', 'samples'):
    if getattr(given, name) < 1:
      raise ValueError(f'{name}={getattr(given, name)} must be at least 1')
  folder = _folder(pathlib.Path(given.run))
  # JAX is imported from here on.
  from bigdl.train import generate

  sampling = generate.Sampling(given.temperature, given.top_k, given.top_p)
  experiment, params = _load(folder)
  # What a source learns of its own text it keeps as its coder.
  data = experiment.data
  tokenizer = getattr(data, 'coder', None) or data.tokenizer
  prompt = [int(t) for t in tokenizer.encode(given.prompt)] or [tokenizer.eod]
  stream = generate.generate(
    experiment.model,
    params,
    [prompt] * given.samples,
    tokens=given.tokens,
    sampling=sampling,
    seed=given.seed,
  )
  _show(stream, tokenizer, given)
  return 0


def _folder(path: pathlib.Path) -> pathlib.Path:
  """Returns the run folder: the path, or the best cell of a sweep."""
  if not path.is_dir():
    raise ValueError(f'run={path}: no such folder')
  if (path / 'config.json').is_file():
    return path
  losses = {}
  for file in sorted(path.glob('cells/*/record.json')):
    record = json.loads(file.read_text())
    if record.get('status') == 'finished' and record.get('loss') is not None:
      losses[file.parent] = record['loss']
  if not losses:
    raise ValueError(
      f'run={path} holds neither config.json nor a finished cell of a sweep'
    )
  return min(losses, key=lambda cell: losses[cell])


def _load(folder: pathlib.Path) -> tuple[Any, Any]:
  """Returns the experiment of a run and the weights that it is scored with."""
  from bigdl.parallel.layout import Layout
  from bigdl.train import checkpoint, device, program, record

  tree = record.read_json(folder / 'config.json')
  experiment = config.from_json(tree)
  for name in ('decode', 'logits'):
    if not hasattr(experiment.model, name):
      raise ValueError(
        f'run={folder}: {type(experiment.model).__name__} has no {name}(),'
        ' which writing text needs'
      )
  if not hasattr(experiment.data, 'tokenizer'):
    raise ValueError(
      f'run={folder}: {type(experiment.data).__name__} has no tokenizer, which'
      ' writing text needs'
    )
  device.enable_compile_cache()
  problems: list[str] = []
  # A run of another kind of device may have stacked its layers another way.
  for stack in (experiment.model.stack, 'loop', 'scan'):
    changed = dataclasses.replace(
      experiment,
      model=experiment.model.clone(stack=stack),
      layout=Layout(data=1),
    )
    plan = program.Program(changed, changed.layout.mesh())
    said: list[str] = []
    state = checkpoint.load(folder, plan.state_shapes(), said.append)
    if state is not None:
      params = changed.optimizer.averaged(state.opt, state.params)
      return changed, params
    problems = problems or said
  why = problems[0] if problems else 'it has not saved one yet'
  raise ValueError(f'run={folder} has no checkpoint that can be read: {why}')


def _show(stream: Any, tokenizer: Any, given: Flags) -> None:
  """Prints one text while it is written, several one after the other."""
  rows: list[list[int]] = [[] for _ in range(given.samples)]
  alone, shown, times = given.samples == 1, '', []
  if alone:
    print(given.prompt, end='', flush=True)
  for new in stream:
    times.append((time.perf_counter(), len(rows[0])))
    for row, more in zip(rows, new.tolist(), strict=True):
      row += more
    if alone:
      text = tokenizer.decode(rows[0])
      # The last character may be half there.
      ready = text.rstrip('\N{REPLACEMENT CHARACTER}')
      if ready.startswith(shown):
        print(ready[len(shown) :], end='', flush=True)
        shown = ready
  if alone:
    print(tokenizer.decode(rows[0])[len(shown) :])
  else:
    for number, row in enumerate(rows, 1):
      print(f'--- {number}\n{given.prompt}{tokenizer.decode(row)}')
  # By then both programs, for the prompt and for a token, are compiled.
  if len(times) > 3:
    (start, first), (end, last) = times[2], times[-1]
    rate = given.samples * (last - first) / max(end - start, 1e-9)
    print(
      f'bigdl: {rate:,.0f} tokens/s (batch {given.samples})', file=sys.stderr
    )
