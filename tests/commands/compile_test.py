"""`bigdl compile`: real compilations for TPUs that are not here."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from bigdl import __main__ as program
from bigdl import config, values
from bigdl.commands import _compilation, _fit, _lower, _search
from bigdl.compiling import traffic
from bigdl.parallel import nvidia, topology
from bigdl.parallel.layout import Layout

PODS = pathlib.Path(__file__).parents[2] / 'experiments' / 'pods.py'
KEYS = {
  'topology',
  'devices',
  'fits',
  'hbm_bytes',
  'peak_bytes',
  'argument_bytes',
  'temp_bytes',
  'flops',
  'collectives',
  'step_seconds_estimate',
  'mfu_estimate',
  'compile_seconds',
}
# Weights and two moments of the experiment of conftest.py, in float32.
STATE_BYTES = 12 * 3_600


def _compile(file: str, *args: str) -> int:
  return program.main(['compile', f'--config={file}', *args])


def _line(capsys) -> str:
  """Returns the one line of a refusal."""
  shown = capsys.readouterr()
  assert shown.out == ''
  assert shown.err.count('\n') == 1
  return shown.err


@pytest.fixture(scope='module')
def fitting(experiment_file, tmp_path_factory):
  """Exit code, text and JSON of a run that is split over eight devices."""
  path = tmp_path_factory.mktemp('compile') / 'out.json'
  done = subprocess.run(
    [
      *(sys.executable, '-m', 'bigdl', 'compile'),
      f'--config={experiment_file}',
      '--topology=v5e:2x4',
      '--layout.data=1',
      '--layout.fsdp=-1',
      '--model.depth=3',
      '--model.width=64',
      f'--json={path}',
    ],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout, json.loads(path.read_text())


def test_the_json_has_its_keys_and_no_others(fitting):
  _, body = fitting
  assert set(body) == KEYS
  assert (body['topology'], body['devices']) == ('v5e:2x4', 8)
  assert body['fits'] is True
  assert body['argument_bytes'] <= body['peak_bytes'] < body['hbm_bytes']
  assert 0 < body['mfu_estimate'] < 1
  assert body['step_seconds_estimate'] > 0
  assert body['compile_seconds'] > 0


def test_weights_that_are_split_cross_the_links_of_their_axis(fitting):
  _, body = fitting
  assert set(body['collectives']) == {'fsdp'}
  # Each of 150 thousand weights is gathered at least once, in two bytes each.
  assert body['collectives']['fsdp'] > 2 * 150_000 * 7 / 8


def test_flops_are_those_of_the_ledger(fitting):
  _, body = fitting
  flops = body['flops']
  assert {'6N', 'matmul_causal', 'matmul_full'} <= set(flops)
  assert flops['matmul_causal'] < flops['matmul_full']


def test_the_program_does_the_products_that_were_traced(fitting):
  # Loops are counted as often as they run, in the trace and in the program.
  text, _ = fitting
  assert 'the compiled program does 1.000 of these' in text


def test_the_report_says_what_it_assumes(fitting):
  text, _ = fitting
  for part in ('fits, ', 'of peak', 'one way', 'MFU counts FLOPs by', 'fsdp=8'):
    assert part in text, text


def test_what_does_not_fit_exits_3_and_says_what_would(
  experiment_file, tmp_path, capsys
):
  path = tmp_path / 'out.json'
  code = _compile(
    experiment_file,
    '--topology=v5e:1x1',
    '--model.depth=16',
    '--batch=98304',
    '--layout.data=-1',
    f'--json={path}',
  )
  text = capsys.readouterr().out
  assert code == 3
  body = json.loads(path.read_text())
  assert set(body) == KEYS
  assert body['fits'] is False
  assert body['peak_bytes'] > body['hbm_bytes']
  assert body['mfu_estimate'] is None
  assert 'does not fit, ' in text
  assert '--model.remat=dots: peak' in text
  assert text.count(', fits') == 2
  slices = [line for line in text.split('\n') if 'the smallest that' in line]
  assert len(slices) == 1
  assert 'v5e:2x2' in slices[0] or 'v5e:2x4' in slices[0]


def test_a_state_that_no_layout_can_hold_is_one_line(experiment_file, capsys):
  args = ['--topology=v5e:1x1', '--model.width=65536', '--layout.data=-1']
  assert _compile(experiment_file, *args) == 2
  line = _line(capsys)
  # Twelve bytes for each of 12 x 65536^2 weights of one block.
  assert 'the state of 576 GiB is more than' in line
  assert 'the smallest that could hold it is v5e:8x8' in line


REFUSALS = {
  'no such slice': (['--topology=v5e:3x3'], 'near are v5e:2x4'),
  'no such generation': (['--topology=v44:8x8x8'], 'such as v4:8x8x8'),
  'no topology': ([], '--topology is required'),
  'no time': (['--topology=v5e:2x4', '--timeout=0'], 'timeout=0.0 must be'),
  'devices left over': (
    ['--topology=v5e:2x4', '--layout.data=4'],
    'layout data=4 takes 4 of the 8 devices of v5e:2x4',
  ),
  'slices that are not there': (
    ['--topology=v5e:2x4', '--layout.data=-1', '--layout.slices=2'],
    'layout.slices=2 must be 1, the slices of v5e:2x4',
  ),
  'rows that do not divide': (
    ['--topology=v5e:2x4', '--layout.data=-1', '--batch=12'],
    'batch=12 must be divisible by',
  ),
}


@pytest.mark.parametrize('name', REFUSALS)
def test_bad_input_is_one_line(name, experiment_file, capsys):
  args, message = REFUSALS[name]
  assert _compile(experiment_file, *args) == 2
  assert message in _line(capsys)


def test_a_pipeline_says_how_long_its_stages_wait():
  layout = Layout(pipeline=4, microbatches=8)
  (line,) = _fit._stages(layout, {'pipeline': 4, 'data': 2})
  # Four stages and eight microbatches: 3 of 11 steps.
  assert line == '4 stages, 8 microbatches, 1 repeat: a bubble of 27.3%'
  assert _fit._stages(Layout(), {'data': 8, 'pipeline': 1}) == []


def test_sums_of_tensor_parallel_layers_are_not_kept_whole():
  rows, length, width, depth = 16, 128, 256, 3
  experiment = config.load(
    f'{PODS}:gpt2-1.5b@now',
    [
      '--layout.data=1',
      '--layout.fsdp=1',
      '--layout.tensor=8',
      f'--model.depth={depth}',
      f'--model.width={width}',
      '--model.heads=8',
      '--model.vocab=512',
      f'--model.length={length}',
      f'--data.length={length}',
      '--data.vocab=512',
      f'--batch={rows}',
      '--model.remat=dots',
    ],
  )
  case = _fit.case(experiment, topology.parse('v5e:2x4'))
  found = _compilation.run(case.config, case.rows, case.topology)
  assert f'[{depth},{rows},{length // 8},{width}]' in found.text
  assert f'[{depth},{rows},{length},{width}]' not in found.text


def test_an_experiment_file_may_recommend_a_topology(
  experiment_file, tmp_path, capsys, monkeypatch
):
  file = tmp_path / 'own.py'
  text = (
    'from bigdl import config\n'
    'def get_config(arg=""):\n'
    f'  return config.load({experiment_file!r})\n'
    'def get_topology(arg=""):\n'
    '  return f"v5e:{arg}"\n'
  )
  file.write_text(text)
  seen = []
  monkeypatch.setattr(
    _compilation, 'run', lambda *args, **options: seen.append(args) or _no()
  )
  assert _compile(f'{file}:2x2') == 2
  assert seen[0][2].name == 'v5e:2x2'
  _line(capsys)


def _no():
  raise ValueError('enough')


def test_a_table_that_does_not_divide_is_named_with_what_would_do():
  axes = {'fsdp': 4, 'tensor': 2}
  auto = (jax.sharding.AxisType.Auto,) * 2
  mesh = jax.make_mesh((4, 2), ('fsdp', 'tensor'), axis_types=auto)

  def leaf(shape, *spec):
    sharding = jax.NamedSharding(mesh, jax.P(*spec))
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

  params = {
    'embed': leaf((50257, 64), None, 'fsdp'),
    'head': leaf((64, 50264), 'fsdp', 'tensor'),
    'norm': leaf((63,)),
  }
  (line,) = _lower.undivided(params, axes)
  assert line.startswith('embed [50257 x 64] is split 4 ways')
  assert '50258 or 50260 would divide' in line


def test_an_interrupt_ends_the_process_that_compiles(
  experiment_file, monkeypatch
):
  started = []
  real = subprocess.Popen

  def popen(*args, **options):
    started.append(real(*args, **options))
    return started[-1]

  def interrupt(seconds):
    raise KeyboardInterrupt

  monkeypatch.setattr(_compilation.subprocess, 'Popen', popen)
  case = _fit.case(config.load(experiment_file), topology.parse('v5e:1x1'))
  with pytest.raises(KeyboardInterrupt):
    _compilation.run(case.config, case.rows, case.topology, tick=interrupt)
  assert started[0].poll() is not None


def test_the_process_that_compiles_leaves_with_its_parent(
  experiment_file, tmp_path
):
  case = _fit.case(config.load(experiment_file), topology.parse('v5e:1x1'))
  spec = {'config': case.config, 'topology': 'v5e:1x1', 'rows': case.rows}
  _lower.write(tmp_path / 'spec.json', spec)
  child = subprocess.Popen(
    [sys.executable, '-m', 'bigdl.commands._lower', str(tmp_path)],
    stdin=subprocess.PIPE,
  )
  child.stdin.close()
  assert child.wait(60) == 1
  assert not (tmp_path / 'done.json').exists()


def test_time_that_is_up_is_one_line(experiment_file, capsys):
  args = ['--topology=v5e:1x1', '--timeout=0.01']
  assert _compile(experiment_file, *args) == 2
  assert 'timeout=0.01 seconds are over' in _line(capsys)


def _fake(case, fits, mfu=0.0):
  """Returns what a compilation would: `fits` is asked of batch and remat."""
  e = case.experiment
  (remat,) = {v for p, v, _ in values.walk(e) if p == 'model.remat'}
  good = fits(e.batch, remat)
  return _compilation.Compiled(
    topology=case.topology,
    fits=good,
    seconds=1.0,
    peak_bytes=1 if good else 2**50,
    argument_bytes=1,
    temporary_bytes=0,
    state_bytes=STATE_BYTES,
    product_flops=0,
    axes={'data': 1, 'fsdp': 8},
    placement=traffic.Placement((), (), (), (), ()),
    whole=False,
  )


@pytest.fixture
def searched(experiment_file, monkeypatch, tmp_path):
  """Searches with a stand-in for the compiler; yields what it was asked."""
  asked = []
  case = _fit.case(config.load(experiment_file), topology.parse('v5e:2x4'))
  monkeypatch.setattr(_search, 'CACHE', tmp_path / 'cache')

  def go(fits):
    def run(tree, rows, where, **options):
      del rows, where, options
      experiment = config.from_json(tree)
      asked.append(
        (experiment.layout, experiment.batch, experiment.model.remat)
      )
      return _fake(case.on(experiment), fits)

    monkeypatch.setattr(_search._compilation, 'run', run)
    return _search.search(case, timeout=10)[0]

  return go, asked


def test_what_does_not_fit_is_not_tried_larger(searched):
  go, asked = searched
  rows = go(lambda batch, remat: batch <= 8 and remat != 'none')
  for layout in {each[0] for each in asked}:
    tried = [each[1:] for each in asked if each[0] == layout]
    # At 16 rows the two policies that fitted before, at 32 nothing.
    assert max(batch for batch, _ in tried) == 16
    assert (16, 'none') not in tried
    assert {remat for batch, remat in tried if batch == 16} == {'dots', 'full'}
  assert {row.fits for row in rows} == {True, False}


def test_a_search_that_was_done_compiles_nothing_again(searched):
  go, asked = searched
  first = go(lambda batch, remat: True)
  count = len(asked)
  assert count > 0
  again = go(lambda batch, remat: True)
  assert len(asked) == count
  assert sorted(map(repr, again)) == sorted(map(repr, first))


def test_a_search_that_the_compiler_refuses_says_why(
  experiment_file, capsys, monkeypatch, tmp_path
):
  monkeypatch.setattr(_search, 'CACHE', tmp_path / 'cache')
  monkeypatch.setattr(_search._compilation, 'run', lambda *a, **o: _no())
  assert _compile(experiment_file, '--topology=v5e:2x4', '--search') == 2
  assert _line(capsys) == 'bigdl: enough\n'


def test_a_search_shows_what_has_no_estimate_and_counts_what_was_refused(
  searched, experiment_file, monkeypatch, capsys
):
  go, _ = searched
  go(lambda batch, remat: True)
  real = _search._compilation.run

  def run(tree, *args, **options):
    if config.from_json(tree).layout.data == 8:
      raise ValueError('time is up')
    return real(tree, *args, **options)

  monkeypatch.setattr(_search._compilation, 'run', run)
  monkeypatch.setattr(_search, 'CACHE', _search.CACHE / 'other')
  case = _fit.case(config.load(experiment_file), topology.parse('v5e:2x4'))
  assert _search.main(case, timeout=10) == 0
  text = capsys.readouterr().out
  assert ' -' in text.splitlines()[1]
  last = text.splitlines()[-1]
  assert last.endswith(' were refused, the first: time is up')


def test_every_layout_of_a_search_takes_all_devices(experiment_file):
  experiment = config.load(experiment_file, ['--layout.data=-1'])
  case = _fit.case(experiment, topology.parse('v5e:4x4*2'))
  found = list(_search.layouts(case))
  assert len(found) > 3
  for layout in found:
    sizes = layout.sizes(32)
    assert sizes['data'] * sizes['fsdp'] * sizes['tensor'] == 32
    assert sizes['data'] % 2 == 0
    # Two heads.
    assert sizes['tensor'] <= 2


def test_compilers_for_other_machines_keep_quiet_on_this_one():
  environment = {k: v for k, v in os.environ.items() if k != 'JAX_PLATFORMS'}
  code = (
    'from bigdl import __main__ as program; program.main(["--help"]);'
    'import jax; print(jax.default_backend())'
  )
  done = subprocess.run(
    [sys.executable, '-c', code],
    capture_output=True,
    text=True,
    env=environment,
    check=False,
  )
  assert done.returncode == 0
  assert done.stderr == ''


@pytest.mark.scheduled
def test_a_whole_compilation_agrees_with_a_fast_one(experiment_file):
  flags = ['--layout.data=1', '--layout.fsdp=-1', '--model.depth=3']
  flags += ['--model.width=64', '--batch=65536']
  case = _fit.case(
    config.load(experiment_file, flags), topology.parse('v5e:2x4')
  )
  fast, whole = (
    _compilation.run(case.config, case.rows, case.topology, full=full)
    for full in (False, True)
  )
  assert whole.whole
  assert not fast.whole
  # Buffers that are never in use together are summed by the fast one.
  assert 0.95 < fast.peak_bytes / whole.peak_bytes < 1.5
  sent = [
    traffic.totals(list(_fit.verdict(case, each).collectives))
    for each in (fast, whole)
  ]
  assert sent[0] == sent[1]


@pytest.mark.scheduled
def test_a_search_shows_what_fits_best_first(experiment_file, tmp_path, capsys):
  path = tmp_path / 'found.json'
  args = ['--topology=v5e:1x1', '--search', f'--json={path}']
  assert _compile(experiment_file, *args) == 0
  rows = json.loads(path.read_text())['rows']
  assert len(rows) >= 3
  speeds = [row['mfu'] for row in rows]
  assert speeds == sorted(speeds, reverse=True)
  assert {row['remat'] for row in rows} >= {'none', 'dots'}
  assert 'best  ' in capsys.readouterr().out


@pytest.mark.scheduled
def test_h100s_are_compiled_for_without_one(experiment_file, tmp_path, capsys):
  if not nvidia.is_installed():
    pytest.skip("needs JAX's CUDA plugin, 5 GB: pip install 'bigdl[cuda12]'")
  path = tmp_path / 'out.json'
  args = ['--topology=h100:1x2x8', '--layout.data=1', '--layout.fsdp=-1']
  args += ['--batch=16', '--model.width=64', f'--json={path}']
  assert _compile(experiment_file, *args) == 0
  body = json.loads(path.read_text())
  assert body['devices'] == 16
  assert body['fits'] is True
  assert sum(body['collectives'].values()) > 0
  assert 'network' in capsys.readouterr().out
  # The compiler only warns of too much memory, so that we must look.
  args = ['--topology=h100:1x1x1', '--batch=1048576', '--model.depth=16']
  args += ['--layout.data=-1']
  assert _compile(experiment_file, *args) == 3


def test_rows_are_told_as_shapes(experiment_file):
  experiment = config.load(experiment_file)
  rows = _compilation.rows_of(experiment.data.spec())
  assert rows == {'tokens': [[9], 'int32']}
  other = _lower._with_rows(experiment, rows)
  assert other.data.spec() == experiment.data.spec()
  assert dataclasses.replace(other, data=experiment.data) == experiment
