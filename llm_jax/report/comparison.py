"""Several runs side by side: what was changed between them, and what it did. For ablations."""
import itertools
import math
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from llm_jax.config.errors import require
from llm_jax.config.objective import LOSS, Metric
from llm_jax.report.charts import Series, line_chart, smooth
from llm_jax.report.html import escape, flatten, page, table
from llm_jax.report.records import RunRecords, StageRecords, last, loss_label, median, objective_of, read_run
from llm_jax.runtime.files import write_atomic
from llm_jax.tracking.numbers import NOTHING, duration, show, value

COLOURS = 'abcdef'
# Fields that decide which text is held out, or how it is cut into tokens.
DECIDES_HELD_OUT = re.compile(r'seed|tokenizer\..*|stages\[\d+\]\.(data|eval_data|seq_len).*')
HELD_OUT_NOTE = 'Their data, tokenizer, seq_len or seed differ: the held-out text may not be the same.'


class Compared(NamedTuple):
  """A run, and what tells it from the others."""
  name: str
  run: RunRecords

  def stage(self, name: str) -> StageRecords | None:
    return next((stage for stage in self.run.stages if stage.name == name), None)


def write_comparison(workdirs: Sequence[pathlib.Path], path: pathlib.Path) -> pathlib.Path:
  """Writes one self-contained page about the runs in `workdirs`, at most six, to `path`, and returns that.

  The first is what the others are compared with. The same files give the same page. Raises ConfigError for more runs
  than there are colours.
  """
  require(len(workdirs) <= len(COLOURS), 'workdirs', f'{len(workdirs)} runs',
          f'compare at most {len(COLOURS)} at a time')
  runs = [Compared(name, read_run(workdir)) for name, workdir in zip(names(workdirs), workdirs, strict=True)]
  write_atomic(path, render(runs))
  return path


def names(workdirs: Sequence[pathlib.Path]) -> list[str]:
  """As much of each path, from its end, as tells them apart."""
  parts = [workdir.resolve().parts for workdir in workdirs]
  for length in range(1, max(map(len, parts)) + 1):
    found = ['/'.join(each[-length:]) for each in parts]
    if len(set(found)) == len(found):
      return found
  whole = ['/'.join(each) for each in parts]
  return [f'{name} ({number})' for number, name in enumerate(whole, 1)]  # one folder twice


def render(runs: Sequence[Compared]) -> str:
  """The comparison as HTML."""
  head = [each.name for each in runs]
  changed = changes([each.run.config for each in runs])
  changes_shown = '<p class="muted">Nothing: the configurations are the same.</p>'
  if changed:
    changes_shown = table(('field', *head), [(field, *values) for field, values in changed], 'words')
  may_differ = any(DECIDES_HELD_OUT.match(field) for field, _ in changed)
  return page(f'{", ".join(head)}: comparison', [
    f'<h1>{escape(" · ".join(head))}</h1>',
    '<h2>What was changed</h2>',
    changes_shown,
    '<h2>Results</h2>',
    table(('at the end of each stage', *head), results(runs)),
    f'<p class="note">{escape(HELD_OUT_NOTE)}</p>' if may_differ else '',
    '<h2>Curves</h2>',
    curves(runs),
  ])


def changes(configs: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[str]]]:
  """(field, its value in each) of every field that is not the same in all."""
  flat = [dict(flatten(config)) for config in configs]
  changed: list[tuple[str, list[str]]] = []
  for field in dict.fromkeys(itertools.chain(*flat)):
    values = [str(each.get(field, NOTHING)) for each in flat]
    if len(set(values)) > 1:
      changed.append((field, values))
  return changed


def results(runs: Sequence[Compared]) -> list[tuple[str, ...]]:
  """Rows of the table: each stage's last numbers, and by how much they differ from the first run's."""
  rows: list[tuple[str, ...]] = []
  for name in dict.fromkeys(stage.name for each in runs for stage in each.run.stages):
    rows += _stage_rows(name, [each.stage(name) for each in runs])
  return rows


def _stage_rows(name: str, stages: Sequence[StageRecords | None]) -> list[tuple[str, ...]]:
  """stages: of each run, None where it has none of that name."""
  rows: list[tuple[str, ...]] = []
  for metric in _metrics(stages):
    numbers = [last(stage.evals, metric.name) if stage else math.nan for stage in stages]
    is_share = metric.table.endswith('%}')  # its change would be taken for a share too
    if any(map(math.isfinite, numbers)):
      rows.append((f'{name}: held-out {metric.label}', *_cells(numbers, metric.table, shows_change=not is_share)))
  speeds = [median([stage], 'tokens_per_second') if stage else math.nan for stage in stages]
  rows.append((f'{name}: steps', *(f'{stage.last_step:,}' if stage else NOTHING for stage in stages)))
  rows.append((f'{name}: tokens per second', *_cells(speeds, '{:,.0f}', shows_change=True)))
  rows.append((f'{name}: time in steps', *(duration(stage.seconds) if stage else NOTHING for stage in stages)))
  return rows


def _metrics(stages: Sequence[StageRecords | None]) -> list[Metric]:
  """The held-out numbers that the objectives of a stage name."""
  found: dict[str, Metric] = {}
  for stage in stages:
    if stage is not None:
      found |= {metric.name: metric for metric in (*objective_of(stage.config).metrics, LOSS)}
  return list(found.values())


def _cells(numbers: Sequence[float], form: str, shows_change: bool) -> list[str]:
  cells: list[str] = []
  for number in numbers:
    change = _change(number, numbers[0]) if shows_change else ''
    cells.append(show(number, form) + change)
  return cells


def _change(number: float, first: float) -> str:
  """` (+1.5%)`; '' for the first run, and where one of the numbers is not known."""
  is_known = math.isfinite(number) and math.isfinite(first) and first != 0
  return f' ({number / first - 1:+.1%})' if is_known and number != first else ''


def curves(runs: Sequence[Compared]) -> str:
  """Held-out and training loss of all runs over the steps of their stages, one after the other."""
  held_out: list[Series] = []
  trained: list[Series] = []
  for colour, each in zip(COLOURS, runs, strict=False):
    held_out.append(_held_out(each, colour))
    trained.append(_trained(each, colour))
  longest = max(runs, key=lambda each: len(each.run.stages)).run.stages
  boundaries = [(stage.offset, stage.name) for stage in longest]
  charts = [line_chart(title, series, y_label=loss_label(longest), log_y=True, boundaries=boundaries)
            for title, series in (('Held-out loss', held_out), ('Training loss, smoothed', trained))]
  return f'<div class="charts">{"".join(charts)}</div>'


def _held_out(compared: Compared, colour: str) -> Series:
  points = [(stage.offset + record['step'], value(record, 'loss'))
            for stage in compared.run.stages for record in stage.evals]
  return Series(compared.name, [x for x, _ in points], [y for _, y in points], colour, 'dots')


def _trained(compared: Compared, colour: str) -> Series:
  steps: list[float] = []
  losses: list[float] = []
  for stage in compared.run.stages:
    steps += [stage.offset + record['step'] for record in stage.train]
    losses += smooth(stage.values('loss'), stage.reach)
  return Series(compared.name, steps, losses, colour)
