"""The report of a sweep: `report.html` and `figures/*.png` and `.svg`.

The page works from disk without a network, and the same law, runs and curves
give the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bigdl.scaling import canvas as canvas_lib
from bigdl.scaling import figures, marks, page
from bigdl.scaling.findings import View, finite

# A training curve is kept as this many means over its first and as many over
# all of its lines, at most.
_BINS = 120
# Differs from run to run without meaning anything for the law.
_FLEETING = ('time', 'seed')


def write(
  folder: str | Path,
  law: Mapping[str, Any],
  records: pd.DataFrame,
  curves: Mapping[str, Mapping[str, Any]],
  *,
  title: str,
  provenance: Mapping[str, Any] | None = None,
) -> Path:
  """Writes the report and its figures into a folder; returns the page's path.

  Args:
    folder: Where `report.html` and `figures/` go; figures that can no longer be
      drawn are removed there.
    law: The content of law.json, from `fit.fit`.
    records: The table of `records.load` that it was fitted to.
    curves: What `read_curves` returns; {} where there are none.
    title: Names the sweep.
    provenance: What made the runs; `read_provenance(folder)` if None.
  """
  folder = Path(folder)
  place = folder / 'figures'
  place.mkdir(parents=True, exist_ok=True)
  if provenance is None:
    provenance = read_provenance(folder)
  view = View.of(
    dict(law),
    records.to_dict('records'),
    {name: dict(curve) for name, curve in curves.items()},
  )
  drawn = _draw(view, place)
  text = page.render(view, drawn, title=title, provenance=provenance)
  path = folder / 'report.html'
  made = path.with_name(f'.{path.name}.new')
  try:
    # A cell's name may hold half a surrogate, which no encoding takes.
    made.write_text(text, encoding='utf-8', errors='replace')
    os.replace(made, path)
  finally:
    made.unlink(missing_ok=True)
  return path


def _draw(view: View, place: Path) -> dict[str, str]:
  """Draws every figure that can be; returns each as an element of the page."""
  elements = {}
  colors = marks.Palette(view).variables()
  with canvas_lib.style():
    for figure in figures.FIGURES:
      stem = place / figure.name
      if figure.lacks(view):
        _remove(stem)
        continue
      canvas = canvas_lib.Canvas()
      rect = figures.RECTS.get(figure.name, canvas_lib.AXES)
      figure.draw(view, canvas, canvas.axes(rect))
      elements[figure.name] = canvas_lib.inline(
        canvas.save(stem),
        figure.name,
        label=f'{figure.title}. {figure.caption(view)}',
        colors=colors,
        tips=canvas.tips,
      )
    banner = figures.overview(view)
    if banner is None:
      _remove(place / 'overview')
    else:
      banner.save(place / 'overview', dpi=110)
  return elements


def _remove(stem: Path) -> None:
  for kind in ('.png', '.svg'):
    stem.with_suffix(kind).unlink(missing_ok=True)


def read_curves(folder: str | Path) -> dict[str, dict[str, Any]]:
  """Returns the training curves of a sweep folder, thinned, by cell.

  Each has `step`, `units` (of data seen) and `loss`, lists of one length whose
  entries are means over consecutive lines of metrics.jsonl, and `eval`, pairs
  of units and held-out loss. Lines cut short, losses that are not finite, and
  cells without a record are left out.
  """
  curves = {}
  for file in sorted(Path(folder).glob('cells/*/metrics.jsonl')):
    record = _json(file.with_name('record.json'))
    units = record.get('units')
    step = record.get('step') or record.get('steps')
    if not (finite(units) and finite(step) and step):
      continue
    rate = units / step
    losses, evals = {}, {}
    for row in _lines(file):
      # After a kill, steps are repeated: what was written last counts.
      if finite(row.get('loss')):
        losses[row['step']] = row['loss']
      if finite(row.get('eval_loss')):
        evals[row['step']] = row['eval_loss']
    steps, means = _thinned(losses)
    curves[file.parent.name] = {
      'step': steps,
      'units': [rate * s for s in steps],
      'loss': means,
      'eval': [[rate * s, y] for s, y in sorted(evals.items())],
    }
  return curves


def _lines(file: Path) -> Iterable[dict[str, Any]]:
  for line in file.read_text(encoding='utf-8', errors='replace').splitlines():
    try:
      row = json.loads(line)
    except ValueError:
      continue  # A line that a kill cut short.
    if isinstance(row, dict) and finite(row.get('step')):
      yield row


def _thinned(losses: Mapping[float, float]) -> tuple[list, list]:
  """Returns means of steps and losses over bins, narrow ones at the start."""
  if not losses:
    return [], []
  step, loss = np.array(sorted(losses.items()), float).T
  early = np.geomspace(1, len(step), _BINS)[:-1] - 1
  even = np.linspace(0, len(step), _BINS)
  edges = np.unique(np.concatenate([early, even]).astype(int))
  starts = edges[edges < len(step)]
  counts = np.diff([*starts, len(step)])
  return tuple(
    (np.add.reduceat(v, starts) / counts).tolist() for v in (step, loss)
  )  # type: ignore[return-value]


def read_provenance(folder: str | Path) -> dict[str, Any]:
  """Returns what made the runs of a sweep folder, less times and seeds.

  Where runs differ, all their values are listed.
  """
  found: dict[str, list[Any]] = {}
  for file in sorted(Path(folder).glob('cells/*/provenance.json')):
    for name, value in _json(file).items():
      values = found.setdefault(name, [])
      if name not in _FLEETING and value not in values:
        values.append(value)
  return {
    name: values[0] if len(values) == 1 else values
    for name, values in found.items()
    if values
  }


def _json(file: Path) -> dict[str, Any]:
  try:
    value = json.loads(file.read_text(encoding='utf-8', errors='replace'))
  except (OSError, ValueError):
    return {}
  return value if isinstance(value, dict) else {}
