"""What the evaluations of a run show: their headlines, and the blocks that they left in the records."""
import itertools
from collections.abc import Sequence

from llm_jax.report.charts import Series, line_chart
from llm_jax.report.html import escape, table
from llm_jax.report.records import MetricsRecord
from llm_jax.tracking.display import Block, Curves, HeatMap, Table, from_record
from llm_jax.tracking.numbers import value

COLOURS = 'abcdef'


def headlines(records: Sequence[MetricsRecord]) -> dict[str, str]:
  """By the stage's name, what it did in a few words: the headline of the last evaluation of its list that has one."""
  found: dict[str, dict[str, str]] = {}
  for record in records:
    if record.get('kind') == 'display' and record.get('headline'):
      found.setdefault(str(record.get('stage')), {})[str(record.get('evaluation'))] = str(record['headline'])
  return {stage: list(by_evaluation.values())[-1] for stage, by_evaluation in found.items()}


def displays(records: Sequence[MetricsRecord]) -> str:
  """A section for every kind of display, with one figure for every stage that has it; '' where there is none."""
  sections: dict[tuple[str, str], list[Block]] = {}
  for block in _blocks(records):
    sections.setdefault((block.section, block.note), []).append(block)
  return ''.join(_section(heading, note, blocks, records) for (heading, note), blocks in sections.items())


def _blocks(records: Sequence[MetricsRecord]) -> list[Block]:
  blocks: list[Block] = []
  for record in records:
    if record.get('kind') != 'display':
      continue
    for each in record.get('blocks') or ():
      block = from_record(each) if isinstance(each, dict) else None
      if block is not None:
        blocks.append(block)
  return blocks


def _section(heading: str, note: str, blocks: Sequence[Block], records: Sequence[MetricsRecord]) -> str:
  figures = ''.join(_figure(block, records) for block in blocks)
  below = f'<p class="note">{escape(note)}</p>' if note else ''
  return f'<h2>{escape(heading)}</h2><div class="charts">{figures}</div>{below}'


def _figure(block: Block, records: Sequence[MetricsRecord]) -> str:
  match block:
    case Curves():
      return _curves(block, records)
    case HeatMap():
      return _heat_map(block)
    case Table():
      caption = f'<figcaption>{escape(block.title)}</figcaption>'
      return f'<figure class="scroll">{caption}{table(block.head, block.rows, "words")}</figure>'


def _curves(block: Curves, records: Sequence[MetricsRecord]) -> str:
  """A line for each metric; '' where the stage was evaluated at its end alone."""
  own = [record for record in records if record.get('stage') == block.stage and record.get('kind') in ('eval', 'final')]
  lines: list[Series] = []
  for (label, name), colour in zip(block.lines, itertools.cycle(COLOURS)):
    points = {record['step']: value(record, name) for record in own if name in record}
    if len(points) > 1:
      lines.append(Series(label, list(points), list(points.values()), colour))
  return line_chart(block.title, lines, y_label=block.label) if lines else ''


def _heat_map(block: HeatMap) -> str:
  head = ''.join(f'<th>{escape(column)}</th>' for column in block.columns)
  rows: list[str] = []
  for label, shares in block.rows:
    cells = ''.join(_cell(share) for share in shares)
    rows.append(f'<tr><td>{escape(label)}</td>{cells}</tr>')
  return (f'<figure class="scroll"><figcaption>{escape(block.title)}</figcaption>'
          f'<table class="heat"><tr><th>depth</th>{head}</tr>{"".join(rows)}</table></figure>')


def _cell(share: float) -> str:
  colour = f'color-mix(in srgb, var(--c) {70 * share:.0f}%, transparent)'
  return f'<td style="background: {colour}">{100 * share:.0f}</td>'
