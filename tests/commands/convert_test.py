"""`bigdl convert`: Hugging Face folders into ours, and ours into theirs."""

from __future__ import annotations

import json
import re
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from snapshots import snapshot
import tokenizers
import torch
import transformers

from bigdl import __main__ as program
from bigdl import tensors, tree
from bigdl.commands import _text
from bigdl.train import weights

TOKENS = np.arange(16, dtype=np.int32).reshape(2, 8)


def convert(*args) -> int:
  return program.main(['convert', *map(str, args)])


def logits_of(held):
  params = jax.tree.map(jnp.asarray, held.params())
  return np.asarray(jax.jit(held.model.apply)({'params': params}, TOKENS))


@pytest.fixture(scope='module')
def theirs(trained, tmp_path_factory):
  """A run as a Hugging Face folder; to be read only."""
  folder = tmp_path_factory.mktemp('converted') / 'theirs'
  assert convert(trained, folder, '--max_shard_bytes=4000') == 0
  return folder


def test_a_run_becomes_a_folder_that_transformers_loads(trained, theirs):
  assert (theirs / tensors.INDEX).is_file()
  model, said = transformers.GPT2LMHeadModel.from_pretrained(
    theirs, output_loading_info=True
  )
  assert not said['missing_keys'] and not said['unexpected_keys']
  with torch.no_grad():
    logits = model.eval()(torch.from_numpy(TOKENS).long()).logits.numpy()
  want = logits_of(weights.open(trained))
  np.testing.assert_allclose(logits, want, atol=1e-4)
  assert np.ptp(want) > 0.1


def test_a_run_and_what_is_converted_are_left_as_they_are(
  trained, theirs, tmp_path
):
  before = snapshot(trained), snapshot(theirs)
  assert convert(trained, tmp_path / 'a') == 0
  assert convert(theirs, tmp_path / 'b') == 0
  assert (snapshot(trained), snapshot(theirs)) == before


def test_what_comes_back_is_what_went(trained, theirs, tmp_path, capsys):
  assert convert(theirs, tmp_path / 'ours') == 0
  held, run = weights.open(tmp_path / 'ours'), weights.open(trained)
  assert sorted(held.entries) == sorted(run.entries)
  for path, value in run.entries.items():
    np.testing.assert_array_equal(held.entries[path], value, path)
  count = sum(np.size(v) for v in run.entries.values())
  # 1 block of width 16, 16 tokens, 16 positions, a last norm; the head is tied.
  assert count == 16 * 16 * 2 + (12 * 16**2 + 13 * 16) + 2 * 16
  assert capsys.readouterr().out == (
    f'GPT2LMHeadModel -> GPT: {count:,} parameters (all of them, tied ones'
    f' once), {4 * count:,} bytes\nwrote {tmp_path / "ours"}\n'
  )
  # A model folder of ours becomes theirs again, to the byte.
  again = tmp_path / 'again'
  assert convert(tmp_path / 'ours', again, '--max_shard_bytes=4000') == 0
  assert snapshot_of(again) == snapshot_of(theirs)


def snapshot_of(folder):
  return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_half_precision_halves_the_bytes_and_starts_float32(
  theirs, tmp_path, capsys
):
  assert convert(theirs, tmp_path / 'half', '--dtype=bfloat16') == 0
  held = weights.open(tmp_path / 'half')
  count = sum(np.size(v) for v in held.entries.values())
  assert f' {2 * count:,} bytes' in capsys.readouterr().out
  assert {v.dtype.name for v in held.entries.values()} == {'bfloat16'}
  assert held.model.param_dtype == 'float32'
  shapes = jax.eval_shape(held.model.init, jax.random.key(0), TOKENS)['params']
  loaded = weights.load(tmp_path / 'half', shapes)
  assert {v.dtype.name for v in jax.tree.leaves(loaded)} == {'float32'}


def test_of_a_sweep_the_best_cell_is_converted(trained, tmp_path):
  for name, loss in (('a', 3.0), ('b', 1.0)):
    cell = shutil.copytree(trained, tmp_path / 'sweep' / 'cells' / name)
    record = json.loads((cell / 'record.json').read_text())
    (cell / 'record.json').write_text(json.dumps({**record, 'loss': loss}))
  shutil.rmtree(tmp_path / 'sweep' / 'cells' / 'a' / 'checkpoints')
  assert convert(tmp_path / 'sweep', tmp_path / 'theirs') == 0
  assert (tmp_path / 'theirs' / 'config.json').is_file()


def test_what_is_there_is_replaced_only_by_force(theirs, tmp_path, capsys):
  (tmp_path / 'dst').mkdir()
  (tmp_path / 'dst' / 'mine.txt').write_text('')
  assert convert(theirs, tmp_path / 'dst') == 2
  assert 'dst is not empty; --force replaces it' in capsys.readouterr().err
  assert [p.name for p in tmp_path.rglob('*') if p.is_file()] == ['mine.txt']
  assert convert(theirs, tmp_path / 'dst', '--force') == 0
  names = {p.name for p in (tmp_path / 'dst').iterdir()}
  assert names == {'model.json', 'model.safetensors'}


def test_a_folder_that_holds_the_source_is_never_replaced(
  theirs, tmp_path, capsys
):
  shutil.copytree(theirs, tmp_path / 'zoo' / 'theirs')
  (tmp_path / 'zoo' / 'mine.txt').write_text('')
  before = sorted(p.name for p in (tmp_path / 'zoo').rglob('*'))
  for target in ('zoo', 'zoo/theirs'):
    source = tmp_path / 'zoo' / 'theirs'
    assert convert(source, tmp_path / target, '--force') == 2
    assert 'must not be src=' in capsys.readouterr().err
  assert sorted(p.name for p in (tmp_path / 'zoo').rglob('*')) == before


@pytest.mark.parametrize('value', ['"2"', 'null', '[2]'])
def test_a_field_of_another_type_is_one_line(value, theirs, tmp_path, capsys):
  source = shutil.copytree(theirs, tmp_path / 'theirs')
  config = json.loads((source / 'config.json').read_text())
  config['n_embd'] = json.loads(value)
  (source / 'config.json').write_text(json.dumps(config))
  assert convert(source, tmp_path / 'dst') == 2
  error = capsys.readouterr().err
  assert 'config.json: ' in error and error.count('\n') == 1


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (('--dtype=int8',), r'dtype=int8 must be one of float64, float32'),
    (('--max_shard_bytes=0',), 'max_shard_bytes=0 must be at least 1'),
    (('--archtecture=x',), '--archtecture: no such field; nearest is --arch'),
  ],
)
def test_flags_that_cannot_be_are_one_line(
  flags, message, theirs, tmp_path, capsys
):
  assert convert(theirs, tmp_path / 'dst', *flags) == 2
  error = capsys.readouterr().err
  assert re.match(f'bigdl: {message}', error) and error.count('\n') == 1
  assert list(tmp_path.iterdir()) == []


def test_a_source_that_cannot_be_read_is_one_line_and_writes_nothing(
  theirs, run_folder, tmp_path, capsys
):
  def fails(source, *flags):
    before = {p.name for p in tmp_path.iterdir()}
    assert convert(source, tmp_path / 'dst', *flags) == 2
    assert {p.name for p in tmp_path.iterdir()} == before
    error = capsys.readouterr().err
    assert error.count('\n') == 1
    return error

  assert 'no such folder' in fails(tmp_path / 'none')
  (tmp_path / 'empty').mkdir()
  assert 'holds neither model.json' in fails(tmp_path / 'empty')
  shutil.rmtree(run_folder / 'checkpoints')
  assert 'has no checkpoint that can be read' in fails(run_folder)
  damaged = tmp_path / 'damaged'
  shutil.copytree(theirs, damaged)
  config = json.loads((damaged / 'config.json').read_text())
  shard = sorted(damaged.glob('*.safetensors'))[0]
  shard.write_bytes(shard.read_bytes()[:-1])
  assert f'{shard.name} is damaged' in fails(damaged)
  config['architectures'] = ['LlamaForCausalLM']
  (damaged / 'config.json').write_text(json.dumps(config))
  assert 'model_type=gpt2 must be one of llama' in fails(damaged)
  config['architectures'] = ['T5ForConditionalGeneration']
  (damaged / 'config.json').write_text(json.dumps(config))
  assert 'T5ForConditionalGeneration is not supported; these' in fails(damaged)


def test_a_class_that_is_asked_for_must_be_known(trained, tmp_path, capsys):
  flag = '--architecture=T5'
  assert convert(trained, tmp_path / 'dst', flag) == 2
  error = capsys.readouterr().err
  assert 'architecture=T5 is not supported; these are: Albert' in error
  assert convert(trained, tmp_path / 'dst', '--architecture=LlamaForCausalLM')
  assert 'LLaMA: ' in capsys.readouterr().err
  # Known, and written under another name.
  assert convert(trained, tmp_path / 'dst', '--architecture=GPT2Model') == 2
  assert 'written as GPT2LMHeadModel, not GPT2' in capsys.readouterr().err
  assert list(tmp_path.iterdir()) == []


def test_a_converted_folder_writes_text_with_its_own_tokenizer(
  theirs, tmp_path
):
  source = tmp_path / 'source'
  shutil.copytree(theirs, source)
  letters = {c: i for i, c in enumerate('abcdefghijklmno')}
  made = tokenizers.Tokenizer(
    tokenizers.models.BPE({**letters, '</s>': 15}, [])
  )
  made.save(str(source / 'tokenizer.json'))
  assert convert(source, tmp_path / 'ours') == 0
  text = _text.load(tmp_path / 'ours')
  assert text.tokenizer.encode('abc').tolist() == [0, 1, 2]
  assert text.tokenizer.eod == 15
  assert tree.size(text.params) == sum(
    np.size(v) for v in weights.open(tmp_path / 'ours').entries.values()
  )
  (tmp_path / 'ours' / 'tokenizer.json').unlink()
  with pytest.raises(ValueError, match='holds no tokenizer.json'):
    _text.load(tmp_path / 'ours').tokenizer.encode('a')


def test_a_run_writes_text_with_the_tokenizer_of_its_data(trained):
  text = _text.load(trained)
  assert text.tokenizer.encode('abc').tolist() == [0, 1, 2]
  logits = jax.jit(text.model.apply)({'params': text.params}, TOKENS)
  np.testing.assert_array_equal(logits, logits_of(weights.open(trained)))
