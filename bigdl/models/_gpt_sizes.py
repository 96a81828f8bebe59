"""Published shapes of decoders: what each size of a family changes.

`gpt.SIZES` makes models of them. Weights of the four GPT-2 convert by
`interop.gpt2`; where a family differs from what GPT can be, its comment says so,
and the count of its parameters is none the less the published one.
"""

from __future__ import annotations

from typing import Any

_SHAPE = ('depth', 'width', 'heads', 'mlp_width', 'kv_heads')

# Rotary positions, SwiGLU, RMSNorm, no biases, a free head.
_LLAMA = {
  'activation': 'swiglu',
  'norm': 'rmsnorm',
  'bias': False,
  'position': 'rotary',
  'tied': False,
}
_LLAMA1 = {**_LLAMA, 'vocab': 32000, 'length': 2048, 'norm_epsilon': 1e-6}
_LLAMA2 = {**_LLAMA, 'vocab': 32000, 'length': 4096}
_LLAMA3 = {**_LLAMA, 'vocab': 128256, 'length': 8192, 'rotary_base': 5e5}
_NEOX = {
  'activation': 'gelu_exact',
  'block': 'parallel_two_norms',
  'position': 'rotary',
  'rotary_fraction': 0.25,
  'tied': False,
  'length': 2048,
}
_PYTHIA = {**_NEOX, 'vocab': 50304}
_PALM = {
  'activation': 'swiglu',
  'block': 'parallel',
  'bias': False,
  'position': 'rotary',
  'embed_scale': True,
  'weight_init': 'fan_in',
  'head_width': 256,
  'vocab': 256000,
  'length': 2048,
}
_GEMMA = {
  'activation': 'geglu',
  'norm': 'rmsnorm',
  'norm_epsilon': 1e-6,
  'bias': False,
  'position': 'rotary',
  'embed_scale': True,
  'head_width': 256,
  'vocab': 256128,
  'length': 8192,
}
_GPT3 = {'length': 2048}
_MEGATRON = {'vocab': 51200}

# Rows are depth, width, heads, then MLP width and key-value heads where those
# are not 4 width and heads.
_FAMILIES: list[tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = [
  # Radford et al., 2018, "Improving Language Understanding by Generative
  # Pre-Training", section 4.1.
  (
    {'block': 'post', 'vocab': 40478, 'length': 512},
    {'gpt-117m': (12, 768, 12)},
  ),
  # Radford et al., 2019, "Language Models are Unsupervised Multitask Learners",
  # table 2, whose own counts (117M to 1542M) are too low; heads of 64.
  (
    {},
    {
      'gpt2-124m': (12, 768, 12),
      'gpt2-355m': (24, 1024, 16),
      'gpt2-774m': (36, 1280, 20),
      'gpt2-1.5b': (48, 1600, 25),
    },
  ),
  # Shoeybi et al., 2019, arXiv:1909.08053, table 1; the vocabulary is padded
  # for 8-way splits, section 5.
  (
    _MEGATRON,
    {
      'megatron-1.2b': (40, 1536, 16),
      'megatron-2.5b': (54, 1920, 20),
      'megatron-4.2b': (64, 2304, 24),
      'megatron-8.3b': (72, 3072, 32),
    },
  ),
  # Brown et al., 2020, arXiv:2005.14165, table 2.1, where every other layer's
  # attention is banded; here all are dense. The table's 24 heads of 128 at width
  # 2048 and its width 5140 contradict the counts of table D.1, which 16 heads
  # and width 5120 give.
  (
    _GPT3,
    {
      'gpt3-125m': (12, 768, 12),
      'gpt3-350m': (24, 1024, 16),
      'gpt3-760m': (24, 1536, 16),
      'gpt3-1.3b': (24, 2048, 16),
      'gpt3-2.7b': (32, 2560, 32),
      'gpt3-6.7b': (32, 4096, 32),
      'gpt3-13b': (40, 5120, 40),
      'gpt3-175b': (96, 12288, 96),
    },
  ),
  # Smith et al., 2022, arXiv:2201.11990, section 3.
  ({'vocab': 51200, 'length': 2048}, {'mtnlg-530b': (105, 20480, 128)}),
  # Black et al., 2022, arXiv:2204.06745, section 2.1.
  ({**_NEOX, 'vocab': 50432}, {'neox-20b': (44, 6144, 64)}),
  # Chowdhery et al., 2022, arXiv:2204.02311, table 1; weights leave each layer
  # at 1 / sqrt(2 depth) of the paper's scale.
  (
    _PALM,
    {
      'palm-8b': (32, 4096, 16, 0, 1),
      'palm-62b': (64, 8192, 32, 0, 1),
      'palm-540b': (118, 18432, 48, 0, 1),
    },
  ),
  # Dey et al., 2023, arXiv:2304.03208, table 1.
  (
    _GPT3,
    {
      'cerebras-111m': (10, 768, 12),
      'cerebras-256m': (14, 1088, 17),
      'cerebras-590m': (18, 1536, 12),
      'cerebras-1.3b': (24, 2048, 16),
      'cerebras-2.7b': (32, 2560, 32),
      'cerebras-6.7b': (32, 4096, 32),
      'cerebras-13b': (40, 5120, 40),
    },
  ),
  # Biderman et al., 2023, arXiv:2304.01373, table 1; the largest two pad their
  # vocabulary further.
  (
    _PYTHIA,
    {
      'pythia-70m': (6, 512, 8),
      'pythia-160m': (12, 768, 12),
      'pythia-410m': (24, 1024, 16),
      'pythia-1b': (16, 2048, 8),
      'pythia-1.4b': (24, 2048, 16),
      'pythia-2.8b': (32, 2560, 32),
    },
  ),
  ({**_PYTHIA, 'vocab': 50432}, {'pythia-6.9b': (32, 4096, 32)}),
  ({**_PYTHIA, 'vocab': 50688}, {'pythia-12b': (36, 5120, 40)}),
  # Touvron et al., 2023, arXiv:2302.13971, table 2.
  (
    _LLAMA1,
    {
      'llama-7b': (32, 4096, 32, 11008),
      'llama-13b': (40, 5120, 40, 13824),
      'llama-33b': (60, 6656, 52, 17920),
      'llama-65b': (80, 8192, 64, 22016),
    },
  ),
  # Touvron et al., 2023, arXiv:2307.09288, table 1 and section 2.2.
  (
    _LLAMA2,
    {
      'llama2-7b': (32, 4096, 32, 11008),
      'llama2-13b': (40, 5120, 40, 13824),
      'llama2-70b': (80, 8192, 64, 28672, 8),
    },
  ),
  # Grattafiori et al., 2024, arXiv:2407.21783, table 3.
  (
    _LLAMA3,
    {
      'llama3-8b': (32, 4096, 32, 14336, 8),
      'llama3-70b': (80, 8192, 64, 28672, 8),
      'llama3-405b': (126, 16384, 128, 53248, 8),
    },
  ),
  # Gemma team, 2024, arXiv:2403.08295, tables 1 and 2; the paper's feed-forward
  # dimension counts both halves of the gated layer.
  (
    _GEMMA,
    {
      'gemma-2b': (18, 2048, 8, 16384, 1),
      'gemma-7b': (28, 3072, 16, 24576, 16),
    },
  ),
]

FIELDS: dict[str, dict[str, Any]] = {
  name: {**family, **dict(zip(_SHAPE, shape, strict=False))}
  for family, shapes in _FAMILIES
  for name, shape in shapes.items()
}
