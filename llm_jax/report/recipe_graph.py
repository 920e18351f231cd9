"""The stages of a run as a picture: a box each, an arrow from each stage that it starts from."""
import html
from collections.abc import Mapping, Sequence
from typing import Any

from llm_jax.config import schema
from llm_jax.config.errors import ConfigError
from llm_jax.config.stage_init import Init, Scratch
from llm_jax.report.records import objective_of

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN = 164, 74, 56, 18, 4


def stage_graph(stages: Sequence[Mapping[str, Any]], results: Mapping[str, str], reached: Mapping[str, int]) -> str:
  """A `<figure>`.

  stages: their configurations, in the order of the run.   results: by name, the number that says what a stage did.
  reached: by name, the last step recorded.
  """
  by_name = {str(stage.get('name')): stage for stage in stages}
  places, rows = {}, {}
  for name, stage in by_name.items():
    before = [places[parent] for parent in _parents(stage) if parent in places]
    column = 1 + max((place[0] for place in before), default=-1)
    places[name] = column, rows.get(column, min((place[1] for place in before), default=0))
    rows[column] = places[name][1] + 1
  columns, height = (1 + max(place[i] for place in places.values()) for i in (0, 1))
  width = columns * (BOX_WIDTH + GAP_X) - GAP_X + 2 * MARGIN
  height = height * (BOX_HEIGHT + GAP_Y) - GAP_Y + 2 * MARGIN
  corner = {name: (MARGIN + x * (BOX_WIDTH + GAP_X), MARGIN + y * (BOX_HEIGHT + GAP_Y))
            for name, (x, y) in places.items()}
  parts = ['<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
           'orient="auto">'
           '<path class="head" d="M0,0 L8,4 L0,8 z"/></marker></defs>']
  for name, stage in by_name.items():
    parts += _box(stage, *corner[name], results.get(name, ''), reached.get(name))
    for parent, how in _parents(stage).items():
      if parent in corner:
        parts += _arrow(corner[parent], corner[name], how)
  # As wide as it is drawn: text keeps its size, and a long recipe scrolls.
  return (f'<figure class="scroll"><svg class="stages" viewBox="0 0 {width} {height}" role="img" aria-label="stages" '
          f'style="min-width: {width}px; max-width: {width}px">' + ''.join(parts) + '</svg></figure>')


def _init(stage: Mapping[str, Any]) -> Init:
  """Where the stage starts; one whose configuration cannot be read is drawn as if it started from scratch."""
  try:
    return schema.read(Init, stage.get('init'), 'init')
  except ConfigError:
    return Scratch()


def _parents(stage: Mapping[str, Any]) -> dict[str, str]:
  """The stages that it starts from, and what it takes from each: `params`, `average 3`, `average 200, 2 x last`."""
  init = _init(stage)
  return {parent: init.label(parent) for parent in init.parents}


def _box(stage: Mapping[str, Any], x: int, y: int, result: str, reached: int | None) -> list[str]:
  steps = stage.get('steps', 0)
  state = 'done' if result else 'running' if reached else 'waiting'
  done = f'{reached:,} of {steps:,}' if reached and reached < steps else f'{steps:,} steps'
  origin = _init(stage).origin
  source = f', from {origin}' if origin else ''
  lines = [('name', str(stage.get('name'))), ('', f'{objective_of(stage).title}, {done}{source}'),
           ('result', result or state)]
  text = ''.join(f'<text class="{css}" x="{x + 12}" y="{y + 22 + 20 * i}">{html.escape(_short(line))}</text>'
                 for i, (css, line) in enumerate(lines))
  return [f'<rect class="{state}" x="{x}" y="{y}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="9"/>', text]


def _short(text: str, most: int = 26) -> str:
  return text if len(text) <= most else text[:most - 1] + '…'


def _arrow(start: tuple[int, int], end: tuple[int, int], label: str) -> list[str]:
  x0, y0, x1, y1 = start[0] + BOX_WIDTH, start[1] + BOX_HEIGHT / 2, end[0], end[1] + BOX_HEIGHT / 2
  middle = (x0 + x1) / 2
  return [f'<path class="arrow" marker-end="url(#arrow)" d="M{x0},{y0} C{middle},{y0} {middle},{y1} {x1 - 2},{y1}"/>',
          f'<text class="how" x="{middle}" y="{y1 - 7}">{html.escape(label)}</text>']
