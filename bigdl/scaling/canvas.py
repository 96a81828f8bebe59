"""The look of every figure: one palette, quiet axes, files that repeat.

Colour means one thing: a run's budget, on a perceptually even scale (plasma)
that also reads with colour-vision deficiencies and whose ends are cut so that
every shade stands off the paper. What a law says is drawn in ink. A budget
that was held out is told by its hollow markers, never by colour alone.

Figures are laid out for a page 360 points wide, so that they stay legible on a
phone; matplotlib is imported inside functions because it takes half a second.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import contextlib
import dataclasses
import html
import io
import math
from pathlib import Path
import re
from typing import Any

from bigdl.scaling.findings import power, si

INK, MUTED, GRID, PAPER = '#15181c', '#5a636d', '#e5e8eb', '#fffffe'
ROLES = {
  INK: 'var(--ink)',
  MUTED: 'var(--muted)',
  GRID: 'var(--grid)',
  PAPER: 'var(--card)',
}
SIZE = (5.0, 3.7)
Rect = tuple[float, float, float, float]
# Left, bottom, width and height of the axes, in shares of the figure: fixed,
# so that neighbours on the page line up.
AXES: Rect = (0.105, 0.155, 0.875, 0.735)
TICK, TEXT = 9.5, 10.0
MARK = 6.0


def shades(positions: Sequence[float], *, dark: bool = False) -> list[str]:
  """Returns one hex colour for each position in [0, 1]."""
  import matplotlib
  from matplotlib.colors import to_hex

  low, high = (0.36, 0.96) if dark else (0.02, 0.74)
  plasma = matplotlib.colormaps['plasma']
  return [to_hex(plasma(low + (high - low) * p)) for p in positions]


def positions(budgets: Sequence[float]) -> list[float]:
  """Returns where each budget lies from least to largest, by its log."""
  if len(budgets) < 2:
    return [0.35] * len(budgets)
  low, high = math.log(budgets[0]), math.log(budgets[-1])
  return [(math.log(b) - low) / (high - low) for b in budgets]


@contextlib.contextmanager
def style() -> Iterator[None]:
  """Sets what figures need, whatever the user's matplotlibrc says."""
  import matplotlib

  with matplotlib.rc_context():
    matplotlib.rcdefaults()
    matplotlib.rcParams.update(
      {
        'svg.fonttype': 'none',
        'svg.hashsalt': 'bigdl',
        'font.family': 'DejaVu Sans',
        'font.size': TEXT,
        # A dollar sign in a user's text starts no formula.
        'text.parse_math': False,
        'text.color': INK,
        'axes.edgecolor': MUTED,
        'axes.labelcolor': INK,
        'axes.labelsize': TEXT,
        'axes.linewidth': 0.7,
        'axes.spines.top': False,
        'axes.spines.right': False,
        'axes.spines.left': False,
        'axes.facecolor': PAPER,
        'axes.axisbelow': True,
        'figure.facecolor': PAPER,
        'grid.color': GRID,
        'grid.linewidth': 0.7,
        'xtick.color': MUTED,
        'ytick.color': MUTED,
        'xtick.labelsize': TICK,
        'ytick.labelsize': TICK,
        'xtick.major.size': 3,
        'ytick.major.size': 0,
        'xtick.major.width': 0.7,
        'lines.solid_capstyle': 'round',
        'lines.solid_joinstyle': 'round',
      }
    )
    yield


@dataclasses.dataclass
class Tip:
  """Words shown when a reader points at one mark."""

  text: str
  cell: str = ''  # The run that the mark belongs to, for linked highlights.


class Canvas:
  """A matplotlib figure with words behind its marks."""

  def __init__(self, size: tuple[float, float] = SIZE):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    self.figure = Figure(figsize=size)
    FigureCanvasAgg(self.figure)
    self.tips: dict[str, Tip] = {}

  def axes(self, rect: Rect = AXES) -> Any:
    axes = self.figure.add_axes(rect)
    axes.grid(True)
    return axes

  def tip(self, artist: Any, text: str, cell: str = '') -> None:
    gid = f'tip{len(self.tips)}'
    artist.set_gid(gid)
    self.tips[gid] = Tip(text, cell)

  def svg(self) -> str:
    """Returns the figure as SVG, the same for the same figure."""
    buffer = io.StringIO()
    nothing = {k: None for k in ('Date', 'Creator', 'Format', 'Type')}
    self.figure.savefig(buffer, format='svg', metadata=nothing)
    svg = re.sub(r'[ \t]+$', '', buffer.getvalue(), flags=re.MULTILINE)
    # Where matplotlib's font is not installed, the like of it.
    return svg.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, sans-serif")

  def save(self, stem: Path, *, dpi: int = 200) -> str:
    """Writes `stem.png` and `stem.svg`; returns the text of the latter."""
    self.figure.savefig(
      stem.with_suffix('.png'), dpi=dpi, metadata={'Software': None}
    )
    svg = self.svg()
    stem.with_suffix('.svg').write_text(svg, encoding='utf-8')
    return svg


def inline(
  svg: str,
  name: str,
  *,
  label: str,
  colors: dict[str, str],
  tips: dict[str, Tip],
) -> str:
  """Turns a figure's SVG into an element that follows the page's colours.

  Args:
    svg: What `Canvas.save` returned.
    name: Prefix that keeps ids unique over the page.
    label: What a screen reader says.
    colors: Hex colour to the CSS value in its place.
    tips: As on the canvas.
  """
  svg = svg[svg.index('<svg') :]
  box = re.search(r'viewBox="([^"]+)"', svg)
  assert box is not None, 'matplotlib always writes a viewBox'
  svg = svg[svg.index('>') + 1 :]
  svg = re.sub(r'<metadata>.*?</metadata>', '', svg, flags=re.DOTALL)
  svg = re.sub(
    r'<defs>\s*<style.*?</style>\s*</defs>', '', svg, flags=re.DOTALL
  )
  svg = re.sub(r'<!--.*?-->', '', svg, flags=re.DOTALL)
  svg = svg.replace('xlink:href="#', f'href="#{name}-')
  svg = svg.replace('url(#', f'url(#{name}-')
  svg = svg.replace(' id="', f' id="{name}-')
  svg = re.sub(r'#[0-9a-f]{6}(?=[;"])', lambda m: colors.get(m[0], m[0]), svg)
  svg = re.sub(
    r'font: ([0-9.]+)px [^;\"]*',
    lambda m: f'font: calc({m[1]}px * var(--scale)) var(--sans)',
    svg,
  )
  for gid, tip in tips.items():
    old = f'<g id="{name}-{gid}">'
    assert old in svg, f'{old} is missing from figure {name}'
    cell = f' data-cell="{html.escape(tip.cell)}"' if tip.cell else ''
    title = f'<title>{html.escape(tip.text)}</title>'
    svg = svg.replace(old, f'<g class="tip"{cell}>{title}')
  # Ids that nothing points at only make the page longer.
  used = set(re.findall(r'(?:href="|url\()#([^")]+)', svg))
  svg = re.sub(r' id="([^"]+)"', lambda m: m[0] if m[1] in used else '', svg)
  svg = re.sub(r'\n\s*', '\n', svg)
  open_tag = (
    f'<svg class="plot" viewBox="{box[1]}" role="img"'
    f' aria-label="{html.escape(label)}">'
  )
  return open_tag + svg.strip()


def log_ticks(low: float, high: float, most: int = 7) -> list[float]:
  """Returns round values in [low, high] for a logarithmic axis."""
  first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
  best: list[float] = []
  steps: tuple[tuple[float, ...], ...] = (
    (1,),
    (1, 3),
    (1, 2, 5),
    (1, 1.5, 2, 3, 5, 7),
    (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9),
  )
  for step in steps:
    ticks = [s * 10.0**e for e in range(first - 1, last + 1) for s in step]
    ticks = [t for t in ticks if low * 0.9999 <= t <= high * 1.0001]
    if len(ticks) > most:
      # So many decades that only every second or third is named.
      best = best or ticks[:: math.ceil(len(ticks) / most)]
      break
    best = ticks
  if len(best) < 2:
    return even_ticks(low, high)
  return best


def even_ticks(low: float, high: float, most: int = 7) -> list[float]:
  """Returns round, evenly spaced values in [low, high]."""
  span = high - low
  if span <= 0:
    return [low]
  raw = span / most
  scale = 10.0 ** math.floor(math.log10(raw))
  step = next(s * scale for s in (1, 2, 2.5, 5, 10) if s * scale >= raw * 0.999)
  start = math.ceil(low / step - 1e-9)
  stop = math.floor(high / step + 1e-9)
  return [round(k * step, 12) for k in range(start, stop + 1)]


def plain(ticks: Sequence[float]) -> list[str]:
  """Formats linear ticks with the decimals that tell them apart."""
  if len(ticks) < 2:
    return [f'{t:.4g}' for t in ticks]
  # A step of 0.25 needs two decimals although its width is above 0.1.
  gap = min(b - a for a, b in zip(ticks, ticks[1:], strict=False))
  decimals = next(
    (k for k in range(8) if abs(gap - round(gap, k)) <= 1e-6 * gap), 8
  )
  return [f'{t:.{decimals}f}'.replace('-', '−') for t in ticks]


def scale_axis(
  axes: Any, which: str, low: float, high: float, kind: str
) -> None:
  """Gives the x or y axis its limits, round ticks and their words.

  Args:
    axes: The matplotlib axes.
    which: 'x' or 'y'.
    low: Least value shown.
    high: Largest value shown.
    kind: 'power' (3×10¹²), 'si' (124M) and 'log' are logarithmic; 'linear'.
  """
  from matplotlib.ticker import NullLocator

  axis = getattr(axes, f'{which}axis')
  if kind == 'linear':
    ticks = even_ticks(low, high)
    names = plain(ticks)
  else:
    getattr(axes, f'set_{which}scale')('log')
    # Powers are wide words: fewer of them fit.
    ticks = log_ticks(low, high, 5 if kind == 'power' else 6)
    words = {'power': power, 'si': si, 'log': lambda x: f'{x:g}'}[kind]
    names = [words(t) for t in ticks]
  axis.set_minor_locator(NullLocator())
  axis.set_ticks(ticks, names)
  getattr(axes, f'set_{which}lim')(low, high)


def label_axes(axes: Any, x: str, y: str) -> None:
  """Names both axes horizontally: y above its axis, x below the right end."""
  axes.set_xlabel(x, loc='right', labelpad=4)
  axes.annotate(
    y,
    (0, 1),
    xycoords='axes fraction',
    xytext=(-34, 11),
    textcoords='offset points',
    ha='left',
    va='bottom',
    fontsize=TEXT,
    color=INK,
  )


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
  """Returns linear limits around the values."""
  low, high = min(values), max(values)
  pad = (high - low) * share or abs(low) * 0.02 or 1.0
  return low - pad, high + pad


def log_padded(
  values: Sequence[float], share: float = 0.06, right: float = 0.0
) -> tuple[float, float]:
  """Returns logarithmic limits; `right` adds room for labels at the end.

  Ends of intervals that know no bound do not count.
  """
  shown = [v for v in values if math.isfinite(v) and v > 0] or [1.0]
  low, high = min(shown), max(shown)
  span = math.log(high / low) or math.log(4)
  if high == low:
    low, high = low / 2, high * 2
  return low * math.exp(-share * span), high * math.exp((share + right) * span)


def spread(
  wanted: Sequence[float], gap: float, low: float, high: float
) -> list:
  """Moves positions apart until neighbours are `gap` away, within limits.

  Returns one position for each, in the order given. Where they do not all fit,
  the gap shrinks.
  """
  order = sorted(range(len(wanted)), key=lambda i: wanted[i])
  if len(order) > 1:
    gap = min(gap, (high - low) / (len(order) - 1))
  placed: list[float] = []
  for i in order:
    value = min(max(wanted[i], low), high)
    placed.append(max(value, placed[-1] + gap) if placed else value)
  # Where the pile ran over the top, push it back down from there.
  top = high
  for k in range(len(placed) - 1, -1, -1):
    placed[k] = min(placed[k], top)
    top = placed[k] - gap
  result = [0.0] * len(order)
  for i, value in zip(order, placed, strict=True):
    result[i] = value
  return result


def end_labels(
  axes: Any,
  entries: Sequence[tuple[float, float, str, str]],
  *,
  lines: int = 1,
) -> None:
  """Writes `(x, y, text, color)` right of line ends, kept apart vertically."""
  if not entries:
    return
  to_px, from_px = axes.transData, axes.transData.inverted()
  points = [to_px.transform((x, y)) for x, y, _, _ in entries]
  box = axes.get_window_extent()
  gap = TICK * 1.22 * lines * axes.figure.dpi / 72
  heights = spread(
    [p[1] for p in points], gap, box.y0 + gap / 2, box.y1 - gap / 3
  )
  for (x, _, text, color), point, height in zip(
    entries, points, heights, strict=True
  ):
    _, y = from_px.transform((point[0], height))
    axes.annotate(
      text,
      (x, y),
      xytext=(6, 0),
      textcoords='offset points',
      va='center',
      ha='left',
      fontsize=TICK,
      linespacing=1.1,
      color=color,
    )
