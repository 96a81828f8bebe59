"""ViT: what each of its choices computes; its sizes; images of other sizes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl import tree
from bigdl.models.vit import SIZES, ViT, resize_positions
from bigdl.objectives.classify import Classify
from bigdl.scaling import count

CLOSE = 1e-5
SMALL = ViT(
  depth=1, width=8, heads=2, patch=2, image_size=4, classes=3, init_std=0.3
)

# To the integer, at 1000 classes (Hugging Face's classes have as many).
EXACT = {
  'vit-ti/16': 5_717_416,
  'vit-s/16': 22_050_664,
  'vit-b/32': 88_224_232,
  'vit-b/16': 86_567_656,
  'vit-l/16': 304_326_632,
  'vit-h/14': 632_045_800,
}
# In millions, as printed, without a head.
ROUNDED = {'vit-g/14': 1011, 'vit-G/14': 1843}


def size_of(model):
  size = model.image_size
  image = jax.ShapeDtypeStruct((1, size, size, model.channels), jnp.uint8)
  start = jax.eval_shape(
    model.clone(stack='scan').init, jax.random.key(0), image
  )
  return tree.size(start['params'])


@pytest.mark.parametrize('name', EXACT)
def test_published_sizes_have_the_published_parameters(name):
  assert size_of(SIZES[name]) == EXACT[name]


@pytest.mark.parametrize('name', ROUNDED)
def test_sizes_printed_without_a_head_round_to_what_is_printed(name):
  found = size_of(SIZES[name].clone(classes=0)) / 1e6
  assert round(found) == ROUNDED[name]


def test_vit_22b_has_the_matrices_of_its_formula_and_few_other_weights():
  model = SIZES['vit-22b/14']
  matrices = 12 * model.depth * model.width**2
  assert matrices == 21_743_271_936  # Printed as 21.743 billion.
  others = size_of(model.clone(classes=0)) - matrices
  patches = 14 * 14 * 3 * 6144 + 6144
  positions = 16 * 16 * 6144
  # Of a block: biases of the MLP and the output, one norm, two of a head.
  block = 5 * 6144 + 6144 + 6144 + 2 * 128
  assert others == patches + positions + 48 * block + 6144


def images(rows=2, height=4, width=4, channels=3):
  rng = np.random.default_rng(height * width)
  return rng.integers(0, 256, (rows, height, width, channels), np.uint8)


def params_of(model, *, seed=0):
  """Every parameter drawn at random: none is what it starts as."""
  size = model.image_size
  start = jax.eval_shape(
    model.init, jax.random.key(0), images(1, size, size, model.channels)
  )['params']
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda x: jnp.asarray(rng.normal(0.1, 0.4, x.shape), x.dtype), start
  )


def logits(model, params, image, **options):
  return np.asarray(model.apply({'params': params}, image, **options))


def test_patches_are_cut_as_a_convolution_cuts_them():
  model = SMALL.clone(image_size=6, depth=1)
  params = params_of(model)
  image = np.random.default_rng(0).standard_normal((2, 6, 4, 3)).astype('f4')
  kernel = params['patches']['kernel'].reshape(2, 2, 3, 8)
  want = jax.lax.conv_general_dilated(
    image, kernel, (2, 2), 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
  )
  bound = model.bind({'params': params})
  got = (
    bound.patches(bound._cut(jnp.asarray(image))) - params['patches']['bias']
  )
  np.testing.assert_allclose(got, want.reshape(2, 6, 8), atol=CLOSE)


def test_bytes_are_scaled_and_floats_are_taken_as_they_are():
  mean, std = (0.1, 0.2, 0.3), (0.5, 0.4, 0.25)
  model = SMALL.clone(mean=mean, std=std)
  params, image = params_of(model), images()
  scaled = ((image / 255 - mean) / std).astype(np.float32)
  one, two = logits(model, params, image), logits(model, params, scaled)
  np.testing.assert_allclose(one, two, atol=CLOSE)
  assert not np.allclose(one, logits(SMALL, params, image), atol=0.01)


def test_the_class_token_or_the_mean_represents_the_image():
  for pool in ('token', 'mean'):
    model = SMALL.clone(pool=pool)
    params, image = params_of(model), images()
    x = model.apply({'params': params}, image, method='hidden')
    assert x.shape == (2, 4 + (pool == 'token'), 8)
    want = x[:, 0] if pool == 'token' else x.mean(1)
    got = model.apply({'params': params}, image, method='features')
    np.testing.assert_allclose(got, want, atol=CLOSE)
    head = params['head']
    np.testing.assert_allclose(
      logits(model, params, image),
      got @ head['kernel'] + head['bias'],
      atol=CLOSE,
    )


def test_a_representation_is_a_tanh_layer_under_the_head():
  model = SMALL.clone(representation=5)
  params, image = params_of(model), images()
  own = params['before_head']
  assert (
    own['kernel'].shape == (8, 5) and params['head']['kernel'].shape[0] == 5
  )
  x = model.apply({'params': params}, image, method='hidden')[:, 0]
  got = model.apply({'params': params}, image, method='features')
  np.testing.assert_allclose(
    got, jnp.tanh(x @ own['kernel'] + own['bias']), atol=CLOSE
  )
  bare = model.clone(classes=0)
  del params['head']
  np.testing.assert_array_equal(logits(bare, params, image), got)


def test_every_patch_reaches_every_logit():
  model = SMALL
  params = params_of(model)
  image = images(1).astype(np.float32) / 255

  def probe(image):
    return model.apply({'params': params}, image)

  slope = np.abs(jax.jit(jax.jacobian(probe))(image)[0, :, 0]).sum(-1)
  assert slope.shape == (3, 4, 4) and slope.min() > 0


def test_positions_tell_patches_apart_and_none_else_does():
  params = params_of(SMALL)
  image = images()
  moved = image[:, [2, 3, 0, 1]]
  one, two = (logits(SMALL, params, x) for x in (image, moved))
  assert not np.allclose(one, two, atol=1e-3)
  params['positions'] = jax.tree.map(jnp.zeros_like, params['positions'])
  one, two = (logits(SMALL, params, x) for x in (image, moved))
  np.testing.assert_allclose(one, two, atol=CLOSE)


def test_sinusoids_are_those_of_the_plane():
  model = SMALL.clone(position='sinusoidal', width=8)
  params = params_of(model)
  assert 'positions' not in params
  table = model.bind({'params': params})._places(3, 2)
  assert table.shape == (7, 8)
  assert not table[0].any()  # The class token has no place.
  # Row 2, column 1; rates 1 and 1 / 10000.
  want = [np.sin(1), np.sin(1e-4), np.cos(1), np.cos(1e-4)]
  want += [np.sin(2), np.sin(2e-4), np.cos(2), np.cos(2e-4)]
  np.testing.assert_allclose(table[6], want, atol=1e-6)


def test_the_parallel_block_is_one_sum_of_attention_and_mlp():
  model = SMALL.clone(
    block='parallel', qk_norm=True, qkv_bias=False, norm='rmsnorm'
  )
  params, image = params_of(model), images()
  block = params['blocks_0']
  assert set(block) == {'attention', 'attention_norm', 'mlp'}
  assert 'bias' not in block['attention']['query']
  assert 'bias' in block['attention']['out'] and 'bias' in block['mlp']['up']
  # Queries and keys are normalised: their scale changes nothing.
  louder = jax.tree.map(lambda x: x, params)
  louder['blocks_0']['attention']['query']['kernel'] *= 30
  np.testing.assert_allclose(
    logits(model, params, image), logits(model, louder, image), atol=1e-4
  )


def test_images_of_another_size_have_positions_in_between():
  model = SMALL.clone(image_size=8)
  params, image = params_of(model), images(2, 12, 12)
  large = model.clone(image_size=12)
  moved = resize_positions(params, large)
  assert moved['positions']['embedding'].shape == (37, 8)
  np.testing.assert_allclose(
    logits(model, params, image), logits(large, moved, image), atol=CLOSE
  )
  same = resize_positions(params, model)
  np.testing.assert_array_equal(
    same['positions']['embedding'], params['positions']['embedding']
  )


def resized(table, resize):
  model = SMALL.clone(image_size=16, pool='mean', resize=resize)
  params = {'positions': {'embedding': table * np.ones((64, 8))}}
  found = resize_positions(params, model.clone(image_size=32))
  return found['positions']['embedding'].reshape(16, 16, 8)


@pytest.mark.parametrize('resize', ['bilinear', 'bicubic'])
def test_equal_positions_stay_equal_when_they_are_resized(resize):
  np.testing.assert_allclose(resized(0.7, resize), 0.7, atol=CLOSE)


def test_a_plane_of_positions_stays_one_between_its_edges():
  plane = np.mgrid[:8, :8].sum(0).reshape(64, 1)
  want = (np.mgrid[:16, :16].sum(0) - 1) / 2
  found = resized(plane, 'bilinear')[1:-1, 1:-1, 0]
  np.testing.assert_allclose(found, want[1:-1, 1:-1], atol=CLOSE)


def test_the_ledger_counts_what_an_image_costs():
  model = ViT(
    depth=2, width=16, heads=2, patch=4, image_size=16, channels=1, classes=5
  )
  spec = {
    'image': jax.ShapeDtypeStruct((16, 16, 1), jnp.uint8),
    'label': jax.ShapeDtypeStruct((), jnp.int32),
  }
  P, D = 17, 16
  block = 2 * P * (4 * D * D + 8 * D * D) + 2 * 2 * P * P * D
  forward = 2 * 16 * 16 * D + 2 * block + 2 * D * 5
  found = count.flops_per_unit(model, Classify(), spec, xla=False)
  assert found['matmul_full'] == found['matmul_causal'] == 3 * forward
  sizes = count.params(model, Classify(), spec)
  assert sizes['total'] - sizes['nonembedding_head'] == P * D
  head = sizes['nonembedding_head'] - sizes['nonembedding']
  assert head == 5 * D


def test_dropout_is_drawn_in_training_alone():
  model = SMALL.clone(dropout=0.5)
  params, image = params_of(model), images()
  plain = logits(SMALL, params, image)
  np.testing.assert_array_equal(logits(model, params, image), plain)
  one, two = (
    logits(
      model,
      params,
      image,
      deterministic=False,
      rngs={'dropout': jax.random.key(k)},
    )
    for k in (0, 1)
  )
  assert not np.allclose(one, two) and not np.allclose(one, plain)


def test_every_class_is_as_likely_at_first():
  params = SMALL.init(jax.random.key(0), images())['params']
  assert not logits(SMALL, params, images()).any()


@pytest.mark.parametrize(
  ('change', 'told'),
  [
    ({'image_size': 5}, 'patch=2 must divide image_size=5'),
    ({'heads': 3}, 'heads=3 must divide width=8'),
    ({'pool': 'max'}, 'pool=max must be one of token, mean'),
    ({'classes': -1}, 'classes=-1 must not be negative'),
    ({'mean': (0.1, 0.2)}, 'one for each of channels=3'),
    ({'std': (0.0,)}, 'must be positive'),
    ({'width': 6, 'position': 'sinusoidal'}, 'width=6 must be 8, 12'),
    ({'depth': 0}, 'depth=0 must be at least 1'),
  ],
)
def test_bad_fields_are_one_line(change, told):
  with pytest.raises(ValueError, match=told) as error:
    SMALL.clone(**change)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('image', 'told'),
  [
    (images(1, 4, 5), 'patch=2 must divide images of 4 x 5'),
    (images(1, channels=1), 'images of 1 channels, channels=3'),
  ],
)
def test_images_that_do_not_fit_are_one_line(image, told):
  with pytest.raises(ValueError, match=told):
    jax.eval_shape(SMALL.init, jax.random.key(0), image)
