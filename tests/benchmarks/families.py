"""Speed of the model families against the classes of `transformers`.

  python tests/benchmarks/families.py [--families gpt2 bert] [--tasks train]

prints ms a step, tokens (or images) a second, peak memory and ratios, all
measured in this run, of the same shapes and float32 on CPU (bfloat16 on a GPU):

  bigdl          the project's own step (`train.program`, objective, AdamW), or
                 `train.generate`
  torch          the class of `transformers` in PyTorch, fused AdamW with
                 clipping, or its `generate`
  torch_compile  the same under torch.compile (training alone)

Tasks: `train`, and `generate1` and `generate32`, which continue one prompt and 32
of 16 tokens by 64 greedy tokens. A family's torch model computes what its class
computes: BertForMaskedLM takes logits at every position, ours at those hidden.
"""

# Shapes: B rows, T positions, S source positions.
from __future__ import annotations

import argparse
import atexit
import dataclasses
import os
import pathlib
import statistics

import turns

CLIP, RATE = 1.0, 1e-3
PROMPT, NEW = 16, 64


@dataclasses.dataclass(frozen=True)
class Size:
  """One shape of a family; all peers run it."""

  depth: int
  width: int
  heads: int
  length: int  # Of a row; pixels of a side where it is an image.
  batch: int
  vocab: int = 1024  # Classes where it is an image.


FAMILIES = {
  'gpt2': Size(4, 256, 4, 128, 16),
  'bert': Size(4, 256, 4, 128, 16),
  'vit': Size(4, 192, 3, 32, 32, vocab=10),
  'transformer': Size(3, 256, 4, 64, 16),
}
ON_GPU = {
  'gpt2': Size(12, 768, 12, 1024, 16, vocab=50304),
  'bert': Size(12, 768, 12, 512, 32, vocab=30592),
  'vit': Size(12, 768, 12, 224, 128, vocab=1000),
  'transformer': Size(6, 512, 8, 256, 64, vocab=37008),
}
PATCH = {32: 4, 224: 16}
# Of a row of BERT, this share is hidden.
HIDDEN = 0.15
WRITERS = ('gpt2', 'transformer')
TASKS = ('train', 'generate1', 'generate32')
PEERS = ('bigdl', 'torch', 'torch_compile')


def has_gpu() -> bool:
  return pathlib.Path('/dev/nvidia0').exists()


def size_of(family: str) -> Size:
  return (ON_GPU if has_gpu() else FAMILIES)[family]


def batch_of(family: str) -> dict:
  """Returns one batch, by our field names, that every peer is given."""
  import numpy as np

  s, rng = size_of(family), np.random.default_rng(0)
  if family == 'vit':
    image = rng.integers(0, 256, (s.batch, s.length, s.length, 3), np.uint8)
    label = rng.integers(0, s.vocab, s.batch).astype(np.int32)
    return {'image': image, 'label': label}

  def ids(length):
    return rng.integers(3, s.vocab, (s.batch, length), np.int32)

  if family == 'gpt2':
    return {'tokens': ids(s.length + 1)}
  if family == 'transformer':
    tokens = ids(s.length + 1)
    tokens[:, 0] = 1
    return {'source': ids(s.length), 'tokens': tokens}
  count = round(HIDDEN * s.length)
  places = np.stack(
    [np.sort(rng.permutation(s.length)[:count]) for _ in range(s.batch)]
  ).astype(np.int32)
  weight = np.zeros((s.batch, s.length), np.float32)
  np.put_along_axis(weight, places, 1, axis=1)
  tokens = ids(s.length)
  return {
    'tokens': tokens,
    'targets': ids(s.length),
    'weight': weight,
    'places': places,
  }


def ours(family: str):
  """Returns our model and objective of a family."""
  s = size_of(family)
  dtype = 'bfloat16' if has_gpu() else 'float32'
  shape = {'depth': s.depth, 'width': s.width, 'heads': s.heads}
  if family == 'vit':
    from bigdl.models.vit import ViT
    from bigdl.objectives.classify import Classify

    model = ViT(
      image_size=s.length, patch=PATCH[s.length], classes=s.vocab, dtype=dtype,
      **shape,
    )  # fmt: skip
    return model, Classify()
  shape |= {'vocab': s.vocab, 'length': s.length, 'dtype': dtype}
  if family == 'gpt2':
    from bigdl.models.gpt import GPT
    from bigdl.objectives.causal_lm import CausalLM

    return GPT(**shape), CausalLM()
  if family == 'bert':
    from bigdl.models.bert import BERT
    from bigdl.objectives.masked_lm import MaskedLM

    return BERT(classes=0, **shape), MaskedLM()
  from bigdl.models.transformer import Transformer
  from bigdl.objectives.seq2seq import Seq2Seq

  return Transformer(**shape), Seq2Seq(smoothing=0.0)


def bigdl_train(family: str):
  """The project's step, exactly as `bigdl train` runs it."""
  import grain.python as grain

  from bigdl.data.base import Source
  from bigdl.experiment import Experiment
  from bigdl.optim.adamw import AdamW
  from bigdl.train import batches, device, program

  device.keep_memory()
  device.enable_compile_cache()
  data, size = batch_of(family), size_of(family).batch

  @dataclasses.dataclass(frozen=True)
  class Rows(Source):
    def dataset(self):
      return grain.MapDataset.range(size).map(
        lambda i: {k: v[i] for k, v in data.items()}
      )

    def rows(self, start, stop):
      return data

  model, objective = ours(family)
  experiment = Experiment(
    model=model,
    objective=objective,
    data=Rows(),
    optimizer=AdamW(lr=RATE),
    steps=10**6,
    batch=size,
  )
  plan = program.Program(experiment, experiment.layout.mesh())
  shapes = plan.state_shapes()
  state = plan.init(shapes)
  update, names = plan.update(shapes)
  stream = batches.Prefetch(plan.batches(), 0, experiment.steps)
  stream.__enter__()
  atexit.register(stream.__exit__, None, None, None)
  key, metrics = plan.key(), None

  def step():
    nonlocal state, metrics
    before = metrics
    state, metrics = update(state, next(stream), key)
    if before is not None:
      before.block_until_ready()  # The loop reads metrics one step late.

  def sync():
    return float(metrics[names.index('loss')])

  return step, sync


def bigdl_generate(family: str, rows: int):
  """Greedy tokens from random weights."""
  import jax
  import numpy as np

  from bigdl.train import device, generate
  from bigdl.train.sampling import Sampling

  device.enable_compile_cache()
  model, _ = ours(family)
  batch = {k: v[:1] for k, v in batch_of(family).items()}
  inputs = [batch[k] for k in ('source', 'tokens') if k in batch]
  inputs[-1] = inputs[-1][:, :-1]
  params = jax.jit(model.init)(jax.random.key(0), *inputs)['params']
  rng = np.random.default_rng(1)
  prompts = rng.integers(3, model.vocab, (rows, PROMPT), np.int32)
  source, tokens = None, NEW
  if family == 'transformer':
    source = generate.Encoded(prompts)
    prompts = np.full((rows, 1), 1, np.int32)
    tokens = min(NEW, model.length - 1)
  last = None

  def step():
    nonlocal last
    stream = generate.generate(
      model,
      params,
      prompts,
      tokens=tokens,
      sampling=Sampling(temperature=0),
      source=source,
    )
    for new in stream:
      last = new

  return step, lambda: float(last.sum())


def theirs(family: str):
  """Returns the torch model of a family."""
  import transformers as hf

  s = size_of(family)
  if family == 'gpt2':
    return hf.GPT2LMHeadModel(
      hf.GPT2Config(
        n_layer=s.depth,
        n_embd=s.width,
        n_head=s.heads,
        vocab_size=s.vocab,
        n_positions=s.length,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=0,
        eos_token_id=0,
      )
    )
  plain = {
    'hidden_size': s.width,
    'num_hidden_layers': s.depth,
    'num_attention_heads': s.heads,
    'intermediate_size': 4 * s.width,
    'hidden_dropout_prob': 0.0,
    'attention_probs_dropout_prob': 0.0,
  }
  if family == 'bert':
    return hf.BertForMaskedLM(
      hf.BertConfig(
        vocab_size=s.vocab, max_position_embeddings=s.length, **plain
      )
    )
  if family == 'vit':
    return hf.ViTForImageClassification(
      hf.ViTConfig(
        image_size=s.length,
        patch_size=PATCH[s.length],
        num_labels=s.vocab,
        **plain,
      )
    )
  return hf.MarianMTModel(
    hf.MarianConfig(
      vocab_size=s.vocab,
      d_model=s.width,
      encoder_layers=s.depth,
      decoder_layers=s.depth,
      encoder_attention_heads=s.heads,
      decoder_attention_heads=s.heads,
      encoder_ffn_dim=4 * s.width,
      decoder_ffn_dim=4 * s.width,
      max_position_embeddings=s.length,
      activation_function='relu',
      scale_embedding=True,
      dropout=0.0,
      attention_dropout=0.0,
      activation_dropout=0.0,
      pad_token_id=0,
      eos_token_id=2,
      decoder_start_token_id=1,
      forced_eos_token_id=None,
    )
  )


def torch_inputs(family: str):
  """Returns the batch as that class wants it, with labels."""
  import torch

  batch = batch_of(family)
  if family == 'vit':
    image = torch.from_numpy(batch['image']).permute(0, 3, 1, 2).float()
    label = torch.from_numpy(batch['label']).long()
    return {'pixel_values': image / 127.5 - 1, 'labels': label}
  tokens = torch.from_numpy(batch['tokens']).long()
  if family == 'gpt2':
    # The class shifts labels itself, and so predicts one token less a row.
    return {'input_ids': tokens[:, :-1], 'labels': tokens[:, :-1]}
  if family == 'bert':
    targets = torch.from_numpy(batch['targets']).long()
    hidden = torch.from_numpy(batch['weight']) > 0
    return {'input_ids': tokens, 'labels': targets.masked_fill(~hidden, -100)}
  return {
    'input_ids': torch.from_numpy(batch['source']).long(),
    'decoder_input_ids': tokens[:, :-1],
    'labels': tokens[:, 1:].contiguous(),
  }


def torch_train(family: str, *, compiled: bool):
  """A step of the class in PyTorch."""
  import torch

  where = start_torch(torch)
  model = theirs(family).to(where).train()
  inputs = {k: v.to(where) for k, v in torch_inputs(family).items()}
  run = torch.compile(model) if compiled else model
  adamw = torch.optim.AdamW(
    model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.1, fused=True
  )
  loss = None

  def step():
    nonlocal loss
    with torch.autocast(where, torch.bfloat16, enabled=where == 'cuda'):
      loss = run(**inputs).loss
    adamw.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP, foreach=True)
    adamw.step()

  return step, lambda: float(loss.detach())


def torch_generate(family: str, rows: int):
  """The class's `generate`, greedy, that does not end early."""
  import torch

  where = start_torch(torch)
  model = theirs(family).to(where).eval()
  if where == 'cuda':
    model = model.to(torch.bfloat16)
  torch.manual_seed(1)
  shape = (rows, PROMPT)
  prompts = torch.randint(3, size_of(family).vocab, shape, device=where)
  new = NEW if family == 'gpt2' else min(NEW, size_of(family).length - 1)
  last = None

  def step():
    nonlocal last
    last = model.generate(
      prompts,
      attention_mask=torch.ones_like(prompts),
      max_new_tokens=new,
      min_new_tokens=new,
      do_sample=False,
      num_beams=1,
    )

  return step, lambda: float(last.sum())


def start_torch(torch) -> str:
  if torch.cuda.is_available():
    torch.set_float32_matmul_precision('high')
    return 'cuda'
  torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
  return 'cpu'


def peer_of(name: str, family: str, task: str):
  """Returns `(step, sync)` of a peer."""
  if task == 'train':
    if name == 'bigdl':
      return bigdl_train(family)
    return torch_train(family, compiled=name == 'torch_compile')
  rows = int(task.removeprefix('generate'))
  if name == 'bigdl':
    return bigdl_generate(family, rows)
  return torch_generate(family, rows)


def report(family: str, task: str, ran: dict[str, turns.Peer]) -> None:
  s = size_of(family)
  if task == 'train':
    rows, unit = s.batch, 'images' if family == 'vit' else 'tokens'
    units = rows if family == 'vit' else rows * s.length
  else:
    rows, unit = int(task.removeprefix('generate')), 'tokens'
    new = NEW if family == 'gpt2' else min(NEW, s.length - 1)
    units = rows * new
  print(
    f'\n{family} {task}: depth {s.depth}, width {s.width}, heads {s.heads},'
    f' length {s.length}, batch {rows}'
  )
  print(
    f'{"peer":14}{"ms":>10}{unit + "/s":>12}{"memory":>12}{"first":>9}'
    f'{"first value":>13}'
  )
  for peer in ran.values():
    median = statistics.median(peer.seconds)
    print(
      f'{peer.name:14}{median * 1e3:10.2f}{units / median:12,.0f}'
      f'{peer.bytes / 2**20:8.0f} MiB{peer.compile:7.1f} s{peer.value:13.4f}'
    )
  turns.say_ratios(ran)


def main() -> None:
  """Runs the benchmark, or one of its peers."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    '--families', nargs='+', choices=FAMILIES, default=FAMILIES
  )
  parser.add_argument('--tasks', nargs='+', choices=TASKS, default=TASKS)
  parser.add_argument('--peers', nargs='+', choices=PEERS, default=PEERS)
  parser.add_argument('--rounds', type=int, default=5)
  parser.add_argument('--seconds', type=float, default=1.5)
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--peer', choices=PEERS, help=argparse.SUPPRESS)
  flags = parser.parse_args()
  if flags.peer:
    turns.pin(flags.threads)
    turns.serve(
      lambda: peer_of(flags.peer, flags.families[0], flags.tasks[0]), warm=2
    )
    return
  for family in flags.families:
    for task in flags.tasks:
      if task != 'train' and family not in WRITERS:
        continue
      peers = [p for p in flags.peers if task == 'train' or p != PEERS[2]]
      line = [__file__, '--families', family, '--tasks', task, '--peer']
      ran = turns.measure(
        {peer: [*line, peer] for peer in peers},
        rounds=flags.rounds,
        seconds=flags.seconds,
        threads=flags.threads,
      )
      report(family, task, ran)


if __name__ == '__main__':
  main()
