"""Training speed of this GPT against PyTorch and against plain Flax.

  python tests/benchmarks/train_step.py [--sizes 0.2M 4M 25M] [--seconds 2]

prints tokens/s, MFU, peak memory and ratios, all measured in this run. Peers:

  bigdl          the project's own step: `train.program`, objective, AdamW,
                 donated state, batches fetched by the prefetching thread
  flax           the same model written plainly in this file, optax's AdamW
  torch          the same model in PyTorch with scaled_dot_product_attention
  torch_compile  the same under torch.compile

Every peer has its own process and the same number of threads, waits while
another one runs, and takes its turn in every round, so that whatever else the
machine does hits all alike. A turn's time is per step; the table has the median
and the best of the rounds.
"""

# Shapes: B batch, T positions, D width, H heads, K head width, V vocabulary.
from __future__ import annotations

import argparse
import atexit
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys

import turns


@dataclasses.dataclass(frozen=True)
class Size:
  """One model shape and batch; all peers train it."""

  depth: int
  width: int
  heads: int
  length: int
  batch: int
  vocab: int = 256
  dtype: str = 'float32'


SIZES = {
  '0.2M': Size(depth=4, width=64, heads=4, length=128, batch=16),
  '4M': Size(depth=5, width=256, heads=4, length=256, batch=8),
  '25M': Size(depth=8, width=512, heads=8, length=256, batch=8),
  # On a GPU: GPT-2 with its vocabulary rounded up to a multiple of 128.
  '124M': Size(12, 768, 12, 1024, 32, vocab=50304, dtype='bfloat16'),
}
PEERS = ('bigdl', 'flax', 'torch', 'torch_compile')
CLIP, DECAY, RATE = 1.0, 0.1, 1e-3


def rows(size: Size):
  """Returns random rows that every peer draws its batches from."""
  import numpy as np

  shape = (512, size.length + 1)
  return np.random.default_rng(0).integers(0, size.vocab, shape, np.int32)


# Each peer is a function from a size to (step, sync): `step()` trains once,
# `sync()` waits for the device and returns the last loss.


def bigdl(size: Size):
  """The project's step, exactly as `bigdl train` runs it."""
  import grain.python as grain

  from bigdl.data.base import Source
  from bigdl.experiment import Experiment
  from bigdl.models.gpt import GPT
  from bigdl.objectives.causal_lm import CausalLM
  from bigdl.optim.adamw import AdamW
  from bigdl.train import batches, device, program

  device.keep_memory()
  device.enable_compile_cache()
  data = rows(size)

  @dataclasses.dataclass(frozen=True)
  class Rows(Source):
    def dataset(self):
      return grain.MapDataset.range(len(data)).map(
        lambda i: {'tokens': data[i]}
      )

  model = GPT(
    depth=size.depth,
    width=size.width,
    heads=size.heads,
    length=size.length,
    vocab=size.vocab,
    dtype=size.dtype,
  )
  experiment = Experiment(
    model=model,
    objective=CausalLM(),
    data=Rows(),
    optimizer=AdamW(lr=RATE),
    steps=10**6,
    batch=size.batch,
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


def flax(size: Size):
  """The same model and update, plainly."""
  from flax import linen as nn
  import jax
  import jax.numpy as jnp
  import optax

  dense = {'dtype': size.dtype}

  class Block(nn.Module):
    @nn.compact
    def __call__(self, x):
      B, T, D = x.shape
      y = nn.LayerNorm(**dense)(x)
      qkv = nn.Dense(3 * D, **dense)(y)
      q, k, v = jnp.split(qkv.reshape(B, T, 3 * size.heads, -1), 3, axis=2)
      y = jax.nn.dot_product_attention(q, k, v, is_causal=True)
      x = x + nn.Dense(D, **dense)(y.reshape(B, T, D))
      y = nn.gelu(nn.Dense(4 * D, **dense)(nn.LayerNorm(**dense)(x)))
      return x + nn.Dense(D, **dense)(y)

  class Model(nn.Module):
    @nn.compact
    def __call__(self, tokens):
      embed = nn.Embed(size.vocab, size.width, **dense)
      places = nn.Embed(size.length, size.width, **dense)
      x = embed(tokens) + places(jnp.arange(tokens.shape[1]))
      for _ in range(size.depth):
        x = Block()(x)
      return embed.attend(nn.LayerNorm(**dense)(x)).astype(jnp.float32)

  model = Model()
  tx = optax.chain(
    optax.clip_by_global_norm(CLIP),
    optax.adamw(RATE, b2=0.95, weight_decay=DECAY),
  )

  def loss_fn(params, tokens):
    logits = model.apply({'params': params}, tokens[:, :-1])
    cross_entropy = optax.softmax_cross_entropy_with_integer_labels
    return cross_entropy(logits, tokens[:, 1:]).mean()

  @jax.jit
  def first(key, tokens):
    params = model.init(key, tokens[:, :-1])['params']
    return params, tx.init(params)

  def update(params, opt, tokens):
    loss, grads = jax.value_and_grad(loss_fn)(params, tokens)
    updates, opt = tx.update(grads, opt, params)
    return optax.apply_updates(params, updates), opt, loss

  update = jax.jit(update, donate_argnums=(0, 1))
  data = rows(size)
  params, opt = first(jax.random.key(0), data[: size.batch])
  count, loss = 0, None

  def step():
    nonlocal params, opt, loss, count
    start = count * size.batch % len(data)
    tokens = data[start : start + size.batch]
    params, opt, loss = update(params, opt, tokens)
    count += 1

  return step, lambda: float(loss)


def torch(size: Size, *, compiled: bool = False):
  """The same model and update in PyTorch."""
  import torch
  from torch import nn
  import torch.nn.functional as F

  class Block(nn.Module):
    def __init__(self):
      super().__init__()
      D = size.width
      self.norm1, self.norm2 = nn.LayerNorm(D), nn.LayerNorm(D)
      self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
      self.up, self.down = nn.Linear(D, 4 * D), nn.Linear(4 * D, D)

    def forward(self, x):
      B, T, D = x.shape
      qkv = self.qkv(self.norm1(x)).view(B, T, 3, size.heads, -1)
      q, k, v = qkv.permute(2, 0, 3, 1, 4)
      y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
      x = x + self.out(y.transpose(1, 2).reshape(B, T, D))
      y = F.gelu(self.up(self.norm2(x)), approximate='tanh')
      return x + self.down(y)

  class Model(nn.Module):
    def __init__(self):
      super().__init__()
      self.embed = nn.Embedding(size.vocab, size.width)
      self.places = nn.Embedding(size.length, size.width)
      self.blocks = nn.ModuleList(Block() for _ in range(size.depth))
      self.norm = nn.LayerNorm(size.width)

    def forward(self, tokens, targets):
      x = self.embed(tokens) + self.places.weight[: tokens.shape[1]]
      for block in self.blocks:
        x = block(x)
      logits = self.norm(x) @ self.embed.weight.T
      return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

  where = 'cuda' if torch.cuda.is_available() else 'cpu'
  half = size.dtype == 'bfloat16'
  if where == 'cpu':
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
  else:
    torch.set_float32_matmul_precision('high')
  model = Model().to(where)
  run = torch.compile(model) if compiled else model
  adamw = torch.optim.AdamW(
    model.parameters(),
    lr=RATE,
    betas=(0.9, 0.95),
    weight_decay=DECAY,
    fused=True,
  )
  data = torch.from_numpy(rows(size)).long()
  count, loss = 0, None

  def step():
    nonlocal loss, count
    start = count * size.batch % len(data)
    tokens = data[start : start + size.batch].to(where)
    with torch.autocast(where, torch.bfloat16, enabled=half):
      loss = run(tokens[:, :-1], tokens[:, 1:])
    adamw.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), CLIP, foreach=True)
    adamw.step()
    count += 1

  return step, lambda: float(loss.detach())


def torch_compile(size: Size):
  """PyTorch's compiler."""
  return torch(size, compiled=True)


def flops_per_token(name: str) -> dict:
  """Returns the ledger's counts and this machine's peak, in a process."""
  code = f"""
import json, jax, sys
sys.path.insert(0, {str(turns.ROOT)!r})
sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})
import train_step
from bigdl.models.gpt import GPT
from bigdl.objectives.causal_lm import CausalLM
from bigdl.scaling import count, peak
s = train_step.SIZES[{name!r}]
model = GPT(depth=s.depth, width=s.width, heads=s.heads, length=s.length,
            vocab=s.vocab)
spec = {{'tokens': jax.ShapeDtypeStruct((s.length + 1,), 'int32')}}
d = jax.devices()[0]
p = peak.peak_flops(d.device_kind, d.platform, s.dtype)
print(json.dumps({{
  'flops': count.flops_per_unit(model, CausalLM(), spec, xla=False),
  'params': count.params(model, CausalLM(), spec),
  'peak': p.flops, 'note': p.note, 'device': d.device_kind}}))
"""
  out = subprocess.run(
    [sys.executable, '-c', code], capture_output=True, text=True, check=True
  )
  return json.loads(out.stdout.splitlines()[-1])


def report(name: str, ran: dict[str, turns.Peer]) -> None:
  """Prints one size's table and ratios."""
  size, facts = SIZES[name], flops_per_token(name)
  tokens = size.batch * size.length
  print(
    f'\n{name}: {facts["params"]["total"]:,} parameters, depth {size.depth},'
    f' width {size.width}, batch {size.batch} x {size.length}, {size.dtype}'
  )
  peak = facts['peak']
  shown = 'unknown' if peak is None else f'{peak / 1e12:.3g} TFLOP/s'
  print(f'{facts["device"]}, peak {shown} ({facts["note"]})')
  print(
    f'{"peer":14}{"tokens/s":>11}{"best":>11}{"ms/step":>10}{"MFU":>7}'
    f'{"full":>7}{"memory":>10}{"first step":>12}'
  )
  for peer in ran.values():
    median = statistics.median(peer.seconds)
    share = ['?', '?']
    if peak:
      share = [
        f'{tokens / median * facts["flops"][k] / peak:.1%}'
        for k in ('matmul_causal', 'matmul_full')
      ]
    print(
      f'{peer.name:14}{tokens / median:11,.0f}'
      f'{tokens / min(peer.seconds):11,.0f}{median * 1e3:10.2f}'
      f'{share[0]:>7}{share[1]:>7}{peer.bytes / 2**20:7.0f} MiB'
      f'{peer.compile:10.1f} s'
    )
  turns.say_ratios(ran)


def main() -> None:
  """Runs the benchmark, or one of its peers."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument('--sizes', nargs='+', choices=SIZES)
  parser.add_argument('--peers', nargs='+', choices=PEERS, default=PEERS)
  parser.add_argument('--rounds', type=int, default=7)
  parser.add_argument('--seconds', type=float, default=1.5)
  parser.add_argument('--threads', type=int, default=2)
  parser.add_argument('--peer', choices=PEERS, help=argparse.SUPPRESS)
  flags = parser.parse_args()
  sizes = flags.sizes or ['0.2M', '4M', '25M']
  if flags.peer:
    turns.pin(flags.threads)
    turns.serve(lambda: globals()[flags.peer](SIZES[sizes[0]]))
    return
  for name in sizes:
    line = [__file__, '--sizes', name, '--peer']
    ran = turns.measure(
      {peer: [*line, peer] for peer in flags.peers},
      rounds=flags.rounds,
      seconds=flags.seconds,
      threads=flags.threads,
    )
    report(name, ran)


if __name__ == '__main__':
  main()
