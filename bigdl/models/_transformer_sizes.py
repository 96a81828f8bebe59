"""Published shapes of encoder-decoders: the fields of each that differ.

`transformer.SIZES` makes models of them; none is allocated.
"""

from __future__ import annotations

from typing import Any

# Vaswani et al., 2017, arXiv:1706.03762, table 3: base and big, over the shared
# vocabulary of about 37000 tokens of section 5.1.
_VASWANI: dict[str, Any] = {'vocab': 37000}

# Roller et al., 2020, arXiv:2004.13637, section 3; head counts and vocabularies
# are those of the published weights. 90M opens with a norm of the embeddings and
# places norms after each layer; the others place them before.
_BLENDERBOT: dict[str, Any] = {
  'activation': 'gelu_exact',
  'position': 'learned',
}
_LARGE: dict[str, Any] = {
  **_BLENDERBOT,
  'block': 'pre',
  'heads': 32,
  'vocab': 8008,
  'length': 128,
  'embed_scale': True,
}

FIELDS: dict[str, dict[str, Any]] = {
  'transformer-base': {**_VASWANI, 'dropout': 0.1},
  'transformer-big': {
    **_VASWANI,
    'width': 1024,
    'heads': 16,
    'dropout': 0.3,
  },
  'blenderbot-90m': {
    **_BLENDERBOT,
    'depth': 8,
    'heads': 16,
    'vocab': 54944,
    'embed_norm': True,
    'embed_scale': True,
  },
  'blenderbot-2.7b': {
    **_LARGE,
    'depth': 2,
    'decoder_depth': 24,
    'width': 2560,
  },
  'blenderbot-9.4b': {
    **_LARGE,
    'depth': 4,
    'decoder_depth': 32,
    'width': 4096,
  },
}
