"""Compiles the steps of a stage, one for every shape of batch that is still to come."""
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import jax

from llm_jax.config.model.count import count_parameters
from llm_jax.config.ramp import Phase
from llm_jax.objectives.frozen import Frozen
from llm_jax.optim.schedules import make_schedule
from llm_jax.rollout.source import RolloutSource
from llm_jax.runtime import activity, cpu, processes
from llm_jax.sharding.rules import replicated
from llm_jax.tracking.terminal import say
from llm_jax.train.build import stage_seed
from llm_jax.train.compiler_options import compile_with_options, options_for
from llm_jax.train.state import TrainState
from llm_jax.train.step import make_train_step

if TYPE_CHECKING:
  from llm_jax.train.stage import BuiltStage


class CompiledStep:
  """The train step of a stage: the batch's shape chooses the program."""

  def __init__(self, programs: dict[tuple[int, ...], Any]):
    self.programs = programs

  def __call__(self, state: TrainState, frozen: Frozen, batch: Any) -> tuple[TrainState, Any]:
    activity.mark()  # so that a process that still waits for its batch is behind one that computes
    shape = jax.tree.leaves(batch)[0].shape
    return self.programs[shape](state, frozen, batch)

  def texts(self) -> list[str]:
    """HLO of the programs."""
    return [program.as_text() for program in self.programs.values()]


def compile_steps(built: 'BuiltStage', first: int, last: int) -> CompiledStep:
  """The train step for the steps from `first` to `last`."""
  compiled = {}
  for phase, batch in shapes_to_come(built, first, last):
    compiled[phase.batch_size, phase.seq_len] = compile_step(built, phase, batch)
  return CompiledStep(compiled)


def shapes_to_come(built: 'BuiltStage', first: int, last: int) -> Iterator[tuple[Phase, Any]]:
  """The phases that have a step from `first` to `last`, and the abstract batch of each. The answers
  of a rollout may take several numbers of rows."""
  if isinstance(built.source, RolloutSource):
    for (count, length), batch in built.source.shapes() if first < last else ():
      yield dataclasses.replace(built.phases[0], batch_size=count, seq_len=length), batch
    return
  ends = [*(phase.first_step for phase in built.phases[1:]), built.stage.steps]
  for phase, source, end in zip(built.phases, built.sources, ends, strict=True):
    is_to_come = max(first, phase.first_step) < min(end, last)
    if is_to_come:
      yield phase, source.abstract()


def compile_step(built: 'BuiltStage', phase: Phase, batch: Any) -> Callable:
  """One compiled step; it reuses the state's memory. Processes wait here for the one that compiles longest."""
  session, stage = built.session, built.stage
  schedule = make_schedule(stage.learning_rate, stage.steps)
  step = make_train_step(built.objective, built.optimizer, schedule, seed=stage_seed(session.run, stage),
                         microbatches=phase.microbatches, clip_norm=stage.clip_norm, ema=stage.ema,
                         skip_spikes=stage.skip_spikes)
  if stage.optimizer_memory == 'host':
    step = with_optimizer_on_host(step, built.shardings.opt_state)
  jitted = jax.jit(step, donate_argnums=0, out_shardings=(built.shardings, replicated(session.mesh)))
  since = time.perf_counter()
  lowered = jitted.lower(built.abstract, built.starter.abstract_frozen, batch)
  options = options_for(jax.default_backend(), session.mesh)
  with cpu.releasing_memory():
    compiled = compile_with_options(lowered, options)
  processes.barrier('compiled')
  if session.primary:
    adapters = '' if stage.adapters is None else f' ({size_of(built.abstract.params):,} trained)'
    say(f'{stage.name}: {count_parameters(session.run.model):,} parameters{adapters}, {phase.tokens:,} tokens a step, '
        f'mesh {dict(session.mesh.shape)}, compiled in {time.perf_counter() - since:.1f} s')
    if options:
      say(f'{stage.name}: compiled with {" ".join(f"{name}={value}" for name, value in options.items())}')
  return compiled


def with_optimizer_on_host(step: Callable, host: Any) -> Callable:
  """The step of a state whose optimizer's part is in the host's memory: there and back within the program.

  host: the shardings of that part.
  """
  device = jax.tree.map(lambda sharding: sharding.with_memory_kind('device'), host)

  def step_there_and_back(state: TrainState, frozen: Any, batch: Any) -> tuple[TrainState, Any]:
    state = dataclasses.replace(state, opt_state=jax.device_put(state.opt_state, device))
    state, metrics = step(state, frozen, batch)
    return dataclasses.replace(state, opt_state=jax.device_put(state.opt_state, host)), metrics

  return step_there_and_back


def size_of(tree: Any) -> int:
  """How many numbers the arrays of a tree have."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))
