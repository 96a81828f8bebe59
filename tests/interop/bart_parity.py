"""A Transformer against a torch class of BART's family, by shared weights."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from bigdl.interop import base

# Absolute in float32; in float64 a share of the largest entry of the array.
SINGLE, DOUBLE = 1e-4, 1e-8

SMALL: dict[str, Any] = dict(
  vocab_size=31,
  max_position_embeddings=11,
  encoder_layers=2,
  encoder_ffn_dim=14,
  encoder_attention_heads=3,
  decoder_layers=1,
  decoder_ffn_dim=14,
  decoder_attention_heads=3,
  d_model=12,
  scale_embedding=True,
  pad_token_id=0,
  bos_token_id=1,
  eos_token_id=2,
  forced_eos_token_id=2,
  decoder_start_token_id=1,
  attn_implementation='eager',
)


def reference(make, config, seed, dtype=torch.float32):
  """Returns the torch model; no weight is what initialisation makes of it."""
  torch.manual_seed(seed)
  model = make(config).to(dtype).eval()
  with torch.no_grad():
    for name, value in model.named_parameters():
      if value.requires_grad:
        value.copy_(torch.randn_like(value) * 0.3)
      if 'norm' in name and name.endswith('weight'):
        value.add_(1)
    model.final_logits_bias.copy_(torch.randn_like(model.final_logits_bias))
    exact_positions(model)
  return model


def exact_positions(model) -> None:
  """Replaces tables of sinusoids, which torch rounds to float32."""
  for name, value in model.named_parameters():
    if not value.requires_grad and 'embed_positions' in name:
      places, width = value.shape
      angles = (
        np.arange(places)[:, None]
        / 10000 ** (2 * np.arange(width // 2) / width)[None]
      )
      table = np.concatenate([np.sin(angles), np.cos(angles)], 1)
      value.copy_(torch.from_numpy(table))


def arrays_of(model):
  return {k: v.detach().numpy() for k, v in model.state_dict().items()}


def rows(seed, vocab=31, sizes=((7, 4), (5, 9), (7, 1)), lengths=(7, 9)):
  """Returns sources, targets and their masks, padded on the right with 0."""
  rng = np.random.default_rng(seed)
  S, T = lengths
  source = rng.integers(1, vocab, (len(sizes), S), np.int32)
  tokens = rng.integers(1, vocab, (len(sizes), T + 1), np.int32)
  lengths_of = np.array(sizes)
  source_mask = (np.arange(S) < lengths_of[:, :1]).astype(np.int32)
  mask = (np.arange(T) < lengths_of[:, 1:]).astype(np.int32)
  source *= source_mask
  tokens[:, :-1] *= mask
  return source, tokens, source_mask, mask


def theirs(model, source, tokens, source_mask, mask):
  """Returns logits, loss and its gradient by name, from torch."""
  as_long = functools.partial(torch.tensor, dtype=torch.long)
  logits = model(
    input_ids=as_long(source),
    attention_mask=as_long(source_mask),
    decoder_input_ids=as_long(tokens[:, :-1]),
    decoder_attention_mask=as_long(mask),
    use_cache=False,
  ).logits
  losses = torch.nn.functional.cross_entropy(
    logits.transpose(1, 2), as_long(tokens[:, 1:]), reduction='none'
  )
  loss = (losses * torch.tensor(mask)).sum() / int(mask.sum())
  loss.backward()
  grads = {
    k: v.grad.numpy() for k, v in model.named_parameters() if v.requires_grad
  }
  return logits.detach().numpy(), loss.item(), grads


@functools.partial(jax.jit, static_argnums=0)
def _plain(model, params, source, tokens, source_mask, mask):
  """Returns the loss, its gradient and the logits, by the definition."""

  def loss(params):
    logits = model.apply(
      {'params': params}, source, tokens[:, :-1], source_mask, mask
    )
    losses = -jnp.take_along_axis(
      jax.nn.log_softmax(logits), tokens[:, 1:, None], -1
    )[..., 0]
    return (losses * mask).sum() / mask.sum(), logits

  return jax.value_and_grad(loss, has_aux=True)(params)


def compare(family, peer, seed, **changes) -> tuple[float, float]:
  """Returns the largest errors, absolute and relative to each array's size."""
  wide = peer.final_logits_bias.dtype == torch.float64
  dtype = 'float64' if wide else 'float32'
  model = family.model_of(peer.config.to_dict()).clone(
    dtype=dtype, param_dtype=dtype, **changes
  )
  batch = rows(seed)
  params = base.from_hf(arrays_of(peer), model, family)
  params = jax.tree.map(jnp.asarray, params)
  (loss, logits), grads = _plain(model, params, *batch)
  got = base.to_hf(grads, model, family)
  want_logits, want_loss, want = theirs(peer, *batch)
  seen = batch[3].astype(bool)
  pairs = [
    (np.asarray(logits)[seen], want_logits[seen]),
    (float(loss), want_loss),
  ]
  assert np.asarray(logits).dtype == np.dtype(dtype)
  # Torch has the bias of the logits as a buffer: it takes no gradient.
  assert got.pop('final_logits_bias').any()
  table = got['model.shared.weight']
  for name in list(got):
    if name not in want:
      # A copy of the table, whose gradient torch sums under its first name.
      np.testing.assert_array_equal(got.pop(name), table, name)
  assert set(got) == set(want)
  for name, theirs_ in want.items():
    # A gradient of zeros would match whatever it stands for; those of keys'
    # biases are zero but for rounding.
    if not name.endswith('k_proj.bias'):
      assert np.abs(theirs_).max() > 1e-4, name
      pairs.append((got[name], theirs_))
    else:
      assert np.abs(got[name]).max() < SINGLE, name
  absolute = max(float(np.abs(a - b).max()) for a, b in pairs)
  relative = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
  return absolute, relative


def round_trip(family, peer, **changes):
  """Returns theirs after it has been ours, and asserts that torch takes it."""
  state = arrays_of(peer)
  model = family.model_of(peer.config.to_dict()).clone(**changes)
  params = base.from_hf(state, model, family)
  back = base.to_hf(params, model, family)
  faults = peer.load_state_dict(
    {k: torch.tensor(v) for k, v in back.items()}, strict=False
  )
  assert not faults.unexpected_keys
  assert all('embed_positions' in name for name in faults.missing_keys)
  for name, value in back.items():
    np.testing.assert_array_equal(value, state[name], name)
  return model
