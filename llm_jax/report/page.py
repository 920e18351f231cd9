"""`report.html`: a run at a glance, made from nothing but the files in its workdir."""
import pathlib

from llm_jax.report.details import checkpoints, events, generations
from llm_jax.report.displays import displays, headlines
from llm_jax.report.html import escape, lineage_table, page, tree
from llm_jax.report.recipe_graph import stage_graph
from llm_jax.report.records import RunRecords, read_run
from llm_jax.report.rewards import rewards
from llm_jax.report.stages import curves, data_table, stage_table
from llm_jax.report.summary import headline, subtitle
from llm_jax.report.time_table import time_table
from llm_jax.runtime.buckets import place
from llm_jax.runtime.files import write_atomic


def write_report(workdir: str | pathlib.Path) -> pathlib.Path:
  """Makes `report.html` in `workdir`, replacing an older one, and returns its path.

  The same files give the same report. Whatever is missing (no evaluation yet, no step, no config) is left out.
  """
  workdir = place(workdir)
  path = workdir / 'report.html'
  write_atomic(path, render(workdir))
  return path


def render(workdir: pathlib.Path) -> str:
  """The report as HTML."""
  run = read_run(workdir)
  name = workdir.resolve().name
  return page(f'{name}: training report', [
    f'<h1>{escape(name)}</h1><p class="muted">{escape(subtitle(run))}</p>',
    headline(run),
    recipe(run),
    displays(run.metrics),
    '<h2>Curves</h2>',
    curves(run.stages),
    rewards(run),
    '<h2>Stages</h2>',
    stage_table(run.stages),
    data_table(run),
    time_table(run),
    events(run),
    generations(run),
    f'<h2>Configuration</h2><div class="card tree">{tree(run.config)}</div>' if run.config else '',
    '<h2>Lineage</h2>' + lineage_table(run.lineage) if run.lineage else '',
    checkpoints(run),
  ])


def recipe(run: RunRecords) -> str:
  """How the stages follow from each other, and what each of them did; '' for a run of one stage."""
  configs = run.stage_configs
  if len(configs) < 2:
    return ''
  done = {str(record.get('stage')): 'done' for record in run.of_kind('final')}
  results = {**done, **headlines(run.metrics)}
  reached = {stage.name: stage.last_step for stage in run.stages}
  return '<h2>Recipe</h2>' + stage_graph(configs, results, reached)
