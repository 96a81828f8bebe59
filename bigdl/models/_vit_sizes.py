"""Published shapes of Vision Transformers: what each size changes.

`vit.SIZES` makes models of them; the number after the slash is the patch.
"""

from __future__ import annotations

from typing import Any

_SHAPE = ('depth', 'width', 'heads', 'patch', 'mlp_width')

# Rows are depth, width, heads, patch, then MLP width where it is not 4 width.
_FAMILIES: list[tuple[dict[str, Any], dict[str, tuple[int, ...]]]] = [
  # Dosovitskiy et al., 2020, arXiv:2010.11929, table 1; Ti and S: Touvron et
  # al., 2020, arXiv:2012.12877, table 1, and Steiner et al., 2021,
  # arXiv:2106.10270, table 2.
  (
    {},
    {
      'vit-ti/16': (12, 192, 3, 16),
      'vit-s/32': (12, 384, 6, 32),
      'vit-s/16': (12, 384, 6, 16),
      'vit-b/32': (12, 768, 12, 32),
      'vit-b/16': (12, 768, 12, 16),
      'vit-l/32': (24, 1024, 16, 32),
      'vit-l/16': (24, 1024, 16, 16),
      'vit-h/14': (32, 1280, 16, 14),
    },
  ),
  # Zhai et al., 2021, arXiv:2106.04560, table 2; its 1011 and 1843 million
  # count no head. The paper pools by attention, here by the mean.
  (
    {'pool': 'mean'},
    {
      'vit-g/14': (40, 1408, 16, 14, 6144),
      'vit-G/14': (48, 1664, 16, 14, 8192),
    },
  ),
  # Dehghani et al., 2023, arXiv:2302.05442, section 2 and table 1: queries,
  # keys and values have no bias, norms neither bias nor centring. The paper
  # pools by attention, here by the mean.
  (
    {
      'pool': 'mean',
      'block': 'parallel',
      'qk_norm': True,
      'qkv_bias': False,
      'norm': 'rmsnorm',
    },
    {'vit-22b/14': (48, 6144, 48, 14)},
  ),
]

FIELDS: dict[str, dict[str, Any]] = {
  name: {**family, **dict(zip(_SHAPE, shape, strict=False))}
  for family, shapes in _FAMILIES
  for name, shape in shapes.items()
}
