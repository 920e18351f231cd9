"""The stages in a report: their curves, their numbers, and what they read."""
import math
from collections.abc import Sequence
from typing import Any

from llm_jax.report.charts import Series, line_chart, smooth
from llm_jax.report.html import table
from llm_jax.report.records import StageRecords, last, median
from llm_jax.tracking.numbers import duration, shares_shown, show, value


def curves(stages: Sequence[StageRecords]) -> str:
  """Four charts over the steps of all stages, one after the other."""
  boundaries = [(s.offset, s.name) for s in stages]
  steps = [s.offset + r['step'] for s in stages for r in s.train]

  def trained(name: str) -> list[float]:
    return [value(r, name) for s in stages for r in s.train]

  def smoothed(label: str, name: str, colour: str = 'a') -> list[Series]:
    # Each stage on its own: a jump between them is real.
    ys = [y for s in stages for y in smooth([value(r, name) for r in s.train], reach(s))]
    if not any(map(reach, stages)):
      return [Series(label.rstrip(', ') or 'each step', steps, trained(name), colour)]
    return [Series(f'{label}each step', steps, trained(name), colour, 'faint'),
            Series(f'{label}smoothed', steps, ys, colour)]

  held_out = Series('held-out', [s.offset + r['step'] for s in stages for r in s.evals],
                    [value(r, 'loss') for s in stages for r in s.evals], 'b', 'dots')
  return '<div class="charts">' + ''.join([
      line_chart('Loss', [*smoothed('train, ', 'loss'), held_out], y_label='nats per token (log scale)', log_y=True,
                 boundaries=boundaries),
      line_chart('Learning rate', [Series('learning rate', steps, trained('learning_rate'))], y_label='learning rate',
                 from_zero=True, boundaries=boundaries),
      line_chart('Gradient norm', smoothed('', 'grad_norm', 'c'), y_label='before clipping (log scale)',
                 log_y=True, boundaries=boundaries),
      line_chart('Throughput', smoothed('', 'tokens_per_second', 'b'), y_label='tokens per second',
                 from_zero=True, boundaries=boundaries)]) + '</div>'


def reach(stage: StageRecords) -> int:
  """How many records to either side a smoothed curve looks: 2 % of the stage, none where that is less than one."""
  return len(stage.train) // 50


def stage_table(stages: Sequence[StageRecords]) -> str:
  if not stages:
    return '<p class="muted">No step has been recorded yet.</p>'
  head = ('stage', 'steps', 'tokens', 'train loss', 'held-out loss', 'bits per byte', 'tokens/s', 'MFU', 'time')
  return table(head, [
      (s.name, f'{s.last_step:,}', show(s.tokens, '{:,}'),
       show(next(iter(smooth([value(r, 'loss') for r in s.train], reach(s))[-1:]), math.nan), '{:.4f}'),
       show(last(s.evals, 'loss'), '{:.4f}'), show(last(s.evals, 'bits_per_byte'), '{:.4f}'),
       show(median([s], 'tokens_per_second'), '{:,.0f}'), show(median([s], 'mfu'), '{:.1%}'), duration(s.seconds))
      for s in stages])


def data_table(stages: Sequence[StageRecords], records: Sequence[dict[str, Any]]) -> str:
  """What each stage read of each source, and what it made of it; '' before the first stage has ended."""
  found = {(r.get('stage'), r.get('source')): r for r in records if r.get('kind') == 'data'}
  rows = []
  for stage in stages:
    mine = {source: record for (name, source), record in found.items() if name == stage.name}
    for source, record in mine.items():
      of_source = f'/{source}' if len(mine) > 1 else ''
      rows.append((stage.name, source, *shares_shown(record), show(last(stage.evals, f'loss{of_source}'), '{:.4f}'),
                   show(last(stage.evals, f'bits_per_byte{of_source}'), '{:.4f}')))
  head = ('stage', 'source', 'share', 'epochs', 'size', 'tokens', 'held-out loss', 'bits per byte')
  return '<h2>Data</h2>' + table(head, rows) if rows else ''
