"""Published utilisations of TPU pods, to check estimates against.

Each row is a run that somebody timed: the share of peak FLOPs that the model
needed, by the convention of PaLM (`matmul_full`: what is recomputed does not
count, attention counts in full). `tests/benchmarks/published_mfu.py` compiles
the same model, batch and layout and prints estimate, published number and
error. No constant of `compiling.roofline` is fitted to a row.

Sources: Chowdhery et al., 2022, arXiv:2204.02311, table 3 and appendix B; Rae
et al., 2021, arXiv:2112.11446, as PaLM's table 3 computes it; Dehghani et al.,
2023, arXiv:2302.05442, section 2; Touvron et al., 2023, arXiv:2302.13971,
section 2.4 (380 tokens a second and A100); AI-Hypercomputer/maxtext,
MaxText/configs/v4, v5e and v5p README.md and the scripts beside them (commits
30cd40a, 0ed7bd5, 0ed7bd5), docs/reference/models/tiering.md (20a91e1);
AI-Hypercomputer/tpu-recipes, training/trillium/GPT3-175B-MaxText/bf16/README.md
(c855fe6). MaxText counts causal attention in full up to July 2025, when these
are from.
"""

from __future__ import annotations

import dataclasses
import types
from typing import Any

from flax import linen as nn

from bigdl.models import gpt, vit
from bigdl.parallel.layout import Layout

# Published, and not to be compiled here.
NOT_EXPRESSED = types.MappingProxyType(
  {
    'GPT-3 175B, V100, 21.3 % (PaLM, table 3)': 'no compiler for a V100 here',
    'MT-NLG 530B, 2,240 A100, 30.2 % (PaLM, table 3)': (
      'its number of microbatches is not published'
    ),
    'Llama 2 70B, 256 v6e, 43.8 % (tiering.md)': (
      'activations are offloaded to hosts there'
    ),
    'Llama 3.1 8B and 70B, 256 v6e, 45.5 % and 50.3 % (tiering.md)': (
      'activations are offloaded to hosts there'
    ),
    'Mixtral, DeepSeek (tiering.md)': 'no mixture of experts here',
  }
)


@dataclasses.dataclass(frozen=True)
class Row:
  """One published run, and what stands for it here."""

  name: str
  source: str
  mfu: float
  topology: str
  model: nn.Module
  layout: Layout
  batch: int  # Rows of a step.
  optimizer: str = 'adamw'
  differs: str = ''  # How what is compiled differs from what was run.


def _maxtext(depth: int, width: int, heads: int, mlp: int, **more) -> gpt.GPT:
  """MaxText's default decoder of that shape, heads of 128 if not said."""
  fields: dict[str, Any] = {
    'head_width': 128,
    'vocab': 32_000,
    'length': 2048,
    'activation': 'swiglu',
    'norm': 'rmsnorm',
    'bias': False,
    'position': 'rotary',
    'tied': False,
    'dtype': 'bfloat16',
    'stack': 'scan',
    'remat': 'full',
  }
  shape = {'depth': depth, 'width': width, 'heads': heads, 'mlp_width': mlp}
  return gpt.GPT(**(fields | shape | more))


def _sized(name: str, **more) -> gpt.GPT:
  more = {'dtype': 'bfloat16', 'stack': 'scan', 'remat': 'full', **more}
  return gpt.SIZES[name].clone(**more)


def _fsdp(**more) -> Layout:
  return Layout(**{'data': 1, 'fsdp': -1, **more})


def rows() -> tuple[Row, ...]:
  """Returns the published runs that can be compiled here."""
  small, large = (32, 4096, 64, 28_672), (32, 8192, 64, 28_672)
  # The 22 billion parameters are those of an MLP of two matrices.
  wide = _maxtext(48, 6144, 24, 24_576, head_width=256, activation='relu')
  image = vit.SIZES['vit-22b/14'].clone(
    classes=30_000, dtype='bfloat16', stack='scan', remat='full'
  )
  return (
    Row(
      'MaxText 22B',
      'maxtext v4 README, 22b.sh',
      0.567,
      'v4:4x4x4',
      wide,
      _fsdp(),
      batch=13 * 64,
    ),
    Row(
      'MaxText 22B, 2 slices',
      'maxtext v4 README, 22b.sh',
      0.552,
      'v4:4x4x4*2',
      wide,
      _fsdp(data=2, slices=2),
      batch=13 * 128,
    ),
    Row(
      'MaxText 16B',
      'maxtext v5e README, 16b.sh',
      0.611,
      'v5e:16x16',
      _maxtext(*small),
      _fsdp(),
      batch=6 * 256,
    ),
    Row(
      'MaxText 32B',
      'maxtext v5e README, 32b.sh',
      0.6686,
      'v5e:16x16',
      _maxtext(*large),
      _fsdp(),
      batch=4 * 256,
    ),
    Row(
      'MaxText 64B',
      'maxtext v5e README, 64b.sh',
      0.599,
      'v5e:16x16',
      _maxtext(64, *large[1:]),
      _fsdp(),
      batch=2 * 256,
    ),
    Row(
      'MaxText 32B',
      'maxtext v5p README, 32b.sh',
      0.7147,
      'v5p:4x4x4',
      _maxtext(*large, remat='dots'),
      _fsdp(tensor=4),
      batch=6 * 64,
      differs='6 rows a device, not 7, which are 2 GiB too many here',
    ),
    Row(
      'MaxText 128B',
      'maxtext v5p README, 128b.sh',
      0.6868,
      'v5p:4x4x8',
      _maxtext(64, 8192, 128, 57_344, remat='dots'),
      _fsdp(tensor=8),
      batch=128,
    ),
    Row(
      'Llama 2 70B',
      'maxtext tiering.md',
      0.654,
      'v5p:8x8x8',
      _sized('llama2-70b'),
      _fsdp(),
      batch=4 * 512,
      differs='the batch is not published; all is recomputed here, less there',
    ),
    Row(
      'GPT-3 175B',
      'tpu-recipes trillium, bf16',
      0.4193,
      'v6e:16x16',
      _sized('gpt3-175b', window=0, dense_every=0),
      _fsdp(),
      batch=3 * 256,
    ),
    Row(
      'PaLM 540B',
      'PaLM, table 3',
      0.462,
      'v4:12x16x16*2',
      # 12 does not divide 256,000.
      _sized('palm-540b', vocab=256_512),
      _fsdp(data=2, tensor=12, slices=2),
      batch=2048,
      optimizer='adafactor',
      differs='512 tokens are added, so that 12 devices share the vocabulary',
    ),
    Row(
      'Gopher 280B',
      "PaLM, table 3; Gopher's 4,096 v3",
      0.325,
      'v3:32x32*4',
      _sized('gopher-280b'),
      _fsdp(data=4, tensor=8, slices=4),
      batch=3072,
      differs='the paper pipelines between its pods',
    ),
    Row(
      'ViT-22B',
      'ViT-22B, section 2',
      0.549,
      'v4:8x8x16',
      image,
      _fsdp(tensor=4),
      batch=65_536,
      optimizer='adafactor',
    ),
    # 380 tokens of 4.063e11 FLOPs a second, of 312 TFLOP/s.
    Row(
      'LLaMA 65B',
      'LLaMA, section 2.4',
      0.495,
      'a100:1x256x8',
      _sized('llama-65b'),
      _fsdp(tensor=8),
      batch=2048,
      differs='no kernel is tuned here; the paper keeps some activations',
    ),
  )


def error(estimate: float, published: float) -> float:
  """Returns how far an estimate is off, as a share of the published number."""
  return estimate / published - 1
