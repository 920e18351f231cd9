"""Traces some steps with jax's profiler, and prints where their time went: `launch.train --profile=START:STOP`."""
import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax

from llm_jax.config.errors import ConfigError
from llm_jax.config.stage import Stage
from llm_jax.runtime import activity
from llm_jax.runtime.time_use import Use
from llm_jax.tracking.operations import kinds_of
from llm_jax.tracking.trace import STEP, read_trace, step_times, table
from llm_jax.train.hooks import Log
from llm_jax.train.state import TrainState

FOLDER = 'profile'  # of the run's folder
FLAG = '--profile'


@dataclasses.dataclass(frozen=True)
class Window:
  """The steps that are traced: those after `start` finished steps, until `stop` are."""
  start: int
  stop: int

  def __str__(self) -> str:
    return f'{self.start}:{self.stop}'

  def check(self, stage: Stage, first: int) -> None:
    """Refuses steps that the stage does not take.   first: steps of it that are done."""
    if self.stop > stage.steps:
      raise ConfigError(FLAG, str(self), f'stage {stage.name} has {stage.steps} steps: let STOP be at most that')
    if self.start < first:
      raise ConfigError(FLAG, str(self), f'stage {stage.name} goes on from step {first}: let START be {first} or more')


class Profiler:
  """Traces the steps of a window. Only the primary process does.

  programs: () -> HLO texts of the training steps that are compiled.
  """

  def __init__(self, window: Window, workdir: pathlib.Path, stage: str, log: Log, say: Callable[[str], None],
               programs: Callable[[], list[str]]):
    self.window = window
    self.folder = workdir / FOLDER
    self.stage = stage
    self.log = log
    self.say = say
    self.programs = programs
    self.step: Any = None  # the event of the step that runs; None: no step is traced

  def after_step(self, step: int, state: TrainState, metrics: dict[str, Any]) -> None:
    """The hook behind the log: what follows a step, such as saving, is outside of its event."""
    if self.step is None:
      return
    is_last = step >= self.window.stop
    if is_last:
      self.log.pause('writes the profile', Use.START)  # it reads the step's numbers, and so waits for its end
    self.step.__exit__(None, None, None)
    self.step = None
    if is_last:
      jax.profiler.stop_trace()
      for line in self.summary():
        self.say(line)
      self.log.resume()

  def before_step(self, step: int, state: Any = None, metrics: Mapping[str, Any] | None = None) -> None:
    """The last hook, and before the first step.   step: finished steps."""
    if step == self.window.start:
      jax.block_until_ready(metrics)
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0  # its events would fill the trace, which has room for a million
      jax.profiler.start_trace(self.folder, profiler_options=options)
    if self.window.start <= step < self.window.stop:
      self.step = jax.profiler.StepTraceAnnotation(STEP, step_num=step + 1)
      self.step.__enter__()

  def close(self) -> None:
    """Ends a trace that a stop or an error has cut short."""
    if self.step is not None:
      self.step.__exit__(None, None, None)
      self.step = None
      jax.profiler.stop_trace()

  def summary(self) -> list[str]:
    activity.begin('reads the profile')
    path, events = read_trace(self.folder)
    programs = {module_of(text): kinds_of(text) for text in self.programs()}
    times = step_times(events, programs)
    return [f'{self.stage}: where the time of steps {self.window.start + 1} to {self.window.stop} went', *table(times),
            f'  trace: {path}', '  open it at https://ui.perfetto.dev, or all of it with tensorboard (and its plugin '
            f'xprof): tensorboard --logdir={self.folder}']


def module_of(hlo: str) -> str:
  """`HloModule jit_train_step, is_scheduled=true` -> `jit_train_step`."""
  return hlo.removeprefix('HloModule ').partition(',')[0].strip()
