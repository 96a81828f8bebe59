"""Answers by likelihood, against a computation without padding or batches."""

from __future__ import annotations

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl.data.tokenizers import Bytes
from bigdl.models.gpt import GPT
from bigdl.train import fewshot
from bigdl.train.fewshot import Item

MODEL = GPT(depth=1, width=16, heads=2, vocab=256, length=48, init_std=0.3)
FORWARD = jax.jit(MODEL.apply)
ITEMS = [
  Item('two and two make', (' four', ' five', ' a lot more than that'), 0),
  Item('the sky is ', ('blue', 'ä'), 1),
  Item('x', ('y', 'zz', 'www'), 2),
  Item('', ('yes', 'no'), 0),
  Item('up or', (' down', ' sideways'), 0),
]


@pytest.fixture(scope='module')
def params():
  return MODEL.init(jax.random.key(3), jnp.zeros((1, 4), jnp.int32))['params']


def by_hand(params, text, choice):
  """Returns the log-probability of each byte of the choice."""
  told = [0, *text.encode()]
  whole = told + list(choice.encode())
  assert len(whole) - 1 <= MODEL.length
  # What comes after a token does not reach it.
  read = whole[:-1] + [0] * (MODEL.length + 1 - len(whole))
  logits = FORWARD({'params': params}, jnp.asarray([read]))
  log_p = jax.nn.log_softmax(np.asarray(logits[0], np.float64))
  return [float(log_p[i - 1, whole[i]]) for i in range(len(told), len(whole))]


def test_scores_are_those_of_each_row_alone(params):
  rows = [
    ([0, *item.prompt.encode()], list(choice.encode()))
    for item in ITEMS
    for choice in item.choices
  ]
  found = fewshot.score(MODEL, params, rows, batch=4)
  want = [sum(by_hand(params, i.prompt, c)) for i in ITEMS for c in i.choices]
  np.testing.assert_allclose(found, want, rtol=1e-4)
  again = fewshot.score(MODEL, params, rows, batch=7)
  np.testing.assert_allclose(again, found, rtol=1e-5)


@pytest.mark.parametrize('shots', [0, 1])
def test_each_accuracy_is_that_of_its_score(params, shots):
  before = fewshot.contexts(ITEMS, shots=shots, separator='|')
  before = [text[-25:] for text in before]
  found = fewshot.evaluate(MODEL, params, Bytes(), ITEMS, before, batch=4)
  right = {'sum': 0, 'token': 0, 'byte': 0}
  for item, text in zip(ITEMS, before, strict=True):
    parts = [by_hand(params, text, c) for c in item.choices]
    scores = {
      'sum': [sum(p) for p in parts],
      'token': [sum(p) / len(p) for p in parts],
      'byte': [
        sum(p) / len(c.encode())
        for p, c in zip(parts, item.choices, strict=True)
      ],
    }
    if text.endswith(' '):
      # The space is scored with the choice.
      for name, spaces in (('token', 1), ('byte', 0)):
        own = [by_hand(params, text[:-1], f' {c}') for c in item.choices]
        scores[name] = [
          sum(p) / (len(c.encode()) + spaces)
          for p, c in zip(own, item.choices, strict=True)
        ]
      scores['sum'] = [sum(p) for p in own]
    for name, values in scores.items():
      right[name] += int(np.argmax(values)) == item.answer
  for name, count in right.items():
    share = count / len(ITEMS)
    error = math.sqrt(share * (1 - share) / (len(ITEMS) - 1))
    assert found.accuracy[name] == pytest.approx((share, error))
  assert found.chance == pytest.approx((1 / 3 + 1 / 2 + 1 / 3 + 1) / 5)
  assert (found.items, found.cut) == (5, 0)


def test_shots_are_drawn_from_other_items_by_the_seed():
  texts = fewshot.contexts(ITEMS, shots=4, separator='\n')
  for item, text in zip(ITEMS, texts, strict=True):
    told = text.removesuffix(item.prompt).split('\n')[:-1]
    others = [i for i in ITEMS if i is not item]
    want = [f'{i.prompt}{i.choices[i.answer]}' for i in others]
    assert sorted(told) == sorted(want)
  one, two = (fewshot.contexts(ITEMS, shots=2, seed=s) for s in (0, 1))
  assert one == fewshot.contexts(ITEMS, shots=2, seed=0) != two
  pool = [Item('Q', ('A', 'B'), 1)]
  asked = fewshot.contexts(ITEMS, shots=1, pool=pool)
  assert asked == [f'QB\n\n{item.prompt}' for item in ITEMS]
  with pytest.raises(ValueError, match='shots=2 must be from 0 to the 1 items'):
    fewshot.contexts(ITEMS, shots=2, pool=pool)


def test_an_item_never_stands_before_itself():
  # Not even where the shots are of the same file, or one is there twice.
  for items, pool in ((ITEMS, ITEMS), ([*ITEMS, ITEMS[0]], None)):
    texts = fewshot.contexts(items, shots=4, pool=pool, separator='\n')
    for item, text in zip(items, texts, strict=True):
      told = text.removesuffix(item.prompt).split('\n')
      assert f'{item.prompt}{item.choices[item.answer]}' not in told
  with pytest.raises(ValueError, match='shots=5 must be from 0 to the 4 items'):
    fewshot.contexts(ITEMS, shots=5, pool=ITEMS)


def test_scores_that_are_no_numbers_are_refused(params):
  broken = jax.tree.map(lambda x: x * jnp.nan, params)
  with pytest.raises(ValueError, match='no finite log-probability'):
    fewshot.evaluate(MODEL, broken, Bytes(), ITEMS, ['a'] * len(ITEMS))


def test_a_line_ends_where_a_line_ends(tmp_path):
  row = {'prompt': 'a\u2028b\x85', 'choices': ['c', 'd'], 'answer': 0}
  text = json.dumps(row, ensure_ascii=False)
  (tmp_path / 'a.jsonl').write_text(f'{text}\n{text}\n', 'utf-8')
  items = fewshot.read(tmp_path / 'a.jsonl')
  assert [i.prompt for i in items] == [row['prompt']] * 2


def test_what_does_not_fit_loses_its_beginning(params):
  long = 'lost ' * 20 + 'kept'
  item = Item('', ('abcd', 'efgh'), 0)
  found = fewshot.evaluate(MODEL, params, Bytes(), [item], [long])
  assert found.cut == 2
  told, own = fewshot._row(long, 'abcd', Bytes(), MODEL.length)[0]
  assert len(told) + len(own) - 1 == MODEL.length
  assert bytes(told) == long.encode()[-len(told) :]
  with pytest.raises(ValueError, match='of 60 tokens must have from 1 to'):
    huge = dataclasses.replace(item, choices=('x' * 60, 'y'))
    fewshot.evaluate(MODEL, params, Bytes(), [huge], [''])


@pytest.mark.parametrize('answer', [1, 'no'])
def test_files_say_the_answer_by_its_number_or_its_text(tmp_path, answer):
  row = {'prompt': 'Well?', 'choices': ['yes', 'no'], 'answer': answer}
  (tmp_path / 'a.jsonl').write_text(json.dumps(row) + '\n\n')
  (item,) = fewshot.read(tmp_path / 'a.jsonl')
  assert item == Item('Well?', ('yes', 'no'), 1)


@pytest.mark.parametrize(
  ('line', 'words'),
  [
    ('{', 'a.jsonl:1 is not JSON'),
    ('[]', 'a.jsonl:1 must be a JSON object'),
    ('{"prompt": ""}', 'a.jsonl:1: choices is not there; it has prompt'),
    (
      '{"prompt": 3, "choices": ["a", "b"], "answer": 0}',
      'a.jsonl:1: prompt=3 must be text',
    ),
    (
      '{"prompt": "", "choices": ["a"], "answer": 0}',
      'must be two texts or more',
    ),
    (
      '{"prompt": "", "choices": ["a", "b"], "answer": 2}',
      'a.jsonl:1: answer=2 must be a choice, or its number below 2',
    ),
    ('', 'a.jsonl holds no item'),
  ],
)
def test_a_bad_item_is_named_with_its_line(tmp_path, line, words):
  (tmp_path / 'a.jsonl').write_text(line + '\n')
  with pytest.raises(ValueError, match=words):
    fewshot.read(tmp_path / 'a.jsonl')
