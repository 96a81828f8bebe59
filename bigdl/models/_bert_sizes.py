"""Published shapes of encoders: what each size of a family changes.

`bert.SIZES` and `albert.SIZES` make models of them.
"""

from __future__ import annotations

from typing import Any

_SHAPE = ('depth', 'width', 'heads')
# Positions start after the id of the padding token, which is 1; no types, no
# sentence head.
_ROBERTA = {
  'vocab': 50265,
  'types': 1,
  'first_position': 2,
  'classes': 0,
  'norm_epsilon': 1e-5,
}

Families = list[tuple[dict[str, Any], dict[str, tuple[int, ...]]]]

_BERT: Families = [
  # Devlin et al., 2018, arXiv:1810.04805, section 3; with English, uncased word
  # pieces.
  (
    {},
    {'bert-base': (12, 768, 12), 'bert-large': (24, 1024, 16)},
  ),
  # Turc et al., 2019, arXiv:1908.08962, section 4, table 1: heads of 64.
  (
    {},
    {
      'bert-tiny': (2, 128, 2),
      'bert-mini': (4, 256, 4),
      'bert-small': (4, 512, 8),
      'bert-medium': (8, 512, 8),
    },
  ),
  # Liu et al., 2019, arXiv:1907.11692, section 4.4 and appendix B.
  (
    _ROBERTA,
    {'roberta-base': (12, 768, 12), 'roberta-large': (24, 1024, 16)},
  ),
  # Sun et al., 2019, arXiv:1904.09223, section 4.1: BERT's shape, for Chinese.
  (
    {
      'vocab': 18000,
      'length': 513,
      'activation': 'relu',
      'norm_epsilon': 1e-5,
    },
    {'ernie-1.0-zh': (12, 768, 12)},
  ),
  # Sun et al., 2021, arXiv:2107.02137; the smaller models that its authors
  # published beside the 10 billion parameters of the paper.
  (
    {
      'vocab': 40000,
      'length': 2048,
      'types': 4,
      'tasks': 3,
      'norm_epsilon': 1e-5,
    },
    {'ernie-3.0-base-zh': (12, 768, 12)},
  ),
]
# Lan et al., 2019, arXiv:1909.11942, table 1 and section 4.1; the largest has 12
# layers, since 24 were no better (section 4.4).
_ALBERT: Families = [
  (
    {},
    {
      'albert-base': (12, 768, 12),
      'albert-large': (24, 1024, 16),
      'albert-xlarge': (24, 2048, 16),
      'albert-xxlarge': (12, 4096, 64),
    },
  ),
]


def _fields(families: Families) -> dict[str, dict[str, Any]]:
  return {
    name: {**family, **dict(zip(_SHAPE, shape, strict=True))}
    for family, shapes in families
    for name, shape in shapes.items()
  }


BERT = _fields(_BERT)
ALBERT = _fields(_ALBERT)
