"""The report of a sweep: what it says, and that it needs nothing else."""

from __future__ import annotations

import base64
import copy
import hashlib
import html.parser
import json
import math
import os
from pathlib import Path
import re
import subprocess
import sys
import time
import types
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
from PIL import Image
import pytest

from bigdl.scaling import (
  figures,
  findings,
  fit,
  page,
  records,
  report,
  summary,
)
from tests.scaling.conftest import change, write

BOOTSTRAP = 60
# Of a figure, in pixels: 5 x 3.7 inches at 200 to the inch.
SIZE = (1000, 740)
HOSTILE = '</title><script>alert(1)</script>"\'&<img src=x onerror=y>$\\frac$'
VOID = {'meta', 'link', 'img', 'br', 'hr', 'input'}


class Page(html.parser.HTMLParser):
  """Elements, words and references of a page; checks that tags close."""

  def __init__(self, text: str):
    super().__init__(convert_charrefs=True)
    self.open: list[str] = []
    self.tags: list[tuple[str, dict]] = []
    self.words = ''
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
    self.open.pop()

  def handle_data(self, data):
    if not self.open or self.open[-1] not in ('script', 'style', 'title'):
      self.words += data

  def rows(self):
    return [
      a['data-cell'] for t, a in self.tags if t == 'tr' and 'data-cell' in a
    ]


def trained(folder: Path, names) -> None:
  """Adds metrics.jsonl and provenance.json to every cell."""
  rng = np.random.default_rng(0)
  for name in names:
    cell = folder / 'cells' / name
    record = json.loads((cell / 'record.json').read_text())
    steps = np.arange(1, 101)
    loss = record['loss'] * (steps / 100) ** -0.1
    loss = loss * np.exp(0.02 * rng.standard_normal(100))
    lines = [
      json.dumps({'step': int(s), 'loss': float(x)})
      for s, x in zip(steps, loss, strict=True)
    ]
    lines.append(json.dumps({'step': 100, 'eval_loss': record['loss']}))
    (cell / 'metrics.jsonl').write_text('\n'.join(lines) + '\n')
    made = {'commit': 'abc123', 'time': f'{rng.random()}', 'seed': 0}
    (cell / 'provenance.json').write_text(json.dumps(made))


@pytest.fixture(scope='module')
def sweep(tmp_path_factory):
  """A trained sweep, its law, and its report as first written."""
  folder = tmp_path_factory.mktemp('sweep')
  names = write(folder)
  trained(folder, names)
  change(folder, names[0], status='diverged', loss=math.nan, step=40)

  table = records.load(folder)
  law = fit.fit(table, bootstrap=BOOTSTRAP)
  curves = report.read_curves(folder)
  start = time.perf_counter()
  path = report.write(folder, law, table, curves, title='A sweep')
  return types.SimpleNamespace(
    folder=folder,
    names=names,
    table=table,
    law=law,
    curves=curves,
    page=path,
    seconds=time.perf_counter() - start,
    text=path.read_text(encoding='utf-8'),
  )


def rendered(sweep, law) -> str:
  """Returns the words of the page of another law, without figures."""
  view = findings.View.of(law, sweep.table.to_dict('records'), {})
  return Page(page.render(view, {}, title='A sweep', provenance={})).words


def test_report_is_written_within_fifteen_seconds(sweep):
  assert sweep.page == sweep.folder / 'report.html'
  assert sweep.seconds < 15


def test_page_is_well_formed(sweep):
  parsed = Page(sweep.text)
  assert parsed.open == []
  assert [t for t, _ in parsed.tags].count('figure') == len(figures.FIGURES)
  assert {a.get('lang') for t, a in parsed.tags if t == 'html'} == {'en'}


def test_page_refers_to_nothing_outside_its_folder(sweep):
  for tag, attrs in Page(sweep.text).tags:
    for key in ('src', 'href', 'xlink:href', 'srcset', 'data', 'action'):
      target = attrs.get(key)
      if target and not target.startswith('#'):
        assert (sweep.folder / target).is_file(), (tag, key, target)
  assert '@import' not in sweep.text
  assert not re.search(r'url\((?!#)', sweep.text)
  assert not re.search(r'(src|href)\s*=\s*["\']?(https?:)?//', sweep.text)


def test_every_figure_is_a_png_and_an_svg_of_the_same_shape(sweep):
  for figure in figures.FIGURES:
    stem = sweep.folder / 'figures' / figure.name
    with Image.open(stem.with_suffix('.png')) as image:
      assert image.size == SIZE, figure.name
      # A blank figure has one colour.
      assert len(image.convert('L').getcolors(256)) > 20
    root = ET.parse(stem.with_suffix('.svg')).getroot()
    _, _, wide, high = map(float, root.attrib['viewBox'].split())
    assert wide / high == pytest.approx(SIZE[0] / SIZE[1], rel=1e-3)
  with Image.open(sweep.folder / 'figures' / 'overview.png') as image:
    assert image.width > 2.5 * image.height


def test_repeated_report_is_byte_identical(sweep, tmp_path):
  again = report.write(
    tmp_path,
    sweep.law,
    sweep.table,
    sweep.curves,
    title='A sweep',
    provenance=report.read_provenance(sweep.folder),
  )
  assert again.read_bytes() == sweep.page.read_bytes()
  for file in sorted((sweep.folder / 'figures').iterdir()):
    assert file.read_bytes() == (tmp_path / 'figures' / file.name).read_bytes()


def test_summary_holds_the_numbers_of_the_law(sweep):
  words = Page(sweep.text).words.replace('\xa0', ' ')
  main = sweep.law['approaches'][sweep.law['primary']]
  best = main['holdout']['optimum']
  shown = [
    f'{main["exponents"]["a"]:.2f}',
    f'{main["exponents"]["b"]:.2f}',
    f'{best["loss"]:.3f}',
    f'{best["predicted"]:.3f}',
    f'[{best["low"]:.3f}, {best["high"]:.3f}]',
    findings.si(main['allocation'][0]['n']),
    findings.si(main['allocation'][0]['d']),
    f'{sweep.law["approaches"]["parametric"]["parameters"]["E"]:.3f}',
  ]
  for text in shown:
    assert text in words, text


@pytest.mark.parametrize(
  'path, value, said',
  [
    (('exponents', 'a'), 1.7531, 'N ∝ C1.75'),
    (('exponents', 'b'), 0.1234, 'D ∝ C0.12'),
    (('intervals', 'exponents', 'a'), [0.411, 0.822], '[0.41, 0.82]'),
    (('holdout', 'optimum', 'loss'), 1.2345678, '1.235'),
    (('holdout', 'optimum', 'predicted'), 1.3579, '1.358'),
    (('holdout', 'optimum', 'low'), 1.0101, '[1.010, '),
    (('allocation', 0, 'n'), 777e6, '780M on '),
    (('allocation', 0, 'd_high'), 88.8e12, '88.8T'),
    (('parameters', 'E'), 0.4567, '0.457'),
  ],
  ids=lambda value: '/'.join(map(str, value)) if type(value) is tuple else '',
)
def test_page_changes_with_each_number_of_the_law(sweep, path, value, said):
  law = copy.deepcopy(sweep.law)
  law['primary'] = 'parametric'
  assert said not in rendered(sweep, law).replace('\xa0', ' ')
  part = law['approaches']['parametric']
  for key in path[:-1]:
    part = part[key]
  part[path[-1]] = value
  assert said in rendered(sweep, law).replace('\xa0', ' ')


def test_headline_states_the_exponents_and_the_error(sweep):
  law = copy.deepcopy(sweep.law)
  main = law['approaches'][law['primary']]
  main['exponents'] = {'a': 0.678, 'b': 0.321}
  main['holdout']['optimum'] |= {'loss': 1.0, 'predicted': 1.025}
  view = findings.View.of(law, sweep.table.to_dict('records'), {})
  text = page.render(view, {}, title='A sweep', provenance={})
  head = re.search('<h1>(.*?)</h1>', text)[1].replace('\xa0', ' ')
  assert 'N ∝ C<sup>0.68</sup>, D ∝ C<sup>0.32</sup>' in head
  assert 'predicted to 2.5 %' in head


def test_every_warning_of_the_law_is_on_the_page(sweep):
  law = copy.deepcopy(sweep.law)
  law['warnings'].append('a warning of the sweep')
  law['approaches']['isoflop']['warnings'] = ['a warning of one approach']
  law['approaches']['isoflop']['minima'][0]['refused'] = 'no minimum here'
  law['approaches']['parametric']['flagged'] = [
    {'row': 'c1_n2', 'reason': 'far from the others'}
  ]
  law['approaches']['envelope']['refused'] = 'add three budgets'
  words = rendered(sweep, law)
  said = [
    'a warning of the sweep',
    'a warning of one approach',
    'no minimum here',
    'c1_n2: far from the others',
    'add three budgets',
    *summary.far(law),
  ]
  assert len(said) == 6
  for text in said:
    assert text in words, text


def test_exponents_are_shown_under_every_convention(sweep):
  words = Page(sweep.text).words
  found = sweep.law['by_convention']
  assert {'6N', '6N_nonembedding', 'matmul_causal'} <= set(found)
  for name, entry in found.items():
    assert name in words and f'{entry["a"]:.3f}' in words
    assert findings.CONVENTIONS[name] in words


def test_held_out_and_diverged_cells_are_marked(sweep):
  held = {
    r['name'] for r in sweep.law['approaches']['parametric']['holdout']['rows']
  }
  assert len(held) == 5
  for row in re.findall(r'<tr data-cell=.*?</tr>', sweep.text, re.DOTALL):
    name = re.search(r'data-cell="([^"]*)"', row)[1]
    assert ('held out</span>' in row) == (name in held), name
    assert ('diverged</span>' in row) == (name == sweep.names[0]), name
  assert sorted(Page(sweep.text).rows()) == sorted(sweep.names)


def test_run_set_aside_is_named_with_its_reason(sweep):
  words = Page(sweep.text).words
  (aside,) = sweep.law['records']['set_aside']
  assert f'{aside["name"]}: {aside["reason"]}' in words
  assert 'diverged at step 40 of 100' in words


def test_sparklines_are_drawn_for_runs_with_curves(sweep):
  assert sweep.text.count('<svg class="spark"') == len(sweep.names)
  assert sweep.text.count('<polyline points="2,') == len(sweep.names)


def test_numbers_of_runs_sort_as_numbers(sweep):
  rows = re.findall(r'<tr data-cell=.*?</tr>', sweep.text, re.DOTALL)
  sizes = [re.findall(r'data-value="([^"]*)"', row)[1] for row in rows]
  by_name = dict(zip(Page(sweep.text).rows(), map(float, sizes), strict=True))
  for row in sweep.table.to_dict('records'):
    assert by_name[row['name']] == row['n']


def test_provenance_is_that_of_the_cells_less_times(sweep):
  assert report.read_provenance(sweep.folder) == {'commit': 'abc123'}
  assert 'abc123' in Page(sweep.text).words


def test_hostile_names_stay_text(sweep):
  table = sweep.table.copy()
  table.attrs = dict(sweep.table.attrs)
  name = table['name'].iloc[-1]
  law = json.loads(
    json.dumps(sweep.law).replace(json.dumps(name), json.dumps(HOSTILE))
  )
  law['unit'] = law['loss_unit'] = HOSTILE
  law['warnings'] = [HOSTILE]
  law['conventions'] = {'flops': HOSTILE, 'params': HOSTILE}
  table.loc[table['name'] == name, ['name', 'status']] = HOSTILE
  curves = {(HOSTILE if k == name else k): v for k, v in sweep.curves.items()}
  folder = sweep.folder / 'hostile'
  path = report.write(
    folder, law, table, curves, title=HOSTILE, provenance={HOSTILE: HOSTILE}
  )
  text = path.read_text(encoding='utf-8')
  parsed = Page(text)
  tags = [t for t, _ in parsed.tags]
  assert tags.count('script') == 1 and 'img' not in tags
  clean = [t for t, _ in Page(sweep.text).tags]
  assert tags.count('title') == clean.count('title')
  assert not any(k.startswith('on') for _, a in parsed.tags for k in a)
  assert HOSTILE in parsed.rows() and HOSTILE in parsed.words
  for file in (folder / 'figures').glob('*.svg'):
    root = ET.parse(file).getroot()
    assert not [e for e in root.iter() if e.tag.endswith('script')]


def test_script_of_the_page_is_the_one_that_its_policy_allows(sweep):
  script = re.search(r'<script>(.*)</script>', sweep.text, re.DOTALL)[1]
  digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
  assert f"script-src 'sha256-{digest}'" in sweep.text
  assert "default-src 'none'" in sweep.text


def test_sweep_without_a_law_still_gives_a_report(tmp_path):
  names = write(tmp_path, budgets=(3e11, 1e12))
  change(tmp_path, names[-1], status='running', step=7)
  table = records.load(tmp_path)
  law = fit.fit(table, bootstrap=BOOTSTRAP)
  assert law['primary'] is None
  stale = tmp_path / 'figures' / 'n_opt.png'
  stale.parent.mkdir()
  stale.write_bytes(b'of an earlier law')
  path = report.write(tmp_path, law, table, {}, title='short')
  parsed = Page(path.read_text(encoding='utf-8'))
  assert 'No law yet' in parsed.words
  for part in law['approaches'].values():
    assert part['refused'] in parsed.words
  assert '1 of 10 runs did not finish' in parsed.words
  assert len(parsed.rows()) == len(names)
  assert (tmp_path / 'figures' / 'isoflop.svg').is_file()
  assert not stale.exists()


def test_sweep_with_no_finished_run_still_gives_a_report(tmp_path):
  for name in write(tmp_path, budgets=(3e11,)):
    (tmp_path / 'cells' / name / 'record.json').unlink()
  table = records.load(tmp_path)
  law = fit.fit(table, bootstrap=BOOTSTRAP)
  path = report.write(tmp_path, law, table, {}, title='unborn')
  parsed = Page(path.read_text(encoding='utf-8'))
  assert '5 of 5 runs did not finish' in parsed.words
  assert not list((tmp_path / 'figures').iterdir())


def test_report_leaves_a_notebooks_matplotlib_alone(sweep, tmp_path):
  with matplotlib.rc_context({'font.size': 31.0, 'text.usetex': True}):
    before = dict(matplotlib.rcParams)
    law = {**sweep.law, 'primary': None, 'approaches': {}}
    report.write(tmp_path, law, sweep.table.head(6), {}, title='short')
    assert dict(matplotlib.rcParams) == before


def test_report_needs_neither_jax_nor_a_display(sweep):
  code = (
    'import sys\n'
    'from bigdl.scaling import report\n'
    "assert 'matplotlib' not in sys.modules\n"
    'report.read_curves(sys.argv[1])\n'
    "assert 'jax' not in sys.modules and 'matplotlib.pyplot' not in sys.modules"
  )
  env = {k: v for k, v in os.environ.items() if k != 'DISPLAY'}
  command = [sys.executable, '-c', code, str(sweep.folder)]
  subprocess.run(command, check=True, env=env, timeout=60)


def test_curves_are_thinned_but_keep_their_mean_and_ends(tmp_path):
  (name,) = write(tmp_path, budgets=(3e11,), sizes=1)
  cell = tmp_path / 'cells' / name
  change(tmp_path, name, step=5000, steps=5000, units=1e6)
  loss = 3 + np.random.default_rng(0).standard_normal(5000)
  lines = [
    json.dumps({'step': k + 1, 'loss': x}) for k, x in enumerate(loss.tolist())
  ]
  (cell / 'metrics.jsonl').write_text('\n'.join(lines))
  curve = report.read_curves(tmp_path)[name]
  assert 50 < len(curve['loss']) <= 300
  assert len(curve['step']) == len(curve['units']) == len(curve['loss'])
  assert curve['step'][0] == 1 and curve['loss'][0] == loss[0]
  assert 4950 < curve['step'][-1] < 5000
  assert np.diff(curve['step']).min() > 0
  np.testing.assert_allclose(curve['units'], 200 * np.array(curve['step']))
  assert np.mean(curve['loss'][-50:]) == pytest.approx(3, abs=0.1)


def test_curves_skip_what_a_kill_left_behind(tmp_path):
  (name,) = write(tmp_path, budgets=(3e11,), sizes=1)
  cell = tmp_path / 'cells' / name
  change(tmp_path, name, step=4, steps=8, units=40)
  (cell / 'metrics.jsonl').write_text(
    '{"step": 1, "loss": 5.0}\n{"step": 2, "loss": 9.0}\n'
    '{"step": 2, "loss": 4.0}\n{"step": 3, "loss": NaN}\n[1]\n\n'
    '{"step": 4, "eval_loss": 3.5}\n{"step": 4, "los'
  )
  (tmp_path / 'cells' / 'other').mkdir()
  (tmp_path / 'cells' / 'other' / 'metrics.jsonl').write_text('{"step": 1}\n')
  assert report.read_curves(tmp_path) == {
    name: {
      'step': [1.0, 2.0],
      'units': [10.0, 20.0],
      'loss': [5.0, 4.0],
      'eval': [[40.0, 3.5]],
    }
  }
