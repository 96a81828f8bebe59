"""How well does a small BERT guess hidden bytes, and better than from the left?

Command:
  bigdl train --config=experiments/bert.py --workdir=runs/bert
  bigdl train --config=experiments/bert.py:causal --workdir=runs/causal
  bigdl train --config=experiments/bert.py:KIND@PATHS --workdir=…
    KIND is what is trained: tokens (the default), words, spans or ernie are
    what is hidden (Devlin et al., 2018, and its whole words; Joshi et al., 2019;
    Sun et al., 2019); next and order add pairs of sentences (BERT's, ALBERT's);
    causal is a GPT of the same shape, compute and text, scored at the very tokens
    that `tokens` hides. PATHS are text files (see `data/text.py`); without them
    the text is Python's standard library.
Cost: 6.3e12 FLOPs (matmul_causal) each, about 90 seconds on two cores.
Expected, in nats per hidden byte of held-out files, 15 % hidden, seeds 0, 1, 2:
1.273, 1.278, 1.315 (standard error 0.045, over files that all share); `causal`,
seeds 0, 1, 2: 1.477, 1.458, 1.446; frequencies of bytes (`unigram`): 3.302.
Positions rotate, weights start scaled by their inputs, norms come first and 30 %
is hidden in training (Wettig et al., 2022, arXiv:2202.08005): with BERT's own
choices, as small a model stays on a plateau near 3 nats for much of its run.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from bigdl.data.masked import Masked, Revealed
from bigdl.data.masking import Knowledge, Masking, Spans, Tokens, Words
from bigdl.data.pairs import PairKind, Pairs
from bigdl.data.stdlib import StandardLibrary
from bigdl.data.text import TextFiles
from bigdl.data.tokens import TokenSource
from bigdl.experiment import Checkpoints, Evaluation, Experiment, Logs
from bigdl.models.bert import BERT
from bigdl.models.gpt import GPT
from bigdl.objectives.causal_lm import CausalLM
from bigdl.objectives.masked_lm import MaskedLM
from bigdl.optim.adamw import AdamW
from bigdl.scaling import count

LENGTH = 64
# What is hidden of training rows; of held-out ones 15 % is, as in BERT.
RATE = 0.3
MASKINGS: dict[str, Masking] = {
  'tokens': Tokens(),
  'words': Words(),
  'spans': Spans(),
  'ernie': Knowledge(),
  'next': Tokens(),
  'order': Tokens(),
  'causal': Tokens(),
}
PAIRS: dict[str, PairKind] = {'next': 'next', 'order': 'order'}


def get_config(arg: str = 'tokens') -> Experiment:
  kind, _, files = arg.partition('@')
  kind = kind or 'tokens'
  if kind not in MASKINGS:
    raise ValueError(f'{kind!r} must be one of {", ".join(MASKINGS)}')
  paths = tuple(p for p in files.split(',') if p)
  return _causal(paths) if kind == 'causal' else _masked(kind, paths)


def rows(
  split: str, kind: str = 'tokens', paths: tuple[str, ...] = ()
) -> Masked:
  """Returns the rows of a split, as bytes."""
  text: TokenSource = StandardLibrary(length=LENGTH, split=split)
  if paths:
    text = TextFiles(paths=paths, length=LENGTH, split=split)
  masking = MASKINGS[kind]
  if split == 'train':
    masking = dataclasses.replace(masking, rate=RATE)
  if kind in PAIRS:
    return Masked(Pairs(text, kind=PAIRS[kind]), masking)
  return Masked(text, masking)


def _masked(kind: str, paths: tuple[str, ...]) -> Experiment:
  pairs = 2 if kind in PAIRS else 0
  return Experiment(
    model=BERT(
      depth=2,
      width=96,
      heads=3,
      vocab=260,
      length=LENGTH,
      types=pairs,
      classes=pairs,
      block='pre',
      position='rotary',
      weight_init='fan_in',
      init_std=0.1,
    ),
    objective=MaskedLM(),
    data=rows('train', kind, paths),
    optimizer=AdamW(lr=4e-3),
    steps=4000,
    batch=16,
    evaluation=Evaluation(
      data=rows('validation', kind, paths), rows=2048, batch=64
    ),
    checkpoints=Checkpoints(every=1000, keep=1),
    logs=Logs(every=100, tensorboard=False),
  )


def _causal(paths: tuple[str, ...]) -> Experiment:
  """Returns a GPT of BERT's shape and of as many FLOPs, on the same rows."""
  masked = _masked('tokens', paths)
  bert, held_out = masked.model, rows('validation', paths=paths)
  shape = ('depth', 'width', 'heads', 'vocab', 'length', 'block', 'position')
  start = ('weight_init', 'init_std')
  causal = dataclasses.replace(
    masked,
    model=GPT(
      **{name: getattr(bert, name) for name in shape + start},
      activation='gelu_exact',
    ),
    objective=CausalLM(),
    data=Revealed(rows('train', paths=paths), everywhere=True),
    evaluation=dataclasses.replace(masked.evaluation, data=Revealed(held_out)),
  )
  steps = masked.steps * _row_flops(masked) / _row_flops(causal)
  return dataclasses.replace(causal, steps=round(steps))


def _row_flops(experiment: Experiment) -> float:
  """Returns training FLOPs of a row (matmul_causal)."""
  model, objective = experiment.model, experiment.objective
  spec = experiment.data.spec()
  found = count.flops_per_unit(model, objective, spec, xla=False)
  return float(found['matmul_causal'] or 0) * objective.units(spec)


def unigram(train: Masked, held_out: Masked, size: int = 2048) -> float:
  """Returns nats per hidden token when it is guessed by frequency alone.

  Frequencies are those of the first `size` rows of training, each id counted
  once more, and what is guessed is of as many held-out rows.
  """
  seen = train.rows(0, size)['targets']
  counts = np.bincount(seen.ravel(), minlength=train.specials.vocab) + 1.0
  shown = held_out.rows(0, min(size, len(held_out)))
  hidden = shown['targets'][shown['weight'] > 0]
  return float(-np.log(counts / counts.sum())[hidden].mean())
