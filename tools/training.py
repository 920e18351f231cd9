"""The training of one stage in memory: no folder, no mesh, no hooks. What tools compare is recorded on the way."""
import dataclasses
import functools
import hashlib
import math
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from llm_jax.config.run import Run
from llm_jax.config.stage import Stage
from llm_jax.data.batches import Batch, RampSource, TrainSource
from llm_jax.data.dataset import Dataset, open_dataset, training_texts
from llm_jax.data.sources.documents import Split
from llm_jax.data.tokenizers.base import Tokenizer, make_tokenizer
from llm_jax.modules.execution import Execution
from llm_jax.modules.transformer import Transformer
from llm_jax.objectives.frozen import Frozen, FrozenModel
from llm_jax.optim.optimizers import make_optimizer
from llm_jax.optim.schedules import make_schedule
from llm_jax.train.build import best_params, init_params, make_objective, stage_seed
from llm_jax.train.state import TrainState
from llm_jax.train.step import accumulate, make_train_step


@dataclasses.dataclass(frozen=True)
class Record:
  """What a training was.

  losses: of each step.   batches: sha256 of all batches.   num_parameters: of the model.   initial_norm, final_norm:
  of the parameters (of their moving average where one is kept) before the first step and after the last.
  """
  losses: tuple[float, ...]
  batches: str
  num_parameters: int
  initial_norm: float
  final_norm: float


@dataclasses.dataclass(frozen=True)
class Rows:
  """What a stage reads: sha256 of all its training batches, and of its validation rows."""
  batches: str
  validation: str


# XLA's CPU compiler takes a third of its time at this level, and the steps of a tiny model are as fast.
QUICK_COMPILE: dict[str, Any] = {'xla_backend_optimization_level': 0}


@dataclasses.dataclass(frozen=True)
class Step:
  """A step that was just taken. `state` is gone once the next one is taken.

  number: from 1 on.   seconds: of the step alone, once compiled.
  """
  number: int
  batch: Batch
  state: TrainState
  loss: float
  seconds: float


class Training:
  """A stage of a run, made ready to be trained from its first step on, as often as wanted."""

  def __init__(self, run: Run, stage: Stage, compiler_options: Mapping[str, Any] | None = None):
    self.run = run
    self.stage = stage
    self._compiler_options = dict(compiler_options or {})
    self._optimizer = make_optimizer(stage.optimizer, jax.eval_shape(self._init))
    self._create = jax.jit(self._new_state).lower().compile(QUICK_COMPILE)
    self._compiled: dict[Any, Callable] = {}
    model = Transformer(run.model_of(stage), Execution(remat=stage.remat))
    self.objective = make_objective(stage, model, stage.data)

  def record(self) -> Record:
    """What all steps of the stage give."""
    initial = self.initial_params()
    num_parameters = sum(leaf.size for leaf in jax.tree.leaves(initial))
    losses = []
    final_norm = 0.0
    digest = hashlib.sha256()
    for step in self.steps(self.stage.steps):
      update(digest, step.batch)
      losses.append(step.loss)
      if step.number == self.stage.steps:
        final_norm = _norm(best_params(step.state))
    return Record(tuple(losses), digest.hexdigest(), num_parameters, _norm(initial), final_norm)

  def initial_params(self) -> Any:
    """The parameters before the first step, as NumPy arrays."""
    return jax.tree.map(np.array, self._create().params)

  def first_gradients(self) -> Any:
    """Of the first step, before they are clipped: sums over the batch, as NumPy arrays."""
    params = self.initial_params()
    [batch] = batches(self.run, self.stage, 1)
    rng = jax.random.fold_in(jax.random.key(stage_seed(self.run, self.stage)), 0)
    microbatches = self.stage.phase_at(0).microbatches

    def gradients(params: Any, batch: Batch) -> Any:
      return accumulate(self.objective, params, self._freeze(params), batch, rng, microbatches)[0]

    return jax.tree.map(np.array, jax.jit(gradients)(params, batch))

  def steps(self, count: int) -> Iterator[Step]:
    """Trains the first `count` steps."""
    state = self._create()
    # A copy: each step is given the state's memory, and must not overwrite what the objective compares with.
    frozen = self._freeze(jax.tree.map(jnp.array, self.initial_params()))
    for done, batch in enumerate(batches(self.run, self.stage, count)):
      train_step = self._compile(done, state, frozen, batch)
      start = time.perf_counter()
      state, metrics = train_step(state, frozen, batch)
      loss = float(metrics['loss'])  # waits for the step
      yield Step(done + 1, batch, state, loss, time.perf_counter() - start)

  def _freeze(self, params: Any) -> Frozen:
    """What the steps read: the parameters before the first step are the reference, and the teacher."""
    is_distilled = self.stage.objective.distilled is not None
    return Frozen(reference=params, teacher=FrozenModel(params, self.objective.model) if is_distilled else None)

  def _init(self) -> Any:
    return init_params(self.run, self.stage)

  def _new_state(self) -> TrainState:
    return TrainState.create(self._init(), self._optimizer, self.stage.ema is not None)

  def _compile(self, done: int, *arguments: Any) -> Callable:
    """The program of the step that comes after `done` steps; each phase of the stage has one."""
    phase = self.stage.phase_at(done)
    if phase not in self._compiled:
      jitted = jax.jit(self._make_step(phase.microbatches), donate_argnums=0)
      self._compiled[phase] = jitted.lower(*arguments).compile(self._compiler_options)
    return self._compiled[phase]

  def _make_step(self, microbatches: int) -> Callable:
    stage = self.stage
    schedule = make_schedule(stage.learning_rate, stage.steps)
    return make_train_step(self.objective, self._optimizer, schedule, seed=stage_seed(self.run, stage),
                           microbatches=microbatches, clip_norm=stage.clip_norm, ema=stage.ema,
                           skip_spikes=stage.skip_spikes)


def rows(run: Run, stage: Stage) -> Rows:
  """Reads everything that the stage would, and computes nothing."""
  train = hashlib.sha256()
  for batch in batches(run, stage, stage.steps):
    update(train, batch)
  validation = hashlib.sha256()
  dataset = open_split(run, stage, tokenizer_of(run), 'validation', stage.phases[-1].seq_len)
  for row in dataset.rows if dataset else ():
    update(validation, row)
  return Rows(train.hexdigest(), validation.hexdigest())


def digest_of(tree: Any) -> str:
  """sha256 of all arrays of a tree."""
  digest = hashlib.sha256()
  update(digest, tree)
  return digest.hexdigest()


def update(digest: 'hashlib._Hash', tree: Any) -> None:
  """Adds all arrays of a tree, in its order."""
  for leaf in jax.tree.leaves(tree):
    digest.update(np.asarray(leaf).tobytes())


def batches(run: Run, stage: Stage, count: int) -> Iterator[Batch]:
  """The batches of a stage's first `count` steps, as NumPy arrays."""
  source = make_source(run, stage, tokenizer_of(run))
  try:
    for _ in range(count):
      yield source.next()
  finally:
    source.close()


def tokenizer_of(run: Run) -> Tokenizer:
  """The run's tokenizer; one that is to be trained is trained on the text of the first stage, as in a run."""
  return make_tokenizer(run.tokenizer, functools.partial(training_texts, run.stages[0].data))


def make_source(run: Run, stage: Stage, tokenizer: Tokenizer) -> TrainSource | RampSource:
  """The stage's batches, which begin with its first sample."""
  sources = []
  for phase in stage.phases:
    dataset = open_split(run, stage, tokenizer, 'train', phase.seq_len)
    assert dataset is not None  # every source has text to train on
    sources.append(TrainSource(dataset, phase.batch_size, start=phase.first_sample))
  return RampSource(sources) if stage.ramp else sources[0]


def open_split(run: Run, stage: Stage, tokenizer: Tokenizer, split: Split, seq_len: int) -> Dataset | None:
  return open_dataset(stage.data, tokenizer, seq_len=seq_len, seed=stage_seed(run, stage), split=split,
                      steps=stage.steps, phases=stage.phases)


def _norm(params: Any) -> float:
  squares = [float(np.square(leaf, dtype=np.float64).sum()) for leaf in jax.tree.leaves(params)]
  return math.sqrt(sum(squares))
