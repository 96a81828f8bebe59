"""Where is the best size of a model, for this text and these budgets?

An IsoFLOP sweep over any text: sizes from the model's own ladder, the batch by
the rule of `scaling.grid` (four rows without PATHS), the largest budget held out.

Command:
  bigdl sweep --config=experiments/isoflop.py --workdir=runs/isoflop
  bigdl sweep --config=experiments/isoflop.py:1e12,2e12,4e12,8e12,1.6e13 …
  bigdl sweep --config=experiments/isoflop.py:1e15,4e15,1.6e16,6.4e16@PATHS …
    PATHS are text files, folders or patterns (plain, .gz, .xz, .tar, .jsonl);
    their tokens are byte pairs, learnt from them.
Cost: with the defaults, 24 cells, 1.4e13 FLOPs (matmul_causal), 4 minutes on two
cores.
Expected: N grows as C^0.56 [0.51, 0.60] by approach 2; the lowest loss of the
held-out budget is 1.495 nats a byte, predicted to 0.3 % by approach 2 and 4.6 % too
high by approach 3, outside its interval. The batch was fixed after a first sweep:
one that doubled between two budgets left approach 3 in the lead and 6.5 % too high.
"""

from __future__ import annotations

from bigdl.data.stdlib import StandardLibrary
from bigdl.data.text import TextFiles
from bigdl.data.tokenizers import BPE
from bigdl.data.tokens import TokenSource
from bigdl.experiment import Checkpoints, Evaluation, Experiment, Logs
from bigdl.models.gpt import GPT
from bigdl.objectives.causal_lm import CausalLM
from bigdl.optim.adamw import AdamW
from bigdl.scaling import grid

BUDGETS = (1e11, 2e11, 4e11, 8e11, 1.6e12)


def _parse(arg: str) -> tuple[tuple[float, ...], tuple[str, ...]]:
  """Returns budgets and paths of `BUDGET,BUDGET,…@PATH,PATH`."""
  numbers, _, paths = arg.partition('@')
  try:
    budgets = tuple(float(x) for x in numbers.split(',') if x) or BUDGETS
  except ValueError:
    raise ValueError(
      f'{numbers!r} must be budgets in FLOPs, such as 1e12,2e12,4e12'
    ) from None
  return budgets, tuple(p for p in paths.split(',') if p)


def get_config(arg: str = '') -> Experiment:
  _, paths = _parse(arg)
  if paths:
    text: TokenSource = TextFiles(
      paths=paths, tokenizer=BPE(vocab=8192), length=512
    )
    held_out: TokenSource = TextFiles(
      paths=paths, tokenizer=BPE(vocab=8192), length=512, split='validation'
    )
    shape = GPT(depth=4, width=256, heads=4, vocab=8192, length=512)
  else:
    text = StandardLibrary(length=128)
    held_out = StandardLibrary(length=128, split='validation')
    shape = GPT(depth=3, width=48, heads=3, vocab=256, length=128)
  return Experiment(
    model=shape.clone(
      norm='rmsnorm',
      position='rotary',
      weight_init='fan_in',
      init_std=0.2,
    ),
    objective=CausalLM(),
    data=text,
    optimizer=AdamW(lr=5e-3),
    steps=1000,
    batch=4,
    evaluation=Evaluation(data=held_out, rows=1024, batch=64),
    checkpoints=Checkpoints(every=250, keep=1),
    logs=Logs(every=20, tensorboard=False),
  )


def get_sweep(base: Experiment, arg: str = '') -> grid.Plan:
  budgets, paths = _parse(arg)
  factors = [2.0**k for k in range(-6, 12)]
  # Small budgets need every step: more rows would only cost some of them.
  rows = grid.compute_batch if paths else base.batch
  return grid.isoflop(
    base,
    budgets=budgets,
    models=grid.ladder(base.model, factors),
    batch=rows,
    lr=lambda n, d, batch: 0.01 * (n / 1e4) ** -0.3,
    units_per_parameter=(2.5, 450),
  )
