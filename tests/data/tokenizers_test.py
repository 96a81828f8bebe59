"""Tokenizers: round trips, ends of documents, files from elsewhere."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest
import sentencepiece
import tokenizers

from bigdl.data import tokens
from bigdl.data.stdlib import StandardLibrary
from bigdl.data.text import tiny
from bigdl.data.tokenizers import BPE, END, Bytes, TokenizerFile

TEXT = 'def naïve(x):\n  return  x → 0  # ok\n'


@dataclasses.dataclass(frozen=True)
class Few(tokens.TokenSource):
  """Documents by split, in memory."""

  def documents(self):
    if self.split == 'validation':
      return [('v', 'zebra zebra zebra zebra'), ('w', TEXT)]
    return [(str(i), f'the cat and the hat {i} {TEXT}') for i in range(20)]


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """A folder for each kind of file, all saved by their own libraries."""
  root = tmp_path_factory.mktemp('tokenizers')
  made = tokenizers.ByteLevelBPETokenizer()
  made.train_from_iterator([TEXT] * 3, 300, special_tokens=[END])
  (root / 'json').mkdir()
  made.save(str(root / 'json' / 'tokenizer.json'))
  (root / 'gpt2').mkdir()
  made.save_model(str(root / 'gpt2'))
  out = io.BytesIO()
  sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter([TEXT.replace('\n', ' ')] * 50),
    model_writer=out,
    vocab_size=60,
    hard_vocab_limit=False,
    minloglevel=2,
  )
  (root / 'pieces').mkdir()
  (root / 'pieces' / 'tokenizer.model').write_bytes(out.getvalue())
  return root


def test_byte_pairs_come_back_as_text_and_are_fewer_than_bytes(tmp_path):
  source = Few(tokenizer=BPE(vocab=400), cache=str(tmp_path))
  coder = source.coder
  assert coder.decode(coder.encode(TEXT)) == TEXT
  assert len(coder.encode(TEXT)) < len(Bytes().encode(TEXT)) / 2
  assert coder.encode(END).tolist() == [coder.eod]
  facts = source.facts()
  assert facts['vocab'] == 400
  text = sum(len(t.encode()) for _, t in source.documents())
  assert facts['bytes_per_token'] == pytest.approx(text / facts['tokens'])


def test_byte_pairs_are_learnt_once_and_from_the_train_split_alone(
  tmp_path, monkeypatch
):
  def coder(split):
    source = Few(tokenizer=BPE(vocab=300), cache=str(tmp_path), split=split)
    return source.coder

  first = coder('validation')
  # `zebra` is in the validation split alone, so that no merge spells it.
  assert len(first.encode('zebra')) == 5
  assert len(first.encode('the cat')) < 7
  monkeypatch.setattr(BPE, '_train', None)
  assert coder('train').fingerprint() == first.fingerprint()
  other = Few(tokenizer=BPE(vocab=301), cache=str(tmp_path))
  with pytest.raises(TypeError):
    assert other.coder


def test_training_byte_pairs_gives_the_same_vocabulary_again(tmp_path):
  prints = {
    dataclasses.replace(
      tiny(), tokenizer=BPE(vocab=500), cache=str(tmp_path / name)
    ).fingerprint()
    for name in 'abc'
  }
  assert len(prints) == 1


@pytest.mark.parametrize('kind', ['json', 'gpt2', 'pieces'])
def test_files_from_elsewhere_give_the_ids_of_their_own_library(files, kind):
  ours = TokenizerFile(str(files / kind))
  text = TEXT.replace('\n', ' ').strip()
  if kind == 'pieces':
    theirs = sentencepiece.SentencePieceProcessor(
      model_file=str(files / kind / 'tokenizer.model')
    )
    expected, size, end = theirs.encode(text), len(theirs), theirs.eos_id()
  else:
    theirs = tokenizers.Tokenizer.from_file(str(files / 'json/tokenizer.json'))
    expected = theirs.encode(text).ids
    size, end = theirs.get_vocab_size(), theirs.token_to_id(END)
  assert ours.encode(text).tolist() == expected
  assert (ours.vocab, ours.eod) == (size, end)
  assert ' '.join(ours.decode(np.array(expected)).split()) == ' '.join(
    text.split()
  )


@pytest.mark.parametrize('kind', ['json', 'gpt2', 'pieces'])
def test_a_source_takes_a_tokenizer_from_a_file(files, kind, tmp_path):
  coder = TokenizerFile(str(files / kind))
  source = Few(tokenizer=coder, length=4, cache=str(tmp_path))
  shard = source.shard
  ends = shard.tokens[shard.ends - 1]
  assert len(ends) == 20 and set(ends.tolist()) == {coder.eod}
  first = shard.tokens[: shard.ends[0] - 1].astype(np.int32)
  (_, text), *_ = source.documents()
  np.testing.assert_array_equal(first, coder.encode(text))


def test_another_tokenizer_makes_another_shard(files, tmp_path):
  prints = [
    Few(tokenizer=t, cache=str(tmp_path)).fingerprint()
    for t in (
      Bytes(),
      TokenizerFile(str(files / 'json')),
      TokenizerFile(str(files / 'pieces')),
      BPE(vocab=300),
      BPE(vocab=301),
    )
  ]
  assert len(set(prints)) == 5


def test_bad_tokenizers_get_one_line(files, tmp_path):
  (tmp_path / 'empty').mkdir()
  (tmp_path / 'broken.json').write_text('{}')
  (tmp_path / 'broken.model').write_bytes(b'nonsense')
  alone = tmp_path / 'vocab.json'
  alone.write_text(json.dumps({'a': 0}))
  cases = {
    str(tmp_path / 'nope'): 'no such file',
    str(tmp_path / 'empty'): 'holds no tokenizer.json',
    str(tmp_path / 'broken.json'): 'is not a tokenizer.json',
    str(tmp_path / 'broken.model'): 'is not a sentencepiece model',
    str(alone): 'merges.txt beside it',
  }
  for path, words in cases.items():
    with pytest.raises(ValueError) as error:
      TokenizerFile(path).encode('a')
    assert words in str(error.value) and path in str(error.value)
  with pytest.raises(ValueError, match="tokenizer.end='<nope>'"):
    TokenizerFile(str(files / 'json'), end='<nope>').encode('a')
  with pytest.raises(ValueError, match='tokenizer.vocab=256 must be at least'):
    BPE(vocab=256)


def test_the_standard_library_takes_byte_pairs(tmp_path):
  source = StandardLibrary(tokenizer=BPE(vocab=300), split='validation')
  assert source.tokenizer.vocab == 300
  assert not isinstance(source.tokenizer, Bytes)
