"""Does a GPT of less than a million parameters get near the best n-grams?

Characters of tinyshakespeare (1,115,394 of them, 65 distinct, each one byte);
the last tenth of the text is held out. Witten-Bell n-grams reach 3.347, 2.486,
2.049, 1.774, 1.669, 1.698, 1.779 nats a character for n of 1 to 7.

Command:
  bigdl train --config=experiments/shakespeare.py:PATH/input.txt --workdir=…
  bigdl train --config=experiments/shakespeare.py:10m@PATH/input.txt …  (a GPU)
Cost: 0.8 million parameters, 2.6e13 FLOPs (matmul_causal), 2 minutes on two
cores.
Expected, over all of the held-out tenth: 1.512, 1.502 and 1.506 nats a character
from three seeds.
10m (10.7 million parameters, batches of 64 x 256, dropout .2) is for a GPU and
was not measured here; it should reach 1.52 or less.
"""

from __future__ import annotations

from bigdl.data.text import TextFiles
from bigdl.experiment import Checkpoints, Evaluation, Experiment, Logs
from bigdl.models.gpt import GPT
from bigdl.objectives.causal_lm import CausalLM
from bigdl.optim.adamw import AdamW
from bigdl.optim.schedule import WSD


def get_config(arg: str) -> Experiment:
  size, _, path = arg.rpartition('@')
  if not path or size not in ('', '10m'):
    raise ValueError(f'{arg!r} must be PATH or 10m@PATH')
  large = size == '10m'
  length = 256 if large else 128
  model = GPT(
    depth=4,
    width=128,
    heads=4,
    vocab=256,
    length=length,
    norm='rmsnorm',
    position='rotary',
    weight_init='fan_in',
    init_std=0.2,
  )
  if large:
    model = model.clone(
      depth=6, width=384, heads=6, dropout=0.2, dtype='bfloat16'
    )

  def text(split: str) -> TextFiles:
    return TextFiles(paths=(path,), split=split, length=length, tail=0.1)

  return Experiment(
    model=model,
    objective=CausalLM(),
    data=text('train'),
    optimizer=AdamW(
      lr=1e-3 if large else 3e-3,
      schedule=WSD(warmup=0.05, decay=0.5 if large else 0.8),
    ),
    steps=5000 if large else 2400,
    batch=64 if large else 16,
    evaluation=Evaluation(data=text('validation'), rows=0, batch=64),
    checkpoints=Checkpoints(every=1000, keep=1),
    logs=Logs(every=20, tensorboard=False),
  )
