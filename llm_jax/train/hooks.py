"""What happens around the steps: numbers, held-out loss, samples, checkpoints, stopping."""
import time
from collections.abc import Callable
from typing import Any

import jax

from llm_jax.config.stage import Stage
from llm_jax.objectives.loss import means_by_source
from llm_jax.runtime.hardware import memory_in_use
from llm_jax.runtime.preemption import Preempted, Preemption
from llm_jax.runtime.watchdog import Watchdog
from llm_jax.tracking.metrics import MetricsWriter
from llm_jax.tracking.progress import Progress
from llm_jax.train.evaluations import Evaluations
from llm_jax.train.state import TrainState


class Diverged(RuntimeError):
  """Too many steps in a row had a gradient that is not finite."""


# What to change where the gradient is not finite.
HINT = 'Lower learning_rate.peak, lengthen its warmup, or look at the data of these steps'


def check_result(stage: Stage, nonfinite: int) -> None:
  """Raises Diverged for a stage whose last steps, more than one, were all skipped: its parameters are no result."""
  if nonfinite > 1:
    raise Diverged(f'{stage.name}: the gradient of its last {nonfinite} steps was not finite: it has no result. {HINT}')


class Log:
  """Writes a step's numbers while the next step runs, so that the device never waits for the host."""

  def __init__(self, writer: MetricsWriter, progress: Progress, watchdog: Watchdog, stage: Stage, *,
               flops_per_token: Callable[[int], float], peak_flops: float, every: int):
    self.writer, self.progress, self.watchdog, self.stage, self.every = writer, progress, watchdog, stage, every
    self.utilisation = lambda step: flops_per_token(step) / peak_flops
    self.pending: tuple[int, dict[str, jax.Array], float | None] | None = None
    self.seconds = float('inf')  # of the last step that was timed
    self.resume()

  def __call__(self, step: int, state: TrainState, metrics: dict[str, jax.Array]) -> None:
    done = time.perf_counter() if metrics['loss'].is_ready() else None  # some backends compute before they return
    self.flush(done)
    self.pending = step, metrics, done

  def pause(self) -> None:
    """Before something other than steps: writes what is pending; nobody expects a step until `resume`."""
    self.flush()
    self.watchdog.pause()

  def resume(self) -> None:
    """Starts the clock anew, so that what came between two steps is not counted as their time."""
    self.since = time.perf_counter()

  def flush(self, before: float | None = None) -> None:
    """Reads and writes the numbers of the step that is still pending; it had finished at `before`, if that is given."""
    if self.pending is None:
      return
    (step, metrics, done), self.pending = self.pending, None
    numbers = means_by_source({name: value.item() for name, value in jax.device_get(metrics).items()})
    self.watchdog.beat(step)
    done = done or before or time.perf_counter()
    if done > self.since:  # else two short steps were seen to end at once: the time of the one before stands for it
      self.seconds, self.since = done - self.since, done
    tokens, stage = self.stage.tokens_after(step), self.stage.name
    speed = (tokens - self.stage.tokens_after(step - 1)) / self.seconds
    in_a_row = int(numbers.pop('nonfinite'))
    numbers.update(step_seconds=self.seconds, tokens=tokens, tokens_per_second=speed,
                   mfu=speed * self.utilisation(step), skipped=in_a_row > 0)
    if step % self.every == 0 or in_a_row:
      self.writer.write('train', stage, step, **numbers)
    self.progress.update(step, memory=memory_in_use(), **numbers)
    if in_a_row:
      samples = f'{self.stage.samples_after(step - 1)} to {self.stage.samples_after(step) - 1}'
      self.writer.write('event', stage, step, event=f'skipped: gradient not finite, samples {samples}')
      self.progress.message(f'{stage}: step {step} skipped, its gradient is not finite (samples {samples})')
    if in_a_row >= self.stage.max_nonfinite:
      raise Diverged(f'{stage}: the gradient was not finite {in_a_row} steps in a row up to step {step}; they changed '
                     f'nothing. {HINT}')


class Periodic:
  """Runs `action(step, state)` every so many steps before the last one, outside of the steps' clock. 0: never."""

  def __init__(self, steps: int, log: Log, action: Callable[[int, TrainState], None]):
    self.steps = steps
    self.log = log
    self.action = action

  def __call__(self, step: int, state: TrainState, metrics: Any) -> None:
    is_due = self.steps > 0 and step % self.steps == 0
    if is_due and step < self.log.stage.steps:
      self.log.pause()
      self.action(step, state)
      self.log.resume()


class Evaluate:
  """Runs the stage's evaluations that are due before the last step, outside of the steps' clock.

  evaluate: (step, state) -> whether the stage is to end.
  """

  def __init__(self, evaluations: Evaluations, log: Log, evaluate: Callable[[int, TrainState], bool]):
    self.evaluations = evaluations
    self.log = log
    self.evaluate = evaluate

  def __call__(self, step: int, state: TrainState, metrics: Any) -> bool:
    if step >= self.log.stage.steps or not self.evaluations.is_due(step):
      return False
    self.log.pause()
    ends_stage = self.evaluate(step, state)
    self.log.resume()
    return ends_stage


class StopOnPreemption:
  """Saves and raises Preempted after the step in which the machine asked for it."""

  def __init__(self, preemption: Preemption, log: Log, save: Callable[[int, TrainState], Any]):
    self.preemption, self.log, self.save = preemption, log, save

  def __call__(self, step: int, state: TrainState, metrics: Any) -> None:
    if self.preemption.requested():
      self.log.pause()
      self.save(step, state)
      raise Preempted(f'saved at step {step}')
