"""How should a byte-level GPT on Python's own source spend its compute?

An IsoFLOP sweep: at each of five budgets, models of several sizes are trained to
the end of their own schedules; the size of lowest loss shows how parameters and
data should grow. The largest budget is left out, predicted, then compared.

Command:  make sweep
  or      bigdl sweep --config=experiments/quickstart.py --workdir=runs/quickstart
Cost: 33 cells, 1.0e13 FLOPs (matmul_causal), 3 to 4 minutes on two cores.
Expected: N grows as C^0.56 [0.52, 0.61] and D as C^0.47, by approach 2; every
minimum lies inside its sizes; the lowest loss of the held-out budget is 1.588
nats a byte, predicted to 0.1 %. The parametric form, which the report shows
beside it, foretells that loss 3.5 % too high, outside its interval. Shapes, rates
and budgets were settled on earlier sweeps of this text: see the README.
"""

from __future__ import annotations

from bigdl.data.stdlib import StandardLibrary
from bigdl.experiment import Checkpoints, Evaluation, Experiment, Logs
from bigdl.models.gpt import GPT
from bigdl.objectives.causal_lm import CausalLM
from bigdl.optim.adamw import AdamW
from bigdl.scaling import grid

LENGTH = 128
BUDGETS = (5e10, 1e11, 2e11, 4e11, 8e11)  # The last one is held out.
SHAPES = (  # Width and depth: 7 to 220 thousand parameters.
  *((12, 2), (16, 2), (20, 2), (24, 2), (32, 2), (32, 3)),
  *((40, 3), (48, 3), (64, 3), (64, 4)),
)


def get_config() -> Experiment:
  return Experiment(
    model=GPT(
      depth=3,
      width=32,
      heads=2,
      vocab=256,
      length=LENGTH,
      norm='rmsnorm',
      position='rotary',
      weight_init='fan_in',
      init_std=0.2,
    ),
    objective=CausalLM(),
    data=StandardLibrary(length=LENGTH),
    optimizer=AdamW(lr=6e-3),
    steps=1000,
    batch=4,
    evaluation=Evaluation(
      data=StandardLibrary(split='validation', length=LENGTH),
      rows=1024,
      batch=64,
    ),
    checkpoints=Checkpoints(every=250, keep=1),
    logs=Logs(every=20, tensorboard=False),
  )


def get_sweep(base: Experiment) -> grid.Plan:
  models = [
    base.model.clone(width=width, depth=depth, heads=max(1, width // 16))
    for width, depth in SHAPES
  ]
  return grid.isoflop(
    base,
    budgets=BUDGETS,
    models=models,
    batch=base.batch,
    lr=lambda n, d, batch: 0.01 * (n / 1e4) ** -0.3,
    units_per_parameter=(2.5, 350),
  )
