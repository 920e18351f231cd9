"""Runs a stage's evaluations when they are due, and writes what they find."""
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

from llm_jax.config.implementation import load
from llm_jax.config.stage import Stage
from llm_jax.data.stage_data import StageData
from llm_jax.evaluation.protocol import Evaluated, Evaluation, EvaluationSetup, Metrics, Moment, Result
from llm_jax.objectives.frozen import Frozen
from llm_jax.runtime import activity, processes
from llm_jax.sharding.check import row_shards
from llm_jax.tracking.display import to_record
from llm_jax.tracking.metrics import read_generations, read_metrics
from llm_jax.tracking.progress import Progress
from llm_jax.train.build import make_objective
from llm_jax.train.session import Session

StartMetrics = dict[str, Metrics]  # by the evaluation's name


def make_evaluations(session: Session, stage: Stage, data: Mapping[str, StageData]) -> list[Evaluation]:
  """The stage's evaluations that have something to evaluate, in the order of the configuration.

  data: of this stage and of those that it comes from, by name.
  """
  run = session.run
  execution = dataclasses.replace(session.execution, remat=stage.remat)
  phases = stage.phases_over(row_shards(run.model, run.mesh, jax.device_count()))
  setup = EvaluationSetup(
    run=run, stage=stage, model=run.model_of(stage), execution=execution, mesh=session.mesh,
    tokenizer=session.tokenizer, data=data,
    objective=make_objective(stage, session.transformer(stage), stage.validation_data), phase=phases[-1],
    saved_steps=lambda name: session.store(name).steps(), primary=session.primary)
  made = [load(config)(config, setup) for config in stage.evals]
  return [evaluation for evaluation in made if evaluation.applies()]


class Evaluations:
  """The evaluations of one stage.

  start: what each found at the stage's start; saved with its checkpoints.
  """

  def __init__(self, session: Session, stage: Stage, evaluations: list[Evaluation], start: StartMetrics):
    self.session = session
    self.stage = stage
    self.evaluations = evaluations
    self.start = start
    self.heartbeat: Callable[[], None] = activity.beat

  def run_at_start(self, params: Any, frozen: Frozen) -> None:
    """Evaluates the parameters that the stage starts from."""
    for evaluation in self.evaluations:
      if evaluation.at_start:
        result = self._run(evaluation, Evaluated(params, frozen, Moment.START, 0))
        self.start[evaluation.config.name] = result.metrics

  def is_due(self, step: int) -> bool:
    """Whether any evaluation is due after `step` steps."""
    return any(self._is_due(evaluation, step) for evaluation in self.evaluations)

  def run_at_step(self, step: int, params: Any, frozen: Frozen, progress: Progress) -> bool:
    """Runs what is due; returns whether one of them ends the stage."""
    found: dict[str, Any] = {}
    ends_stage = False
    for evaluation in self.evaluations:
      if not self._is_due(evaluation, step):
        continue
      result = self._run(evaluation, Evaluated(params, frozen, Moment.STEP, step))
      self._show(evaluation, result, step, progress)
      found.update(result.metrics)
      if evaluation.ends_stage(self.start.get(evaluation.config.name, {}), result.metrics):
        progress.message(f'{self.stage.name}  ends at step {step:,}: {evaluation.config.name} has reached its target')
        ends_stage = True
    if found:
      self.session.writer.write('eval', self.stage.name, step, **found)
    return ends_stage

  def run_at_end(self, step: int, params: Any, frozen: Frozen, progress: Progress,
                 unaveraged: Callable[[], Iterator[tuple[str, Any]]], num_averaged: int = 0) -> dict[str, Any]:
    """Runs all that is due at a stage's end; returns the metrics of all, those of its start with `_at_start`."""
    found: dict[str, Any] = {}
    for evaluation in self.evaluations:
      if not evaluation.at_end:
        continue
      result = self._run(evaluation, Evaluated(params, frozen, Moment.END, step, unaveraged, num_averaged))
      self._show(evaluation, result, step, progress)
      found.update(result.metrics)
      start = self.start.get(evaluation.config.name, {})
      found.update({f'{name}_at_start': value for name, value in start.items()})
      self._write_display(evaluation, result, step)
    return found

  def _is_due(self, evaluation: Evaluation, step: int) -> bool:
    return evaluation.every > 0 and step % evaluation.every == 0

  def _run(self, evaluation: Evaluation, model: Evaluated) -> Result:
    model = dataclasses.replace(model, heartbeat=self.heartbeat)
    return evaluation.run(model, self.start.get(evaluation.config.name, {}))

  def _show(self, evaluation: Evaluation, result: Result, step: int, progress: Progress) -> None:
    if result.status is not None:
      progress.evaluated(result.status)
    for line in result.lines:
      progress.message(f'{self.stage.name}  {line}')
    self._write_generations(result, step)

  def _write_generations(self, result: Result, step: int) -> None:
    """Those of a stage's end may be written already, when a kill came between them and the stage's result."""
    if not self.session.primary or not result.generations:
      return
    written = set()
    for record in read_generations(self.session.workdir, self.stage.name):
      if record['step'] == step:
        written.add(record['prompt'])
    for prompt, text in result.generations:
      if prompt not in written:
        self.session.writer.generation(self.stage.name, step, prompt, text)

  def _write_display(self, evaluation: Evaluation, result: Result, step: int) -> None:
    """What the report shows of the stage's end; once, wherever a kill came."""
    if not self.session.primary or (result.headline is None and not result.display):
      return
    name = evaluation.config.name
    if not has_display(self.session, self.stage.name, name):
      self.session.writer.write('display', self.stage.name, step, evaluation=name, headline=result.headline,
                                blocks=[to_record(block) for block in result.display])


def has_display(session: Session, stage: str, evaluation: str) -> bool:
  records = read_metrics(session.workdir, 'display')
  return any((record['stage'], record.get('evaluation')) == (stage, evaluation) for record in records)


def has_result(session: Session, stage: str) -> bool:
  """Whether the stage's final evaluation is written."""
  def is_written() -> bool:
    return any(record['stage'] == stage for record in read_metrics(session.workdir, 'final'))

  return processes.on_first(is_written)
