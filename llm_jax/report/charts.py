"""Line charts as inline SVG, drawn by hand: nothing to install, colours from the page's style sheet."""
import dataclasses
import html
import itertools
import math
from collections.abc import Sequence

WIDTH, HEIGHT = 440, 280
LEFT, RIGHT, TOP, BOTTOM = 54, 18, 26, 40
STAGE_NAMES = 18  # height of the strip above the curves that names stages
MAX_POINTS = 500


@dataclasses.dataclass(frozen=True)
class Series:
  """Points of one curve. colour: 'a' to 'f'. style: 'line', 'faint' (the raw values) or 'dots' (joined)."""
  name: str
  xs: Sequence[float]
  ys: Sequence[float]
  colour: str = 'a'
  style: str = 'line'

  def finite(self) -> list[tuple[float, float]]:
    return [(x, y) for x, y in zip(self.xs, self.ys, strict=True) if math.isfinite(y)]


def line_chart(title: str, series: Sequence[Series], *, y_label: str, x_label: str = 'step', log_y: bool = False,
               from_zero: bool = False, boundaries: Sequence[tuple[float, str]] = ()) -> str:
  """A `<figure>`: title, legend, axes with ticks, curves. Values that are not finite leave gaps; none at all is said.

  log_y: values must be above 0 to be drawn.   boundaries: (x, name) where a stage begins, drawn from the second on.
  """
  series = [_positive(s) if log_y else s for s in series]
  caption = f'<figcaption>{html.escape(title)}{_legend(series)}</figcaption>'
  points = [point for s in series for point in s.finite()]
  if not points:
    return f'<figure>{caption}<p class="nothing">nothing recorded yet</p></figure>'
  top = TOP + (STAGE_NAMES if len(boundaries) > 1 else 0)
  x_axis = _Axis(0, max(x for x, _ in points) or 1, LEFT, WIDTH - RIGHT)
  y_axis = _Axis(*_y_range(series, log_y, from_zero), HEIGHT - BOTTOM, top, log_y)
  identifier = 'clip-' + ''.join(c if c.isalnum() else '-' for c in title.lower())
  drawing = [
      f'<clipPath id="{identifier}"><rect x="{LEFT}" y="{top}" width="{WIDTH - LEFT - RIGHT}" '
      f'height="{HEIGHT - top - BOTTOM}"/></clipPath>',
      *_grid(x_axis, y_axis, x_label, y_label), *_boundaries(boundaries, x_axis),
      *(_curve(s, x_axis, y_axis, identifier) for s in series)]
  return (f'<figure>{caption}<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">'
          + '\n'.join(drawing) + '</svg></figure>')


def smooth(ys: Sequence[float], reach: int) -> list[float]:
  """Means over `reach` points to either side; what is not finite is passed over.

  The window shrinks evenly towards the start, where curves are steep, and only on its right side towards the end: so
  the first mean is the first point, and the last one still that of `reach` + 1 points.
  """
  finite = [math.isfinite(y) for y in ys]
  sums = [0.0, *itertools.accumulate(y if f else 0.0 for y, f in zip(ys, finite, strict=True))]
  counts = [0, *itertools.accumulate(finite)]
  windows = ((i - min(reach, i), min(i + min(reach, i), len(ys) - 1) + 1) for i in range(len(ys)))
  return [(sums[b] - sums[a]) / (counts[b] - counts[a]) if counts[b] > counts[a] else math.nan for a, b in windows]


def thin(xs: Sequence[float], ys: Sequence[float], most: int = MAX_POINTS) -> tuple[list[float], list[float]]:
  """At most about `most` points: each run of neighbours becomes the one in it that lies lowest or highest, in turn, so
  that the spread stays visible. The last point always stays."""
  stride = math.ceil(len(xs) / most)
  if stride <= 1:
    return list(xs), list(ys)
  chosen = []
  for turn, start in enumerate(range(0, len(xs), stride)):
    group = range(start, min(start + stride, len(xs)))
    finite = [i for i in group if math.isfinite(ys[i])] or list(group)
    chosen.append((min if turn % 2 else max)(finite, key=lambda i: ys[i]))
  chosen.append(len(xs) - 1)
  chosen = sorted(set(chosen))
  return [xs[i] for i in chosen], [ys[i] for i in chosen]


@dataclasses.dataclass(frozen=True)
class _Axis:
  low: float
  high: float
  start: float  # pixels
  end: float
  log: bool = False

  def __call__(self, value: float) -> float:
    low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
    return self.start + (self.end - self.start) * (value - low) / (high - low)

  def ticks(self) -> list[float]:
    if self.log:
      decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
      for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        ticks = [d * 10.0 ** k for k in decades for d in digits if self.low <= d * 10.0 ** k <= self.high]
        if 4 <= len(ticks) <= 8:
          return ticks
      if len(decades) > 8:
        return [10.0 ** k for k in decades[::math.ceil(len(decades) / 8)] if self.low <= 10.0 ** k <= self.high]
    step = _nice((self.high - self.low) / 5)
    first = math.ceil(self.low / step - 1e-9)
    return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def _nice(value: float) -> float:
  """The smallest of 1, 2, 5 x 10^k that is at least `value`."""
  power = 10.0 ** math.floor(math.log10(value))
  return next(m * power for m in (1, 2, 5, 10) if m * power >= value * (1 - 1e-9))


def _positive(s: Series) -> Series:
  return dataclasses.replace(s, ys=[y if y > 0 else math.nan for y in s.ys])


def _y_range(series: Sequence[Series], log_y: bool, from_zero: bool) -> tuple[float, float]:
  """All of the curves, and of faint ones what lies between their 0.5 and 99.5 percentiles; some room around."""
  values: list[float] = []
  for s in series:
    ys = sorted(y for _, y in s.finite())
    cut = len(ys) // 200 if s.style == 'faint' else 0
    values += ys[cut:len(ys) - cut]
  low, high = min(values), max(values)
  if log_y:
    room = (high / low) ** 0.04 if high > low else 1.2
    return low / room, high * room
  room = 0.05 * (high - low) or abs(high) * 0.1 or 1.0
  return (min(0.0, low) if from_zero else low - room), high + room


def _legend(series: Sequence[Series]) -> str:
  if len(series) < 2:
    return ''
  keys = (f'<span class="key {s.colour} {s.style}">{html.escape(s.name)}</span>' for s in series)
  return f'<span class="legend">{"".join(keys)}</span>'


def _grid(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str) -> list[str]:
  bottom, right = y_axis.start, WIDTH - RIGHT
  out = []
  for value in y_axis.ticks():
    y = y_axis(value)
    out.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>'
               f'<text class="tick" x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{number(value)}</text>')
  for value in x_axis.ticks():
    x = x_axis(value)
    out.append(f'<path class="axis" d="M{x:.1f} {bottom}v5"/>'
               f'<text class="tick" x="{x:.1f}" y="{bottom + 19}" text-anchor="middle">{number(value)}</text>')
  out.append(f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>')
  out.append(f'<text class="label" x="{(LEFT + right) / 2}" y="{HEIGHT - 3}" text-anchor="middle">'
             f'{html.escape(x_label)}</text>')
  # Above its axis rather than along it: there it stays readable on a phone.
  out.append(f'<text class="label" x="4" y="14">{html.escape(y_label)}</text>')
  return out


def _boundaries(boundaries: Sequence[tuple[float, str]], x_axis: _Axis) -> list[str]:
  """A dashed line and a name where each stage begins; a name without room is left out."""
  if len(boundaries) < 2:
    return []
  out, ends = [], [*(x for x, _ in boundaries[1:]), x_axis.high]
  for i, ((begin, name), end) in enumerate(zip(boundaries, ends, strict=True)):
    x, room = x_axis(begin), x_axis(end) - x_axis(begin)
    if i:
      out.append(f'<path class="boundary" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
    if len(name) * 7 + 8 <= room:
      out.append(f'<text class="stage" x="{x + (5 if i else 0):.1f}" y="{TOP + 10}">{html.escape(name)}</text>')
  return out


def _curve(s: Series, x_axis: _Axis, y_axis: _Axis, clip: str) -> str:
  """Polylines between the gaps, and dots for 'dots' and for points that stand alone. Faint ones may leave the axes'
  range, and are cut there."""
  cut = f' clip-path="url(#{clip})"' if s.style == 'faint' else ''
  xs, ys = (s.xs, s.ys) if s.style == 'dots' else thin(s.xs, s.ys)
  pieces: list[list[str]] = [[]]
  for x, y in zip(xs, ys, strict=True):
    if math.isfinite(y):
      pieces[-1].append(f'{x_axis(x):.1f},{y_axis(y):.1f}')
    elif pieces[-1]:
      pieces.append([])
  out = []
  for piece in pieces:
    if len(piece) > 1:
      out.append(f'<polyline class="curve {s.colour} {s.style}" points="{" ".join(piece)}"{cut}/>')
    if s.style == 'dots' or len(piece) == 1:
      out += ['<circle class="dot {}" cx="{}" cy="{}" r="3"{}/>'.format(s.colour, *point.split(','), cut)
              for point in piece]
  return ''.join(out)


def number(value: float) -> str:
  """A tick's text, short: 0.5, 20, 1.5k, 3M, 3e-4."""
  if value == 0:
    return '0'
  if abs(value) < 1e-2:
    mantissa, exponent = f'{value:.2e}'.split('e')
    return f'{float(mantissa):g}e{int(exponent)}'
  for scale, suffix in ((1e12, 'T'), (1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if abs(value) >= scale:
      return f'{value / scale:.4g}{suffix}'
  return f'{value:.4g}'
