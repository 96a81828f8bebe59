"""The experiment that pretrains and finetunes, on a few sentences of its own."""

from __future__ import annotations

import itertools
import json
import pathlib
import re

import pytest

from bigdl import config, tree
from bigdl.train import program, run, start

FILE = pathlib.Path(__file__).parents[2] / 'experiments' / 'finetune.py'
THINGS = ('plot', 'cast', 'score', 'joke', 'scene', 'hero', 'end', 'song')
WORDS = {
  0: ('dull', 'flat', 'tired', 'weak'),
  4: ('warm', 'bright', 'fine', 'bold'),
}
SMALL = [
  '--batch=16',
  '--layout.data=1',
  '--evaluation.batch=16',
  '--logs.every=1',
]


def trees(words):
  for label, own in words.items():
    for thing, word in itertools.product(THINGS, own):
      yield f'({label} (2 The) ({label} (2 {thing}) ({label} (2 is) (2 {word}))))'


def train(spec, folder, *overrides):
  e = config.load(spec, [*SMALL, *overrides])
  lines = []
  record = run.run(e, folder, config=config.to_json(e), say=lines.append)
  return record, lines


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """Sentences, a text to pretrain on, and a run that has read it."""
  root = tmp_path_factory.mktemp('finetune')
  rows = list(trees(WORDS)) + ['(2 (2 It) (2 is))']
  for name in ('train', 'dev', 'test'):
    (root / f'{name}.txt').write_text('\n'.join(rows) + '\n')
  for i in range(40):
    lines = [f'The {t} is {w} . {i}\n' for t in THINGS for w in WORDS[0]]
    (root / f'text{i}.txt').write_text(''.join(lines))
  record, _ = train(
    f'{FILE}:pretrain@{root}/text*.txt',
    root / 'run',
    '--steps=3',
    '--model.width=12',
    '--model.depth=1',
    '--data.text.tokenizer.vocab=300',
    '--evaluation.data.text.tokenizer.vocab=300',
    '--model.vocab=304',
    f'--data.text.cache={root}/cache',
    f'--evaluation.data.text.cache={root}/cache',
    '--evaluation.rows=16',
  )
  assert record['status'] == 'finished'
  return root


@pytest.mark.parametrize(
  ('kind', 'least', 'most'),
  [
    ('full', 1, 1),
    ('gradual', 1, 1),
    ('frozen', 0.001, 0.01),
    ('adapters', 0.1, 0.3),
    ('lora', 0.1, 0.3),
    ('prompt', 0.005, 0.05),
  ],
)
def test_each_way_starts_from_the_run_and_trains_its_part(
  folder, kind, least, most
):
  e = config.load(f'{FILE}:{kind},test@{folder}@{folder}/run', SMALL)
  plan = program.Program(e, e.layout.mesh())
  shapes, lines = plan.state_shapes().params, []
  given = start.load(e.start, shapes, lines.append)
  assert {'head/bias', 'head/kernel'} <= set(given.facts['fresh'])
  assert lines[0].endswith('; 0 left over')
  share = e.optimizer.trained(shapes) / tree.size(shapes)
  assert least <= share <= most
  # All of what is not new is there.
  body = [p for p in tree.paths(shapes) if re.search('^body/(?!.*adapter)', p)]
  assert body == [p for p in tree.paths(shapes) if p in given.values]


def test_a_part_of_a_pretrained_model_trains(folder, tmp_path):
  record, lines = train(
    f'{FILE}:lora@{folder}@{folder}/run', tmp_path / 'run', '--steps=2'
  )
  assert record['status'] == 'finished'
  assert 0 <= record['measures']['error'] <= 1
  assert sum('parameters train' in line for line in lines) == 1


def test_sentences_are_learnt(folder, tmp_path):
  record, lines = train(
    f'{FILE}:scratch@{folder}@{folder}/run',
    tmp_path / 'run',
    '--steps=60',
    '--model.head_dropout=0',
    '--model.body.dropout=0',
    '--optimizer.lr=1e-2',
  )
  assert not any(line.startswith('start=') for line in lines)
  assert record['measures']['error'] < 0.2
  losses = [
    json.loads(line).get('loss')
    for line in (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  ]
  assert losses[0] > 0.5


@pytest.mark.parametrize('arg', ['half@a@b', 'full@a', 'full', 'full,dev@a@b'])
def test_a_bad_argument_is_one_line(arg):
  with pytest.raises(ValueError, match='must') as error:
    config.load(f'{FILE}:{arg}')
  assert '\n' not in str(error.value)
