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
  # Table 2: embedding and all else.
  'gemma-2b': 524_550_144 + 1_981_884_416,
  'gemma-7b': 786_825_216 + 7_751_248_896,
}
# As printed, and the unit of the last digit that is. Table D.1 of GPT-3 rounds
# to three digits, the largest to four.
ROUNDED = {
  'megatron-1.2b': (1.2e9, 1e8),
  'megatron-2.5b': (2.5e9, 1e8),
  'megatron-4.2b': (4.2e9, 1e8),
  'megatron-8.3b': (8.3e9, 1e8),
  'gpt3-125m': (125e6, 1e6),
  'gpt3-350m': (356e6, 1e6),
  'gpt3-760m': (760e6, 1e6),
  'gpt3-1.3b': (1320e6, 1e7),
  'gpt3-2.7b': (2650e6, 1e7),
  'gpt3-6.7b': (6660e6, 1e7),
  'gpt3-13b': (12850e6, 1e7),
  'gpt3-175b': (174600e6, 1e8),
  'mtnlg-530b': (530e9, 1e9),
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
}


def shapes_of(model):
  """Returns the parameters' shapes; nothing is allocated."""
  tokens = jax.ShapeDtypeStruct((1, 4), jnp.int32)
  init = model.clone(stack='scan').init
  return jax.eval_shape(init, jax.random.key(0), tokens)['params']


def test_every_named_size_is_held_against_a_published_count():
  assert set(SIZES) == set(EXACT) | set(ROUNDED)
  assert not set(EXACT) & set(ROUNDED)


@pytest.mark.parametrize('name', EXACT)
def test_counts_are_the_published_integers(name):
  assert tree.size(shapes_of(SIZES[name])) == EXACT[name]


@pytest.mark.parametrize('name', ROUNDED)
def test_counts_round_to_the_published_ones(name):
  shapes = shapes_of(SIZES[name])
  printed, unit = ROUNDED[name]
  if name.startswith('palm'):
    # The paper's count is that of its matrices.
    shapes = [x for path, x in tree.items(shapes) if 'norm' not in path]
  assert abs(tree.size(shapes) - printed) <= unit / 2


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
