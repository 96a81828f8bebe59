"""How should a byte-level GPT on Python's own source spend its compute?

Command:  bigdl sweep --config=experiments/quickstart.py --workdir=runs/quickstart
"""

from __future__ import annotations

from bigdl.data.stdlib import StandardLibrary
from bigdl.experiment import Checkpoints, Evaluation, Experiment, Logs
from bigdl.models.gpt import GPT
from bigdl.objectives.causal_lm import CausalLM
from bigdl.optim.adamw import AdamW
from bigdl.scaling import grid

LENGTH = 128
BUDGETS = (6e10, 1.2e11, 2.4e11, 4.8e11, 9.6e11)
SHAPES = ((16, 2), (24, 2), (32, 3), (48, 3), (64, 4), (96, 4))


def model(width: int, depth: int) -> GPT:
  return GPT(
    depth=depth, width=width, heads=width // 16 or 1, vocab=256, length=LENGTH
  )


def get_config(arg: str = '') -> Experiment:
  del arg
  return Experiment(
    model=model(32, 3),
    objective=CausalLM(),
    data=StandardLibrary(length=LENGTH),
    optimizer=AdamW(lr=3e-3),
    steps=1000,
    batch=16,
    evaluation=Evaluation(
      data=StandardLibrary(split='validation', length=LENGTH), rows=1024
    ),
    checkpoints=Checkpoints(every=500, keep=1),
    logs=Logs(every=20, tensorboard=False),
  )


def get_sweep(arg: str = '') -> grid.Plan:
  return grid.isoflop(
    get_config(arg),
    budgets=BUDGETS,
    models=[model(*shape) for shape in SHAPES],
    batch=16,
    lr=lambda n, d, batch: 0.012 * (n / 1e4) ** -0.3,
    min_steps=50,
  )
