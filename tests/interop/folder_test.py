"""Hugging Face folders, in and out, for every family that is known."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from bigdl import tensors
from bigdl.interop import folder
from bigdl.models.gpt import GPT

TIGHT = 2e-4

_BERT = dict(
  vocab_size=37,
  hidden_size=12,
  num_hidden_layers=2,
  num_attention_heads=3,
  intermediate_size=20,
  max_position_embeddings=13,
  type_vocab_size=2,
  pad_token_id=0,
)
_BART = dict(
  vocab_size=37,
  max_position_embeddings=13,
  encoder_layers=2,
  encoder_ffn_dim=20,
  encoder_attention_heads=3,
  decoder_layers=1,
  decoder_ffn_dim=20,
  decoder_attention_heads=3,
  d_model=12,
  pad_token_id=0,
  bos_token_id=1,
  eos_token_id=2,
  forced_eos_token_id=2,
  decoder_start_token_id=1,
)
_LLAMA = dict(
  num_hidden_layers=2,
  hidden_size=12,
  intermediate_size=20,
  num_attention_heads=3,
  vocab_size=37,
  max_position_embeddings=13,
  bos_token_id=None,
  eos_token_id=None,
  pad_token_id=None,
)
_GPT2 = dict(
  n_layer=2,
  n_embd=12,
  n_head=3,
  vocab_size=37,
  n_positions=13,
  bos_token_id=0,
  eos_token_id=0,
)
# A small configuration for each class that is read.
CONFIGS: dict[str, dict[str, Any]] = {
  'AlbertForPreTraining': {**_BERT, 'embedding_size': 8},
  'AlbertForMaskedLM': {**_BERT, 'embedding_size': 8},
  'BertForPreTraining': _BERT,
  'BertForMaskedLM': _BERT,
  'BlenderbotForConditionalGeneration': _BART,
  'BlenderbotSmallForConditionalGeneration': _BART,
  'CohereForCausalLM': {**_LLAMA, 'num_key_value_heads': 1},
  'ErnieForPreTraining': _BERT,
  'ErnieForMaskedLM': _BERT,
  'GPT2LMHeadModel': _GPT2,
  'GPTNeoForCausalLM': dict(
    num_layers=2,
    hidden_size=12,
    num_heads=3,
    vocab_size=37,
    max_position_embeddings=13,
    window_size=4,
    attention_types=[[['global', 'local'], 1]],
    bos_token_id=0,
    eos_token_id=0,
  ),
  'LlamaForCausalLM': {**_LLAMA, 'rms_norm_eps': 1e-5},
  'MistralForCausalLM': {**_LLAMA, 'num_key_value_heads': 1},
  'MarianMTModel': {**_BART, 'scale_embedding': True},
  'OpenAIGPTLMHeadModel': {
    k: v for k, v in _GPT2.items() if k[3:] != '_token_id'
  },
  'RobertaForMaskedLM': {**_BERT, 'type_vocab_size': 1, 'pad_token_id': 1},
  'ViTForImageClassification': dict(
    hidden_size=12,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=20,
    image_size=8,
    patch_size=4,
    num_labels=5,
  ),
  'XGLMForCausalLM': dict(
    num_layers=2,
    d_model=12,
    attention_heads=3,
    ffn_dim=20,
    vocab_size=37,
    max_position_embeddings=13,
  ),
  'XLNetLMHeadModel': dict(
    n_layer=2, d_model=12, n_head=3, d_inner=20, vocab_size=37
  ),
}
# Checkpoints without a head, by the class that has one.
BARE = {
  'GPT2Model': 'GPT2LMHeadModel',
  'GPTNeoModel': 'GPTNeoForCausalLM',
  'OpenAIGPTModel': 'OpenAIGPTLMHeadModel',
  'XGLMModel': 'XGLMForCausalLM',
  'ViTModel': 'ViTForImageClassification',
}


def reference(name, seed=0):
  """Returns the torch model; no weight is what initialisation makes of it."""
  torch.manual_seed(seed)
  kind = getattr(transformers, name)
  fields = CONFIGS[BARE.get(name, name)]
  model = kind(kind.config_class(**fields)).eval()
  with torch.no_grad():
    for key, value in model.named_parameters():
      if not value.requires_grad:  # Marian's sinusoids.
        continue
      value.copy_(torch.randn_like(value) * 0.3)
      if 'norm' in key.lower() and key.endswith('weight'):
        value.add_(1)
  return model


def inputs_of(peer):
  """Returns what both sides are shown: their names for it, and ours."""
  rng = np.random.default_rng(0)
  if hasattr(peer.config, 'image_size'):
    image = rng.random((2, 8, 8, 3), np.float32)
    return {'pixel_values': image.transpose(0, 3, 1, 2)}, (image,)
  tokens = rng.integers(3, 37, (2, 7), np.int32)
  if peer.config.is_encoder_decoder:
    target = rng.integers(3, 37, (2, 5), np.int32)
    return {'input_ids': tokens, 'decoder_input_ids': target}, (tokens, target)
  return {'input_ids': tokens}, (tokens,)


def theirs(peer):
  given, _ = inputs_of(peer)
  given = {
    k: torch.tensor(v, dtype=None if v.ndim == 4 else torch.long)
    for k, v in given.items()
  }
  with torch.no_grad():
    output = peer(**given)
  return next(iter(output.values())).numpy()


@functools.partial(jax.jit, static_argnums=(0, 1))
def apply(model, method, params, *given):
  return model.apply({'params': params}, *given, method=method)


def ours(peer, model, params, method=None):
  _, given = inputs_of(peer)
  output = apply(model, method, params, *given)
  return np.asarray(output[0] if isinstance(output, tuple) else output)


def test_every_family_has_a_row_here():
  # A family that nobody converts a model of may do anything.
  known = {a for family in folder.families() for a in family.architectures}
  assert known == CONFIGS.keys() | BARE.keys()
  for family in folder.families():
    assert family.architectures[0] in CONFIGS, family.name


@pytest.mark.parametrize('name', [*CONFIGS, *BARE])
def test_what_transformers_saves_loads_here_with_equal_outputs(name, tmp_path):
  peer = reference(name)
  # Shards of a few tensors each, with an index.
  peer.save_pretrained(tmp_path, max_shard_size='4KB')
  assert (tmp_path / tensors.INDEX).is_file()
  foreign = folder.describe(tmp_path)
  assert foreign.architecture == name
  model, params = folder.load(foreign)
  method = 'hidden' if name in BARE else None
  got = ours(peer, model, params, method)
  np.testing.assert_allclose(got, theirs(peer), atol=TIGHT)


@pytest.mark.parametrize('name', CONFIGS)
def test_what_is_saved_here_loads_there_with_no_key_to_spare(name, tmp_path):
  source, target = tmp_path / 'theirs', tmp_path / 'ours'
  reference(name).save_pretrained(source)
  model, params = folder.load(folder.describe(source))
  for shard, many in ((2000, True), (tensors.SHARD_BYTES, False)):
    target.mkdir()
    written, size = folder.save(
      target, model, params, architecture=name, shard_bytes=shard
    )
    assert (len(list(target.glob('*.safetensors'))) > 1) == many
    peer, said = getattr(transformers, written).from_pretrained(
      target, output_loading_info=True
    )
    for kind in ('missing_keys', 'unexpected_keys', 'mismatched_keys'):
      assert not said[kind], said
    # What is tied is there once.
    distinct = {v.data_ptr(): v.nbytes for v in peer.state_dict().values()}
    assert size <= sum(distinct.values())
    want = ours(peer, model, params)
    np.testing.assert_allclose(theirs(peer.eval()), want, atol=TIGHT)
    shutil.rmtree(target)


GPT2 = GPT(depth=2, width=12, heads=3, vocab=37, length=13)


def parameters(model):
  init = jax.jit(model.init)
  return init(jax.random.key(0), jnp.zeros((1, 1), jnp.int32))['params']


def write(path, **config):
  path.mkdir(exist_ok=True)
  (path / 'config.json').write_text(json.dumps(config))
  return path


def test_an_unsupported_architecture_is_answered_with_the_list(tmp_path):
  write(tmp_path, architectures=['T5ForConditionalGeneration'])
  with pytest.raises(ValueError) as caught:
    folder.describe(tmp_path)
  message = str(caught.value)
  assert 'T5ForConditionalGeneration is not supported; these are: ' in message
  assert all(name in message for name in CONFIGS)
  assert '\n' not in message


def test_a_field_that_cannot_be_had_names_the_file(tmp_path):
  write(tmp_path, architectures=['GPT2LMHeadModel'], activation_function='tanh')
  with pytest.raises(ValueError, match='config.json: activation_function=tanh'):
    folder.describe(tmp_path)


def test_one_line_lists_what_does_not_fit_by_both_names(tmp_path):
  folder.save(tmp_path, GPT2, parameters(GPT2))
  state = {k: np.asarray(v) for k, v in tensors.read(tmp_path).items()}
  del state['transformer.h.1.ln_2.bias']
  state['transformer.h.7.ln_2.bias'] = np.zeros(12, np.float32)
  state['transformer.wpe.weight'] = np.zeros((12, 12), np.float32)
  tensors.write(tmp_path, state)
  with pytest.raises(ValueError) as caught:
    folder.load(folder.describe(tmp_path))
  assert str(caught.value).endswith(
    'GPT-2 weights do not fit: missing transformer.h.1.ln_2.bias '
    '(blocks_1/mlp_norm/bias); unknown transformer.h.7.ln_2.bias; misshapen '
    'transformer.wpe.weight (positions/embedding) [12, 12], expected [13, 12]'
  )


def test_a_model_that_no_family_holds_says_why_of_each():
  model = GPT2.clone(softcap=30.0)
  with pytest.raises(ValueError) as caught:
    folder.choose(model)
  message = str(caught.value)
  assert 'GPT-2: softcap=30.0 must be 0' in message
  assert 'LLaMA: ' in message and 'BERT' not in message
  with pytest.raises(ValueError, match='architecture=Gpt2 is not supported'):
    folder.choose(GPT2, 'Gpt2')


def test_what_is_chosen_computes_what_the_model_does():
  # Families share modules, and each must refuse what another one is.
  for name, fields in CONFIGS.items():
    kind = getattr(transformers, name)
    config = kind.config_class(**fields).to_dict()
    family = next(f for f in folder.families() if name in f.architectures)
    model = family.model_of({**config, 'architectures': [name]})
    chosen, content = folder.choose(model)
    again = chosen.model_of(content)
    assert again.clone(stack='auto', dropout=0.0) == model.clone(
      stack='auto', dropout=0.0
    ), (name, chosen.name)


def test_half_precision_is_kept_on_disk_and_said(tmp_path):
  params = parameters(GPT2)
  _, wide = folder.save(tmp_path, GPT2, params)
  _, size = folder.save(tmp_path, GPT2, params, dtype='bfloat16')
  assert 2 * size == wide
  peer = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
  assert peer.dtype == torch.bfloat16
  _, back = folder.load(folder.describe(tmp_path))
  want = jax.tree.map(
    lambda x: np.asarray(x.astype('bfloat16').astype('float32')), params
  )
  jax.tree.map(np.testing.assert_array_equal, back, want)


def test_the_tokenizers_files_come_along(tmp_path):
  (tmp_path / 'a').mkdir()
  (tmp_path / 'b').mkdir()
  for name in ('vocab.json', 'merges.txt', 'notes.txt'):
    (tmp_path / 'a' / name).write_text(name)
  assert folder.copy_beside(tmp_path / 'a', tmp_path / 'b') == [
    'vocab.json',
    'merges.txt',
  ]
  assert (tmp_path / 'b' / 'merges.txt').read_text() == 'merges.txt'
  assert not (tmp_path / 'b' / 'notes.txt').exists()


# Peak memory above what was there before, in bytes, and the weights' bytes.
MEASURE = """
import pathlib, sys
import jax, numpy as np
from bigdl import tensors, tree
from bigdl.interop import folder
from bigdl.models.gpt import GPT

def bytes_of(name):
  # The maximum of getrusage begins with that of the process that forked.
  fields = pathlib.Path('/proc/self/status').read_text().split(name)[1]
  return int(fields.split()[0]) * 1024

model = GPT(depth=8, width=512, heads=8, vocab=2000, length=64, stack='scan')
shapes = jax.eval_shape(
  model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 1), 'int32')
)['params']
place, way = pathlib.Path(sys.argv[1]), sys.argv[2]
size = tree.bytes_of(shapes)
if way == 'write':
  before = bytes_of('VmRSS:')
  params = jax.tree.map(lambda s: np.full(s.shape, 0.5, s.dtype), shapes)
  folder.save(place, model, params, shard_bytes=20_000_000)
else:
  foreign = folder.describe(place)
  before = bytes_of('VmRSS:')
  folder.load(foreign)
print(size, bytes_of('VmHWM:') - before)
"""


def test_weights_are_never_held_twice(tmp_path):
  shard = 20_000_000
  for way in ('write', 'read'):
    done = subprocess.run(
      [sys.executable, '-c', MEASURE, tmp_path, way],
      capture_output=True,
      text=True,
      check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    size, used = map(int, done.stdout.split())
    assert size > 100_000_000
    assert size * 0.9 < used < 1.3 * size + shard, (way, used / size)
