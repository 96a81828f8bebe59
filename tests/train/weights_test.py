"""Weights from a model folder, in any stack; `convert_test` has runs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl import tensors, tree
from bigdl.models.gpt import GPT
from bigdl.train import weights

MODEL = GPT(depth=2, width=8, heads=2, vocab=7, length=5, stack='loop')


@pytest.fixture(scope='module')
def params():
  init = jax.jit(MODEL.init)
  return init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']


@pytest.fixture
def folder(params, tmp_path):
  tensors.write_model(tmp_path, MODEL, params, shard_bytes=500)
  return tmp_path


def like(stack):
  shapes = jax.eval_shape(
    MODEL.clone(stack=stack).init,
    jax.random.key(0),
    jax.ShapeDtypeStruct((1, 1), jnp.int32),
  )
  return shapes['params']


@pytest.mark.parametrize('stack', ['loop', 'scan'])
def test_a_model_folder_is_loaded_into_either_stack(stack, folder, params):
  got = weights.load(folder, like(stack))
  tokens = jnp.arange(5)[None]
  np.testing.assert_allclose(
    jax.jit(MODEL.clone(stack=stack).apply)({'params': got}, tokens),
    jax.jit(MODEL.apply)({'params': params}, tokens),
    atol=1e-6,
  )


def test_what_does_not_fit_is_one_line(folder):
  shapes = dict(tree.items(like('loop')))
  shapes['head/kernel'] = shapes.pop('embed/embedding')
  with pytest.raises(ValueError) as caught:
    weights.load(folder, tensors.nested(shapes))
  assert str(caught.value) == (
    f'{folder} does not fit: missing head/kernel; unknown embed/embedding'
  )


def test_opening_a_model_folder_reads_no_weight(folder, params):
  held = weights.open(folder)
  assert held.model == MODEL and held.folder == folder
  for file in folder.glob('*.safetensors'):
    file.write_bytes(b'')
  with pytest.raises(Exception, match='[Hh]eader'):
    np.asarray(held.entries['embed/embedding'])
  with pytest.raises(ValueError, match='is damaged'):
    weights.open(folder)


def test_a_folder_of_nothing_says_what_it_should_hold(tmp_path):
  with pytest.raises(ValueError, match='holds neither model.json, nor config'):
    weights.open(tmp_path)
  with pytest.raises(ValueError, match='no such folder'):
    weights.open(tmp_path / 'none')
  (tmp_path / 'config.json').write_text('{"architectures": ["BertModel"]}')
  with pytest.raises(ValueError, match='config.json is of no run of bigdl'):
    weights.open(tmp_path)
