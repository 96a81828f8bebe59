"""Word pieces from a vocabulary file, and the special ids of any tokenizer."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import tokenizers

from bigdl.data import tokens
from bigdl.data.masked import Masked
from bigdl.data.masking import Words
from bigdl.data.tokenizers import (
  BPE,
  Bytes,
  TokenizerFile,
  WordPiece,
  specials,
  spell,
)

WORDS = (
  *('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', 'un', '##believ', '##able'),
  *('the', 'cafe', 'Café', 'is', '!', ',', '##s', 'thing', '中'),
)
TEXT = 'The CAFÉ is unbelievable, things 中 xyzzy!'


@pytest.fixture(scope='module')
def vocabulary(tmp_path_factory):
  path = tmp_path_factory.mktemp('pieces') / 'vocab.txt'
  path.write_text('\n'.join(WORDS) + '\n', 'utf-8')
  return path


def pieces(coder, text):
  return [WORDS[i] for i in coder.encode(text)]


def test_words_are_spelt_by_their_longest_pieces(vocabulary):
  coder = WordPiece(str(vocabulary))
  assert pieces(coder, TEXT) == [
    *('the', 'cafe', 'is', 'un', '##believ', '##able', ',', 'thing', '##s'),
    *('中', '[UNK]', '!'),
  ]
  assert coder.decode(coder.encode('unbelievable things')) == (
    'unbelievable things'
  )
  cased = WordPiece(str(vocabulary), lower=False)
  assert pieces(cased, 'Café the') == ['Café', 'the']
  assert coder.fingerprint() != cased.fingerprint()
  assert coder.encode('[SEP] [MASK]').tolist() == [3, 4]


def test_word_pieces_are_those_of_transformers(vocabulary):
  transformers = pytest.importorskip('transformers')
  reference = transformers.BertTokenizer(str(vocabulary))
  expected = reference.encode(TEXT, add_special_tokens=False)
  assert WordPiece(str(vocabulary)).encode(TEXT).tolist() == expected


def test_a_folder_or_a_text_file_will_do(vocabulary):
  want = WordPiece(str(vocabulary)).fingerprint()
  for path in (vocabulary, vocabulary.parent):
    assert WordPiece(str(path)).fingerprint() == want
    assert TokenizerFile(str(path)).fingerprint() == want


@pytest.mark.parametrize(
  ('content', 'said'),
  [(b'a\nb\n', 'holds no .UNK.'), (b'\xff\xfe', 'not a vocabulary of word')],
)
def test_a_file_of_something_else_is_refused(tmp_path, content, said):
  path = tmp_path / 'vocab.txt'
  path.write_bytes(content)
  with pytest.raises(ValueError, match=said) as error:
    WordPiece(str(path)).encode('a')
  assert str(path) in str(error.value) and '\n' not in str(error.value)
  with pytest.raises(ValueError, match='no such file'):
    WordPiece(str(tmp_path / 'none.txt')).encode('a')


def test_special_ids_are_the_vocabularys_own_or_lie_above(vocabulary, tmp_path):
  assert specials(WordPiece(str(vocabulary))) == (2, 3, 4, 0, len(WORDS))
  assert specials(Bytes()) == (256, 257, 258, 259, 260)
  made = tokenizers.ByteLevelBPETokenizer()
  names = ['<s>', '<pad>', '</s>', '<unk>', '<mask>']
  made.train_from_iterator([TEXT] * 3, 300, special_tokens=names)
  made.save(str(tmp_path / 'tokenizer.json'))
  own = specials(TokenizerFile(str(tmp_path)))
  assert own[:4] == (0, 2, 4, 1) and own.vocab == made.get_vocab_size()


def test_ids_spell_the_words_they_are_of(vocabulary):
  coder = WordPiece(str(vocabulary))
  alone = spell(coder)
  assert ''.join(
    alone[i] for i in coder.encode('the unbelievable things!')
  ) == (' the unbelievable things !')
  assert len(spell(Bytes())) == 256
  # All the bytes of a longer character are of one word.
  assert ''.join(spell(Bytes())[i] for i in Bytes().encode('né')).isalpha()


@dataclasses.dataclass(frozen=True)
class Few(tokens.TokenSource):
  """Documents in memory."""

  def documents(self):
    return [(str(i), 'the unbelievable things, ' * 9) for i in range(3)]


@pytest.mark.parametrize('kind', ['pieces', 'pairs of bytes'])
def test_whole_words_are_hidden_under_any_tokenizer(vocabulary, tmp_path, kind):
  tokenizer = {
    'pieces': WordPiece(str(vocabulary)),
    'pairs of bytes': BPE(vocab=262),
  }[kind]
  text = Few(length=24, tokenizer=tokenizer, cache=str(tmp_path))
  source = Masked(text, Words(random=0.0, mask=1.0))
  if kind == 'pieces':
    assert source.facts()['vocab'] == len(WORDS)
    assert source.facts()['mask'] == 4
  else:
    assert source.facts()['vocab'] == 266
  alone = spell(source.coder)
  rows = source.rows(0, 40)
  for targets_T, weight_T in zip(rows['targets'], rows['weight'], strict=True):
    text_T = [alone[i] if i < len(alone) else '|' for i in targets_T]
    for t in range(1, 24):
      # A piece inside a word is hidden just where the one before it is.
      if text_T[t].isalpha() and text_T[t - 1].strip().isalpha():
        assert weight_T[t] == weight_T[t - 1], (text_T, weight_T)
  assert np.any(rows['weight'])
