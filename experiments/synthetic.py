"""Does the fitted E find the entropy of a language that is known?

A sweep on a Markov chain whose entropy rate is known in closed form
(`data/synthetic.py`): the irreducible loss E of the fitted law is compared with
it when the sweep ends.

Command:  bigdl sweep --config=experiments/synthetic.py --workdir=runs/synthetic
Cost: 24 cells, 4.2e12 FLOPs (matmul_causal), 2 minutes on two cores.
Expected: E = 3.69 [3.68, 3.70] nats per token against a true 3.667: within 1 %,
and too high, as the rarest contexts are learnt at budgets beyond these. N grows
as C^0.46, the lowest loss of the held-out budget is predicted to 0.1 %.
"""

from __future__ import annotations

from bigdl.data.synthetic import Markov
from bigdl.experiment import Checkpoints, Evaluation, Experiment, Logs
from bigdl.models.gpt import GPT
from bigdl.objectives.causal_lm import CausalLM
from bigdl.optim.adamw import AdamW
from bigdl.scaling import grid

LENGTH, VOCAB = 64, 256
BUDGETS = (3e10, 6e10, 1.2e11, 2.4e11, 4.8e11)  # The last one is held out.
WIDTHS = (6, 8, 12, 16, 24, 32, 48, 64)


def get_config() -> Experiment:
  return Experiment(
    model=GPT(
      depth=1,
      width=16,
      heads=1,
      vocab=VOCAB,
      length=LENGTH,
      norm='rmsnorm',
      position='rotary',
      weight_init='fan_in',
      init_std=0.2,
      tied=False,
    ),
    objective=CausalLM(),
    data=Markov(vocab=VOCAB, length=LENGTH),
    optimizer=AdamW(lr=1e-2),
    steps=1000,
    batch=8,
    evaluation=Evaluation(
      data=Markov(vocab=VOCAB, length=LENGTH, split='validation'),
      rows=2048,
      batch=64,
    ),
    checkpoints=Checkpoints(every=250, keep=1),
    logs=Logs(every=20, tensorboard=False),
  )


def get_sweep(base: Experiment) -> grid.Plan:
  return grid.isoflop(
    base,
    budgets=BUDGETS,
    models=[base.model.clone(width=width) for width in WIDTHS],
    batch=base.batch,
    lr=lambda n, d, batch: 0.01 * (n / 1e4) ** -0.3,
    units_per_parameter=(4, 500),
  )
