"""Does a small XLNet learn to predict bytes from those around them?

One byte in six is predicted, from the bytes that come before it in an order
drawn for each row; what it must beat is the entropy of bytes by their frequency.

Command:  bigdl train --config=experiments/xlnet.py --workdir=runs/xlnet
Cost: 1500 steps, 2.4e12 FLOPs (matmul_causal), about a minute on one core.
Expected: 1.59 nats per predicted byte of 1024 held-out rows (standard error
0.04, one seed), where `unigram()` is 3.28 on the same rows.
"""

from __future__ import annotations

import numpy as np

from bigdl.data.permuted import Permuted
from bigdl.data.stdlib import StandardLibrary
from bigdl.experiment import Checkpoints, Evaluation, Experiment, Logs
from bigdl.models.xlnet import XLNet
from bigdl.objectives.permutation_lm import PermutationLM
from bigdl.optim.adamw import AdamW

LENGTH = 96


def rows(split: str) -> Permuted:
  return Permuted(StandardLibrary(split=split, length=LENGTH))


def unigram(size: int = 1024) -> float:
  """Returns nats per target of held-out rows, by the bytes' shares in training.

  Args:
    size: Rows of each split that are read.
  """
  train, held_out = (
    np.bincount(rows(split).rows(0, size)[field].ravel(), minlength=256)
    for split, field in (('train', 'tokens'), ('validation', 'targets'))
  )
  # One more of each, so that no byte has a share of zero.
  shares = (train + 1) / (train + 1).sum()
  return float(-(held_out * np.log(shares)).sum() / held_out.sum())


def get_config() -> Experiment:
  return Experiment(
    model=XLNet(depth=2, width=64, heads=2, vocab=256),
    objective=PermutationLM(),
    data=rows('train'),
    optimizer=AdamW(lr=3e-3),
    steps=1500,
    batch=16,
    evaluation=Evaluation(
      data=rows('validation'),
      rows=1024,
      batch=64,
      every=500,
    ),
    checkpoints=Checkpoints(every=0, keep=1),
    logs=Logs(every=50, tensorboard=False),
  )
