"""Line charts as inline SVG, drawn by hand: nothing to install, colours from the page's style sheet."""
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence

from llm_jax.report import svg
from llm_jax.report.html import escape
from llm_jax.tracking.numbers import tick

WIDTH, HEIGHT = 440, 280
LEFT, RIGHT, TOP, BOTTOM = 54, 18, 26, 40
STAGE_NAMES = 18  # height of the strip above the curves that names stages
LETTER_WIDTH = 7  # about, of a stage's name
MAX_POINTS = 500
OUTLIERS = 200  # one in so many at either end of faint values decides nothing about the axis
LEAST_TICKS, MOST_TICKS = 4, 8
# Which multiples of the powers of ten a logarithmic axis shows, the fewest first.
LOG_DIGITS = ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8))


@dataclasses.dataclass(frozen=True)
class Series:
  """Points of one curve.

  colour: 'a' to 'f'.
  style: 'line', 'faint' (the raw values) or 'dots' (joined).
  """
  name: str
  xs: Sequence[float]
  ys: Sequence[float]
  colour: str = 'a'
  style: str = 'line'

  def finite(self) -> list[tuple[float, float]]:
    return [(x, y) for x, y in zip(self.xs, self.ys, strict=True) if math.isfinite(y)]

  def above_zero(self) -> 'Series':
    """The same with gaps where a value has no logarithm."""
    return dataclasses.replace(self, ys=[y if y > 0 else math.nan for y in self.ys])


def line_chart(title: str, series: Sequence[Series], *, y_label: str, x_label: str = 'step', log_y: bool = False,
               from_zero: bool = False, boundaries: Sequence[tuple[float, str]] = ()) -> str:
  """A `<figure>`: title, legend, axes with ticks, curves. Values that are not finite leave gaps; none at all is said.

  log_y: values must be above 0 to be drawn.
  from_zero: whether the axis begins at 0.
  boundaries: (x, name) where a stage begins, drawn from the second on.
  """
  if log_y:
    series = [each.above_zero() for each in series]
  caption = f'<figcaption>{escape(title)}{_legend(series)}</figcaption>'
  points = [point for each in series for point in each.finite()]
  if not points:
    return f'<figure>{caption}<p class="nothing">nothing recorded yet</p></figure>'
  top = TOP + STAGE_NAMES if len(boundaries) > 1 else TOP
  low, high = _y_range(series, log_y, from_zero)
  x_axis = _Axis(0, max(x for x, _ in points) or 1, LEFT, WIDTH - RIGHT)
  y_axis = _Axis(low, high, HEIGHT - BOTTOM, top, log_y)
  clip = 'clip-' + ''.join(letter if letter.isalnum() else '-' for letter in title.lower())
  clipped = svg.element('rect', x=LEFT, y=top, width=WIDTH - LEFT - RIGHT, height=HEIGHT - top - BOTTOM)
  drawing = [
    svg.element('clipPath', clipped, id=clip),
    *_grid(x_axis, y_axis, x_label, y_label),
    *_boundaries(boundaries, x_axis),
    *(_curve(each, x_axis, y_axis, clip) for each in series),
  ]
  picture = svg.element('svg', '\n'.join(drawing), viewBox=f'0 0 {WIDTH} {HEIGHT}', role='img', aria_label=title)
  return f'<figure>{caption}{picture}</figure>'


# ---------------------------------------------------------------------------------------------- points
def smooth(ys: Sequence[float], reach: int) -> list[float]:
  """Means over `reach` points to either side; what is not finite is passed over.

  The window shrinks evenly towards the start, where curves are steep, and only on its right side towards the end: so
  the first mean is the first point, and the last one still that of `reach` + 1 points.
  """
  finite = [math.isfinite(y) for y in ys]
  sums = [0.0, *itertools.accumulate(y if is_finite else 0.0 for y, is_finite in zip(ys, finite, strict=True))]
  counts = [0, *itertools.accumulate(finite)]
  means: list[float] = []
  for i in range(len(ys)):
    start = i - min(reach, i)
    end = min(i + min(reach, i) + 1, len(ys))
    number = counts[end] - counts[start]
    means.append((sums[end] - sums[start]) / number if number else math.nan)
  return means


def thin(xs: Sequence[float], ys: Sequence[float], most: int = MAX_POINTS) -> tuple[list[float], list[float]]:
  """At most about `most` points: each run of neighbours becomes the one in it that lies lowest or highest, in turn, so
  that the spread stays visible. The last point always stays."""
  stride = math.ceil(len(xs) / most)
  if stride <= 1:
    return list(xs), list(ys)
  chosen = {len(xs) - 1}
  for turn, start in enumerate(range(0, len(xs), stride)):
    group = range(start, min(start + stride, len(xs)))
    finite = [i for i in group if math.isfinite(ys[i])] or list(group)
    pick = min if turn % 2 else max
    chosen.add(pick(finite, key=lambda i: ys[i]))
  kept = sorted(chosen)
  return [xs[i] for i in kept], [ys[i] for i in kept]


# ---------------------------------------------------------------------------------------------- axes
@dataclasses.dataclass(frozen=True)
class _Axis:
  """Values from `low` to `high` at pixels from `start` to `end`."""
  low: float
  high: float
  start: float
  end: float
  log: bool = False

  def __call__(self, value: float) -> float:
    """The pixel of a value."""
    low, high = self.low, self.high
    if self.log:
      low, high, value = math.log(low), math.log(high), math.log(value)
    return self.start + (self.end - self.start) * (value - low) / (high - low)

  def ticks(self) -> list[float]:
    found = self._log_ticks() if self.log else []
    return found or self._even_ticks()

  def _log_ticks(self) -> list[float]:
    """Powers of ten and multiples of them; [] where the range is so narrow that even steps read better."""
    powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
    for digits in LOG_DIGITS:
      ticks = self._inside([digit * 10.0 ** power for power in powers for digit in digits])
      if LEAST_TICKS <= len(ticks) <= MOST_TICKS:
        return ticks
    if len(powers) <= MOST_TICKS:
      return []
    stride = math.ceil(len(powers) / MOST_TICKS)
    return self._inside([10.0 ** power for power in powers[::stride]])

  def _even_ticks(self) -> list[float]:
    step = _round_up((self.high - self.low) / 5)
    first = math.ceil(self.low / step - 1e-9)
    last = math.floor(self.high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]

  def _inside(self, values: Sequence[float]) -> list[float]:
    return [value for value in values if self.low <= value <= self.high]


def _round_up(value: float) -> float:
  """The smallest of 1, 2, 5 x 10^k that is at least `value`."""
  power = 10.0 ** math.floor(math.log10(value))
  return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= value * (1 - 1e-9))


def _y_range(series: Sequence[Series], log_y: bool, from_zero: bool) -> tuple[float, float]:
  """All of the curves, and of faint ones what lies between their 0.5 and 99.5 percentiles; some room around."""
  values: list[float] = []
  for each in series:
    ys = sorted(y for _, y in each.finite())
    cut = len(ys) // OUTLIERS if each.style == 'faint' else 0
    values += ys[cut:len(ys) - cut]
  low, high = min(values), max(values)
  if log_y:
    factor = (high / low) ** 0.04 if high > low else 1.2
    return low / factor, high * factor
  room = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
  return min(0.0, low) if from_zero else low - room, high + room


# ---------------------------------------------------------------------------------------------- shapes
def _legend(series: Sequence[Series]) -> str:
  if len(series) < 2:
    return ''
  keys = [f'<span class="key {each.colour} {each.style}">{escape(each.name)}</span>' for each in series]
  return f'<span class="legend">{"".join(keys)}</span>'


def _grid(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str) -> list[str]:
  bottom = y_axis.start
  right = WIDTH - RIGHT
  shapes: list[str] = []
  for value in y_axis.ticks():
    y = y_axis(value)
    shapes.append(svg.path('grid', f'M{LEFT} {y:.1f}H{right}')
                  + svg.text('tick', LEFT - 6, f'{y + 4:.1f}', tick(value), 'end'))
  for value in x_axis.ticks():
    x = x_axis(value)
    shapes.append(svg.path('axis', f'M{x:.1f} {bottom}v5')
                  + svg.text('tick', f'{x:.1f}', bottom + 19, tick(value), 'middle'))
  shapes.append(svg.path('axis', f'M{LEFT} {bottom}H{right}'))
  shapes.append(svg.text('label', (LEFT + right) / 2, HEIGHT - 3, x_label, 'middle'))
  # Above its axis rather than along it: there it stays readable on a phone.
  shapes.append(svg.text('label', 4, 14, y_label))
  return shapes


def _boundaries(boundaries: Sequence[tuple[float, str]], x_axis: _Axis) -> list[str]:
  """A dashed line and a name where each stage begins; a name without room is left out."""
  if len(boundaries) < 2:
    return []
  ends = [*(start for start, _ in boundaries[1:]), x_axis.high]
  shapes: list[str] = []
  for i, ((start, name), end) in enumerate(zip(boundaries, ends, strict=True)):
    x = x_axis(start)
    margin = 5 if i else 0
    if i:
      shapes.append(svg.path('boundary', f'M{x:.1f} {TOP}V{HEIGHT - BOTTOM}'))
    if len(name) * LETTER_WIDTH + 8 <= x_axis(end) - x:
      shapes.append(svg.text('stage', f'{x + margin:.1f}', TOP + 10, name))
  return shapes


def _curve(series: Series, x_axis: _Axis, y_axis: _Axis, clip: str) -> str:
  """Polylines between the gaps, and dots for 'dots' and for points that stand alone. Faint ones may leave the axes'
  range, and are cut there."""
  xs, ys = (series.xs, series.ys) if series.style == 'dots' else thin(series.xs, series.ys)
  clip_path = f'url(#{clip})' if series.style == 'faint' else None
  shapes: list[str] = []
  for piece in _between_gaps(xs, ys):
    places = [(f'{x_axis(x):.1f}', f'{y_axis(y):.1f}') for x, y in piece]
    if len(places) > 1:
      points = ' '.join(f'{x},{y}' for x, y in places)
      shapes.append(svg.element('polyline', class_=f'curve {series.colour} {series.style}', points=points,
                                clip_path=clip_path))
    if series.style == 'dots' or len(places) == 1:
      shapes += [svg.element('circle', class_=f'dot {series.colour}', cx=x, cy=y, r=3, clip_path=clip_path)
                 for x, y in places]
  return ''.join(shapes)


def _between_gaps(xs: Sequence[float], ys: Sequence[float]) -> Iterator[list[tuple[float, float]]]:
  """Runs of neighbouring points that are finite."""
  piece: list[tuple[float, float]] = []
  for x, y in zip(xs, ys, strict=True):
    if math.isfinite(y):
      piece.append((x, y))
    elif piece:
      yield piece
      piece = []
  if piece:
    yield piece
