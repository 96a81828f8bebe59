"""A model that writes text, its weights and its tokenizer, from a folder."""

from __future__ import annotations

import os
from typing import Any, NamedTuple


class Text(NamedTuple):
  """What writing text takes."""

  model: Any
  params: Any
  tokenizer: Any


def load(path: str | os.PathLike) -> Text:
  """Returns model, weights and tokenizer of a run, a sweep or a model folder.

  A run brings the tokenizer of its data; a model folder, as `bigdl convert`
  writes it, that of the files beside the weights.

  Raises:
    ValueError: There is no such folder, no weights, or no tokenizer; or the
      model has not what writing text needs.
  """
  from bigdl import tensors
  from bigdl.data.tokenizers import TokenizerFile
  from bigdl.train import device, weights

  folder = weights.find(path)
  device.enable_compile_cache()
  if (folder / tensors.MODEL).is_file():
    held = weights.open(folder)
    _check(folder, held.model)
    tokenizer: Any = TokenizerFile(str(folder))
    if tokenizer.vocab > held.model.vocab:
      raise ValueError(
        f'run={folder}: its tokenizer has {tokenizer.vocab} ids, the model'
        f' vocab={held.model.vocab}'
      )
    return Text(held.model, held.params(), tokenizer)
  experiment = weights.experiment_of(folder)
  _check(folder, experiment.model)
  data: Any = experiment.data
  if not hasattr(data, 'tokenizer'):
    raise ValueError(
      f'run={folder}: {type(data).__name__} has no tokenizer, which'
      ' writing text needs'
    )
  experiment, params = weights.restore(folder)
  # What a source learns of its own text it keeps as its coder.
  data = experiment.data
  tokenizer = getattr(data, 'coder', None) or data.tokenizer
  return Text(experiment.model, params, tokenizer)


def _check(folder, model):
  for name in ('decode', 'logits'):
    if not hasattr(model, name):
      raise ValueError(
        f'run={folder}: {type(model).__name__} has no {name}(), which writing'
        ' text needs'
      )
