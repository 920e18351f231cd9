"""Several runs side by side: what was changed between them, and what it did. For ablations."""
import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from llm_jax.config.errors import require
from llm_jax.config.objectives import LOSS, Metric
from llm_jax.report.charts import Series, line_chart, smooth
from llm_jax.report.html import escape, flatten, page, table
from llm_jax.report.records import StageRecords, by_stage, last, median, objective_of, read_json
from llm_jax.report.stages import reach
from llm_jax.runtime.files import write_atomic
from llm_jax.tracking.metrics import read_metrics
from llm_jax.tracking.numbers import NOTHING, duration, show, value

COLOURS = 'abcdef'
# Fields that decide which text is held out, or how it is cut into tokens.
HELD_OUT = re.compile(r'seed|tokenizer\..*|stages\[\d+\]\.(data|eval_data|seq_len).*')


class Compared(NamedTuple):
  name: str
  config: dict[str, Any]
  stages: list[StageRecords]


def write_comparison(workdirs: Sequence[pathlib.Path], path: pathlib.Path) -> pathlib.Path:
  """Writes one self-contained page about the runs in `workdirs`, at most six, to `path`, and returns that.

  The first is what the others are compared with. The same files give the same page. Raises ConfigError for more runs
  than there are colours.
  """
  require(len(workdirs) <= len(COLOURS), 'workdirs', f'{len(workdirs)} runs',
          f'compare at most {len(COLOURS)} at a time')
  runs = []
  for workdir, name in zip(workdirs, names(workdirs), strict=True):
    config = read_json(workdir / 'config.json')
    runs.append(Compared(name, config, by_stage(read_metrics(workdir), config)))
  write_atomic(path, render(runs))
  return path


def names(workdirs: Sequence[pathlib.Path]) -> list[str]:
  """As much of each path, from its end, as tells them apart."""
  parts = [workdir.resolve().parts for workdir in workdirs]
  for length in range(1, max(map(len, parts)) + 1):
    found = ['/'.join(each[-length:]) for each in parts]
    if len(set(found)) == len(found):
      return found
  return [f'{name} ({number})' for number, name in enumerate(found, 1)]  # one folder twice


def render(runs: Sequence[Compared]) -> str:
  head = [run.name for run in runs]
  changed = changes([run.config for run in runs])
  note = ('<p class="note">Their data, tokenizer, seq_len or seed differ: the held-out text may not be the same.</p>'
          if any(HELD_OUT.match(field) for field, _ in changed) else '')
  return page(f'{", ".join(head)}: comparison', [
      f'<h1>{escape(" · ".join(head))}</h1>',
      '<h2>What was changed</h2>',
      table(('field', *head), [(field, *values) for field, values in changed], 'words') if changed else
      '<p class="muted">Nothing: the configurations are the same.</p>',
      '<h2>Results</h2>', table(('at the end of each stage', *head), results(runs)), note,
      '<h2>Curves</h2>', curves(runs)])


def changes(configs: Sequence[dict[str, Any]]) -> list[tuple[str, list[str]]]:
  """(field, its value in each) of every field that is not the same in all."""
  flat = [{field: str(content) for field, content in flatten(config)} for config in configs]
  fields = dict.fromkeys(field for each in flat for field in each)
  rows = [(field, [each.get(field, NOTHING) for each in flat]) for field in fields]
  return [(field, values) for field, values in rows if len(set(values)) > 1]


def results(runs: Sequence[Compared]) -> list[tuple[str, ...]]:
  """Rows of the table: each stage's last numbers, and by how much they differ from the first run's."""
  rows = []
  for name in dict.fromkeys(stage.name for run in runs for stage in run.stages):
    stages = [next((stage for stage in run.stages if stage.name == name), None) for run in runs]
    rows += scores(name, stages)
    speed = [median([stage], 'tokens_per_second') if stage else math.nan for stage in stages]
    rows += [(f'{name}: steps', *(f'{stage.last_step:,}' if stage else NOTHING for stage in stages)),
             (f'{name}: tokens per second', *(show(x, '{:,.0f}') + beside(x, speed[0]) for x in speed)),
             (f'{name}: time in steps', *(duration(stage.seconds) if stage else NOTHING for stage in stages))]
  return rows


def scores(name: str, stages: Sequence[StageRecords | None]) -> list[tuple[str, ...]]:
  """Rows of the held-out numbers that the objectives of a stage name."""
  metrics: dict[str, Metric] = {}
  for stage in stages:
    if stage is not None:
      metrics |= {metric.name: metric for metric in (*objective_of(stage.config).metrics, LOSS)}
  rows = []
  for metric in metrics.values():
    found = [last(stage.evals, metric.name) if stage else math.nan for stage in stages]
    if not any(map(math.isfinite, found)):
      continue
    is_share = metric.table.endswith('%}')  # two of them are compared at sight
    cells = [show(x, metric.table) + ('' if is_share else beside(x, found[0])) for x in found]
    rows.append((f'{name}: held-out {metric.label}', *cells))
  return rows


def beside(x: float, first: float) -> str:
  return f' ({x / first - 1:+.1%})' if math.isfinite(x) and math.isfinite(first) and first and x != first else ''


def curves(runs: Sequence[Compared]) -> str:
  """Held-out and training loss of all runs over the steps of their stages, one after the other."""
  held_out, trained = [], []
  for colour, run in zip(COLOURS, runs, strict=False):
    evals = [(stage.offset + r['step'], value(r, 'loss')) for stage in run.stages for r in stage.evals]
    train = [(stage.offset + r['step'], y) for stage in run.stages for r, y in zip(
      stage.train, smooth([value(r, 'loss') for r in stage.train], reach(stage)), strict=True)]
    held_out.append(Series(run.name, [x for x, _ in evals], [y for _, y in evals], colour, 'dots'))
    trained.append(Series(run.name, [x for x, _ in train], [y for _, y in train], colour))
  boundaries = max(([(stage.offset, stage.name) for stage in run.stages] for run in runs), key=len)
  draw = lambda title, series: line_chart(title, series, y_label='nats per token (log scale)', log_y=True,
                                          boundaries=boundaries)
  return f'<div class="charts">{draw("Held-out loss", held_out)}{draw("Training loss, smoothed", trained)}</div>'
