"""Experiment files, overrides, records: bigdl.config, flags and values."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import Any, Literal

from flax import linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from bigdl import config, flags, values

FILE = """
from __future__ import annotations
import dataclasses
from typing import Literal
from flax import linen as nn
import jax.numpy as jnp
from bigdl.data.base import Source
from bigdl.experiment import Experiment
from bigdl.objectives.base import Objective
from bigdl.optim.base import Optimizer


class Net(nn.Module):
  depth: int = 2  # Blocks.
  rate: float = 0.1
  kind: Literal['a', 'b'] = 'a'
  sizes: tuple[int, ...] = (1, 2)
  limit: int | None = None
  act: object = nn.gelu
  dtype: object = jnp.float32
  init: object = nn.initializers.normal(0.2)

  def __post_init__(self):
    super().__post_init__()
    if self.depth % 2:
      raise ValueError(f'depth={self.depth} must be even')


@dataclasses.dataclass(frozen=True)
class Mix(Source):
  parts: tuple[Source, ...] = ()
  path: str = 'x'


def get_config(arg: str = 'small'):
  sizes = {'small': 2, 'large': 8}
  if arg not in sizes:
    raise ValueError(f'size={arg} must be one of {", ".join(sizes)}')
  return Experiment(
    model=Net(depth=sizes[arg]),
    objective=Objective(),
    data=Mix(parts=(Mix(), Mix(path='y'))),
    optimizer=Optimizer(),
    steps=3,
    batch=4,
  )
"""


@pytest.fixture
def path(tmp_path):
  file = tmp_path / 'net.py'
  file.write_text(FILE)
  return str(file)


def test_arg_after_colon_reaches_get_config(path):
  assert config.load(path).model.depth == 2
  assert config.load(f'{path}:large').model.depth == 8


def test_both_spellings_of_an_override_agree(path):
  one = config.load(path, ['--model.depth=6', '--steps=1e3'])
  two = config.load(path, ['--model.depth', '6', '--steps', '1000'])
  assert one == two
  assert (one.model.depth, one.steps) == (6, 1000)


@pytest.mark.parametrize(
  ('args', 'want'),
  [
    (['--model.rate=1'], 1.0),
    (['--model.kind=b'], 'b'),
    (['--model.sizes=3,4,5'], (3, 4, 5)),
    (['--model.sizes', '3', '4'], (3, 4)),
    (['--model.sizes=(7,)'], (7,)),
    (['--model.sizes='], ()),
    (['--model.limit=5'], 5),
    (['--model.limit=None'], None),
    (['--logs.tensorboard=false'], False),
    (['--logs.tensorboard'], True),
    (['--data.parts.1.path=z'], 'z'),
    (['--evaluation.data=none'], None),
    (['--layout.data', '-1'], -1),
    (['--checkpoints.keep-every=7'], 7),
  ],
)
def test_override_has_the_annotated_type(path, args, want):
  value = config.load(path, args)
  for name in args[0][2:].partition('=')[0].replace('-', '_').split('.'):
    value = value[int(name)] if name.isdigit() else getattr(value, name)
  assert value == want
  assert type(value) is type(want)


def test_override_leaves_everything_else_as_it_was(path):
  before, after = config.load(path), config.load(path, ['--model.depth=4'])
  assert dataclasses.replace(after, model=before.model) == before


def test_overrides_are_validated_together_not_one_by_one(path):
  # Either alone would be refused: 6 does not divide 4, nor 3 the batch of 4.
  args = ['--accumulate=6', '--batch=12']
  assert config.load(path, args).batch == 12
  assert config.load(path, args[::-1]).accumulate == 6


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    (['--model.dept=6'], '--model.dept: no such field; nearest is --model.de'),
    (['--depth=6'], '--depth: no such field; nearest is --model.depth'),
    (['--fsd=2'], '--fsd: no such field; nearest is --layout.fsdp'),
    (['--modle.depth=6'], '--modle.depth: no such field; nearest is --model.d'),
    (['--confg=x'], '--confg: no such field; nearest is --config'),
    (['--qqqqqq=x'], '--qqqqqq: no such field'),
    (['--model.parent=None'], '--model.parent: no such field'),
    (['--model.depth.x=1'], '--model.depth.x: no such field'),
    (['--model.depth=six'], '--model.depth=six: expected int'),
    (['--model.depth=1.5'], '--model.depth=1.5: expected int'),
    (['--model.rate=fast'], '--model.rate=fast: expected float'),
    (['--model.kind=c'], "--model.kind=c: expected 'a' or 'b'"),
    (['--model.sizes=1,b'], '--model.sizes=1,b: expected tuple of int'),
    (['--model.limit=x'], '--model.limit=x: expected int or None'),
    (['--model.act=relu'], '--model.act=relu: set it in the experiment file'),
    (['--logs.tensorboard=maybe'], '--logs.tensorboard=maybe: expected bool'),
    (['--steps'], '--steps needs a value: int'),
    (['--steps', '1', '2'], '--steps=1 2: expected int'),
    (['--data=tfds'], '--data=tfds: expected its fields (--data.… of Mix)'),
    (['steps=3'], "'steps=3': unexpected argument"),
    (['--model.depth=3'], 'depth=3 must be even'),
    (['--steps=0'], 'steps=0 must be at least 1'),
  ],
)
def test_bad_override_is_one_line_with_field_and_value(path, args, message):
  with pytest.raises(ValueError, match=r'.') as error:
    config.load(path, args, also=('config', 'workdir'))
  assert str(error.value).startswith(message)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    ('x = (', ":1: SyntaxError: '(' was never closed"),
    ('import no_such_module\n', ":1: ModuleNotFoundError: No module named 'no"),
    ('x = 1\n', ' defines no get_config(arg)'),
    (
      'def get_config(arg=""):\n  return 1\n',
      ': get_config returned int, expe',
    ),
    ('def get_config():\n\n  return f()\n', ":3: NameError: name 'f' is not d"),
    ('def get_config():\n  raise ValueError("heads=3")\n', ': heads=3'),
    ('raise ValueError("no text")\n', ':1: ValueError: no text'),
  ],
)
def test_broken_experiment_file_is_one_line_with_file(tmp_path, text, message):
  file = tmp_path / 'broken.py'
  file.write_text(text)
  with pytest.raises(ValueError, match='broken') as error:
    config.load(str(file))
  assert str(error.value).startswith(f'config={file}{message}')


def test_missing_file_names_the_nearest(path, tmp_path):
  with pytest.raises(ValueError, match=r'nett\.py: no such file; .*net\.py'):
    config.load(str(tmp_path / 'nett.py'))
  with pytest.raises(ValueError, match='no such file'):
    config.load(str(tmp_path))
  with pytest.raises(ValueError, match='no such file'):
    config.load('')


def test_unknown_arg_is_one_line(path, tmp_path):
  with pytest.raises(ValueError, match=r'net\.py:huge: size=huge must be one'):
    config.load(f'{path}:huge')
  plain = tmp_path / 'plain.py'
  plain.write_text(FILE.replace("arg: str = 'small'", '').replace('[arg]', ''))
  with pytest.raises(ValueError, match=r'plain.py:x: get_config\(\) takes no'):
    config.load(f'{plain}:x')


def test_wrong_type_in_the_file_is_named(tmp_path):
  file = tmp_path / 'wrong.py'
  file.write_text(FILE.replace('steps=3', "steps=3, seed='0'"))
  with pytest.raises(ValueError, match=r"^seed='0': expected int$"):
    config.load(str(file))


def test_edited_file_is_read_again_and_unchanged_one_is_not(path, tmp_path):
  before = config.load(path)
  assert config.load(path) == before
  (tmp_path / 'net.py').write_text(FILE.replace('steps=3', 'steps=5'))
  assert config.load(path).steps == 5


def test_loading_leaves_no_files_beside_the_experiment(path, tmp_path):
  config.load(path)
  assert [p.name for p in tmp_path.iterdir()] == ['net.py']


@pytest.mark.parametrize(
  'args',
  [
    [],
    ['--model.sizes=3,4', '--model.limit=7', '--model.kind=b'],
    ['--model.rate=1e-30', '--data.parts.0.path=é"\n'],
  ],
)
def test_record_rebuilds_an_equal_experiment(path, args):
  experiment = config.load(path, args)
  text = json.dumps(config.to_json(experiment))
  again = config.from_json(json.loads(text))
  assert again == experiment
  assert type(again.model) is type(experiment.model)
  assert config.to_json(again) == json.loads(text)


def test_record_holds_every_field_and_the_type_of_each_part(path):
  tree = config.to_json(config.load(path))
  assert tree['_type'] == 'bigdl.experiment.Experiment'
  assert tree['model']['_type'] == f'{path}:Net'
  assert tree['model']['act'] == {'_name': 'jax.nn:gelu'}
  assert tree['data']['parts'][1]['path'] == 'y'
  names = {f.name for f in values.fields(config.load(path))}
  assert tree.keys() == names | {'_type'}
  # A closure has no name to be found by; unchanged, it need not be recorded.
  assert 'init' not in tree['model']


def test_record_of_a_file_that_was_moved_is_found_below_here(
  path, tmp_path, monkeypatch
):
  tree = config.to_json(config.load(path))
  moved = tmp_path / 'copy' / tmp_path.name
  moved.mkdir(parents=True)
  (tmp_path / 'net.py').rename(moved / 'net.py')
  with pytest.raises(ValueError, match=r'net\.py:Net is not here'):
    config.from_json(tree)
  monkeypatch.chdir(tmp_path / 'copy')
  again = config.from_json(tree)
  assert again.model.depth == 2
  assert config.differences(config.to_json(again), tree) == []


def test_module_beside_the_experiment_can_be_imported_and_rebuilt(tmp_path):
  (tmp_path / 'beside_it.py').write_text(FILE)
  file = tmp_path / 'uses_it.py'
  file.write_text('from beside_it import get_config\n')
  experiment = config.load(str(file))
  tree = config.to_json(experiment)
  assert tree['model']['_type'] == f'{tmp_path / "beside_it.py"}:Net'
  assert config.from_json(tree) == experiment


def _edit(tree: dict, name: str, value: Any) -> dict:
  tree = json.loads(json.dumps(tree))
  node = tree
  *parents, last = name.split('.')
  for part in parents:
    node = node[part]
  node[last] = value
  return tree


@pytest.mark.parametrize(
  ('name', 'value', 'message'),
  [
    ('model.dept', 3, 'model.dept: no such field of Net; nearest is depth'),
    ('model._type', 'no.such.Class', 'no.such.Class is not here'),
    ('model._type', 'os.system', "model._type='os.system' is not a dataclass"),
    ('model._type', 'builtins.eval', 'is not a dataclass'),
    ('model._type', 'pathlib.Path', 'is not a dataclass'),
    ('model.depth', 'six', "model.depth='six': expected int"),
    ('model.depth', 3, 'depth=3 must be even'),
    ('steps', 1.5, 'steps=1.5: expected int'),
    ('data', None, 'data=None: expected Source'),
  ],
)
def test_record_is_read_strictly(path, name, value, message):
  tree = config.to_json(config.load(path))
  assert config.from_json(_edit(tree, 'steps', 9)).steps == 9
  with pytest.raises(ValueError, match=r'.') as error:
    config.from_json(_edit(tree, name, value))
  assert message in str(error.value)
  assert '\n' not in str(error.value)


def test_record_without_a_required_field_is_refused(path):
  tree = config.to_json(config.load(path))
  del tree['steps']
  with pytest.raises(ValueError, match=r"record: .*'steps'"):
    config.from_json(tree)


def test_what_cannot_be_rebuilt_cannot_be_recorded(path):
  experiment = config.load(path)
  changed = dataclasses.replace(experiment.model, act=lambda x: x)
  with pytest.raises(ValueError, match=r'^model\.act=.*cannot be recorded'):
    config.to_json(dataclasses.replace(experiment, model=changed))


def test_differences_name_field_and_both_values(path):
  here = config.to_json(config.load(path))
  assert config.differences(here, json.loads(json.dumps(here))) == []
  there = config.to_json(
    config.load(path, ['--model.depth=4', '--data.parts.1.path=z'])
  )
  there = _edit(there, 'optimizer._type', 'other.Lion')
  del there['seed']
  assert config.differences(here, there) == [
    'model.depth: 2 here, 4 in the folder',
    "data.parts.1.path: 'y' here, 'z' in the folder",
    'optimizer: bigdl.optim.base.Optimizer here, other.Lion in the folder',
    'seed: 0 here only',
  ]


@dataclasses.dataclass(frozen=True)
class Own:
  """Does a thing.

  Attributes:
    limit: How many at
      most.
  """

  folder: str  # Where it lies.
  # What to write
  # first.
  prompt: str = ''
  limit: int | None = None
  dry_run: bool = False
  budgets: tuple[float, ...] = ()
  mode: Literal['x', 'y'] = 'x'


def _parse(*argv: str, rest=None):
  return flags.parse(Own, argv, verb='do', positional=['folder'], rest=rest)


def test_flags_of_a_verb_take_words_and_positions():
  own, left = _parse(
    *['--dry-run', 'here', '--prompt', 'def f(', '--limit=-3'],
    *['--budgets', '1e12', '2e12', '--mode=y'],
  )
  assert own == Own('here', 'def f(', -3, True, (1e12, 2e12), 'y')
  assert left == []


def test_a_text_that_looks_like_a_flag_is_given_after_equals():
  assert _parse('here', '--prompt=--x\n y')[0].prompt == '--x\n y'
  with pytest.raises(ValueError, match='--prompt needs a value: str'):
    _parse('here', '--prompt', '--dry_run')


def test_unknown_flags_are_left_over_only_where_asked_for():
  args = ['--folder=a', '--model.depth', '3', '--dry_run', '--steps=4']
  own, left = _parse(*args, rest=lambda given: None)
  assert own == Own('a', dry_run=True)
  assert left == ['--model.depth', '3', '--steps=4']
  with pytest.raises(ValueError, match='--steps: no such field'):
    _parse('--folder=a', '--steps=4')


@pytest.mark.parametrize(
  ('args', 'message'),
  [
    ([], '--folder is required; see bigdl do --help'),
    (['a', 'b'], "'b': unexpected argument of do"),
    (['a', '--promt=x'], '--promt: no such field; nearest is --prompt'),
    (['a', '--limit=x'], '--limit=x: expected int or None'),
    (['--foldr=a'], '--foldr: no such field; nearest is --folder'),
  ],
)
def test_bad_flags_of_a_verb_are_one_line(args, message):
  for rest in (None, lambda given: None):
    if rest and 'promt' in message:
      continue  # May be a field of what is overridden, which says so itself.
    with pytest.raises(ValueError, match=r'.') as error:
      _parse(*args, rest=rest)
    assert str(error.value) == message


def test_help_lists_every_field_with_type_default_and_comment(path, capsys):
  with pytest.raises(SystemExit) as exit_:
    _parse('--help', rest=lambda given: config.load(path))
  assert exit_.value.code == 0
  lines = [' '.join(x.split()) for x in capsys.readouterr().out.splitlines()]
  assert '--folder str (required) Where it lies.' in lines
  assert "--prompt str = '' What to write first." in lines
  assert '--limit int or None = None How many at most.' in lines
  assert '--model.depth int = 2 Blocks.' in lines
  assert "--model.kind 'a' or 'b' = 'a'" in lines
  listed = {x.split()[0].removeprefix('--') for x in lines if x[:2] == '--'}
  paths = [name for name, _, _ in values.walk(config.load(path))]
  # Parts are listed by what can be set below them.
  leaves = [p for p in paths if not any(q.startswith(p + '.') for q in paths)]
  assert len(leaves) > 20
  assert set(leaves) <= listed | {'objective'}
  assert not {'model.parent', 'model.name'} & listed


def test_numpy_numbers_are_numbers_and_bools_are_not():
  @dataclasses.dataclass(frozen=True)
  class Numbers:
    count: int = 0
    rate: float = 0.0

  values.check_types(Numbers(np.int64(3), np.float32(2)))
  values.check_types(Numbers(3, 2))
  with pytest.raises(ValueError, match=r'^count=True: expected int$'):
    values.check_types(Numbers(True))
  assert config.to_json(Numbers(np.int64(3), np.float32(2)))['rate'] == 2.0


def test_linen_modules_nest():
  class Part(nn.Module):
    width: int = 3
    dtype: Any = jnp.float32

  class Whole(nn.Module):
    part: nn.Module = Part()

  changed = flags.override(Whole(), ['--part.width=5'])
  assert changed == Whole(part=Part(width=5))
  assert changed.part.parent is None


def test_importing_config_imports_neither_jax_nor_flax():
  import subprocess

  code = (
    'import sys, bigdl.config, bigdl.commands.train;'
    'print([m for m in ("jax", "flax", "numpy") if m in sys.modules])'
  )
  out = subprocess.check_output([sys.executable, '-c', code], text=True)
  assert out.strip() == '[]'
