"""One stage: its parts made from the configuration, its training, its final evaluation."""
import contextlib
import dataclasses
import functools
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax

from llm_jax.config import schema
from llm_jax.config.model.count import count_parameters
from llm_jax.config.ramp import Phase
from llm_jax.config.stage import Stage
from llm_jax.data.batches import RampSource, TrainSource, check_same_data
from llm_jax.data.mixture_stats import shares
from llm_jax.evaluation.generations import continue_prompts
from llm_jax.modules.transformer import Transformer
from llm_jax.optim.optimizers import make_optimizer
from llm_jax.optim.schedules import make_schedule
from llm_jax.runtime import cpu, processes
from llm_jax.runtime.hardware import training_flops_per_token
from llm_jax.runtime.watchdog import Watchdog
from llm_jax.sharding.check import row_shards
from llm_jax.sharding.rules import batch_sharding, replicated, state_shardings
from llm_jax.tracking.metrics import read_generations, read_metrics
from llm_jax.tracking.progress import Progress, say
from llm_jax.train.build import best_params, init_params, make_objective, stage_seed
from llm_jax.train.hooks import Every, Log, StopOnPreemption, check_result
from llm_jax.train.loop import train_loop
from llm_jax.train.scores import Scorer, StageData, told
from llm_jax.train.session import Session
from llm_jax.train.starting_point import Start, Starter
from llm_jax.train.state import TrainState
from llm_jax.train.step import make_train_step


class StageRun:
  """A stage made ready: nothing is compiled or read before `train`.

  data: of this stage and of those that it comes from, by name.
  """

  def __init__(self, session: Session, stage: Stage, data: Mapping[str, StageData]):
    run, mesh = session.run, session.mesh
    self.session, self.stage = session, stage
    train, _ = data[stage.name]
    self.model, self.execution = run.model_of(stage), dataclasses.replace(session.execution, remat=stage.remat)
    self.phases = stage.phases_over(row_shards(run.model, run.mesh, jax.device_count()))
    model = Transformer(self.model, self.execution)
    self.objective = make_objective(stage, model, stage.data)
    self.scorer = Scorer(session, stage, data, make_objective(stage, model, stage.validation_data), self.model,
                         self.execution, self.phases[-1])
    self.sources = [TrainSource(train[phase.seq_len], phase.batch_size, batch_sharding(mesh), phase.first_sample)
                    for phase in self.phases]
    self.source = RampSource(self.sources) if stage.ramp else self.sources[0]
    self.store = session.store(stage.name)

    init = functools.partial(init_params, run, stage)
    self.optimizer = make_optimizer(stage.optimizer, jax.eval_shape(init))
    create = lambda: TrainState.create(init(), self.optimizer, stage.ema is not None)
    abstract = jax.eval_shape(create)
    self.shardings = state_shardings(abstract, abstract.params, mesh)
    self.abstract = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, self.shardings)
    self.starter = Starter(session, stage, jax.jit(create, out_shardings=self.shardings), self.abstract, self.optimizer)
    self.begun: dict[str, Any] = {}  # where, for the lineage
    self.reference: Any = None  # what the objective compares with, and nothing trains
    self.done = False  # before its last step
    self.saved: int | None = None  # the step of the last checkpoint that was begun
    self.before: dict[str, Any] = {}  # what its beginning was asked

  def train(self) -> None:
    """From wherever the newest checkpoint left the stage to its last step, its checkpoint and its final evaluation."""
    session, stage, run = self.session, self.stage, self.session.run
    with self.store, contextlib.closing(self.source):
      found = self.find_start()
      start = found.step
      session.writer.rewind(stage.name, start)
      steps = start if self.done else stage.steps
      train_step = self.compile_steps(start) if start < steps else None  # before there is a state: both need memory
      state = self.begin(found)
      cpu.release_free_memory()
      passes = 1 if self.reference is None else 4 / 3  # the reference's, forward alone: a third of a training step's
      with (Progress(stage.steps, stage.name, start=start, enabled=session.primary) as progress,
            contextlib.closing(Watchdog(run.stall_seconds)) as watchdog):
        self.scorer.moves = watchdog.pause
        log = Log(session.writer, progress, watchdog, stage, every=run.log_every,
                  flops_per_token=lambda step: passes * training_flops_per_token(
                    self.model, stage.phase_at(step - 1).seq_len),
                  peak_flops=session.peak_flops)
        with session.preemption.steps():
          state = train_loop(state, self.reference, self.source, train_step, steps, hooks=[
            log,
            Every(stage.eval_every, log, lambda step, state: self.log_score(step, state, progress)),
            Every(stage.sample_every, log, self.write_samples),
            Every(run.checkpoints.every, log, self.save),
            StopOnPreemption(session.preemption, log, self.save_and_wait),
          ])
          log.pause()
          check_result(stage, int(state.nonfinite))
          if start < steps or stage.steps == 0:
            self.save_and_wait(int(state.step), state)
        self.finish(int(state.step), state, progress)

  def find_start(self) -> Start:
    """Where to go on from, with what was noted there; refused here where it does not fit."""
    start = self.starter.start(self.store.latest_valid())
    self.begun = {'parent': start.parent}
    if start.folder:
      self.begun['folder'] = start.folder
    if start.resumed:
      self.source.restore(start.resumed.metadata['data'])
      if self.scorer.held_out and (validation_data := start.resumed.metadata.get('eval_data')):
        check_same_data(validation_data, self.scorer.held_out.fingerprint, 'eval_data.')
      self.done, self.before = start.resumed.metadata['final'], start.resumed.metadata.get('before') or {}
    return start

  def begin(self, start: Start) -> TrainState:
    """The state to go on from; a fresh one is asked what is told of the stage's start later, beside its end."""
    state, self.reference = start.read()
    if not start.resumed and self.scorer.asks and self.stage.init[0] != 'scratch':
      self.before = self.scorer.asked(best_params(state), before=True)
    return state

  def compile_steps(self, start: int):
    """The train step from step `start` on: compiled for every shape that is still to come, chosen by the batch's."""
    compiled = {}
    ends = [*(phase.first_step for phase in self.phases[1:]), self.stage.steps]
    for phase, source, end in zip(self.phases, self.sources, ends, strict=True):
      if max(start, phase.first_step) < min(end, self.stage.steps):
        compiled[phase.batch_size, phase.seq_len] = self.compile_step(phase, source)

    def step(state: TrainState, frozen: Any, batch: Any):
      return compiled[jax.tree.leaves(batch)[0].shape](state, frozen, batch)
    return step

  def compile_step(self, phase: Phase, source: TrainSource):
    """One compiled step; it reuses the state's memory. Processes wait here for the one that compiles longest."""
    run, stage, mesh = self.session.run, self.stage, self.session.mesh
    schedule = make_schedule(stage.learning_rate, stage.steps)
    step = make_train_step(self.objective, self.optimizer, schedule, seed=stage_seed(run, stage),
                           microbatches=phase.microbatches, clip_norm=stage.clip_norm, ema=stage.ema)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(self.shardings, replicated(mesh)))
    begun = time.perf_counter()
    reference = self.abstract.params if self.starter.referenced else None
    compiled = cpu.compile_step(jitted.lower(self.abstract, reference, source.abstract()))
    processes.barrier('compiled')
    if self.session.primary:
      tokens = phase.batch_size * phase.seq_len * (2 if stage.data.pairs else 1)
      say(f'{stage.name}: {count_parameters(run.model):,} parameters, {tokens:,} tokens a step, mesh '
          f'{dict(mesh.shape)}, compiled in {time.perf_counter() - begun:.1f} s')
    return compiled

  # -------------------------------------------------------------------------------------------- what it leaves
  def save(self, step: int, state: TrainState, wait: bool = False) -> None:
    """A step that is saved already is not saved again: asked to stop, a run may be at a checkpoint's step."""
    session = self.session
    if step == self.saved:
      self.store.wait()
      return
    metadata = {'config': schema.to_json(session.run), 'stage': self.stage.name,
             'final': self.done or step == self.stage.steps, 'tokenizer': session.tokenizer.fingerprint,
             'data': self.source.position(), 'eval_data': self.scorer.held_out and self.scorer.held_out.fingerprint,
             'before': self.before, 'lineage': {**session.lineage, **self.begun}}
    self.store.save(step, state, metadata, wait=wait)
    self.saved = step

  def save_and_wait(self, step: int, state: TrainState) -> None:
    self.save(step, state, wait=True)

  def log_score(self, step: int, state: TrainState, progress: Progress) -> bool:
    """Whether the stage is done by what it is asked."""
    if scores := self.scorer.scores(best_params(state), self.reference):
      progress.held_out(step, **scores)
    if self.stage.needles and self.stage.needles.target_recall:
      after = self.scorer.asked(best_params(state))
      self.tell(after, progress)
      self.done, scores = self.scorer.target_recall(after, self.before), scores | after
    if scores:
      self.session.writer.write('eval', self.stage.name, step, **scores)
    if self.done:
      progress.message(f'{self.stage.name}  done at step {step:,}: enough needles are found')
    return self.done

  def tell(self, after: dict[str, Any], progress: Progress) -> None:
    for name, value in after.items():
      progress.message(f'{self.stage.name}  {told(name, value, self.before.get(name))}')

  def write_samples(self, step: int, state: TrainState) -> None:
    """Those of a stage's end may be there already: a kill between them and the result leaves them."""
    session, key = self.session, (self.stage.name, step)
    there = {r['prompt'] for r in read_generations(session.workdir) if (r['stage'], r['step']) == key}
    for prompt, text in continue_prompts(self.model, self.execution, best_params(state), session.tokenizer, self.stage,
                                         session.run.seed):
      if prompt not in there:
        session.writer.generation(self.stage.name, step, prompt, text)

  def finish(self, step: int, state: TrainState, progress: Progress) -> None:
    """The stage's result: all of held-out, beside what needs no model to be learnt on the same bytes."""
    session, stage, writer = self.session, self.stage, self.session.writer
    if processes.on_first(lambda: has_result(session.workdir, stage.name)):
      return
    self.write_samples(step, state)
    scores = self.scorer.scores(best_params(state), self.reference, everything=True)
    if scores:
      progress.held_out(step, **scores)
    if scores and self.starter.members:
      scores.update(self.alone(scores, progress))
    if self.scorer.asks:
      after = self.scorer.asked(best_params(state))
      self.tell(after, progress)
      scores |= after | {f'{name}_before': value for name, value in self.before.items()}
      if self.scorer.learns_to_answer and 'ended' not in scores:
        progress.message(f'{stage.name}  no held-out question fits into half of the context: no answers are scored')
    if scores and session.primary and (baselines := self.scorer.baselines(step)):
      scores.update(baselines)
      progress.message(f'{stage.name}  the same bytes: ' + ', '.join(
        f'{name.removesuffix("_bits_per_byte")} {value:.4f}' for name, value in baselines.items()) + ' bits per byte')
    there = {r['source'] for r in read_metrics(session.workdir) if (r['kind'], r['stage']) == ('data', stage.name)}
    for row in shares(self.scorer.data[stage.name][0], stage.phases, stage.samples_after(step)):
      if row.source not in there:  # a kill between these and the result leaves them
        writer.write('data', stage.name, step, **row._asdict())
    writer.write('final', stage.name, step, **scores)
    processes.barrier('result')  # the others wait for the baselines

  def alone(self, scores: dict[str, float], progress: Progress) -> dict[str, float]:
    """Beside the result of a stage that starts from an average: that of the last averaged checkpoint alone, `_before`,
    and of its moving average where one was kept, `_ema`."""
    stage, found, words = self.stage, {}, {'before': 'the last checkpoint alone', 'ema': 'its moving average'}
    name, unit = ('bits_per_byte', 'bits per byte') if 'bits_per_byte' in scores else ('loss', 'loss')
    for kind, params in self.starter.last_alone():
      alone = self.scorer.scores(params, self.reference, everything=True)
      found |= {f'{each}_{kind}': alone[each] for each in ('loss', name)}
    beside = [(words[kind], found[f'{name}_{kind}']) for kind in words if f'{name}_{kind}' in found]
    mean = f'the mean of {len(self.starter.members)}' + (f' and {stage.steps:,} steps' if stage.steps else '')
    if beside:
      names, values = zip(*beside, (mean, scores[name]), strict=True)
      progress.message(f'{stage.name}: held-out {" -> ".join(f"{value:.4f}" for value in values)} {unit} '
                       f'({" -> ".join(names)})')
    return found


def has_result(workdir: pathlib.Path, stage: str) -> bool:
  """Whether the stage's final evaluation is written."""
  return any(r['kind'] == 'final' and r['stage'] == stage for r in read_metrics(workdir))
