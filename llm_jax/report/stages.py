"""The stages in a report: their curves, their numbers, and what they read."""
import math
from collections.abc import Iterator, Sequence

from llm_jax.report.charts import Series, line_chart, smooth
from llm_jax.report.html import table
from llm_jax.report.records import MetricsRecord, RunRecords, StageRecords, last, loss_label, median
from llm_jax.tracking.numbers import duration, mixture_cells, show, value


def curves(stages: Sequence[StageRecords]) -> str:
  """Four charts over the steps of all stages, one after the other."""
  boundaries = [(stage.offset, stage.name) for stage in stages]
  evals = [(stage.offset + record['step'], value(record, 'loss')) for stage in stages for record in stage.evals]
  held_out = Series('held-out', [step for step, _ in evals], [loss for _, loss in evals], 'b', 'dots')
  learning_rate = Series('learning rate', _steps(stages), _values(stages, 'learning_rate'))
  charts = (
    line_chart('Loss', [*_smoothed(stages, 'loss', label='train, '), held_out], y_label=loss_label(stages), log_y=True,
               boundaries=boundaries),
    line_chart('Learning rate', [learning_rate], y_label='learning rate', from_zero=True, boundaries=boundaries),
    line_chart('Gradient norm', _smoothed(stages, 'grad_norm', 'c'), y_label='before clipping (log scale)', log_y=True,
               boundaries=boundaries),
    line_chart('Throughput', _smoothed(stages, 'tokens_per_second', 'b'), y_label='tokens per second', from_zero=True,
               boundaries=boundaries),
  )
  return f'<div class="charts">{"".join(charts)}</div>'


def _steps(stages: Sequence[StageRecords]) -> list[float]:
  """Of every training record, counted over all stages."""
  return [stage.offset + record['step'] for stage in stages for record in stage.train]


def _values(stages: Sequence[StageRecords], name: str) -> list[float]:
  return [number for stage in stages for number in stage.values(name)]


def _smoothed(stages: Sequence[StageRecords], name: str, colour: str = 'a', label: str = '') -> list[Series]:
  """The values of each step, faint, and their means; only the values where the stages are too short for means."""
  steps = _steps(stages)
  values = _values(stages, name)
  if all(stage.reach == 0 for stage in stages):
    return [Series(label.rstrip(', ') or 'each step', steps, values, colour)]
  # Each stage on its own: a jump between them is real.
  means = [mean for stage in stages for mean in smooth(stage.values(name), stage.reach)]
  return [Series(f'{label}each step', steps, values, colour, 'faint'),
          Series(f'{label}smoothed', steps, means, colour)]


def stage_table(stages: Sequence[StageRecords]) -> str:
  """A row a stage: its size, its last numbers, its speed."""
  if not stages:
    return '<p class="muted">No step has been recorded yet.</p>'
  head = ('stage', 'steps', 'tokens', 'train loss', 'held-out loss', 'bits per byte', 'tokens/s', 'MFU', 'time')
  return table(head, [_stage_cells(stage) for stage in stages])


def _stage_cells(stage: StageRecords) -> tuple[str, ...]:
  means = smooth(stage.values('loss'), stage.reach)
  return (
    stage.name,
    f'{stage.last_step:,}',
    show(stage.tokens, '{:,}'),
    show(means[-1] if means else math.nan, '{:.4f}'),
    show(last(stage.evals, 'loss'), '{:.4f}'),
    show(last(stage.evals, 'bits_per_byte'), '{:.4f}'),
    show(median([stage], 'tokens_per_second'), '{:,.0f}'),
    show(median([stage], 'mfu'), '{:.1%}'),
    duration(stage.seconds),
  )


def data_table(run: RunRecords) -> str:
  """What each stage read of each source, and the loss that it ends with on it; '' before the first stage has ended."""
  rows = [cells for stage in run.stages for cells in _source_cells(stage, run.of_kind('data'))]
  if not rows:
    return ''
  head = ('stage', 'source', 'share', 'epochs', 'size', 'tokens', 'held-out loss', 'bits per byte')
  return '<h2>Data</h2>' + table(head, rows)


def _source_cells(stage: StageRecords, records: Sequence[MetricsRecord]) -> Iterator[tuple[str, ...]]:
  # A kill may have left a source's record twice: the later counts.
  of_source = {record.get('source'): record for record in records if record.get('stage') == stage.name}
  for source, record in of_source.items():
    suffix = f'/{source}' if len(of_source) > 1 else ''
    loss = show(last(stage.evals, f'loss{suffix}'), '{:.4f}')
    bits_per_byte = show(last(stage.evals, f'bits_per_byte{suffix}'), '{:.4f}')
    yield stage.name, str(source), *mixture_cells(record), loss, bits_per_byte
