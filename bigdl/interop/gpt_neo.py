"""GPT-Neo's weights under the names of Hugging Face: GPT-3's alternation.

Names and shapes are those of `transformers.GPTNeoForCausalLM` (Black et al.,
2021, doi:10.5281/zenodo.5297715), in which dense and banded layers take turns.
Its scores are not divided by the root of a head's width K, so that its queries
are ours times sqrt(K): their kernel is divided on the way out. Where K is no
power of four that rounds, and a round trip may move a last digit.
Differs from it: a first layer is dense, or all are banded; `attention_types` that
alternate otherwise are refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from bigdl.interop import base
from bigdl.layers.mlp import Activation
from bigdl.models.gpt import GPT

_ACTIVATIONS: dict[str, Activation] = {
  'gelu_new': 'gelu',
  'gelu_pytorch_tanh': 'gelu',
  'gelu': 'gelu_exact',
  'relu': 'relu',
  'silu': 'silu',
}
# GPTNeoConfig's defaults, which its JSON leaves out.
_DEFAULTS: dict[str, Any] = {
  'num_layers': 24,
  'hidden_size': 2048,
  'num_heads': 16,
  'vocab_size': 50257,
  'max_position_embeddings': 2048,
  'intermediate_size': None,
  'attention_types': [[['global', 'local'], 12]],
  'window_size': 256,
  'activation_function': 'gelu_new',
  'layer_norm_epsilon': 1e-5,
  'tie_word_embeddings': True,
}
# Fields that it has as well.
_FREE = (
  'depth',
  'width',
  'heads',
  'vocab',
  'length',
  'mlp_width',
  'norm_epsilon',
  'activation',
  'window',
  'dense_every',
  'tied',
)


def model_of(config: Mapping[str, Any]) -> GPT:
  """Returns the GPT that a `config.json` of GPT-Neo describes."""
  if config.get('model_type', 'gpt_neo') != 'gpt_neo':
    raise ValueError(
      f'model_type={config["model_type"]} must be gpt_neo for a GPT'
    )
  given = {k: config.get(k, v) for k, v in _DEFAULTS.items()}
  depth, types = given['num_layers'], given['attention_types']
  layers = [kind for kinds, times in types for kind in list(kinds) * times]
  if len(layers) != depth:
    raise ValueError(
      f'attention_types={types} must be of num_layers={depth} layers'
    )
  every = _dense_every(layers)
  if every is None:
    raise ValueError(
      f'attention_types={types} must be all local, or global in the first layer'
      ' and in every so many after it'
    )
  return GPT(
    depth=depth,
    width=given['hidden_size'],
    heads=given['num_heads'],
    vocab=given['vocab_size'],
    length=given['max_position_embeddings'],
    mlp_width=given['intermediate_size'] or 0,
    activation=base.one_of(
      'activation_function', given['activation_function'], _ACTIVATIONS
    ),
    norm_epsilon=given['layer_norm_epsilon'],
    qkv_bias=False,
    window=0 if every == 1 else given['window_size'],
    dense_every=0 if every == 1 else every,
    tied=given['tie_word_embeddings'],
  )


def _dense_every(layers) -> int | None:
  """Returns after how many layers a global one recurs; None: irregularly."""
  if not set(layers) <= {'global', 'local'}:
    return None
  if 'global' not in layers:
    return 0
  for every in range(1, len(layers) + 1):
    if all(
      (kind == 'global') == (i % every == 0) for i, kind in enumerate(layers)
    ):
      return every
  return None


def config_of(model: GPT) -> dict[str, Any]:
  """Returns the content of GPT-Neo's `config.json` for a GPT."""
  _check(model)
  layers = [
    'local' if model._turns[i % len(model._turns)] else 'global'
    for i in range(model.depth)
  ]
  return {
    'model_type': 'gpt_neo',
    'num_layers': model.depth,
    'hidden_size': model.width,
    'num_heads': model.heads,
    'vocab_size': model.vocab,
    'max_position_embeddings': model.length,
    'intermediate_size': model.mlp_width or None,
    'attention_types': [[[kind], 1] for kind in layers],
    'attention_layers': layers,
    'window_size': model.window or _DEFAULTS['window_size'],
    'activation_function': next(
      k for k, v in _ACTIVATIONS.items() if v == model.activation
    ),
    'layer_norm_epsilon': model.norm_epsilon,
    'tie_word_embeddings': model.tied,
    'embed_dropout': model.dropout,
    'resid_dropout': model.dropout,
    'attention_dropout': 0.0,
  }


def _check(model: GPT) -> None:
  """Raises ValueError for a GPT that computes what GPT-Neo cannot."""
  widths = {
    'kv_heads': model.heads,
    'head_width': model.width // model.heads,
  }
  base.check_widths(model, 'GPT-Neo', **widths)
  base.one_of(
    'activation', model.activation, {v: v for v in _ACTIVATIONS.values()}
  )
  base.check_fields(model, 'GPT-Neo', free=(*_FREE, *widths), qkv_bias=False)


def _tensors(model: GPT) -> Iterator[base.Tensor]:
  """Yields every tensor of the state dict, in its order."""
  _check(model)
  root = (model.width // model.heads) ** 0.5
  yield base.Tensor('transformer.wte.weight', ('embed/embedding',))
  yield base.Tensor('transformer.wpe.weight', ('positions/embedding',))
  norm = {'weight': 'scale', 'bias': 'bias'}
  dense = {'weight': 'kernel', 'bias': 'bias'}
  kernel = {'weight': 'kernel'}
  layers = (
    ('ln_1', 'attention_norm', norm),
    ('attn.attention.k_proj', 'attention/key', kernel),
    ('attn.attention.v_proj', 'attention/value', kernel),
    ('attn.attention.q_proj', 'attention/query', kernel),
    ('attn.attention.out_proj', 'attention/out', dense),
    ('ln_2', 'mlp_norm', norm),
    ('mlp.c_fc', 'mlp/up', dense),
    ('mlp.c_proj', 'mlp/down', dense),
  )
  for i in range(model.depth):
    for theirs, ours, leaves in layers:
      for leaf, own in leaves.items():
        scaled = ours == 'attention/query'
        yield base.Tensor(
          f'transformer.h.{i}.{theirs}.{leaf}',
          (f'blocks_{i}/{ours}/{own}',),
          turned=own == 'kernel',
          read=(lambda x: x * root) if scaled else None,
          write=(lambda x: x / root) if scaled else None,
        )
  for leaf, own in norm.items():
    yield base.Tensor(f'transformer.ln_f.{leaf}', (f'final_norm/{own}',))
  if model.tied:
    yield base.Tensor('lm_head.weight', ('embed/embedding',), copy=True)
  else:
    yield base.Tensor('lm_head.weight', ('head/kernel',), turned=True)


FAMILY = base.Family(
  name='GPT-Neo',
  architectures=('GPTNeoForCausalLM', 'GPTNeoModel'),
  model_of=model_of,
  config_of=config_of,
  tensors=_tensors,
  # Older checkpoints carry the causal mask.
  ignored=r'\.attention\.(masked_)?bias$',
  prefix='transformer',
)
