"""ViT against `transformers.ViTForImageClassification`, with shared weights."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
import torch
import transformers

from bigdl import tree
from bigdl.interop import base, vit
from bigdl.models.vit import ViT, resize_positions

# Absolute in float32; in float64 a share of the largest entry of the array.
SINGLE, DOUBLE = 1e-4, 1e-8

from_hf = functools.partial(base.from_hf, family=vit.FAMILY)
to_hf = functools.partial(base.to_hf, family=vit.FAMILY)

SHAPES: dict[str, dict[str, Any]] = {
  'square': dict(
    num_hidden_layers=2,
    hidden_size=12,
    num_attention_heads=3,
    intermediate_size=48,
    image_size=15,
    patch_size=5,
    num_labels=7,
  ),
  'narrow': dict(
    num_hidden_layers=1,
    hidden_size=10,
    num_attention_heads=2,
    intermediate_size=14,
    image_size=12,
    patch_size=3,
    num_channels=1,
    num_labels=3,
    hidden_act='gelu_new',
    layer_norm_eps=1e-3,
    qkv_bias=False,
  ),
}
# Heights and widths: those trained on; more and fewer patches; not a square.
SIZES = {'square': [(15, 15), (25, 20), (10, 5)], 'narrow': [(12, 12), (9, 21)]}


def reference(name, seed, dtype=torch.float64, kind=None):
  """Returns the torch model; no weight is what initialisation makes of it."""
  torch.manual_seed(seed)
  kind = kind or transformers.ViTForImageClassification
  # The eager one takes its softmax in float32, whatever the weights are.
  config = transformers.ViTConfig(**SHAPES[name], attn_implementation='sdpa')
  model = kind(config).to(dtype).eval()
  with torch.no_grad():
    for key, value in model.named_parameters():
      value.copy_(torch.randn_like(value) * 0.3)
      if 'layernorm' in key and key.endswith('weight'):
        value.add_(1)
  return model


def in_files(model, folder):
  """Returns the arrays by the names that they have in files."""
  model.save_pretrained(folder)
  return load_file(folder / 'model.safetensors')


def theirs(model, image, label, folder):
  """Returns logits, loss and its gradient by name, from torch."""
  inputs = torch.from_numpy(image).to(model.dtype).permute(0, 3, 1, 2)
  logits = model(inputs, interpolate_pos_encoding=True).logits
  loss = torch.nn.functional.cross_entropy(
    logits, torch.from_numpy(label).long()
  )
  model.zero_grad()
  loss.backward()
  with torch.no_grad():
    for value in model.parameters():
      value.copy_(value.grad)
  return logits.detach().numpy(), loss.item(), in_files(model, folder)


@functools.partial(jax.jit, static_argnums=0)
def plain(model, params, image, label):
  def loss(params):
    logits = model.apply({'params': params}, image)
    rows = jnp.take_along_axis(jax.nn.log_softmax(logits), label[:, None], -1)
    return -rows.mean(), logits

  return jax.value_and_grad(loss, has_aux=True)(params)


def compare(name, seed, dtype, size, folder):
  """Returns the largest errors, absolute and relative to each array's size."""
  kind = 'float32' if dtype == torch.float32 else 'float64'
  peer = reference(name, seed, dtype)
  model = vit.model_of(peer.config.to_dict()).clone(
    dtype=kind, param_dtype=kind
  )
  rng = np.random.default_rng(seed)
  image = rng.standard_normal((3, *size, model.channels)).astype(kind)
  label = rng.integers(0, model.classes, 3, np.int32)
  params = from_hf(in_files(peer, folder), model)
  (loss, logits), grads = plain(model, params, image, label)
  grads = to_hf(grads, model)
  want_logits, want_loss, want_grads = theirs(peer, image, label, folder)
  assert set(grads) == set(want_grads)
  pairs = [(logits, want_logits), (loss, want_loss)]
  pairs += [(grads[k], want_grads[k]) for k in grads]
  gaps = [np.abs(np.asarray(a) - b).max() for a, b in pairs]
  scales = [max(np.abs(b).max(), 1e-3) for _, b in pairs]
  return max(gaps), max(g / s for g, s in zip(gaps, scales, strict=True))


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize(
  ('name', 'size'), [(k, size) for k, sizes in SIZES.items() for size in sizes]
)
def test_logits_and_gradients_are_theirs_in_float64(name, size, seed, tmp_path):
  with jax.enable_x64(True):
    _, relative = compare(name, seed, torch.float64, size, tmp_path)
  assert relative < DOUBLE


@pytest.mark.parametrize('seed', [0, 1])
@pytest.mark.parametrize('size', [(15, 15), (20, 10)])
def test_logits_and_gradients_are_theirs_in_float32(size, seed, tmp_path):
  absolute, _ = compare('square', seed, torch.float32, size, tmp_path)
  assert absolute < SINGLE


def test_positions_of_another_image_size_are_theirs():
  peer = reference('square', 0)
  with jax.enable_x64(True):
    model = ViT(
      depth=1, width=12, heads=3, patch=5, image_size=15, param_dtype='float64'
    )
    table = peer.vit.embeddings.position_embeddings
    for size in (5, 10, 25, 35):
      patches = torch.zeros(1, (size // 5) ** 2 + 1, 12)
      want = peer.vit.embeddings.interpolate_pos_encoding(patches, size, size)
      params = {'positions': {'embedding': table[0].detach().numpy()}}
      got = resize_positions(params, model.clone(image_size=size))
      np.testing.assert_allclose(
        got['positions']['embedding'], want[0].detach(), atol=1e-12
      )


def test_the_bare_model_gives_what_its_pooler_gives(tmp_path):
  peer = reference('square', 0, kind=transformers.ViTModel)
  own = {**peer.config.to_dict(), 'architectures': ['ViTModel']}
  with jax.enable_x64(True):
    model = vit.model_of(own).clone(dtype='float64', param_dtype='float64')
    params = from_hf(in_files(peer, tmp_path), model)
    image = np.random.default_rng(0).standard_normal((2, 15, 15, 3))
    got = model.apply({'params': params}, image)
    want = peer(torch.from_numpy(image).permute(0, 3, 1, 2)).pooler_output
    np.testing.assert_allclose(got, want.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize('stack', ['loop', 'scan'])
def test_weights_come_back_as_they_were(stack, tmp_path):
  arrays = in_files(reference('square', 0, torch.float32), tmp_path)
  model = vit.model_of(SHAPES['square'] | {'id2label': dict.fromkeys(range(7))})
  model = model.clone(stack=stack)
  params = from_hf(arrays, model)
  own = jax.eval_shape(model.init, jax.random.key(0), np.zeros((1, 15, 15, 3)))[
    'params'
  ]
  assert tree.paths(params) == tree.paths(own)
  back = to_hf(params, model)
  assert back.keys() == arrays.keys()
  assert all(np.array_equal(back[k], arrays[k]) for k in arrays)


@pytest.mark.parametrize('name', SHAPES)
def test_a_config_written_here_makes_the_same_model(name):
  config = transformers.ViTConfig(**SHAPES[name])
  model = vit.model_of(config.to_dict())
  again = transformers.ViTConfig(**vit.config_of(model))
  assert vit.model_of(again.to_dict()) == model
  for field in SHAPES[name]:
    assert getattr(again, field) == getattr(config, field), field


def test_what_they_leave_out_of_a_config_is_their_default():
  assert vit.model_of({}) == vit.model_of(transformers.ViTConfig().to_dict())


@pytest.mark.parametrize(
  ('change', 'told'),
  [
    ({'pool': 'mean'}, 'pool=mean must be token'),
    ({'position': 'sinusoidal'}, 'position=sinusoidal must be learned'),
    ({'block': 'parallel'}, 'block=parallel must be pre'),
    ({'activation': 'swiglu'}, 'activation=swiglu must be one of'),
    ({'representation': 4}, 'representation=4 must be 0'),
    ({'classes': 0}, 'classes=0 above 0'),
  ],
)
def test_a_model_that_is_none_of_theirs_is_refused(change, told):
  model = ViT(depth=1, width=16, heads=2, patch=4, image_size=8).clone(**change)
  with pytest.raises(ValueError, match=told):
    vit.config_of(model)


@pytest.mark.parametrize(
  ('config', 'told'),
  [
    ({'hidden_act': 'silu'}, 'hidden_act=silu must be one of gelu'),
    ({'image_size': [224, 192]}, 'must be a square'),
    ({'model_type': 'deit'}, 'model_type=deit must be vit'),
    ({'image_size': 30, 'patch_size': 16}, 'patch=16 must divide'),
  ],
)
def test_a_config_that_is_none_of_ours_is_refused(config, told):
  with pytest.raises(ValueError, match=told):
    vit.model_of(config)
