"""The figures of a report: what each draws, and the sentence that it shows."""

from __future__ import annotations

from collections.abc import Callable
import dataclasses
from typing import Any

from bigdl.scaling import captions, law_figures, run_figures
from bigdl.scaling.canvas import INK, Canvas
from bigdl.scaling.findings import View


@dataclasses.dataclass(frozen=True)
class Figure:
  """One figure: `draw` it unless `lacks` says what is missing for it."""

  name: str
  title: str
  draw: Callable[[View, Canvas, Any], None]
  caption: Callable[[View], str]
  lacks: Callable[[View], str]


# Names of rows need room on the left.
RECTS = {'exponents': (0.33, 0.155, 0.65, 0.755)}
FIGURES = (
  Figure(
    'isoflop',
    'IsoFLOP curves',
    run_figures.isoflop,
    captions.isoflop,
    captions.no_cells,
  ),
  Figure(
    'holdout',
    'Held-out prediction',
    run_figures.holdout,
    captions.holdout,
    captions.no_holdout,
  ),
  Figure(
    'n_opt',
    'Best size against compute',
    law_figures.n_opt,
    captions.n_opt,
    captions.no_law,
  ),
  Figure(
    'd_opt',
    'Best amount of data against compute',
    law_figures.d_opt,
    captions.d_opt,
    captions.no_law,
  ),
  Figure(
    'envelope',
    'Loss envelope',
    run_figures.envelope,
    captions.envelope,
    captions.no_cells,
  ),
  Figure(
    'exponents',
    'The exponent, by approach and by how FLOPs are counted',
    law_figures.exponents,
    captions.exponents,
    captions.no_exponents,
  ),
  Figure(
    'training',
    'Training curves',
    run_figures.training,
    captions.training,
    captions.no_curves,
  ),
  Figure(
    'residuals',
    'What the law leaves unexplained',
    run_figures.residuals,
    captions.residuals,
    captions.no_parametric,
  ),
)


def overview(view: View) -> Canvas | None:
  """Returns the wide figure of a README: curves, law, prediction."""
  panels = [
    (run_figures.isoflop, captions.no_cells, captions.overview_isoflop),
    (law_figures.both, captions.no_law, captions.overview_law),
    (run_figures.holdout, captions.no_holdout, captions.overview_holdout),
  ]
  drawn = [(d, t) for d, lacks, t in panels if not lacks(view)]
  if not drawn:
    return None
  width = 4.75
  canvas = Canvas((width * len(drawn), 4.1))
  for i, (draw, title) in enumerate(drawn):
    left = (i * width + 0.55) / (width * len(drawn))
    axes = canvas.axes(
      (left, 0.135, (width - 0.7) / (width * len(drawn)), 0.68)
    )
    draw(view, canvas, axes)
    axes.annotate(
      title(view),
      (0, 1),
      xycoords='axes fraction',
      xytext=(-34, 34),
      textcoords='offset points',
      fontsize=12.5,
      fontweight='bold',
      color=INK,
    )
  return canvas
