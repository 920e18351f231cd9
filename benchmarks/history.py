"""The ratios of all benchmarks over time: a table here, a page of charts in benchmarks/results/history.html.

python -m benchmarks.history [--results FOLDER] [--output FILE]
"""
import argparse
import dataclasses
import inspect
import pathlib
from collections.abc import Iterable, Sequence

from benchmarks.ratios import RATIOS, Ratios
from benchmarks.records import RESULTS, Record, read_records
from llm_jax.report.html import escape, page, table

COLOURS = 'abcdef'  # of the page's style sheet
WIDTH, HEIGHT = 440, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 16, 14, 40
MOST_LABELS = 5  # below an axis; more run into each other
NEAR_ONE = 0.3  # an axis of greater ratios reaches 1, so that they are seen beside it

STYLE = '<style>.one { stroke: var(--muted); stroke-dasharray: 3 3; fill: none; }</style>'


@dataclasses.dataclass(frozen=True)
class Measured:
  """A result file and the ratios in it."""
  record: Record
  ratios: Ratios

  @property
  def label(self) -> str:
    return f'{self.record.time:%Y-%m-%d} {self.record.commit}'


def measured(records: Iterable[Record]) -> dict[str, list[Measured]]:
  """The results of each benchmark, in the order of RATIOS, then of time.

  Raises:
    KeyError: a folder of results is of no benchmark in RATIOS.
  """
  found = {name: [] for name in RATIOS}
  for record in records:
    found[record.benchmark].append(Measured(record, RATIOS[record.benchmark](record.content)))
  return {name: results for name, results in found.items() if results}


def names_of(results: Sequence[Measured]) -> list[str]:
  """Every ratio that one of the results has, in the order in which they first occur."""
  return list(dict.fromkeys(name for each in results for name in each.ratios))


# ---------------------------------------------------------------------------------------------- the terminal
def print_table(history: dict[str, list[Measured]]) -> None:
  """One line for each ratio on each machine: how often it was measured, its first and last value, its range."""
  print(f"{'benchmark':21}{'ratio':33}{'machine':12}{'n':>3}{'first':>8}{'last':>8}{'least':>8}{'most':>8}")
  for benchmark, results in history.items():
    for name in names_of(results):
      for machine, values in by_machine(results, name).items():
        numbers = (values[0], values[-1], min(values), max(values))
        print(f'{benchmark:21}{name:33}{machine:12}{len(values):3}' + ''.join(f'{value:8.3f}' for value in numbers))


def by_machine(results: Sequence[Measured], name: str) -> dict[str, list[float]]:
  """The values of one ratio on each machine, by time."""
  values = {}
  for each in results:
    if name in each.ratios:
      values.setdefault(each.record.machine, []).append(each.ratios[name])
  return values


# ---------------------------------------------------------------------------------------------- the page
def render(history: dict[str, list[Measured]]) -> str:
  """The page: for every benchmark what its ratios mean, a chart of each, and the numbers."""
  machines = sorted({each.record.machine for results in history.values() for each in results})
  colours = {machine: COLOURS[number % len(COLOURS)] for number, machine in enumerate(machines)}
  body = [
    STYLE,
    '<h1>Benchmarks over time</h1>',
    '<p class="muted">Ratios, each measured side by side in one run. The dashed line is 1. Every point is a result '
    'file in <code>benchmarks/results</code>, named by its date, commit and machine.</p>',
  ]
  for benchmark, results in history.items():
    body.append(f'<h2>{escape(benchmark)}</h2><p>{escape(inspect.getdoc(RATIOS[benchmark]))}</p>')
    charts = [chart(name, results, colours) for name in names_of(results)]
    body.append(f'<div class="charts">{"".join(charts)}</div>')
    body.append(f'<h3>Numbers</h3>{numbers(results)}')
  return page('llm_jax: benchmarks over time', body)


def numbers(results: Sequence[Measured]) -> str:
  """One row a result, the newest first."""
  names = names_of(results)
  rows = []
  for each in reversed(results):
    values = [f'{each.ratios[name]:.3f}' if name in each.ratios else '' for name in names]
    rows.append([each.label, each.record.machine, *values])
  return table(['result', 'machine', *names], rows, 'words')


def chart(name: str, results: Sequence[Measured], colours: dict[str, str]) -> str:
  """One ratio over the results that have it, evenly spaced: a line for each machine, a dot for each result."""
  points = [each for each in results if name in each.ratios]
  values = [each.ratios[name] for each in points]
  greatest = max(values)
  near_one = greatest > NEAR_ONE
  high = 1.05 * (max(greatest, 1.0) if near_one else greatest)
  step = (WIDTH - LEFT - RIGHT) / len(points)
  x = lambda number: LEFT + (number + 0.5) * step
  y = lambda value: HEIGHT - BOTTOM - (HEIGHT - BOTTOM - TOP) * value / high
  drawing = [*grid(high, y), *labels(points, x)]
  used = dict.fromkeys(each.record.machine for each in points)
  for machine in used:
    own = [number for number, each in enumerate(points) if each.record.machine == machine]
    line = ' '.join(f'{x(number):.1f},{y(values[number]):.1f}' for number in own)
    drawing.append(f'<polyline class="curve {colours[machine]}" points="{line}"/>')
    for number in own:
      title = escape(f'{points[number].label} on {machine}: {values[number]:.3f}')
      drawing.append(f'<circle class="dot {colours[machine]}" cx="{x(number):.1f}" cy="{y(values[number]):.1f}" r="4">'
                     f'<title>{title}</title></circle>')
  legend = ''.join(f'<span class="key {colours[machine]}">{escape(machine)}</span>' for machine in used)
  caption = f'<figcaption>{escape(name)}<span class="legend">{legend}</span></figcaption>'
  svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(name)}">{"".join(drawing)}</svg>'
  return f'<figure>{caption}{svg}</figure>'


def grid(high: float, y) -> list[str]:
  """Lines at even values from 0 to `high`, and a dashed one at 1 where that is among them."""
  spacing = next(size for size in (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, high) if high / size <= 6)
  drawing = []
  for number in range(int(high / spacing) + 1):
    value = number * spacing
    drawing.append(f'<path class="grid" d="M{LEFT} {y(value):.1f}H{WIDTH - RIGHT}"/>'
                   f'<text class="tick" x="{LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{value:g}</text>')
  if high >= 1:
    drawing.append(f'<path class="one" d="M{LEFT} {y(1.0):.1f}H{WIDTH - RIGHT}"/>')
  return drawing


def labels(points: Sequence[Measured], x) -> list[str]:
  """Date and commit below some of the points, the last among them."""
  stride = -(-len(points) // MOST_LABELS)
  drawing = []
  for number in range(len(points) - 1, -1, -stride):
    record = points[number].record
    at = f'x="{x(number):.1f}" text-anchor="middle"'
    drawing.append(f'<text class="tick" y="{HEIGHT - 22}" {at}>{record.time:%d %b %y}</text>'
                   f'<text class="tick" y="{HEIGHT - 6}" {at}>{escape(record.commit)}</text>')
  return drawing


def main(argv: Sequence[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument('--results', type=pathlib.Path, default=RESULTS, metavar='FOLDER')
  parser.add_argument('--output', type=pathlib.Path, default=RESULTS / 'history.html', metavar='FILE')
  args = parser.parse_args(argv)
  history = measured(read_records(args.results))
  print_table(history)
  args.output.write_text(render(history), encoding='utf-8')
  print(args.output)
  return 0


if __name__ == '__main__':
  raise SystemExit(main())
