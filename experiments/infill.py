"""Does a causal model learn to write what lies between two sides?

Causal-masked infilling on Python's standard library, byte by byte (Fried et al.,
2022, InCoder, arXiv:2204.05999): spans of each row move behind it, and stand
there after their mask (`data/infill.py`).

Command:
  bigdl train --config=experiments/infill.py --workdir=runs/infill
  bigdl train --config=experiments/infill.py:left --workdir=runs/left
    `left` reads the same text as it is, from left to right.
Cost: 1.2e12 FLOPs (matmul_causal), half a minute each on two cores.
Expected: a little more loss than `left`, as what follows a cut is predicted
without what was cut out. Measured, one seed: 1.721 +- 0.043 nats a target (ends of spans among
them, masks not), and `left` 1.601 +- 0.046 nats a byte.
"""

from __future__ import annotations

from bigdl.data.infill import Infill
from bigdl.data.stdlib import StandardLibrary
from bigdl.experiment import Checkpoints, Evaluation, Experiment, Logs
from bigdl.models.gpt import GPT
from bigdl.objectives.causal_lm import CausalLM
from bigdl.optim.adamw import AdamW

LENGTH, SPANS = 128, 8
KINDS = ('infill', 'left')


def get_config(arg: str = 'infill') -> Experiment:
  if arg not in KINDS:
    raise ValueError(f'{arg!r} must be one of {", ".join(KINDS)}')

  def rows(split: str) -> StandardLibrary | Infill:
    text = StandardLibrary(length=LENGTH, split=split)
    return Infill(text, spans=SPANS) if arg == 'infill' else text

  return Experiment(
    model=GPT(
      depth=3,
      width=64,
      heads=4,
      # Bytes, the end of a span, and its masks.
      vocab=256 + 1 + SPANS,
      length=LENGTH,
      norm='rmsnorm',
      position='rotary',
      weight_init='fan_in',
      init_std=0.2,
    ),
    objective=CausalLM(),
    data=rows('train'),
    optimizer=AdamW(lr=5e-3),
    steps=1000,
    batch=8,
    evaluation=Evaluation(data=rows('validation'), rows=1024, batch=64),
    checkpoints=Checkpoints(every=250, keep=1),
    logs=Logs(every=20, tensorboard=False),
  )
