"""The stages of a run as a picture: a box each, an arrow from each stage that it starts from."""
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from llm_jax.config import schema
from llm_jax.config.errors import ConfigError
from llm_jax.config.stage_init import Init, Scratch
from llm_jax.report import svg
from llm_jax.report.records import objective_of

BOX_WIDTH, BOX_HEIGHT, GAP_X, GAP_Y, MARGIN = 184, 74, 72, 18, 4
INDENT, FIRST_LINE, LINE_HEIGHT = 12, 22, 20  # of the text in a box
MOST_CHARACTERS = 26
ARROW_HEAD = svg.element('defs', svg.element(
  'marker', svg.path('head', 'M0,0 L8,4 L0,8 z'), id='arrow', viewBox='0 0 8 8', refX=7, refY=4, markerWidth=7,
  markerHeight=7, orient='auto'))


@dataclasses.dataclass(frozen=True)
class _Place:
  """Where a box stands in the grid of boxes."""
  column: int
  row: int

  @property
  def left(self) -> int:
    return MARGIN + self.column * (BOX_WIDTH + GAP_X)

  @property
  def top(self) -> int:
    return MARGIN + self.row * (BOX_HEIGHT + GAP_Y)

  @property
  def middle(self) -> float:
    return self.top + BOX_HEIGHT / 2


def stage_graph(stages: Sequence[Mapping[str, Any]], results: Mapping[str, str], reached: Mapping[str, int]) -> str:
  """A `<figure>`.

  stages: their configurations as JSON, in the order of the run.
  results: by name, what a stage that has ended did, in a few words.
  reached: by name, the last step recorded.
  """
  by_name = {str(stage.get('name')): stage for stage in stages}
  places = _arrange(by_name)
  shapes = [ARROW_HEAD]
  for name, stage in by_name.items():
    shapes += _box(stage, places[name], results.get(name, ''), reached.get(name))
    for parent, label in _parents(stage).items():
      if parent in places:
        shapes += _arrow(places[parent], places[name], label)
  last_column = max(place.column for place in places.values())
  last_row = max(place.row for place in places.values())
  width = _Place(last_column, 0).left + BOX_WIDTH + MARGIN
  height = _Place(0, last_row).top + BOX_HEIGHT + MARGIN
  # As wide as it is drawn: text keeps its size, and a long recipe scrolls.
  picture = svg.element('svg', ''.join(shapes), class_='stages', viewBox=f'0 0 {width} {height}', role='img',
                        aria_label='stages', style=f'min-width: {width}px; max-width: {width}px')
  return f'<figure class="scroll">{picture}</figure>'


def _arrange(stages: Mapping[str, Mapping[str, Any]]) -> dict[str, _Place]:
  """Each stage right of those that it starts from, in the highest row from theirs on that is free."""
  places: dict[str, _Place] = {}
  free_rows: dict[int, int] = {}  # by column
  for name, stage in stages.items():
    parents = [places[parent] for parent in _parents(stage) if parent in places]
    column = 1 + max((place.column for place in parents), default=-1)
    row = free_rows.get(column, min((place.row for place in parents), default=0))
    places[name] = _Place(column, row)
    free_rows[column] = row + 1
  return places


def _init(stage: Mapping[str, Any]) -> Init:
  """Where the stage starts; one whose configuration cannot be read is drawn as if it started from scratch."""
  kinds: Any = Init  # a union
  try:
    return schema.read(kinds, stage.get('init'), 'init')
  except ConfigError:
    return Scratch()


def _parents(stage: Mapping[str, Any]) -> dict[str, str]:
  """The stages that it starts from, and what it takes from each: `params`, `average 3`, `average 200, 2 x last`."""
  init = _init(stage)
  return {parent: init.label(parent) for parent in init.parents}


def _box(stage: Mapping[str, Any], place: _Place, result: str, reached: int | None) -> list[str]:
  """result: '' where the stage has none yet.   reached: None where it has not started."""
  if result:
    state = 'done'
  elif reached:
    state = 'running'
  else:
    state = 'waiting'
  lines = (('name', str(stage.get('name'))), ('', _summary(stage, reached)), ('result', result or state))
  frame = svg.element('rect', class_=state, x=place.left, y=place.top, width=BOX_WIDTH, height=BOX_HEIGHT, rx=9)
  texts = [svg.text(css, place.left + INDENT, place.top + FIRST_LINE + LINE_HEIGHT * i, _shorten(words))
           for i, (css, words) in enumerate(lines)]
  return [frame, *texts]


def _summary(stage: Mapping[str, Any], reached: int | None) -> str:
  """What the stage learns, how far it is, and where it starts if that is no other stage."""
  total = stage.get('steps', 0)
  steps = f'{reached:,} of {total:,}' if reached and reached < total else f'{total:,} steps'
  origin = _init(stage).origin
  source = f', from {origin}' if origin else ''
  return f'{objective_of(stage).title}, {steps}{source}'


def _shorten(text: str) -> str:
  return text if len(text) <= MOST_CHARACTERS else text[:MOST_CHARACTERS - 1] + '…'


def _arrow(start: _Place, end: _Place, label: str) -> list[str]:
  x0 = start.left + BOX_WIDTH
  x1 = end.left
  bend = (x0 + x1) / 2
  curve = f'M{x0},{start.middle} C{bend},{start.middle} {bend},{end.middle} {x1 - 2},{end.middle}'
  return [svg.element('path', class_='arrow', marker_end='url(#arrow)', d=curve),
          svg.text('how', bend, end.middle - 7, label)]
