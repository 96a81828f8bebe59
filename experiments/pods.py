"""Do the models of eight papers fit the pods they were trained on, and today's?

Command:
  bigdl compile --config=experiments/pods.py:chinchilla-70b
  bigdl compile --config=experiments/pods.py:chinchilla-70b@now --full
    NAME is the model on its paper's kind of pod, NAME@now on one that is sold
    today; another --topology wants its own --layout. No accelerator is needed.
  bigdl train --config=experiments/pods.py:NAME --workdir=… trains on noise, to
    see how fast it is there.
Cost: 2 to 20 s of two cores each, as measured while others used them.
Expected: all fit. A device's peak is what the compiler reports before it writes
code, an upper bound, against what it says is available. Step and MFU
(matmul_full) are estimates of `compiling.roofline`, whose errors README shows;
v2 and v3 count two devices a chip.

| variant | slice | data x fsdp x tensor | rows | GiB, peak / HBM | compile | step | MFU |
|---|---|---|---|---|---|---|---|
| gpt2-1.5b | v3:8x16 | 16x16x1 | 512 | 2.6 / 15.5 | 2 s | 0.72 s | 47 % |
| gpt2-1.5b@now | v5e:4x4 | 2x8x1 | 512 | 10.4 / 15.8 | 3 s | 3.1 s | 55 % |
| gpt3-175b | a100:1x128x8 | 1x128x8 | 1536 | 17.7 / 79.3 | 10 s | 25.8 s | 41 % |
| gpt3-175b@now | v5p:8x8x16 | 1x128x8 | 1536 | 21.9 / 95.7 | 11 s | 14.0 s | 51 % |
| gopher-280b | v3:32x32*4 | 4x256x8 | 3072 | 7.7 / 15.5 | 7 s | 36.1 s | 60 % |
| gopher-280b@now | v5p:8x16x16 | 1x256x8 | 3072 | 25.2 / 95.7 | 9 s | 23.5 s | 49 % |
| chinchilla-70b | v4:8x8x16 | 1x256x4 | 1536 | 11.2 / 30.8 | 6 s | 14.0 s | 35 % |
| chinchilla-70b@now | v5p:4x8x8 | 1x64x4 | 1536 | 45.1 / 95.7 | 10 s | 27.8 s | 43 % |
| palm-540b | v4:12x16x16*2 | 2x256x12 | 2048 | 8.4 / 30.8 | 5 s | 16.9 s | 48 % |
| palm-540b@now | v5p:12x16x16 | 1x256x12 | 2048 | 15.8 / 95.7 | 4 s | 18.6 s | 52 % |
| llama-65b | a100:1x256x8 | 1x256x8 | 2048 | 5.1 / 79.3 | 5 s | 7.2 s | 37 % |
| llama-65b@now | v5p:4x8x8 | 1x64x4 | 2048 | 36.2 / 95.7 | 4 s | 26.0 s | 56 % |
| vit-22b | v4:8x8x16 | 1x256x4 | 65536 | 16.6 / 30.8 | 3 s | 15.3 s | 51 % |
| vit-22b@now | v5p:4x8x8 | 1x64x4 | 65536 | 66.4 / 95.7 | 3 s | 31.1 s | 60 % |
| bert-large | v2:8x8 | 128x1x1 | 256 | 6.5 / 7.5 | 3 s | 0.21 s | 42 % |
| bert-large@now | v5e:4x4 | 4x4x1 | 256 | 9.9 / 15.8 | 3 s | 0.23 s | 37 % |

GPT-3's V100 are not compiled for; A100 stand for them. Everything is recomputed
in the backward pass (`remat=full`), but nothing of BERT.
"""

from __future__ import annotations

from collections.abc import Callable
import dataclasses

from flax import linen as nn

from bigdl.data.noise import Noise
from bigdl.experiment import Checkpoints, Experiment, Logs
from bigdl.models import bert, gpt, vit
from bigdl.objectives.base import Objective
from bigdl.objectives.causal_lm import CausalLM
from bigdl.objectives.classify import Classify
from bigdl.objectives.masked_lm import MaskedLM
from bigdl.optim.adafactor import Adafactor
from bigdl.optim.adamw import AdamW
from bigdl.optim.base import Optimizer
from bigdl.optim.schedule import WSD, Cosine, InverseSquareRoot
from bigdl.parallel.layout import Layout

# Positions of a row of masked text that are predicted: 15 % of 512.
_HIDDEN = 77
# Scores of relative positions in tiles, without those that a causal mask hides:
# a third less time by the estimate, and memory, than all scores at once.
_TILED = {'attention': 'tiled'}
# Labels of JFT-4B; the paper does not count them, Zhai et al. (2021) say 30k.
_CLASSES = 30_000


@dataclasses.dataclass(frozen=True)
class Pod:
  """A slice, and how a model is laid out over it."""

  topology: str
  layout: Layout
  remat: str = 'full'
  accumulate: int = 1


@dataclasses.dataclass(frozen=True)
class Model:
  """What a paper trained, how, and on which pods it is compiled here."""

  model: nn.Module
  objective: Objective
  data: Noise
  optimizer: Optimizer
  steps: int
  batch: int  # Rows.
  paper: Pod
  now: Pod


def _text(model: gpt.GPT) -> Noise:
  return Noise('causal', vocab=model.vocab, length=model.length)


def _gpt(name: str, **fields) -> gpt.GPT:
  return gpt.SIZES[name].clone(dtype='bfloat16', **fields)


def _language(name: str, changes: dict | None = None, **fields) -> Model:
  model = _gpt(name, **(changes or {}))
  return Model(
    model, **{'objective': CausalLM(), 'data': _text(model), **fields}
  )


def _gpt2() -> Model:
  # Radford et al., 2019, section 2.3: 512 rows of 1,024. The paper names
  # neither machine nor optimizer; 256 cores of v3 are what was reported of it.
  return _language(
    'gpt2-1.5b',
    optimizer=AdamW(lr=2e-4, schedule=Cosine(warmup=0.02)),
    steps=19_000,
    batch=512,
    # 256 divides few of its dimensions.
    paper=Pod('v3:8x16', Layout(data=16, fsdp=16)),
    now=Pod('v5e:4x4', Layout(data=2, fsdp=8)),
  )


def _gpt3() -> Model:
  # Brown et al., 2020, arXiv:2005.14165, table 2.1 and appendix B: 3.2 million
  # tokens a batch, here 1,536 rows of 2,048.
  return _language(
    'gpt3-175b',
    optimizer=AdamW(lr=6e-5, schedule=Cosine(warmup=119)),
    steps=95_000,
    batch=1536,
    paper=Pod('a100:1x128x8', Layout(data=1, fsdp=-1, tensor=8)),
    now=Pod('v5p:8x8x16', Layout(data=1, fsdp=-1, tensor=8)),
  )


def _gopher() -> Model:
  # Rae et al., 2021, arXiv:2112.11446, table 1 and section 3.1: batches grow
  # from 3 to 6 million tokens; Adam; 4,096 TPU v3 in four pods.
  return _language(
    'gopher-280b',
    _TILED,
    optimizer=AdamW(
      lr=4e-5, weight_decay=0.0, clip=0.25, schedule=Cosine(warmup=1500)
    ),
    steps=47_700,
    batch=3072,
    paper=Pod('v3:32x32*4', Layout(data=4, fsdp=-1, tensor=8, slices=4)),
    now=Pod('v5p:8x16x16', Layout(data=1, fsdp=-1, tensor=8)),
  )


def _chinchilla() -> Model:
  # Hoffmann et al., 2022, arXiv:2203.15556, table 4: 1.5 to 3 million tokens a
  # batch; AdamW; TPU v3 and v4.
  return _language(
    'chinchilla-70b',
    _TILED,
    optimizer=AdamW(lr=1e-4, schedule=Cosine(warmup=1500)),
    steps=445_000,
    batch=1536,
    paper=Pod('v4:8x8x16', Layout(data=1, fsdp=-1, tensor=4)),
    now=Pod('v5p:4x8x8', Layout(data=1, fsdp=-1, tensor=4)),
  )


def _palm() -> Model:
  # Chowdhery et al., 2022, arXiv:2204.02311, section 5: 2,048 rows of 2,048 in
  # the end; Adafactor without factors, here with them; z-loss; two pods of
  # 3,072. Of the vocabulary, 256,000 there, each of 12 devices holds whole
  # tiles of 128.
  return _language(
    'palm-540b',
    {'vocab': 256_512},
    objective=CausalLM(z_loss=1e-4),
    optimizer=Adafactor(
      lr=1e-2, schedule=InverseSquareRoot(warmup=10_000), momentum=0.9
    ),
    steps=255_000,
    batch=2048,
    paper=Pod('v4:12x16x16*2', Layout(data=2, fsdp=-1, tensor=12, slices=2)),
    now=Pod('v5p:12x16x16', Layout(data=1, fsdp=-1, tensor=12)),
  )


def _llama() -> Model:
  # Touvron et al., 2023, arXiv:2302.13971, table 2 and section 2.3: 4 million
  # tokens a batch; AdamW; 2,048 A100 of 80 GB.
  return _language(
    'llama-65b',
    optimizer=AdamW(lr=1.5e-4, schedule=Cosine(warmup=2000)),
    steps=350_000,
    batch=2048,
    paper=Pod('a100:1x256x8', Layout(data=1, fsdp=-1, tensor=8)),
    now=Pod('v5p:4x8x8', Layout(data=1, fsdp=-1, tensor=4)),
  )


def _vit() -> Model:
  # Dehghani et al., 2023, arXiv:2302.05442, sections 2 and 4: 65,536 images a
  # batch, 177,000 steps, 1,024 TPU v4; the head there is sigmoid, here softmax.
  model = vit.SIZES['vit-22b/14']
  return Model(
    model.clone(classes=_CLASSES, dtype='bfloat16'),
    objective=Classify(),
    data=Noise('images', size=model.image_size, classes=_CLASSES),
    optimizer=Adafactor(
      lr=1e-3,
      relative=False,
      momentum=0.9,
      weight_decay=0.03,
      schedule=InverseSquareRoot(warmup=10_000),
    ),
    steps=177_000,
    batch=65_536,
    paper=Pod('v4:8x8x16', Layout(data=1, fsdp=-1, tensor=4)),
    now=Pod('v5p:4x8x8', Layout(data=1, fsdp=-1, tensor=4)),
  )


def _bert() -> Model:
  # Devlin et al., 2018, arXiv:1810.04805, appendix A.2: 256 rows of 512, a
  # million steps, 16 Cloud TPUs (64 chips of v2).
  model = bert.SIZES['bert-large'].clone(dropout=0.1, dtype='bfloat16')
  return Model(
    model,
    objective=MaskedLM(),
    data=Noise(
      'masked',
      vocab=model.vocab,
      length=model.length,
      hidden=_HIDDEN,
      classes=model.classes,
    ),
    optimizer=AdamW(
      lr=1e-4,
      b2=0.999,
      weight_decay=0.01,
      schedule=WSD(warmup=10_000, decay=0.99),
    ),
    steps=1_000_000,
    batch=256,
    paper=Pod('v2:8x8', Layout(data=-1), remat='none'),
    now=Pod('v5e:4x4', Layout(data=4, fsdp=4), remat='none'),
  )


MODELS: dict[str, Callable[[], Model]] = {
  'gpt2-1.5b': _gpt2,
  'gpt3-175b': _gpt3,
  'gopher-280b': _gopher,
  'chinchilla-70b': _chinchilla,
  'palm-540b': _palm,
  'llama-65b': _llama,
  'vit-22b': _vit,
  'bert-large': _bert,
}


def get_config(arg: str = 'gpt2-1.5b') -> Experiment:
  found, pod = _named(arg)
  return Experiment(
    model=found.model.clone(remat=pod.remat, stack='scan'),
    objective=found.objective,
    data=found.data,
    optimizer=found.optimizer,
    steps=found.steps,
    batch=found.batch,
    layout=pod.layout,
    accumulate=pod.accumulate,
    checkpoints=Checkpoints(every=1000, keep=2),
    logs=Logs(every=10),
  )


def get_topology(arg: str = 'gpt2-1.5b') -> str:
  """Returns the `--topology` that a variant's layout is for."""
  return _named(arg)[1].topology


def _named(arg: str) -> tuple[Model, Pod]:
  name, _, when = arg.partition('@')
  if name not in MODELS or when not in ('', 'now'):
    raise ValueError(
      f'{arg!r} must be one of {", ".join(MODELS)}, with @now or not'
    )
  found = MODELS[name]()
  return found, found.now if when else found.paper
