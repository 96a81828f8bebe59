"""Named sizes against the counts that their papers print."""

from __future__ import annotations

import csv
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from bigdl import tree
from bigdl.models.gpt import GPT, SIZES

FACTS = Path(__file__).parents[2].parent / 'shared' / 'facts'

# To the integer.
EXACT = {
  'gpt-117m': 116_534_784,
  'gpt2-124m': 124_439_808,
  'gpt2-355m': 354_823_168,
  'gpt2-774m': 774_030_080,
  'gpt2-1.5b': 1_557_611_200,
  'neox-20b': 20_554_567_680,
  'pythia-70m': 70_426_624,
  'pythia-160m': 162_322_944,
  'pythia-410m': 405_334_016,
  'pythia-1b': 1_011_781_632,
  'pythia-1.4b': 1_414_647_808,
  'pythia-2.8b': 2_775_208_960,
  'pythia-6.9b': 6_857_302_016,
  'pythia-12b': 11_846_072_320,
  'llama-7b': 6_738_415_616,
  'llama-13b': 13_015_864_320,
  'llama-33b': 32_528_943_616,
  'llama-65b': 65_285_660_672,
  'llama2-7b': 6_738_415_616,
  'llama2-13b': 13_015_864_320,
  'llama2-70b': 68_976_648_192,
  'llama3-8b': 8_030_261_248,
  'llama3-70b': 70_553_706_496,
  'llama3-405b': 405_853_388_800,
  'incoder-1.3b': 1_312_063_488,
  'incoder-6.7b': 6_651_084_800,
  # Table 2: embedding and all else.
  'gemma-2b': 524_550_144 + 1_981_884_416,
  'gemma-7b': 786_825_216 + 7_751_248_896,
}
# As printed, and the unit of the last digit that is. Table D.1 of GPT-3 rounds
# to three digits, the largest to four.
ROUNDED = {
  'megatron-1.2b': (1.213e9, 1e6),
  'megatron-2.5b': (2.490e9, 1e6),
  'megatron-4.2b': (4.199e9, 1e6),
  'megatron-8.3b': (8.317e9, 1e6),
  'turing-nlg-17b': (17.18e9, 1e7),
  'gpt3-125m': (125e6, 1e6),
  'gpt3-350m': (356e6, 1e6),
  'gpt3-760m': (760e6, 1e6),
  'gpt3-1.3b': (1320e6, 1e7),
  'gpt3-2.7b': (2650e6, 1e7),
  'gpt3-6.7b': (6660e6, 1e7),
  'gpt3-13b': (12850e6, 1e7),
  'gpt3-175b': (174600e6, 1e8),
  'mtnlg-530b': (529.6e9, 1e8),
  'palm-8b': (8.63e9, 1e7),
  'palm-62b': (62.50e9, 1e7),
  'palm-540b': (540.35e9, 1e7),
  'cerebras-111m': (111e6, 1e6),
  'cerebras-256m': (256e6, 1e6),
  'cerebras-590m': (590e6, 1e6),
  'cerebras-1.3b': (1.3e9, 1e8),
  'cerebras-2.7b': (2.7e9, 1e8),
  'cerebras-6.7b': (6.7e9, 1e8),
  'cerebras-13b': (13e9, 1e9),
  'gopher-44m': (44e6, 1e6),
  'gopher-117m': (117e6, 1e6),
  'gopher-417m': (417e6, 1e6),
  'gopher-1.4b': (1.4e9, 1e8),
  'gopher-7.1b': (7.1e9, 1e8),
  'gopher-280b': (279.7e9, 1e8),
  'chinchilla-70b': (70.06e9, 1e7),
}
# PaLM's matrices, to the integer.
PALM = {
  'palm-8b': 8_631_877_632,
  'palm-62b': 62_495_129_600,
  'palm-540b': 540_354_281_472,
}
# Table A9 of Chinchilla: millions of parameters, width, MLP width, head width,
# heads, depth.
A9 = [
  tuple(map(int, line.split()))
  for line in """
44 512 2048 64 8 8
57 576 2304 64 9 9
74 640 2560 64 10 10
90 640 2560 64 10 13
106 640 2560 64 10 16
117 768 3072 64 12 12
140 768 3072 64 12 15
163 768 3072 64 12 18
175 896 3584 64 14 14
196 896 3584 64 14 16
217 896 3584 64 14 18
251 1024 4096 64 16 16
278 1024 4096 64 16 18
306 1024 4096 64 16 20
425 1280 5120 128 10 18
489 1280 5120 128 10 21
509 1408 5632 128 11 18
552 1280 5120 128 10 24
587 1408 5632 128 11 21
632 1536 6144 128 12 19
664 1408 5632 128 11 24
724 1536 6144 128 12 22
816 1536 6144 128 12 25
893 1792 7168 128 14 20
1018 1792 7168 128 14 23
1143 1792 7168 128 14 26
1266 2048 8192 128 16 22
1424 2176 8704 128 17 22
1429 2048 8192 128 16 25
1593 2048 8192 128 16 28
1609 2176 8704 128 17 25
1731 2304 9216 128 18 24
1794 2176 8704 128 17 28
2007 2304 9216 128 18 28
2283 2304 9216 128 18 32
2298 2560 10240 128 20 26
2639 2560 10240 128 20 30
2980 2560 10240 128 20 34
3530 2688 10752 128 22 36
3802 2816 11264 128 22 36
4084 2944 11776 128 22 36
4516 3072 12288 128 24 36
6796 3584 14336 128 28 40
9293 4096 16384 128 32 42
11452 4352 17408 128 32 47
12295 4608 18432 128 36 44
12569 4608 18432 128 32 47
13735 4864 19456 128 32 47
14940 4992 19968 128 32 49
16183 5120 20480 128 40 47
""".strip().splitlines()
]
A9_NAMES = {f'chinchilla-{row[0]}m': row for row in A9}


def shapes_of(model):
  """Returns the parameters' shapes; nothing is allocated."""
  tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
  init = model.clone(stack='scan').init
  return jax.eval_shape(init, jax.random.key(0), tokens)['params']


def test_every_named_size_is_held_against_a_published_count():
  assert set(SIZES) == set(EXACT) | set(ROUNDED) | set(A9_NAMES)
  assert not set(EXACT) & set(ROUNDED)


@pytest.mark.parametrize('name', EXACT)
def test_counts_are_the_published_integers(name):
  assert tree.size(shapes_of(SIZES[name])) == EXACT[name]


@pytest.mark.parametrize('name', ROUNDED)
def test_counts_round_to_the_published_ones(name):
  shapes = shapes_of(SIZES[name])
  printed, unit = ROUNDED[name]
  if name in PALM:
    # The paper's count is that of its matrices.
    shapes = [x for path, x in tree.items(shapes) if 'norm' not in path]
    assert tree.size(shapes) == PALM[name]
  assert abs(tree.size(shapes) - printed) <= unit / 2


def formula(model):
  """Returns the count that Hoffmann et al.'s shapes amount to.

  Per layer five kernels d h k of attention (one of distances), two of the MLP,
  RMSNorms 2 d, biases of the MLP 5 d and of the attention's output d, and the
  biases u and v of content and position 2 h k.
  """
  d, hk = model.width, model.heads * model.head_width
  layer = 5 * d * hk + 8 * d * d + 8 * d + 2 * hk
  return 32_000 * d + model.depth * layer + d


@pytest.mark.parametrize('name', ['chinchilla-44m', 'chinchilla-3530m'])
def test_chinchillas_parameters_are_its_formula(name):
  # The second of them has heads that do not fill the width.
  model = SIZES[name]
  assert tree.size(shapes_of(model)) == formula(model)


def test_all_rows_of_table_a9_are_there_and_round_to_its_counts():
  off = []
  for name, (millions, width, mlp, head, heads, depth) in A9_NAMES.items():
    model = SIZES[name]
    assert (model.width, model._mlp_width, model.heads) == (width, mlp, heads)
    assert (model.head_width, model.depth) == (head, depth)
    if round(formula(model) / 1e6) != millions:
      off.append((name, formula(model)))
  assert len(A9_NAMES) == 50
  # The paper rounds one of them up.
  assert off == [('chinchilla-2980m', 2_979_484_160)]


def test_the_embedded_table_a9_is_that_of_the_facts():
  columns = 'params_table_M d_model ffw_size kv_size n_heads n_layers'.split()
  path = FACTS / 'facts_chinchilla_tableA9.csv'
  found = []
  if path.exists():
    with path.open() as file:
      found = [tuple(int(r[c]) for c in columns) for r in csv.DictReader(file)]
    assert found == A9


def test_gpt3_alternates_dense_and_banded_layers():
  for name, model in SIZES.items():
    if name.startswith('gpt3-'):
      assert [bool(turn) for turn in model._turns] == [False, True], name
      assert model._turns[1] == {'window': 256}


def test_the_default_is_the_smallest_gpt2():
  assert SIZES['gpt2-124m'] == GPT()


def test_a_stack_of_any_kind_holds_the_same_parameters():
  model = SIZES['gpt2-124m'].clone(stack='loop')
  tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
  params = jax.eval_shape(model.init, jax.random.key(0), tokens)['params']
  assert tree.size(params) == EXACT['gpt2-124m']


def test_the_embedded_counts_are_those_of_the_facts():
  names = {
    'GPT-2 small': 'gpt2-124m',
    'GPT-2 medium': 'gpt2-355m',
    'GPT-2 large': 'gpt2-774m',
    'GPT-2 XL': 'gpt2-1.5b',
    'Llama-2-70B': 'llama2-70b',
    'Llama-3-8B': 'llama3-8b',
    'Llama-3-70B': 'llama3-70b',
    'Llama-3.1-405B': 'llama3-405b',
  }
  seen = {}
  path = FACTS / 'facts_model_shapes.csv'
  if path.exists():
    with path.open() as file:
      for row in csv.DictReader(file):
        name = names.get(row['model'], row['model'].lower())
        if name in EXACT:
          seen[name] = int(row['params_formula'])
    assert len(seen) == 20
  assert seen.items() <= EXACT.items()
