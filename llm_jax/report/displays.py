"""What the evaluations of a run show: their headlines, and the blocks that they left in the records."""
import html
from collections.abc import Mapping, Sequence
from typing import Any

from llm_jax.report.html import table
from llm_jax.tracking.display import Block, HeatMap, Table, from_record

Record = Mapping[str, Any]


def headlines(records: Sequence[Record]) -> dict[str, str]:
  """By the stage's name, what it did in a few words: the headline of the last evaluation of its list that has one."""
  found: dict[str, dict[str, str]] = {}
  for record in records:
    if record.get('kind') == 'display' and record.get('headline'):
      found.setdefault(str(record.get('stage')), {})[str(record.get('evaluation'))] = str(record['headline'])
  return {stage: list(by_evaluation.values())[-1] for stage, by_evaluation in found.items()}


def displays(records: Sequence[Record]) -> str:
  """A section for every kind of display, with one figure for every stage that has it; '' where there is none."""
  sections: dict[tuple[str, str], list[Block]] = {}
  for block in _blocks(records):
    sections.setdefault((block.section, block.note), []).append(block)
  return ''.join(_section(heading, note, blocks) for (heading, note), blocks in sections.items())


def _blocks(records: Sequence[Record]) -> list[Block]:
  blocks = []
  for record in records:
    if record.get('kind') != 'display':
      continue
    for each in record.get('blocks') or ():
      block = from_record(each) if isinstance(each, dict) else None
      if block is not None:
        blocks.append(block)
  return blocks


def _section(heading: str, note: str, blocks: Sequence[Block]) -> str:
  figures = ''.join(_figure(block) for block in blocks)
  below = f'<p class="note">{html.escape(note)}</p>' if note else ''
  return f'<h2>{html.escape(heading)}</h2><div class="charts">{figures}</div>{below}'


def _figure(block: Block) -> str:
  match block:
    case HeatMap():
      return _heat_map(block)
    case Table():
      caption = f'<figcaption>{html.escape(block.title)}</figcaption>'
      return f'<figure class="scroll">{caption}{table(block.head, block.rows, "words")}</figure>'


def _heat_map(block: HeatMap) -> str:
  head = ''.join(f'<th>{html.escape(column)}</th>' for column in block.columns)
  rows = []
  for label, shares in block.rows:
    cells = ''.join(_cell(share) for share in shares)
    rows.append(f'<tr><td>{html.escape(label)}</td>{cells}</tr>')
  return (f'<figure class="scroll"><figcaption>{html.escape(block.title)}</figcaption>'
          f'<table class="heat"><tr><th>depth</th>{head}</tr>{"".join(rows)}</table></figure>')


def _cell(share: float) -> str:
  colour = f'color-mix(in srgb, var(--c) {70 * share:.0f}%, transparent)'
  return f'<td style="background: {colour}">{100 * share:.0f}</td>'
