"""One stage: its parts made from the configuration, its training, its final evaluation."""
import contextlib
import dataclasses
import functools
import hashlib
import itertools
import math
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from llm_jax import cpu, hf
from llm_jax.config import door
from llm_jax.config.count import count_parameters
from llm_jax.config.errors import located
from llm_jax.config.run import LanguageModel, Phase, Referenced, Run, Stage
from llm_jax.data.batches import RampSource, TrainSource, held_out_batches
from llm_jax.data.pipeline import Dataset
from llm_jax.data.tokenizers import Tokenizer
from llm_jax.evaluation.answers import check_answers
from llm_jax.evaluation.baselines import trigram_bits_per_byte, xz_bits_per_byte
from llm_jax.evaluation.held_out import evaluate, make_eval_step
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.language_model import LanguageModelObjective
from llm_jax.objectives.loss import Objective
from llm_jax.objectives.preference import PreferenceObjective
from llm_jax.optim.optimizers import make_optimizer
from llm_jax.optim.schedules import make_schedule
from llm_jax.sharding.rules import batch_sharding, replicated, state_shardings
from llm_jax.train import cluster
from llm_jax.train.averaging import average_params
from llm_jax.train.checkpoint import Checkpoint, CheckpointError, CheckpointStore
from llm_jax.train.cluster import Watchdog
from llm_jax.train.hardware import training_flops_per_token
from llm_jax.train.hooks import Every, Log, StopOnPreemption
from llm_jax.train.loop import train_loop
from llm_jax.train.metrics import MetricsWriter, read_metrics
from llm_jax.train.preemption import Preemption
from llm_jax.train.progress import Progress
from llm_jax.train.samples import continue_prompts
from llm_jax.train.state import TrainState
from llm_jax.train.step import make_train_step

BASELINE_TOKENS = 50_000_000  # more training tokens than that and no trigram model is fitted


@dataclasses.dataclass(frozen=True)
class Context:
  """What the stages of a run share."""
  run: Run
  workdir: pathlib.Path
  mesh: jax.sharding.Mesh
  execution: Execution
  tokenizer: Tokenizer
  writer: MetricsWriter
  preemption: Preemption
  lineage: dict[str, Any]
  peak_flops: float  # of all devices together
  primary: bool

  def store(self, stage: str) -> CheckpointStore:
    averaged = any(other.init[:2] == ('average', stage) for other in self.run.stages)
    return CheckpointStore(self.workdir / 'checkpoints' / stage, self.run.checkpoints.keep,
                           every=self.run.checkpoints.every if averaged else 0)


StageData = tuple[dict[int, Dataset], Dataset | None]  # training data by context, and held-out data


class StageRun:
  """A stage made ready: nothing is compiled or restored before `train`.

  data: of this stage and of those that it comes from, by name.
  """

  def __init__(self, context: Context, stage: Stage, data: Mapping[str, StageData]):
    run, mesh = context.run, context.mesh
    self.context, self.stage, self.data = context, stage, data
    train, self.held_out = data[stage.name]
    self.model, self.execution = run.model_of(stage), dataclasses.replace(context.execution, remat=stage.remat)
    self.objective = make_objective(stage, Transformer(self.model, self.execution))
    self.eval_step = make_eval_step(self.objective)
    self.sources = [TrainSource(train[phase.context], phase.batch_size, batch_sharding(mesh), phase.first_sample)
                    for phase in stage.phases]
    self.source = RampSource(self.sources) if stage.ramp else self.sources[0]
    self.store = context.store(stage.name)

    init = functools.partial(init_params, run)
    self.optimizer = make_optimizer(stage.optimizer, jax.eval_shape(init))
    create = lambda: TrainState.create(init(), self.optimizer, stage.ema is not None)
    abstract = jax.eval_shape(create)
    self.shardings = state_shardings(abstract, abstract.params, mesh)
    self.abstract = jax.tree.map(
        lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), abstract, self.shardings)
    self.create = jax.jit(create, out_shardings=self.shardings)
    self.parent: str | None = None
    self.reference: Any = None  # what the objective compares with, and nothing trains

  def train(self) -> None:
    """From wherever the newest checkpoint left the stage to its last step, its checkpoint and its final evaluation."""
    context, stage, run = self.context, self.stage, self.context.run
    with self.store, contextlib.closing(self.source):
      state = self.first_state()
      if isinstance(stage.objective, Referenced):
        self.reference = self.start_params()
      start = int(state.step)
      context.writer.rewind(stage.name, start)
      train_step = self.compile_steps(start) if start < stage.steps else None
      with (Progress(stage.steps, stage.name, start=start, enabled=context.primary) as progress,
            contextlib.closing(Watchdog(run.stall_seconds)) as watchdog):
        log = Log(context.writer, progress, watchdog, stage, every=run.log_every,
                  flops_per_token=lambda step: training_flops_per_token(self.model, stage.phase_at(step - 1).context),
                  peak_flops=context.peak_flops)
        state = train_loop(state, self.reference, self.source, train_step, stage.steps, hooks=[
          log,
          Every(stage.eval_every, log, lambda step, state: self.log_score(step, state, progress)),
          Every(stage.sample_every, log, self.write_samples),
          Every(run.checkpoints.every, log, self.save),
          StopOnPreemption(context.preemption, log, self.save_and_wait),
        ])
        log.pause()
        if start < stage.steps or stage.steps == 0:
          self.save_and_wait(stage.steps, state)
        self.finish(state, progress)

  def compile_steps(self, start: int):
    """The train step from step `start` on: compiled for every shape that is still to come, chosen by the batch's."""
    compiled = {}
    ends = [*(phase.first_step for phase in self.stage.phases[1:]), self.stage.steps]
    for phase, source, end in zip(self.stage.phases, self.sources, ends, strict=True):
      if max(start, phase.first_step) < min(end, self.stage.steps):
        compiled[phase.batch_size, phase.context] = self.compile_step(phase, source)

    def step(state: TrainState, frozen: Any, batch: Any):
      return compiled[jax.tree.leaves(batch)[0].shape](state, frozen, batch)
    return step

  def compile_step(self, phase: Phase, source: TrainSource):
    """One compiled step; it reuses the state's memory. Processes wait here for the one that compiles longest."""
    run, stage, mesh = self.context.run, self.stage, self.context.mesh
    schedule = make_schedule(stage.learning_rate, stage.steps)
    step = make_train_step(self.objective, self.optimizer, schedule, seed=stage_seed(run, stage),
                           microbatches=phase.microbatches, clip_norm=stage.clip_norm, ema=stage.ema)
    jitted = jax.jit(step, donate_argnums=0, out_shardings=(self.shardings, replicated(mesh)))
    begun = time.perf_counter()
    compiled = jitted.lower(self.abstract, self.reference, source.abstract()).compile()
    cpu.release_free_memory()
    cluster.barrier('compiled')
    if self.context.primary:
      tokens = phase.batch_size * phase.context * (2 if stage.data.pairs else 1)
      print(f'{stage.name}: {count_parameters(run.model):,} parameters, {tokens:,} tokens a step, mesh '
            f'{dict(mesh.shape)}, compiled in {time.perf_counter() - begun:.1f} s', flush=True)
    return compiled

  # -------------------------------------------------------------------------------------------- where it starts
  def first_state(self) -> TrainState:
    """The newest checkpoint of this stage, else what `init` says."""
    newest = self.store.latest_valid()
    if newest:
      check_tokenizer(newest, self.context.tokenizer)
      self.source.restore(newest.facts['data'])
      self.parent = newest.facts['lineage']['parent']
      return newest.restore(self.abstract)
    match self.stage.init:
      case ('scratch',):
        return self.create()
      case ('resume', name):
        state = self.finished(name).restore(self.abstract)
        return state.replace(step=jnp.zeros_like(state.step), nonfinite=jnp.zeros_like(state.nonfinite))
      case _:
        return jax.jit(lambda p: TrainState.create(p, self.optimizer, self.stage.ema is not None),
                       out_shardings=self.shardings)(self.start_params())

  def start_params(self) -> Any:
    """The parameters that a stage begins with which takes nothing else from where it starts."""
    match self.stage.init:
      case ('scratch',):
        return self.create().params
      case ('params' | 'resume', name):
        return self.finished(name).read_best(self.abstract.params)
      case ('average', name, count):
        self.finished(name)
        checkpoints = self.context.store(name).newest(count)
        self.parent = ' + '.join(f'{name}/{checkpoint.step}' for checkpoint in checkpoints)
        return average_params(checkpoints, self.abstract.params)
      case ('hf', folder):
        self.parent = f'hf:{folder}'
        with located('config'):
          return hf.load_pretrained(folder, self.context.mesh, config=self.context.run.model)[1]

  def finished(self, name: str) -> Checkpoint:
    """The last checkpoint of an earlier stage."""
    newest = self.context.store(name).latest_valid()
    if newest is None or not newest.facts['final']:
      raise CheckpointError(f'stage {self.stage.name} starts from stage {name}, which has not finished: run it first')
    check_tokenizer(newest, self.context.tokenizer)
    self.parent = f'{name}/{newest.step}'
    return newest

  # -------------------------------------------------------------------------------------------- what it leaves
  def save(self, step: int, state: TrainState, wait: bool = False) -> None:
    context = self.context
    facts = {'config': door.to_json(context.run), 'stage': self.stage.name, 'final': step == self.stage.steps,
             'tokenizer': context.tokenizer.fingerprint, 'data': self.source.position(),
             'lineage': {**context.lineage, 'parent': self.parent}}
    self.store.save(step, state, facts, wait=wait)

  def save_and_wait(self, step: int, state: TrainState) -> None:
    self.save(step, state, wait=True)

  def score(self, step: int, state: TrainState, everything: bool = False) -> dict[str, float]:
    """The objective's held-out means, of the averaged parameters where there is an average; for text bits per byte."""
    if self.held_out is None:
      return {}
    rows = self.stage.batch_size // self.stage.microbatches  # as many as a training step holds at once
    batches = held_out_batches(self.held_out, rows, batch_sharding(self.context.mesh),
                               None if everything else self.stage.eval_batches * self.stage.microbatches)
    scores = evaluate(self.eval_step, best_params(state), self.reference, batches)
    if self.stage.data.template is None:
      tokens_per_byte = self.held_out.num_targets / self.held_out.num_bytes
      scores['bits_per_byte'] = scores['nll'] * tokens_per_byte / math.log(2)
    return scores

  def log_score(self, step: int, state: TrainState, progress: Progress) -> None:
    if scores := self.score(step, state):
      self.context.writer.write('eval', self.stage.name, step, **scores)
      progress.held_out(step, **scores)

  def write_samples(self, step: int, state: TrainState) -> None:
    context = self.context
    for prompt, text in continue_prompts(self.model, self.execution, best_params(state), context.tokenizer, self.stage,
                                         context.run.seed):
      context.writer.sample(self.stage.name, step, prompt, text)

  def finish(self, state: TrainState, progress: Progress) -> None:
    """The stage's result: all of held-out, beside what needs no model to be learnt on the same bytes."""
    context, stage, writer = self.context, self.stage, self.context.writer
    if cluster.on_first(lambda: has_result(context.workdir, stage.name)):
      return
    self.write_samples(stage.steps, state)
    scores = self.score(stage.steps, state, everything=True)
    if scores:
      progress.held_out(stage.steps, **scores)
    if scores and context.primary and (baselines := self.baselines()):
      scores.update(baselines)
      progress.message(f'{stage.name}  the same bytes: ' + ', '.join(
        f'{name.removesuffix("_bits_per_byte")} {value:.4f}' for name, value in baselines.items()) + ' bits per byte')
    if scores and stage.data.template and not stage.data.pairs:
      scores.update(answers := self.answers(state))
      progress.message(f'{stage.name}  answers to held-out prompts: ' + ', '.join(
        f'{name.removesuffix("_before")} {value:.0%} -> {answers[name.removesuffix("_before")]:.0%}'
        for name, value in answers.items() if name.endswith('_before')))
    writer.write('final', stage.name, stage.steps, **scores)
    cluster.barrier('result')  # the others wait for the baselines

  def answers(self, state: TrainState) -> dict[str, float]:
    """The share of held-out prompts that are answered in form, and with `_before` that of the stage's beginning."""
    before, after = (check_answers(self.model, params, self.context.tokenizer, self.held_out, self.execution)
                     for params in (self.start_params(), best_params(state)))
    return {**{f'{name}_before': value for name, value in before.items()}, **after}

  def baselines(self) -> dict[str, float]:
    """Bits per byte of a trigram model fitted on the tokens that were trained on, in this stage and in those before it,
    and of xz -9. Empty where nothing was trained on, the data is not all text, or there is too much of it."""
    stages = (*self.context.run.ancestors(self.stage), self.stage)
    tokens = sum(stage.tokens_after(stage.steps) for stage in stages)
    plain = all(stage.data.template is None and not stage.ramp for stage in stages)
    if not plain or not self.stage.steps or tokens > BASELINE_TOKENS:
      return {}
    seen = itertools.chain.from_iterable(
      self.data[stage.name][0][stage.context].tokens_seen(stage.samples_after(stage.steps)) for stage in stages)
    held_out = self.held_out
    return {'trigram_bits_per_byte': trigram_bits_per_byte(seen, held_out.token_documents(),
                                                           self.context.tokenizer.vocab_size, held_out.num_bytes),
            'xz_bits_per_byte': xz_bits_per_byte(held_out.byte_documents())}


def check_tokenizer(checkpoint: Checkpoint, tokenizer: Tokenizer) -> None:
  if checkpoint.facts['tokenizer'] != tokenizer.fingerprint:
    raise CheckpointError(f'{checkpoint.path} was trained with tokenizer {checkpoint.facts["tokenizer"]}, this run has '
                          f'{tokenizer.fingerprint}: bring the first one back, or start in another workdir')


def has_result(workdir: pathlib.Path, stage: str) -> bool:
  """Whether the stage's final evaluation is written."""
  return any(r['kind'] == 'final' and r['stage'] == stage for r in read_metrics(workdir))


def stage_seed(run: Run, stage: Stage) -> int:
  """Of data order and dropout: another for each stage, or a second one would read the first one's rows again."""
  return int(hashlib.sha256(f'{run.seed}/{stage.name}'.encode()).hexdigest()[:7], 16)


def make_objective(stage: Stage, model: Transformer) -> Objective:
  match stage.objective:
    case LanguageModel(z_loss, multi_token_weight):
      return LanguageModelObjective(model, z_loss, multi_token_weight)
    case form:
      return PreferenceObjective(model, form)


def init_params(run: Run) -> Any:
  """Fresh float32 parameters, a function of the seed alone."""
  tokens = jnp.zeros((1, 1), jnp.int32)
  return Transformer(run.model, Execution(unroll=False)).init(jax.random.key(run.seed), tokens)['params']


def best_params(state: TrainState) -> Any:
  """The average of the parameters where one is kept, else the parameters."""
  return state.params if state.ema is None else state.ema
