"""The FLOP ledger against formulas from papers; they live only here."""

# Shapes: T length, D width, L depth, H heads, G key-value heads, K head width,
# F hidden width, V vocabulary.
from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
import time

from flax import linen as nn
import jax
import jax.numpy as jnp
import pytest

from bigdl.layers.attention import attend
from bigdl.models.gpt import GPT
from bigdl.objectives.base import Objective
from bigdl.objectives.causal_lm import CausalLM
from bigdl.scaling import count, rules, trace

FACTS = Path(__file__).parents[2].parent / 'shared' / 'facts'


OBJECTIVE = CausalLM()


def spec(length, segments=False):
  row = jax.ShapeDtypeStruct((length + 1,), jnp.int32)
  return {'tokens': row, **({'segments': row} if segments else {})}


def analytic(m: GPT) -> dict[str, int]:
  """The textbook counts of a GPT, per token where FLOPs."""
  T, D, L, H, V = m.length, m.width, m.depth, m.heads, m.vocab
  G, K = m.kv_heads or H, m.head_width or D // H
  F = m.mlp_width or 4 * D
  gates = 2 if m.activation in ('swiglu', 'geglu') else 1
  weights = L * (2 * D * K * (H + G) + (gates + 1) * D * F)
  biases = L * (K * (H + 2 * G) + D + gates * F + D) if m.bias else 0
  norm = D * (1 + (m.norm == 'layernorm' and m.bias))
  norms = {'pre': 2 * L + 1, 'parallel': L + 1, 'post': 2 * L}
  bare = weights + biases + norm * norms[m.block]
  tables = V * D + (T * D if m.position == 'learned' else 0)
  forward = 2 * weights + 2 * D * V
  return {
    'total': bare + tables + (0 if m.tied else D * V),
    'nonembedding': bare,
    'nonembedding_head': bare + D * V,
    'matmul_full': 3 * (forward + 4 * L * H * K * T),
    'matmul_causal': 3 * (forward + 2 * L * H * K * (T + 1)),
    'chinchilla_f': 3 * (forward + 4 * L * H * K * T)
    + 3 * (2 * V * D + 3 * L * H * T),
  }


SMALL = GPT(depth=3, width=24, heads=4, vocab=50, length=12)
VARIANTS = {
  'plain': {},
  'grouped_query': {'kv_heads': 2},
  'multi_query': {'kv_heads': 1, 'head_width': 10},
  'gated': {'activation': 'swiglu', 'mlp_width': 40},
  'free_head': {'tied': False},
  'head_width': {'head_width': 10},
  'rotary': {'position': 'rotary', 'bias': False, 'norm': 'rmsnorm'},
  'sinusoidal': {'position': 'sinusoidal'},
  'parallel': {'block': 'parallel'},
  'post': {'block': 'post'},
  'scan': {'stack': 'scan'},
  'loop': {'stack': 'loop'},
  'remat': {'remat': 'full', 'stack': 'scan'},
  'remat_loop': {'remat': 'dots', 'stack': 'loop', 'tied': False},
  'half': {'dtype': 'bfloat16'},
  'dropout': {'dropout': 0.1},
  'softcap': {'softcap': 30.0, 'attention_softcap': 50.0},
  'tiled': {'length': 132, 'attention': 'tiled', 'kv_heads': 2},
  'untiled': {'length': 132, 'attention': 'xla', 'kv_heads': 2},
}


@pytest.mark.parametrize('name', VARIANTS)
@pytest.mark.parametrize('chunk', [0, 4])
def test_traced_count_equals_the_analytic_one_exactly(name, chunk):
  model = SMALL.clone(**VARIANTS[name])
  row = spec(model.length)
  objective = CausalLM(chunk=chunk)
  want = analytic(model)
  sizes = count.params(model, objective, row)
  flops = count.flops_per_unit(model, objective, row, xla=False)
  assert sizes == {k: want[k] for k in sizes}
  assert flops['6N'] == 6 * want['total']
  assert flops['6N_nonembedding'] == 6 * want['nonembedding']
  for convention in ('matmul_causal', 'matmul_full', 'chinchilla_f'):
    assert flops[convention] == want[convention]
    assert isinstance(flops[convention], int)


@pytest.mark.parametrize('remat', ['none', 'full', 'dots'])
def test_a_loop_traces_like_the_scan_that_stands_for_it(remat, monkeypatch):
  model = SMALL.clone(remat=remat, kv_heads=2, activation='swiglu')
  row = count._fields(spec(12))
  as_scan = count._count(model.clone(stack='loop'), OBJECTIVE, row)
  monkeypatch.setattr(count, '_with', lambda model, **_: model)
  as_loop = count._count(model.clone(stack='loop'), OBJECTIVE, row)
  assert as_loop == as_scan
  assert as_loop.params['total'] == analytic(model)['total']


def test_packed_documents_count_like_plain_rows():
  plain = count.flops_per_unit(SMALL, OBJECTIVE, spec(12), xla=False)
  packed = count.flops_per_unit(SMALL, OBJECTIVE, spec(12, True), xla=False)
  assert packed == plain
  assert count.params(SMALL, OBJECTIVE, spec(12, True)) == count.params(
    SMALL, OBJECTIVE, spec(12)
  )


@pytest.mark.parametrize(
  ('size', 'total'),
  [
    ((12, 768, 12), 124_439_808),
    ((24, 1024, 16), 354_823_168),
    ((36, 1280, 20), 774_030_080),
    ((48, 1600, 25), 1_557_611_200),
  ],
)
def test_gpt2_sizes_are_the_published_integers(size, total):
  depth, width, heads = size
  model = GPT(depth=depth, width=width, heads=heads, stack='scan')
  assert count.params(model, OBJECTIVE, spec(1024))['total'] == total


@pytest.mark.parametrize(
  ('shape', 'total'),
  [
    ((32, 4096, 32, 11008), 6_738_415_616),
    ((40, 5120, 40, 13824), 13_015_864_320),
    ((60, 6656, 52, 17920), 32_528_943_616),
    ((80, 8192, 64, 22016), 65_285_660_672),
  ],
)
def test_llama_sizes_are_the_published_integers(shape, total):
  depth, width, heads, hidden = shape
  model = GPT(
    depth=depth,
    width=width,
    heads=heads,
    mlp_width=hidden,
    vocab=32000,
    length=2048,
    activation='swiglu',
    norm='rmsnorm',
    bias=False,
    position='rotary',
    tied=False,
    stack='scan',
  )
  assert count.params(model, OBJECTIVE, spec(2048))['total'] == total


def test_175_billion_parameters_are_counted_within_seconds():
  # Brown et al., 2020, arXiv:2005.14165, table 2.1.
  model = GPT(
    depth=96, width=12288, heads=96, length=2048, stack='scan', remat='full'
  )
  start = time.perf_counter()
  sizes = count.params(model, OBJECTIVE, spec(2048))
  flops = count.flops_per_unit(model, OBJECTIVE, spec(2048))
  memory = count.activation_bytes(model, OBJECTIVE, spec(2048))
  assert time.perf_counter() - start < 20
  assert sizes['total'] == 174_604_259_328
  assert flops['matmul_full'] == analytic(model)['matmul_full']
  assert flops['xla'] is None
  # Remat keeps the residual stream at each block, and little else.
  stream = 96 * 2048 * 12288 * 4
  assert stream <= memory < 2 * stream


def test_kaplans_forward_count_is_twice_n_plus_attention():
  # Kaplan et al., 2020, arXiv:2001.08361, table 1: N = 12 L D^2 and
  # C_forward = 2 N + 2 L T D, without embedding, head, biases and norms; their
  # attention counts queries times keys only.
  m = GPT(depth=2, width=64, heads=4, vocab=30, length=32, bias=False)
  flops = count.flops_per_unit(m, OBJECTIVE, spec(32), xla=False)
  n = 12 * m.depth * m.width**2
  assert n == analytic(m)['nonembedding'] - m.width * (2 * m.depth + 1)
  head = 2 * m.width * m.vocab
  values = 2 * m.depth * m.length * m.width
  forward = flops['matmul_full'] / 3 - head - values
  assert forward == 2 * n + 2 * m.depth * m.length * m.width


def test_palms_utilisation_count_is_matmul_full():
  # Chowdhery et al., 2022, arXiv:2204.02311, appendix B: 6 N + 12 L H Q T.
  m = SMALL.clone(bias=False, head_width=10, kv_heads=1, block='parallel')
  flops = count.flops_per_unit(m, OBJECTIVE, spec(12), xla=False)
  multiply = count.params(m, OBJECTIVE, spec(12))['nonembedding_head'] - 24 * (
    m.depth + 1
  )
  assert flops['matmul_full'] == 6 * multiply + 12 * 3 * 4 * 10 * 12


CHINCHILLA = [
  # Hoffmann et al., 2022, arXiv:2203.15556, table A4 and appendix F: layers,
  # width, hidden width, heads, head width, FLOPs a sequence with embedding and
  # logits, the relative positions' product left out.
  (10, 640, 2560, 10, 64, 1_433_193_676_800),
  (20, 1024, 4096, 16, 64, 4_940_554_567_680),
  (24, 1280, 5120, 10, 128, 8_360_086_732_800),
  (26, 1792, 7168, 14, 128, 16_079_602_581_504),
  (28, 2048, 8192, 16, 128, 21_831_050_330_112),
  (40, 3584, 14336, 28, 128, 85_839_619_031_040),
]


def chinchilla_flops(row):
  depth, width, hidden, heads, head_width = row
  model = GPT(
    depth=depth,
    width=width,
    mlp_width=hidden,
    heads=heads,
    head_width=head_width,
    vocab=32000,
    length=2048,
    norm='rmsnorm',
    position='none',
    stack='scan',
  )
  flops = count.flops_per_unit(model, OBJECTIVE, spec(2048), xla=False)
  return flops['chinchilla_f'] * 2048


@pytest.mark.parametrize('row', CHINCHILLA, ids=lambda r: f'{r[0]}x{r[1]}')
def test_appendix_f_is_reproduced_on_its_shapes(row):
  assert chinchilla_flops(row[:5]) == row[5]


def test_the_embedded_table_is_that_of_the_facts():
  path = FACTS / 'facts_chinchilla_tableA4_flops.csv'
  if path.exists():
    with path.open() as file:
      rows = [
        tuple(
          int(r[k])
          for k in (
            'num_layers',
            'd_model',
            'ffw_size',
            'num_heads',
            'kq_size',
            'flops_per_seq_with_emb_logits',
          )
        )
        for r in csv.DictReader(file)
      ]
    assert rows == CHINCHILLA
  assert len(CHINCHILLA) == 6


def test_xla_counts_the_products_and_some_elementwise_work():
  model = SMALL.clone(stack='scan')
  flops = count.flops_per_unit(model, OBJECTIVE, spec(12))
  assert flops['matmul_full'] < flops['xla'] < 2 * flops['matmul_full']
  looped = SMALL.clone(stack='loop', attention='tiled')
  same = count.flops_per_unit(looped, OBJECTIVE, spec(12))['xla']
  assert flops['xla'] == pytest.approx(same, rel=1e-3)


def test_every_convention_is_described_and_counted():
  flops = count.flops_per_unit(SMALL, OBJECTIVE, spec(12))
  assert set(flops) == set(count.CONVENTIONS)
  for name, text in count.CONVENTIONS.items():
    assert name in count.describe()
    assert text in count.describe()
  json.dumps(flops)


# Models that the ledger has never heard of.


@dataclasses.dataclass(frozen=True)
class Mean(Objective):
  """The mean of whatever the model returns."""

  def units(self, spec):
    return 1

  def init(self, model, key, batch):
    return model.init(key, batch['x'])['params'], {}

  def loss(self, model, params, extra, batch, key):
    y = model.apply({'params': params}, batch['x'])
    return y.astype(jnp.float32).mean(), (extra, {})


def measure(model, shape, dtype=jnp.float32):
  row = {'x': jax.ShapeDtypeStruct(shape, dtype)}
  sizes = count.params(model, Mean(), row)
  return sizes, count.flops_per_unit(model, Mean(), row, xla=False)


class Convolution(nn.Module):
  groups: int = 1
  strides: int = 1

  @nn.compact
  def __call__(self, x):
    y = nn.Conv(
      12, (3, 5), strides=self.strides, feature_group_count=self.groups
    )(x)
    return nn.Dense(7)(y.mean((1, 2)))


@pytest.mark.parametrize(('groups', 'strides'), [(1, 1), (4, 1), (1, 2)])
def test_convolutions_count_two_flops_a_multiply_add(groups, strides):
  sizes, flops = measure(Convolution(groups, strides), (8, 8, 4))
  spots = (8 // strides) ** 2
  forward = 2 * spots * 12 * 3 * 5 * 4 // groups + 2 * 12 * 7
  assert flops['matmul_full'] == flops['matmul_causal'] == 3 * forward
  assert sizes['total'] == 15 * 4 * 12 // groups + 12 + 12 * 7 + 7
  # Nothing is looked up; the classifier is the head.
  assert sizes['total'] - sizes['nonembedding'] == 12 * 7


class Deconvolution(nn.Module):
  @nn.compact
  def __call__(self, x):
    return nn.ConvTranspose(12, (4, 4), strides=(2, 2), use_bias=False)(x)


def test_transposed_convolutions_do_not_count_the_zeros_between_inputs():
  _, flops = measure(Deconvolution(), (8, 8, 3))
  assert flops['matmul_full'] == 3 * 2 * 8 * 8 * 3 * 12 * 4 * 4


class Patches(nn.Module):
  """A vision transformer's first layers."""

  @nn.compact
  def __call__(self, x):
    x = x.reshape(-1, 2, 4, 2, 4, 3).swapaxes(2, 3).reshape(-1, 4, 48)
    x = nn.Dense(6, name='patch')(x)
    cls = self.param('cls', nn.initializers.zeros, (1, 1, 6))
    x = jnp.concatenate([jnp.tile(cls, (x.shape[0], 1, 1)), x], 1)
    x = x + self.param('positions', nn.initializers.zeros, (1, 5, 6))
    heads = nn.DenseGeneral((2, 3), name='heads')(x)
    return nn.Dense(10, name='head')(heads[:, 0].reshape(-1, 6))


def test_position_tables_are_embeddings_but_biases_of_heads_are_not():
  sizes, flops = measure(Patches(), (8, 8, 3))
  assert sizes['total'] - sizes['nonembedding_head'] == 5 * 6
  assert sizes['nonembedding_head'] - sizes['nonembedding'] == 60
  assert flops['matmul_full'] == 6 * (4 * 48 * 6 + 5 * 6 * 6 + 6 * 10)


class Lookup(nn.Module):
  """Token vectors by one of several ways, then a matrix."""

  way: str

  @nn.compact
  def __call__(self, ids):
    table = self.param('table', nn.initializers.normal(), (40, 6))
    if self.way == 'gather':
      x = table[ids]
    elif self.way == 'one_hot':
      x = jax.nn.one_hot(ids, 40) @ table
    else:
      with jax.named_scope('embedding_lookup'):
        x = (ids[..., None] == jnp.arange(40)).astype(jnp.float32) @ table
    return nn.Dense(40, use_bias=False)(nn.relu(nn.Dense(5)(x)))


@pytest.mark.parametrize('way', ['gather', 'one_hot', 'scope'])
def test_a_lookup_costs_no_product_however_it_is_computed(way):
  sizes, flops = measure(Lookup(way), (9,), jnp.int32)
  assert sizes == {
    'total': 240 + 35 + 200,
    'nonembedding': 35,
    'nonembedding_head': 235,
  }
  assert flops['matmul_full'] == 6 * 9 * (30 + 200)
  assert flops['chinchilla_f'] == flops['matmul_full'] + 6 * 9 * 240


class Routed(nn.Module):
  """Logits, and a router whose balance the loss sees as well."""

  @nn.compact
  def __call__(self, ids):
    x = self.param('table', nn.initializers.normal(), (40, 6))[ids]
    routes = nn.softmax(nn.Dense(3, use_bias=False, name='router')(x))
    parts = nn.Dense(18, use_bias=False)(x).reshape(*x.shape[:-1], 3, 6)
    x = jnp.einsum('btef,bte->btf', parts, routes)
    logits = nn.Dense(40, use_bias=False, name='head')(x)
    return jnp.concatenate([logits, routes], -1)


def test_a_router_that_the_loss_sees_is_no_head():
  sizes, _ = measure(Routed(), (9,), jnp.int32)
  assert sizes == {
    'total': 240 + 18 + 108 + 240,
    'nonembedding': 18 + 108,
    'nonembedding_head': 18 + 108 + 240,
  }


class Delayed(nn.Module):
  """What it returns was computed a turn of the loop before."""

  @nn.compact
  def __call__(self, x):
    w = self.param('w', nn.initializers.normal(), (6, 6))

    def turn(carry, _):
      now, _ = carry
      return (x @ w, now), None

    zeros = jnp.zeros_like(x)
    return jax.lax.scan(turn, (zeros, zeros), length=3)[0][1]


def test_what_a_loop_carries_is_known_from_its_second_turn_on():
  sizes, flops = measure(Delayed(), (4, 6))
  assert sizes['nonembedding_head'] - sizes['nonembedding'] == 36
  assert flops['matmul_full'] == 3 * 3 * 2 * 4 * 36


class Sharded(nn.Module):
  @nn.compact
  def __call__(self, x):
    w = self.param('w', nn.initializers.normal(), (6, 6))
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((4,), ('data',), axis_types=auto)
    rows, whole = jax.P(None, 'data'), jax.P()
    return jax.shard_map(
      jnp.matmul, mesh=mesh, in_specs=(rows, whole), out_specs=rows
    )(x, w)


def test_sharded_work_counts_on_every_device():
  sizes, flops = measure(Sharded(), (8, 6))
  assert flops['matmul_full'] == 3 * 2 * 8 * 36
  assert sizes['nonembedding_head'] == 36


class Loop(nn.Module):
  """The same square matrix, again and again."""

  way: str

  @nn.compact
  def __call__(self, x):
    w = self.param('w', nn.initializers.normal(), (6, 6))

    def step(x):
      return jnp.tanh(x @ w)

    if self.way == 'scan':
      return jax.lax.scan(lambda c, _: (step(c), None), x, length=7)[0]
    if self.way == 'fori':
      return jax.lax.fori_loop(0, 7, lambda _, c: step(c), x)
    if self.way == 'while':
      return jax.lax.while_loop(
        lambda c: c[0] < 14, lambda c: (c[0] + 2, step(c[1])), (0, x)
      )[1]
    if self.way == 'cond':
      return jax.lax.cond(
        x.sum() > 0, lambda x: step(step(step(x))), lambda x: step(x), x
      )
    if self.way == 'dead':
      _ = jnp.einsum('bij,bij->b', x, x)
      return step(x)
    return jax.lax.while_loop(lambda c: jnp.abs(c).max() > 0.1, step, x)


@pytest.mark.parametrize(
  ('way', 'trips'),
  [('scan', 7), ('fori', 7), ('while', 7), ('cond', 3), ('dead', 1)],
)
def test_loops_count_as_often_as_they_run(way, trips):
  _, flops = measure(Loop(way), (4, 6))
  assert flops['matmul_full'] == 3 * trips * 2 * 4 * 6 * 6


def test_a_loop_of_unknown_length_is_refused():
  with pytest.raises(ValueError, match='while loop .* not countable'):
    measure(Loop('until'), (4, 6))


class Attend(nn.Module):
  kind: str = 'xla'
  groups: int = 4
  mask: str = ''

  @nn.compact
  def __call__(self, x):
    q = nn.DenseGeneral((4, 64), use_bias=False)(x)
    k = nn.DenseGeneral((self.groups, 64), use_bias=False)(x)
    if not self.mask:
      return attend(q, k, k, kind=self.kind)
    with jax.named_scope(self.mask):
      return jax.nn.dot_product_attention(q, k, k)


@pytest.mark.parametrize('groups', [1, 2, 4])
@pytest.mark.parametrize('kind', ['xla', 'tiled', 'pallas'])
def test_the_kernel_of_attention_does_not_change_the_count(kind, groups):
  T = 256
  _, flops = measure(Attend(kind, groups), (T, 8))
  project = 2 * T * 8 * 64 * (4 + groups)
  assert flops['matmul_full'] == 3 * (project + 4 * T * T * 4 * 64)
  assert flops['matmul_causal'] == 3 * (project + 2 * T * (T + 1) * 4 * 64)
  assert flops['chinchilla_f'] - flops['matmul_full'] == 9 * 4 * T * T


@pytest.mark.parametrize(
  ('scope', 'pairs'),
  [
    ('full_attention', 20 * 20),
    ('causal_attention', 20 * 21 // 2),
    ('banded_attention_5', 5 * 6 // 2 + 15 * 5),
    ('banded_attention_50', 20 * 21 // 2),
  ],
)
def test_masks_count_the_pairs_they_leave(scope, pairs):
  _, flops = measure(Attend(mask=scope), (20, 8))
  project = 2 * 20 * 8 * 64 * 8
  assert flops['matmul_full'] == 3 * (project + 4 * 400 * 4 * 64)
  assert flops['matmul_causal'] == 3 * (project + 4 * pairs * 4 * 64)


def test_pairs_are_those_of_an_explicit_mask():
  for length in (1, 2, 7):
    for window in (None, 1, 3, 7, 9):
      mask = [
        (i, j)
        for i in range(length)
        for j in range(i + 1)
        if window is None or i - j < window
      ]
      assert rules.pairs(length, window) == len(mask)


def test_fused_attention_is_counted_by_its_operands():
  # The cuDNN kernel is one opaque primitive, and needs a GPU even to trace.
  shape = (1, 20, 4, 64)
  fact = trace.Fact(axes=(0, trace.ROW, 0, 0), row=True)

  @dataclasses.dataclass
  class Atom:
    aval: jax.core.ShapedArray

  @dataclasses.dataclass
  class Kernel:
    invars: list

  atoms = [Atom(jax.core.ShapedArray(shape, jnp.bfloat16))] * 3
  work = trace.Work(lengths={'/causal_attention': 20})
  rules.fused_attention(Kernel(atoms), [fact] * 3, work, 2, '/causal_attention')
  assert work.full == 2 * 4 * 4 * 64 * 400
  assert work.causal == 2 * 2 * 4 * 64 * 20 * 21
  assert work.softmax == 2 * 4 * 400


def test_a_tied_table_counts_once_as_head_and_once_in_total():
  tied = count.params(SMALL, OBJECTIVE, spec(12))
  free = count.params(SMALL.clone(tied=False), OBJECTIVE, spec(12))
  assert free['total'] - tied['total'] == 50 * 24
  assert free['nonembedding_head'] == tied['nonembedding_head']
  assert free['nonembedding'] == tied['nonembedding']


def test_activations_grow_with_depth_unless_rematerialised():
  def kept(**changes):
    model = SMALL.clone(stack='loop', **changes)
    return count.activation_bytes(model, OBJECTIVE, spec(12))

  block = kept(depth=3) - kept(depth=2)
  assert block == kept(depth=4) - kept(depth=3)
  # At the least: the stream twice, queries, keys, values and the hidden layer.
  assert block > 4 * 12 * 24 * (2 + 3 + 4)
  remat = kept(depth=3, remat='full') - kept(depth=2, remat='full')
  assert remat <= 2 * 4 * 12 * 24 < block
