"""Prompt tuning: learned vectors that stand before the text.

Lester et al., 2021, arXiv:2104.08691, section 2. With
`AdamW(train='^prompt/')` nothing else moves; parameters are those of the body, by
the same paths, and `prompt/embedding`.
Differs from the paper: the tokens keep the vectors of the positions that they
have without a prompt, whose own have none (sinusoids aside, which go on through
both); an encoder, which sees all ways alike, has its prompt behind the text.
"""

# Shapes: B batch, T positions, P of the prompt, V vocabulary, E embedding width.
from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from bigdl.layers import position
from bigdl.layers.wrapper import Outermost, Wrapper
from bigdl.models.gpt import GPT

NAME = 'prompt'
_STEPS = 7  # Rows of the table apart, of which a prompt's vectors are copies.


class Prompted(Outermost):
  """A GPT, a BERT or a head on one of them, with a prompt before each row.

  The prompt is of the first document of a row. It stands outside of other
  wrappers, and its methods are reached through `apply` alone.
  """

  prompt: int = 20  # P, vectors.

  def __post_init__(self):
    super().__post_init__()
    if self.prompt < 1:
      raise ValueError(f'prompt={self.prompt} must be at least 1')
    body = self.innermost
    reads = all(hasattr(body, name) for name in ('vocab', 'length'))
    if not reads or hasattr(body, 'encode'):
      raise ValueError(
        f'body={type(body).__name__} must be a GPT or a BERT, before whose'
        ' tokens a prompt goes'
      )

  @property
  def _leads(self) -> bool:
    # What decodes sees only what stands before.
    return hasattr(self.innermost, 'decode')

  @property
  def _inside(self) -> str:
    """The path of the innermost body's parameters."""
    path, body = '', self.body
    while isinstance(body, Wrapper):
      path, body = f'{path}body/', body.body
    return path

  def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
    """Returns the body's variables with the prompt among them."""
    variables = dict(self.body.init(rngs, *args, **kwargs))
    params = variables['params']
    table_VE = self._node(params, 'embed')['embedding']
    rows = _STEPS * jnp.arange(self.prompt) % len(table_VE)
    prompt = {'embedding': table_VE[rows]}
    return {**variables, 'params': {**params, NAME: prompt}}

  def apply(
    self, variables: Any, *args: Any, method: Any = None, **kwargs: Any
  ) -> Any:
    """Applies the body to tokens with the prompt, which is cut off again."""
    name = getattr(method, '__name__', method) or '__call__'
    if name == 'decode':
      return self._decode(variables, *args, **kwargs)
    if name == 'hidden':
      return self._hidden(variables, *args, **kwargs)
    if name == '__call__':
      return self._call(variables, *args, **kwargs)
    params = {k: v for k, v in variables['params'].items() if k != NAME}
    # All else starts from hidden states, which the prompt is no part of.
    return self.body.apply(
      {**variables, 'params': params}, *args, method=method, **kwargs
    )

  def _call(self, variables, tokens_BT, *context, **kwargs):
    if isinstance(self.body, Wrapper):
      body, variables = self._extended(variables)
      inputs, kwargs = self._with_prompt(tokens_BT, context, kwargs)
      return body.apply(variables, inputs, **kwargs)
    x_BTD = self._hidden(variables, tokens_BT, *context, **kwargs)
    logits_BTV = self.apply(variables, x_BTD, method='logits')
    if not getattr(self.body, 'classes', 0):
      return logits_BTV
    return logits_BTV, self.apply(variables, x_BTD, method='sentence')

  def _hidden(self, variables, tokens_BT, *context, **kwargs):
    body, variables = self._extended(variables)
    inputs, kwargs = self._with_prompt(tokens_BT, context, kwargs)
    x_BND = body.apply(variables, inputs, method='hidden', **kwargs)
    P, T = self.prompt, tokens_BT.shape[1]
    return x_BND[:, P:] if self._leads else x_BND[:, :T]

  def _decode(self, variables, tokens_BS, start, *, capacity, **kwargs):
    body, variables = self._extended(variables)
    S, first = tokens_BS.shape[1], 'cache' not in variables
    if first:
      tokens_BS = self._join(self._ids(tokens_BS), tokens_BS)
    x_BSD, rest = body.apply(
      variables,
      tokens_BS,
      start if first else start + self.prompt,
      method='decode',
      capacity=capacity + self.prompt,
      **kwargs,
    )
    return x_BSD[:, -S:], rest

  def _with_prompt(self, tokens_BT, context, kwargs):
    """Returns tokens with the prompt's ids, and the context of both."""
    names = ['segments', 'positions']
    if not self._leads:
      names.insert(1, 'types')
    given = {**dict(zip(names, context, strict=False)), **kwargs}
    segments, types = given.get('segments'), given.get('types')
    positions = given.get('positions')
    P, T = self.prompt, tokens_BT.shape[1]
    if positions is None:
      positions = jnp.arange(T)
      if segments is not None:
        positions = position.segment_positions(segments)
    positions = jnp.broadcast_to(positions, tokens_BT.shape)
    own_BP = jnp.broadcast_to(jnp.arange(P), (len(tokens_BT), P))
    if self._leads:
      positions = positions + P
    else:
      own_BP = own_BP + self.body.length
    given['positions'] = self._join(own_BP, positions)
    if segments is not None:
      first_BP = jnp.broadcast_to(segments[:, :1], own_BP.shape)
      given['segments'] = self._join(first_BP, segments)
    if types is not None:
      given['types'] = self._join(jnp.zeros_like(own_BP), types)
    return self._join(self._ids(tokens_BT), tokens_BT), given

  def _ids(self, tokens_BT):
    ids_P = self.body.vocab + jnp.arange(self.prompt, dtype=tokens_BT.dtype)
    return jnp.broadcast_to(ids_P, (len(tokens_BT), self.prompt))

  def _join(self, prompt_BP, x_BT):
    parts = [prompt_BP.astype(x_BT.dtype), x_BT]
    return jnp.concatenate(parts if self._leads else parts[::-1], axis=1)

  def _extended(self, variables):
    """Returns the body with the prompt in its tables, and its variables."""
    P = self.prompt
    body = self.body.clone(vocab=self.body.vocab + P, length=self._length)
    params = {k: v for k, v in variables['params'].items() if k != NAME}
    prompt_PE = variables['params'][NAME]['embedding']

    def extend(name, more):
      nonlocal params
      table = self._node(params, name)['embedding']
      rows = [table, more(table)]
      if name == 'positions' and self._leads:
        rows = rows[::-1]
      table = jnp.concatenate(rows)
      params = _replaced(params, f'{self._inside}{name}/embedding', table)

    extend('embed', lambda table: prompt_PE.astype(table.dtype))
    if 'positions' in self._node(params):
      extend('positions', lambda table: jnp.zeros((P, *table.shape[1:])))
    return body, {**variables, 'params': params}

  @property
  def _length(self) -> int:
    return self.body.length + self.prompt

  def _node(self, params, name=''):
    for part in [p for p in self._inside.split('/') if p]:
      params = params[part]
    return params[name] if name else params


def _replaced(params, path, value):
  """Returns the nested dict with the value at that path replaced."""
  first, _, rest = path.partition('/')
  inner = _replaced(params[first], rest, value) if rest else value
  return {**params, first: inner}


def tiny() -> tuple[Prompted, tuple[jax.Array, ...]]:
  """Returns the smallest GPT with a prompt, and its inputs."""
  body = GPT(depth=2, width=16, heads=2, vocab=29, length=12)
  tokens_BT = jnp.arange(24, dtype=jnp.int32).reshape(2, 12) % body.vocab
  return Prompted(body, prompt=3), (tokens_BT,)
