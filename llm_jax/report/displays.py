"""What the evaluations of a run show: their headlines, and the blocks that they left in the records."""
from collections.abc import Sequence

from llm_jax.report.html import escape, table
from llm_jax.report.records import MetricsRecord
from llm_jax.tracking.display import Block, HeatMap, Table, from_record


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
  return ''.join(_section(heading, note, blocks) for (heading, note), blocks in sections.items())


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


def _section(heading: str, note: str, blocks: Sequence[Block]) -> str:
  figures = ''.join(_figure(block) for block in blocks)
  below = f'<p class="note">{escape(note)}</p>' if note else ''
  return f'<h2>{escape(heading)}</h2><div class="charts">{figures}</div>{below}'


def _figure(block: Block) -> str:
  match block:
    case HeatMap():
      return _heat_map(block)
    case Table():
      caption = f'<figcaption>{escape(block.title)}</figcaption>'
      return f'<figure class="scroll">{caption}{table(block.head, block.rows, "words")}</figure>'


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
