"""Published shapes of decoders: what each size of a family changes.

`gpt.SIZES` makes models of them; files of `interop` convert weights. Where a
family differs from what GPT can be, its comment says so, and the count of its
parameters is none the less the published one.
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
_GPT3_DENSE = {'length': 2048}
# Of two layers the second sees a band; the paper does not say how wide it is,
# and 256 is GPT-Neo's.
_GPT3 = {**_GPT3_DENSE, 'window': 256, 'dense_every': 2}
_MEGATRON = {'vocab': 51200}
_GOPHER = {
  'norm': 'rmsnorm',
  'qkv_bias': False,
  'position': 'relative',
  'vocab': 32000,
  'length': 2048,
}
_INCODER = {
  'activation': 'gelu_exact',
  'position': 'fairseq',
  'embed_scale': True,
  'vocab': 50518,
  'length': 2048,
}

# Hoffmann et al., 2022, arXiv:2203.15556, table A9, by rounded millions of
# parameters: depth, width, heads, width of a head.
_CHINCHILLA: dict[int, tuple[int, int, int, int]] = {
  44: (8, 512, 8, 64),
  57: (9, 576, 9, 64),
  74: (10, 640, 10, 64),
  90: (13, 640, 10, 64),
  106: (16, 640, 10, 64),
  117: (12, 768, 12, 64),
  140: (15, 768, 12, 64),
  163: (18, 768, 12, 64),
  175: (14, 896, 14, 64),
  196: (16, 896, 14, 64),
  217: (18, 896, 14, 64),
  251: (16, 1024, 16, 64),
  278: (18, 1024, 16, 64),
  306: (20, 1024, 16, 64),
  425: (18, 1280, 10, 128),
  489: (21, 1280, 10, 128),
  509: (18, 1408, 11, 128),
  552: (24, 1280, 10, 128),
  587: (21, 1408, 11, 128),
  632: (19, 1536, 12, 128),
  664: (24, 1408, 11, 128),
  724: (22, 1536, 12, 128),
  816: (25, 1536, 12, 128),
  893: (20, 1792, 14, 128),
  1018: (23, 1792, 14, 128),
  1143: (26, 1792, 14, 128),
  1266: (22, 2048, 16, 128),
  1424: (22, 2176, 17, 128),
  1429: (25, 2048, 16, 128),
  1593: (28, 2048, 16, 128),
  1609: (25, 2176, 17, 128),
  1731: (24, 2304, 18, 128),
  1794: (28, 2176, 17, 128),
  2007: (28, 2304, 18, 128),
  2283: (32, 2304, 18, 128),
  2298: (26, 2560, 20, 128),
  2639: (30, 2560, 20, 128),
  2980: (34, 2560, 20, 128),
  3530: (36, 2688, 22, 128),
  3802: (36, 2816, 22, 128),
  4084: (36, 2944, 22, 128),
  4516: (36, 3072, 24, 128),
  6796: (40, 3584, 28, 128),
  9293: (42, 4096, 32, 128),
  11452: (47, 4352, 32, 128),
  12295: (44, 4608, 36, 128),
  12569: (47, 4608, 32, 128),
  13735: (47, 4864, 32, 128),
  14940: (49, 4992, 32, 128),
  16183: (47, 5120, 40, 128),
}

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
  # Microsoft, 2020, "Turing-NLG: A 17-billion-parameter language model".
  (_MEGATRON, {'turing-nlg-17b': (78, 4256, 28)}),
  # Brown et al., 2020, arXiv:2005.14165, table 2.1, whose 24 heads of 128 at
  # width 2048 and whose width 5140 contradict the counts of table D.1, which 16
  # heads and width 5120 give.
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
  # Fried et al., 2022, arXiv:2204.05999, with XGLM's architecture (Lin et al.,
  # 2021, arXiv:2112.10668).
  (
    _INCODER,
    {'incoder-1.3b': (24, 2048, 32), 'incoder-6.7b': (32, 4096, 32)},
  ),
  # Dey et al., 2023, arXiv:2304.03208, table 1.
  (
    _GPT3_DENSE,
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
# Rae et al., 2021, arXiv:2112.11446, table 1.
_GOPHERS = {
  'gopher-44m': (8, 512, 16, 32),
  'gopher-117m': (12, 768, 12, 64),
  'gopher-417m': (12, 1536, 12, 128),
  'gopher-1.4b': (24, 2048, 16, 128),
  'gopher-7.1b': (32, 4096, 32, 128),
  'gopher-280b': (80, 16384, 128, 128),
  **{f'chinchilla-{m}m': shape for m, shape in _CHINCHILLA.items()},
  'chinchilla-70b': (80, 8192, 64, 128),
}
for _name, (_depth, _width, _heads, _head_width) in _GOPHERS.items():
  FIELDS[_name] = {
    **_GOPHER,
    'depth': _depth,
    'width': _width,
    'heads': _heads,
    'head_width': _head_width,
  }
