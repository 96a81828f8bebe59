"""Beam search: the likeliest continuations, by a breadth-first search.

Graves, 2012, arXiv:1211.3711, section 2.5. Length penalties: |Y|^alpha, by which
`transformers` divides, and ((5 + |Y|) / 6)^alpha, Wu et al., 2016,
arXiv:1609.08144, eq. 14, as Vaswani et al., 2017 have it (alpha = 0.6, four beams).
Differs from the papers: the search ends as `stop` says, and `best` is the rule
of `transformers`, which may miss a longer output of higher score.
"""

# Shapes: B rows, K beams, C candidates (twice K or more), T new tokens,
# V vocabulary.
from __future__ import annotations

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any, Literal, NamedTuple, get_args

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from bigdl.train import generate, sampling

Penalty = Literal['power', 'gnmt']
Stop = Literal['best', 'full', 'never']
# Stands for log 0 where sums must stay finite.
_NEVER = -1e9


@dataclasses.dataclass(frozen=True)
class Beam:
  """How a beam search weighs its outputs and when it ends."""

  beams: int = 4
  alpha: float = 1.0  # Of the length penalty; 0: none.
  penalty: Penalty = 'power'  # |Y|^alpha; gnmt: ((5 + |Y|) / 6)^alpha.
  # best: once no beam, as it is, beats the worst output kept; full: once as many
  # outputs as beams are there; never: once no continuation could beat them.
  stop: Stop = 'best'
  min_tokens: int = 0  # Tokens before which no output ends.

  def __post_init__(self):
    for name, kind in (('penalty', Penalty), ('stop', Stop)):
      value, allowed = getattr(self, name), get_args(kind)
      if value not in allowed:
        raise ValueError(f'{name}={value} must be one of {", ".join(allowed)}')
    if self.beams < 1:
      raise ValueError(f'beams={self.beams} must be at least 1')
    if self.min_tokens < 0:
      raise ValueError(f'min_tokens={self.min_tokens} must not be negative')
    if not math.isfinite(self.alpha):
      raise ValueError(f'alpha={self.alpha} must be a number')

  def weight(self, tokens: jax.Array) -> jax.Array:
    """Returns what the log-probability of so many tokens is divided by."""
    length = jnp.asarray(tokens, jnp.float32)
    if self.penalty == 'gnmt':
      length = (5 + length) / 6
    return length**self.alpha


class Outputs(NamedTuple):
  """What a search found, best first.

  tokens_BKT: int32; after its end an output holds `generate.NOTHING`.
  scores_BK: Log-probability over its length penalty; -1e9 where there is none.
  """

  tokens_BKT: np.ndarray
  scores_BK: np.ndarray


class _Search(NamedTuple):
  """Live beams with summed log-probabilities, and outputs with scores."""

  made: jax.Array  # int32 scalar: tokens of each live beam.
  live_BKT: jax.Array
  live_BK: jax.Array
  done_BKT: jax.Array
  done_BK: jax.Array
  is_done_BK: jax.Array
  open_B: jax.Array  # Whether a better output may come.
  over: jax.Array  # Whether the search is.


def search(
  model: nn.Module,
  params: Any,
  prompts: Sequence[Sequence[int]] | np.ndarray,
  *,
  tokens: int,
  beam: Beam | None = None,
  ends: tuple[int, ...] = (),
  source: generate.Encoded | None = None,
) -> Outputs:
  """Returns the likeliest continuations of each prompt that a search finds.

  Args:
    model: A module with `decode`, `logits` and the fields `length`, `vocab`.
    params: Its parameters.
    prompts: Tokens to continue, at least one a row; rows may differ in length.
    tokens: Most tokens of an output; one that has not ended by then ends there.
    beam: How to search.
    ends: Tokens that end an output; they belong to it.
    source: What an encoder-decoder reads.

  Raises:
    ValueError: The context has no room, or prompts are bad.
  """
  beam = beam or Beam()
  if beam.beams * 2 > model.vocab:
    raise ValueError(
      f'beams={beam.beams} must be at most half of vocab={model.vocab}'
    )
  texts = generate.check_prompts(model, prompts)
  longest = max(map(len, texts))
  if longest + tokens > model.length:
    raise ValueError(
      f'tokens={tokens} after a prompt of {longest} must fit in'
      f' length={model.length}'
    )
  room = generate.capacity(model, longest, tokens)
  cache, logits_BV, used = generate.read(model, params, texts, room, source)
  axes = _row_axes(model, params, room, source)
  how = (beam, tuple(ends), tokens, room)
  found = _search(model, how, axes, params, cache, logits_BV, used)
  return Outputs(*jax.device_get(found))


def _row_axes(model, params, room, source) -> tuple[int, ...]:
  """Returns which axis of each array of the cache runs over the rows.

  Blocks in a scan have their own axis before it.
  """

  def shapes(rows):
    memory = source
    if source is not None:
      memory = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), source
      )
    prompts = jax.ShapeDtypeStruct((rows, 1), jnp.int32)
    used = jax.ShapeDtypeStruct((rows,), jnp.int32)
    # The function itself, without what it has compiled.
    read = functools.partial(generate.fill, model, room)
    cache, _ = jax.eval_shape(read, params, prompts, used, memory)
    return [x.shape for x in jax.tree.leaves(cache)]

  pairs = zip(shapes(2), shapes(3), strict=True)
  return tuple(
    next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
    for a, b in pairs
  )


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _search(model, how, axes, params, cache, logits_BV, used):
  beam, ends, tokens, room = how
  B, K = len(logits_BV), beam.beams

  def pick(cache, rows):
    leaves, treedef = jax.tree.flatten(cache)
    picked = [
      jnp.take(x, rows, axis=axis) for x, axis in zip(leaves, axes, strict=True)
    ]
    return jax.tree.unflatten(treedef, picked)

  def cond(carry):
    return ~carry[0].over

  def body(carry):
    state, cache, logits_NV = carry
    state, parents_BK, last_BK = _advance(beam, ends, tokens, state, logits_NV)
    rows = (K * jnp.arange(B)[:, None] + parents_BK).ravel()
    hidden, new = model.apply(
      {'params': params, 'cache': pick(cache, rows)},
      last_BK.reshape(-1, 1),
      position + state.made - 1,
      capacity=room,
      method='decode',
      mutable=['cache'],
    )
    logits_NV = model.apply({'params': params}, hidden[:, 0], method='logits')
    return state, new['cache'], logits_NV

  # Every row has its beams one after the other.
  repeated = jnp.repeat(jnp.arange(B), K)
  position = used[repeated] if used.ndim else used
  begun = _begin(B, K, tokens)
  start = begun, pick(cache, repeated), logits_BV[repeated]
  state, _, _ = jax.lax.while_loop(cond, body, start)
  return state.done_BKT, state.done_BK


def _begin(B, K, T) -> _Search:
  nothing_BKT = jnp.full((B, K, T), generate.NOTHING, jnp.int32)
  # All beams of a row are alike at first: only one of them counts.
  live_BK = jnp.zeros((B, K), jnp.float32).at[:, 1:].set(_NEVER)
  return _Search(
    made=jnp.int32(0),
    live_BKT=nothing_BKT,
    live_BK=live_BK,
    done_BKT=nothing_BKT,
    done_BK=jnp.full((B, K), _NEVER, jnp.float32),
    is_done_BK=jnp.zeros((B, K), bool),
    open_B=jnp.ones(B, bool),
    over=jnp.bool_(False),
  )


def _advance(beam, ends, tokens, state, logits_NV):
  """Adds a token to every beam.

  Returns the search, the beams that the new ones continue, and their tokens.
  """
  B, K = state.live_BK.shape
  V = logits_NV.shape[-1]
  logs_NV = jax.nn.log_softmax(logits_NV.astype(jnp.float32))
  logs_NV = sampling.ban(logs_NV, ends, state.made < beam.min_tokens)
  sums_BKV = logs_NV.reshape(B, K, V) + state.live_BK[..., None]
  # So many that K of them go on even where each beam could end.
  C = K * max(2, 1 + len(ends))
  sums_BC, places_BC = jax.lax.top_k(sums_BKV.reshape(B, K * V), min(C, K * V))
  parents_BC, tokens_BC = places_BC // V, (places_BC % V).astype(jnp.int32)
  texts_BCT = jnp.take_along_axis(state.live_BKT, parents_BC[..., None], axis=1)
  texts_BCT = jax.lax.dynamic_update_slice_in_dim(
    texts_BCT, tokens_BC[..., None], state.made, axis=2
  )
  made = state.made + 1
  ended_BC = jnp.isin(tokens_BC, jnp.asarray(ends, jnp.int32))
  ended_BC |= made == tokens
  state = _finish(beam, state, made, texts_BCT, sums_BC, ended_BC)
  going_BC = jnp.where(ended_BC, sums_BC + _NEVER, sums_BC)
  live_BK, best_BK = jax.lax.top_k(going_BC, K)
  state = state._replace(
    made=made,
    live_BK=live_BK,
    live_BKT=jnp.take_along_axis(texts_BCT, best_BK[..., None], axis=1),
  )
  # The best beam, were it to end: now, or where it can gain most by its length.
  longest = beam.stop == 'never' and beam.alpha > 0
  hope_B = live_BK[:, 0] / beam.weight(jnp.where(longest, tokens, made))
  worst_BK = jnp.where(
    state.is_done_BK, state.done_BK.min(1, keepdims=True), _NEVER
  )
  open_B = state.open_B & (hope_B[:, None] > worst_BK).any(1)
  over = ~open_B.any() | ended_BC.all()
  if beam.stop == 'full':
    over |= state.is_done_BK.all()
  parents_BK, last_BK = (
    jnp.take_along_axis(x, best_BK, axis=1) for x in (parents_BC, tokens_BC)
  )
  return state._replace(open_B=open_B, over=over), parents_BK, last_BK


def _finish(beam, state, made, texts_BCT, sums_BC, ended_BC) -> _Search:
  """Takes what has ended among a row's best K into its outputs."""
  K = beam.beams
  ended_BC = ended_BC & (jnp.arange(ended_BC.shape[1]) < K)
  closed_B = ~state.open_B
  if beam.stop == 'full':
    closed_B |= state.is_done_BK.all(1)
  scores_BC = jnp.where(
    ended_BC & ~closed_B[:, None], sums_BC / beam.weight(made), _NEVER
  )
  scores = jnp.concatenate([state.done_BK, scores_BC], axis=1)
  texts = jnp.concatenate([state.done_BKT, texts_BCT], axis=1)
  done = jnp.concatenate([state.is_done_BK, scores_BC > _NEVER], axis=1)
  done_BK, best_BK = jax.lax.top_k(scores, K)
  return state._replace(
    done_BK=done_BK,
    done_BKT=jnp.take_along_axis(texts, best_BK[..., None], axis=1),
    is_done_BK=jnp.take_along_axis(done, best_BK, axis=1),
  )
