"""Does the Transformer learn to copy, to reverse, to translate?

Command:
  bigdl train --config=experiments/transformer.py:reverse --workdir=runs/reverse
  bigdl train --config=experiments/transformer.py:fra-eng.zip --workdir=runs/fra
  bigdl train --config=experiments/transformer.py:base@fra-eng.zip --workdir=…
  python experiments/transformer.py runs/reverse [ROWS]
    TASK is copy or reverse, on generated sequences. PATH is a file of pairs,
    tab-separated (tatoeba's fra-eng.zip, from manythings.org/anki): French, its
    second column, is translated into English. `base` is for one GPU.
  The last line decodes held-out rows with the cache and prints the share of
  sequences that are exact and, of text, BLEU by greedy decoding and by four beams
  with alpha = 0.6, as in Vaswani et al., 2017, arXiv:1706.03762, section 6.1.
Cost: a task 1.7e12 FLOPs (matmul_causal), 21 to 69 seconds on two shared cores.
Expected, measured: copy and reverse, three seeds each, give 1024 of 1024 held-out
sequences (of 1 to 16 symbols of 26), by greedy decoding with the cache. Their
held-out loss of 0.102 nats per token is that of label smoothing.
Translation was not measured: PATH takes about five minutes on two cores (15 thousand
target tokens a second over 40 steps), base@PATH wants a GPU, where BLEU of 20 or
more on held-out pairs is the aim.
"""

from __future__ import annotations

import sys

import numpy as np

from bigdl.data.algorithmic import Algorithmic
from bigdl.data.base import Source
from bigdl.data.parallel_text import ParallelText
from bigdl.data.tokenizers import BPE
from bigdl.experiment import Checkpoints, Evaluation, Experiment, Logs
from bigdl.models.transformer import SIZES, Transformer
from bigdl.objectives.seq2seq import Seq2Seq
from bigdl.optim.adamw import AdamW
from bigdl.optim.schedule import WSD, InverseSquareRoot
from bigdl.train import beam, bleu, generate, sampling, weights

TASKS = ('copy', 'reverse')
SYMBOLS, LENGTH = 26, 16  # Of the tasks' sequences.
VOCAB, SMALL_VOCAB = 8000, 2000  # Byte pairs over both languages.
BATCH = 64  # Rows decoded at a time.


def get_config(arg: str = 'reverse') -> Experiment:
  if arg in TASKS:
    return _algorithmic(arg)
  size, _, path = arg.rpartition('@')
  if size == 'base':
    return _translate_base(path)
  if size or not path:
    raise ValueError(f'{arg!r} must be {", ".join(TASKS)}, PATH or base@PATH')
  return _translate(path)


def _algorithmic(task: str) -> Experiment:
  def rows(split: str) -> Algorithmic:
    return Algorithmic(
      task=task,  # type: ignore[arg-type]
      split=split,
      vocab=SYMBOLS + 3,
      length=LENGTH,
    )

  return Experiment(
    model=Transformer(
      depth=2,
      width=64,
      heads=4,
      mlp_width=128,
      vocab=SYMBOLS + 3,
      length=LENGTH + 1,
      block='pre',
    ),
    objective=Seq2Seq(),
    data=rows('train'),
    optimizer=AdamW(lr=2e-3, schedule=WSD(warmup=0.05, decay=0.5)),
    steps=1500,
    batch=64,
    evaluation=Evaluation(
      data=rows('validation'), rows=1024, batch=64, every=250
    ),
    checkpoints=Checkpoints(every=500, keep=1),
    logs=Logs(every=20, tensorboard=False),
  )


def _pairs(path: str, split: str, *, length: int, vocab: int) -> ParallelText:
  return ParallelText(
    paths=(path,),
    split=split,
    source=1,
    target=0,
    length=length,
    tokenizer=BPE(vocab),
    # What is decoded stands alone.
    packed=split == 'train',
  )


def _translate(path: str) -> Experiment:
  """A size for two cores."""
  return Experiment(
    model=Transformer(
      depth=2,
      width=128,
      heads=4,
      vocab=SMALL_VOCAB + 1,
      length=64,
      block='pre',
      pad=SMALL_VOCAB,
      begin=SMALL_VOCAB,
      end=0,
    ),
    objective=Seq2Seq(),
    data=_pairs(path, 'train', length=64, vocab=SMALL_VOCAB),
    optimizer=AdamW(lr=2e-3, schedule=WSD(warmup=0.05, decay=0.5)),
    steps=2000,
    batch=32,
    evaluation=Evaluation(
      data=_pairs(path, 'validation', length=64, vocab=SMALL_VOCAB),
      rows=1024,
      batch=64,
    ),
    checkpoints=Checkpoints(every=250, keep=1),
    logs=Logs(every=20, tensorboard=False),
  )


def _translate_base(path: str) -> Experiment:
  """The base model of 2017 with its own recipe, for a GPU."""
  return Experiment(
    model=SIZES['transformer-base'].clone(
      vocab=VOCAB + 1,
      length=128,
      pad=VOCAB,
      begin=VOCAB,
      end=0,
      dropout=0.3,
      dtype='bfloat16',
    ),
    objective=Seq2Seq(),
    data=_pairs(path, 'train', length=128, vocab=VOCAB),
    # The paper's Adam; its rate peaks at (512 x warmup)^-0.5.
    optimizer=AdamW(
      lr=1e-3,
      b1=0.9,
      b2=0.98,
      weight_decay=0.0,
      schedule=InverseSquareRoot(warmup=1000),
    ),
    steps=3000,
    batch=128,
    evaluation=Evaluation(
      data=_pairs(path, 'validation', length=128, vocab=VOCAB),
      rows=4096,
      batch=256,
      every=500,
    ),
    checkpoints=Checkpoints(every=500, keep=2),
    logs=Logs(every=20),
  )


def decode(
  model: Transformer, params, data: Source, rows: int, *, beams: int = 0
) -> tuple[list[list[int]], list[list[int]]]:
  """Returns what the model writes for held-out rows, and what it should.

  Both are token ids without begin and end. `beams` 0 takes the likeliest token
  each time.
  """
  found, wanted = [], []
  for start in range(0, rows, BATCH):
    batch = data.rows(start, min(start + BATCH, rows))
    source = generate.Encoded(batch['source'], batch['source_segments'])
    prompts = [[model.begin]] * len(batch['source'])
    most = model.length - 1
    if beams:
      how = beam.Beam(beams, 0.6, 'gnmt')
      outputs = beam.search(
        model,
        params,
        prompts,
        tokens=most,
        beam=how,
        ends=(model.end,),
        source=source,
      ).tokens_BKT[:, 0]
    else:
      parts = generate.generate(
        model,
        params,
        prompts,
        tokens=most,
        sampling=sampling.Sampling(temperature=0),
        ends=(model.end,),
        source=source,
      )
      outputs = np.concatenate(list(parts), axis=1)
    found += [_own(row, model.end) for row in outputs.tolist()]
    wanted += [_own(row[1:], model.end) for row in batch['tokens'].tolist()]
  return found, wanted


def _own(row: list[int], end: int) -> list[int]:
  return row[: row.index(end)] if end in row else row


def main(run: str, rows: int = 1024) -> None:
  experiment, params = weights.restore(weights.find(run))
  model, data = experiment.model, experiment.evaluation.data
  if not isinstance(model, Transformer) or data is None:
    raise ValueError(f'{run} is no run of a Transformer with held-out data')
  rows = min(rows, len(data))
  found, wanted = decode(model, params, data, rows)
  exact = sum(a == b for a, b in zip(found, wanted, strict=True))
  print(f'exact: {exact} of {rows} held-out sequences')
  if not isinstance(data, ParallelText):
    return
  texts = [data.coder.decode(np.array(row)) for row in wanted]
  for beams in (0, 4):
    if beams:
      found, _ = decode(model, params, data, rows, beams=beams)
    made = [data.coder.decode(np.array(row)) for row in found]
    way = f'{beams} beams' if beams else 'greedy'
    print(f'BLEU: {bleu.bleu(made, texts):.1f} ({way}, {rows} pairs)')


if __name__ == '__main__':
  main(sys.argv[1], *map(int, sys.argv[2:]))
