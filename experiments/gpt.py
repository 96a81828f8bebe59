"""How fast, and how far, does GPT-2 train at its four published sizes?

Command:
  bigdl train --config=experiments/gpt.py:124m --workdir=runs/gpt2 --layout.fsdp=8
  bigdl train --config=experiments/gpt.py:124m@data/*.jsonl.xz@gpt2/ --workdir=…
    SIZE@PATHS@TOKENIZER: text files (see `data/text.py`) and a folder with
    GPT-2's vocab.json and merges.txt, or a tokenizer.json. Without paths the
    text is Python's standard library, without a tokenizer byte pairs are learnt
    from the text.
  bigdl sweep --config=experiments/gpt.py:124m --dry_run    (a ladder of sizes)
Sizes: 124m, 350m, 774m, 1.5b (Radford et al., 2019, table 2; 124,439,808 to
1,557,611,200 parameters). Batches of half a million tokens, rates of GPT-3's
table 2.1 (Brown et al., 2020, arXiv:2005.14165).
Cost: 124m sees 10 billion tokens, 8e18 FLOPs (matmul_causal): 45 minutes on
eight H100 at 40 % MFU; 1.5b as many tokens, 1e20 FLOPs.
Expected, not measured here: on web text 124m reaches 3.0 to 3.3 nats per token.
"""

from __future__ import annotations

from bigdl.data.stdlib import StandardLibrary
from bigdl.data.text import TextFiles
from bigdl.data.tokenizers import BPE, TokenizerFile
from bigdl.experiment import Checkpoints, Evaluation, Experiment, Logs
from bigdl.models.gpt import SIZES
from bigdl.objectives.causal_lm import CausalLM
from bigdl.optim.adamw import AdamW
from bigdl.optim.schedule import Cosine
from bigdl.scaling import grid

# Name of the size and peak learning rate.
GPT2 = {
  '124m': ('gpt2-124m', 6e-4),
  '350m': ('gpt2-355m', 3e-4),
  '774m': ('gpt2-774m', 2.5e-4),
  '1.5b': ('gpt2-1.5b', 2e-4),
}
# FLOPs for the ladder, a factor of three apart; the last one is held out.
BUDGETS = (1e18, 3e18, 1e19, 3e19)


def get_config(arg: str = '124m') -> Experiment:
  size, _, rest = arg.partition('@')
  paths, _, vocabulary = rest.partition('@')
  if size not in GPT2:
    raise ValueError(f'{size!r} must be one of {", ".join(GPT2)}')
  name, rate = GPT2[size]
  model = SIZES[name].clone(dtype='bfloat16')
  tokenizer = TokenizerFile(vocabulary) if vocabulary else BPE(model.vocab)

  def text(split: str) -> StandardLibrary | TextFiles:
    if not paths:
      return StandardLibrary(
        length=model.length, tokenizer=tokenizer, split=split
      )
    return TextFiles(
      paths=tuple(paths.split(',')),
      length=model.length,
      tokenizer=tokenizer,
      split=split,
    )

  return Experiment(
    model=model,
    objective=CausalLM(),
    data=text('train'),
    optimizer=AdamW(lr=rate, schedule=Cosine(warmup=0.02)),
    steps=19_000,
    batch=512,
    evaluation=Evaluation(
      data=text('validation'), rows=2048, batch=64, every=1000
    ),
    checkpoints=Checkpoints(every=500, keep=2),
    logs=Logs(every=10),
  )


def get_sweep(base: Experiment, arg: str = '') -> grid.Plan:
  del arg  # Has made the base.
  return grid.isoflop(
    base,
    budgets=BUDGETS,
    models=grid.ladder(base.model, [2.0**k for k in range(-5, 3)]),
    batch=grid.step_law_batch,
    lr=grid.compute_rate,
    units_per_parameter=(3, 300),
    max_epochs=float('inf'),
    multiple=8,
  )
