"""One stage: made ready from its configuration, trained, evaluated."""
import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import optax

from llm_jax.checkpoints.metadata import CheckpointMetadata, Lineage
from llm_jax.checkpoints.store import CheckpointStore
from llm_jax.config import schema
from llm_jax.config.model.flops import training_flops_per_token
from llm_jax.config.ramp import Phase
from llm_jax.config.stage import Stage
from llm_jax.data.batch_source import BatchSource
from llm_jax.data.batches import RampSource, TrainSource, check_same_data
from llm_jax.data.mixture_stats import mixture_stats
from llm_jax.data.stage_data import StageData
from llm_jax.evaluation.protocol import Evaluation
from llm_jax.objectives.adapted import AdaptedObjective
from llm_jax.objectives.frozen import Frozen
from llm_jax.objectives.protocol import Objective
from llm_jax.objectives.quantization_aware import QuantizationAwareObjective
from llm_jax.optim.optimizers import make_optimizer
from llm_jax.runtime import activity, cpu, processes
from llm_jax.runtime.time_use import Use
from llm_jax.sharding.check import row_shards
from llm_jax.sharding.rules import batch_sharding, in_host_memory, state_shardings
from llm_jax.tracking.metrics import read_metrics
from llm_jax.tracking.progress import Progress
from llm_jax.train.adapted_start import AdaptedStarter
from llm_jax.train.beside_state import saved_arrays, with_arrays
from llm_jax.train.build import best_params, init_params, init_trained, make_trained_objective
from llm_jax.train.compile import CompiledStep, compile_steps, shapes_to_come
from llm_jax.train.evaluations import Evaluations, StartMetrics, has_result, make_evaluations
from llm_jax.train.hooks import Evaluate, Log, SavePeriodically, StopOnPreemption, check_result, divergence_hint
from llm_jax.train.leak_test import check_no_leaks
from llm_jax.train.loop import Hook, train_loop
from llm_jax.train.profile import Profiler, Window
from llm_jax.train.rollout import ShowRollouts, make_rollout_source
from llm_jax.train.session import Session
from llm_jax.train.starting_point import Start, Starter
from llm_jax.train.state import TrainState


@dataclasses.dataclass(frozen=True)
class BuiltStage:
  """A stage made ready. Nothing of it is compiled, and no parameters are read.

  data: of this stage, and of those that it comes from, by name.
  phases: the shapes of its steps; `sources` has the batches of each, `source` those of all, one after the other. A
    stage that learns from its own answers has no `sources`.
  abstract: the shapes of its state, with `shardings`.
  """
  session: Session
  stage: Stage
  data: Mapping[str, StageData]
  phases: tuple[Phase, ...]
  sources: list[TrainSource]
  source: BatchSource
  objective: Objective
  optimizer: optax.GradientTransformation
  abstract: TrainState
  shardings: Any
  starter: Starter
  store: CheckpointStore
  evaluations: list[Evaluation]


@dataclasses.dataclass
class StageProgress:
  """What changes while a stage runs, beside its state.

  lineage: of its checkpoints.
  start_metrics: what its evaluations found at its start.
  stopped_early: an evaluation has ended it before its last step.
  saved_step: the step of the last checkpoint that was begun.
  """
  lineage: Lineage
  start_metrics: StartMetrics
  stopped_early: bool = False
  saved_step: int | None = None


def build_stage(session: Session, stage: Stage, data: Mapping[str, StageData]) -> BuiltStage:
  """Makes the parts of a stage from its configuration."""
  run, mesh = session.run, session.mesh
  activity.begin(f'opens the data of stage {stage.name}', use=Use.DATA)
  data[stage.name].open()
  phases = stage.phases_over(row_shards(run.model, run.mesh, jax.device_count()))
  train = data[stage.name].train
  sources = [TrainSource(train[phase.seq_len], phase.batch_size, batch_sharding(mesh), phase.first_sample)
             for phase in phases if train]
  if stage.rollout is not None:
    source = make_rollout_source(session, stage, data[stage.name])
  else:
    source = RampSource(sources) if stage.ramp else sources[0]
  optimizer = make_optimizer(stage.optimizer, abstract_params(session, stage))
  create = functools.partial(TrainState.create, optimizer=optimizer, ema=stage.ema is not None)
  shapes = jax.eval_shape(create, abstract_params(session, stage))
  shardings = state_shardings(shapes, shapes.params, mesh)
  if stage.optimizer_memory == 'host':
    shardings = dataclasses.replace(shardings, opt_state=in_host_memory(shardings.opt_state))
  abstract = jax.tree.map(
    lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings)
  from_scratch = jax.jit(lambda: create(init_params(run, stage)), out_shardings=shardings)
  make_starter = Starter if stage.adapters is None else AdaptedStarter
  return BuiltStage(
    session=session, stage=stage, data=data, phases=phases, sources=sources,
    source=source,
    objective=make_trained_objective(stage, session.transformer(stage)), optimizer=optimizer, abstract=abstract,
    shardings=shardings, starter=make_starter(session, stage, from_scratch, abstract, optimizer),
    store=session.store(stage.name), evaluations=make_evaluations(session, stage, data))


def abstract_params(session: Session, stage: Stage) -> Any:
  """The shapes of what the stage trains: all parameters, or its adapters."""
  if stage.adapters is None:
    return jax.eval_shape(functools.partial(init_params, session.run, stage))
  base = session.saved_models().abstract_base(stage)
  return jax.eval_shape(functools.partial(init_trained, session.run, stage), base)


def whole_model(built: BuiltStage, params: Any, frozen: Frozen) -> Any:
  """All parameters of the model, where `params` is what the stage trains. Where it trains for quantised weights, they
  are rounded to those; else no array is copied."""
  match built.objective:
    case AdaptedObjective() as objective:
      return objective.whole(params, frozen)
    case QuantizationAwareObjective() as objective:
      return jax.jit(objective.quantized)(params)
    case _:
      return params


def whole_frozen(built: BuiltStage, frozen: Frozen) -> Frozen:
  """What the stage's objective reads beside all parameters of the model. No array is copied."""
  objective = built.objective
  return objective.whole_frozen(frozen) if isinstance(objective, AdaptedObjective) else frozen


def run_stage(built: BuiltStage, profile: Window | None = None) -> None:
  """Trains from wherever the newest checkpoint left the stage to its last step, saves, and evaluates.

  profile: steps that are traced.
  """
  session, stage = built.session, built.stage
  activity.begin(f'finds the start of stage {stage.name}')
  with built.store, contextlib.closing(built.source):
    start = built.starter.start(built.store.latest_valid())
    if profile is not None:
      profile.check(stage, start.step)
    progress = restore_progress(built, start)
    done_before = session.writer.rewind(stage.name, start.step)
    steps = start.step if progress.stopped_early else stage.steps
    activity.begin(f'tests the attention of stage {stage.name}', use=Use.COMPILE)
    check_no_leaks(session, stage, shapes_to_come(built, start.step, steps))
    # Compiled before there is a state, for both need memory. Nothing is compiled where no step is to come.
    activity.begin(f'compiles stage {stage.name}', use=Use.COMPILE)
    train_step = compile_steps(built, start.step, steps)
    evaluations = Evaluations(session, stage, built.evaluations, progress.start_metrics)
    activity.begin(f'reads the start of stage {stage.name}', use=Use.RESTORE if start.resumed else Use.START)
    state, frozen = start.read()
    activity.begin(f'evaluates the start of stage {stage.name}', use=Use.EVALUATION)
    if start.resumed is None and built.starter.is_trained:
      evaluations.run_at_start(whole_model(built, best_params(state), frozen), whole_frozen(built, frozen))
    cpu.release_free_memory()
    _train_and_finish(built, progress, evaluations, train_step, state, frozen, start.step, steps, done_before, profile)


def _train_and_finish(built: BuiltStage, progress: StageProgress, evaluations: Evaluations,
                      train_step: CompiledStep, state: TrainState, frozen: Frozen, first: int, steps: int,
                      done_before: int, profile: Window | None) -> None:
  session, stage = built.session, built.stage
  use = Use.REDONE if first < done_before else Use.STEP
  activity.begin(f'begins to train stage {stage.name}', use=use)
  with Progress(stage.steps, stage.name, start=first, enabled=session.primary) as display:
    log = make_log(built, display, done_before)
    save = functools.partial(save_checkpoint, built, progress)
    save_and_wait = functools.partial(save_checkpoint, built, progress, wait=True)

    def evaluate(step: int, state: TrainState) -> bool:
      params = whole_model(built, best_params(state), frozen)
      progress.stopped_early = evaluations.run_at_step(step, params, whole_frozen(built, frozen), display)
      return progress.stopped_early

    hooks: list[Hook] = [
      log,
      ShowRollouts(built.source, log),
      Evaluate(evaluations, log, evaluate),
      SavePeriodically(session.run.checkpoints.every, log, save, built.store.retention.pinned),
      StopOnPreemption(session.preemption, log, save_and_wait),
    ]
    with session.preemption.steps(), contextlib.ExitStack() as stack:
      if profile is not None and session.primary:
        profiler = Profiler(profile, session.workdir, stage.name, log, display.message, train_step.texts)
        stack.callback(profiler.close)
        hooks = [log, profiler.after_step, *hooks[1:], profiler.before_step]
        profiler.before_step(first)
      def rescue(step: int, state: TrainState) -> None:
        if step > first:
          log.pause(f'saves step {step}', Use.CHECKPOINT)
          save_and_wait(step, state)

      state = train_loop(state, frozen, built.source, train_step, steps, hooks, rescue)
      log.pause('saves the end', Use.CHECKPOINT)
      check_result(stage, int(state.skipped), hint_of(built))
      if first < steps or stage.steps == 0:
        save_and_wait(int(state.step), state)
    activity.begin(f'evaluates the end of stage {stage.name}', use=Use.EVALUATION)
    finish(built, evaluations, int(state.step), state, frozen, display)


def make_log(built: BuiltStage, display: Progress, done_before: int) -> Log:
  """The hook that writes every step's numbers.   done_before: see `Log`."""
  session, stage = built.session, built.stage
  model = session.run.model_of(stage)
  passes = stage.training_passes

  def flops_per_token(step: int) -> float:
    return passes * training_flops_per_token(model, stage.phase_at(step - 1).seq_len)

  return Log(session.writer, display, stage, every=session.run.log_every, flops_per_token=flops_per_token,
             peak_flops=session.peak_flops, hint=lambda: hint_of(built), done_before=done_before)


def hint_of(built: BuiltStage) -> str:
  """What to do where the stage has diverged."""
  session = built.session
  is_bound = any(session.store(stage.name).steps() for stage in session.run.stages)
  return divergence_hint(built.store.steps(), is_bound)


def restore_progress(built: BuiltStage, start: Start) -> StageProgress:
  """What a checkpoint of the stage notes, its data's position restored; raises ConfigError where data has changed."""
  branches = [branch.to_json() for branch in built.session.branches]
  lineage = Lineage(built.session.lineage, start.parent, start.folder, start.base, branches, start.teacher,
                    start.reward_models)
  if start.resumed is None:
    return StageProgress(lineage, {})
  metadata = start.resumed.metadata
  if metadata.data is not None:
    built.source.restore(metadata.data, saved_arrays(start.resumed))
  validation = built.data[built.stage.name].validation
  if validation is not None and metadata.eval_data is not None:
    check_same_data(metadata.eval_data, validation.fingerprint, 'eval_data.')
  return StageProgress(lineage, dict(metadata.start_metrics), stopped_early=metadata.final)


def save_checkpoint(built: BuiltStage, progress: StageProgress, step: int, state: TrainState, wait: bool = False
                    ) -> None:
  """Saves the state with what a resumed run must know.

  A step that is saved already is not saved again: a run that is asked to stop may stand at a checkpoint's step.
  """
  if step == progress.saved_step:
    built.store.wait()
    return
  session = built.session
  validation = built.data[built.stage.name].validation
  metadata = CheckpointMetadata(
    config=schema.to_json(session.run),
    stage=built.stage.name,
    final=progress.stopped_early or step == built.stage.steps,
    tokenizer=session.tokenizer.fingerprint,
    lineage=progress.lineage,
    data=built.source.position(),
    eval_data=None if validation is None else validation.fingerprint,
    start_metrics=progress.start_metrics,
  )
  is_bad_perhaps = int(state.skipped) > 0
  session.writer.flush()
  arrays = {} if metadata.final else built.source.arrays()
  built.store.save(step, with_arrays(state, arrays), metadata, wait=wait, keep_all=is_bad_perhaps)
  progress.saved_step = step


def finish(built: BuiltStage, evaluations: Evaluations, step: int, state: TrainState, frozen: Frozen,
           display: Progress) -> None:
  """Writes the stage's result, unless it is written already."""
  session, stage = built.session, built.stage
  if has_result(session, stage.name):
    return

  def unaveraged() -> Iterator[tuple[str, Any]]:
    for name, params in built.starter.last_alone():
      yield name, whole_model(built, params, frozen)

  params = whole_model(built, best_params(state), frozen)
  found = evaluations.run_at_end(step, params, whole_frozen(built, frozen), display, unaveraged,
                                 len(built.starter.averaged))
  write_mixture_stats(built, step)
  session.writer.write('final', stage.name, step, **found)
  processes.barrier('result')  # the primary process computes the baselines alone


def write_mixture_stats(built: BuiltStage, step: int) -> None:
  """A record of what the stage has read of each source. A kill before the result may have left some of them."""
  session, stage = built.session, built.stage
  if not session.primary:
    return
  written = {record['source'] for record in read_metrics(session.workdir, 'data') if record['stage'] == stage.name}
  for row in mixture_stats(built.data[stage.name].train, stage.phases, stage.samples_after(step)):
    if row.source not in written:
      session.writer.write('data', stage.name, step, **row.to_record())
