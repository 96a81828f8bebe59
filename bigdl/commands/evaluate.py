"""Asks a trained decoder questions with choices, after some answered ones."""

from __future__ import annotations

import dataclasses
from typing import Any

from bigdl import flags


@dataclasses.dataclass(frozen=True)
class Flags:
  """Asks a trained decoder questions with choices, after some answered ones.

  Items are JSON lines of `prompt`, `choices` and `answer` (a choice or its number
  from 0); the text of a choice follows the prompt as it stands, so that one or
  the other says the space between them. Printed are the shares answered rightly
  by the largest log-probability: summed, per token, and per byte.
  """

  run: str  # Run folder, a sweep's (its best cell), or a converted model.
  tasks: str  # File of JSON lines.
  shots: int = 0  # Answered items before each one.
  shots_from: str = ''  # File they are drawn from; '': the other items.
  separator: str = '\n\n'  # Stands after each answered item.
  batch: int = 16  # Rows at a time.
  seed: int = 0  # Of the draw.


def main(argv: list[str]) -> int:
  """Runs `bigdl evaluate` and returns the exit code."""
  given, _ = flags.parse(Flags, argv, verb='evaluate', positional=('run',))
  if given.batch < 1:
    raise ValueError(f'batch={given.batch} must be at least 1')
  # JAX is imported from here on.
  from bigdl.train import fewshot

  items = fewshot.read(given.tasks)
  pool = fewshot.read(given.shots_from) if given.shots_from else None
  before = fewshot.contexts(
    items,
    shots=given.shots,
    pool=pool,
    seed=given.seed,
    separator=given.separator,
  )
  model, params, tokenizer = _load(given.run)
  found = fewshot.evaluate(
    model, params, tokenizer, items, before, batch=given.batch
  )
  print(f'{found.items} items, {given.shots} shots, chance {found.chance:.3f}')
  for name, words in (
    ('sum', 'summed log-probability'),
    ('token', 'per token'),
    ('byte', 'per byte'),
  ):
    share, error = found.accuracy[name]
    print(f'accuracy  {share:.3f} ± {error:.3f}  {words}')
  if found.cut:
    print(f'{found.cut} rows lost their beginning to length={model.length}')
  return 0


def _load(path: str) -> tuple[Any, Any, Any]:
  """Returns model, parameters and tokenizer of a run, or of a model folder."""
  from bigdl import tensors
  from bigdl.data.tokenizers import TokenizerFile
  from bigdl.train import device, weights

  try:
    folder = weights.find(path)
  except ValueError as error:
    raise ValueError(f'run={error}') from error
  device.enable_compile_cache()
  if (folder / tensors.MODEL).is_file():
    found = weights.open(folder)
    model, params = found.model, found.params()
    tokenizer: Any = TokenizerFile(str(folder))
  else:
    experiment, params = weights.restore(folder)
    model, data = experiment.model, experiment.data
    # What a source learns of its own text it keeps as its coder.
    tokenizer = getattr(data, 'coder', None) or getattr(data, 'tokenizer', None)
    if tokenizer is None:
      raise ValueError(
        f'run={folder}: {type(data).__name__} has no tokenizer, which asking'
        ' questions needs'
      )
  for name in ('decode', 'logits', 'length'):
    if not hasattr(model, name):
      raise ValueError(
        f'run={folder}: {type(model).__name__} has no {name}, which asking'
        ' questions needs'
      )
  if hasattr(model, 'encode'):
    raise ValueError(
      f'run={folder}: {type(model).__name__} is an encoder-decoder; questions'
      ' are asked of a decoder'
    )
  if tokenizer.vocab > model.vocab:
    raise ValueError(
      f'run={folder}: its tokenizer has {tokenizer.vocab} ids, the model'
      f' vocab={model.vocab}'
    )
  return model, params, tokenizer
