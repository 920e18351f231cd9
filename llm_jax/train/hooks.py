"""What happens after a step: its numbers are written, the stage is evaluated and saved, the run stops."""
import dataclasses
import time
from collections.abc import Callable
from typing import Any

from llm_jax.config.stage import Stage
from llm_jax.objectives.loss import as_numbers
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


@dataclasses.dataclass(frozen=True)
class PendingStep:
  """A step whose numbers are not yet read. finished_at: when it was seen to have finished; None: not yet."""
  step: int
  metrics: dict[str, Any]
  finished_at: float | None


class Log:
  """Writes a step's numbers while the next step runs, so that the device never waits for the host.

  flops_per_token: (step) -> FLOP of a token in that step.   peak_flops: FLOP/s of all devices together.
  every: steps between two records in metrics.jsonl.
  """

  def __init__(self, writer: MetricsWriter, progress: Progress, watchdog: Watchdog, stage: Stage, *,
               flops_per_token: Callable[[int], float], peak_flops: float, every: int):
    self.writer = writer
    self.progress = progress
    self.watchdog = watchdog
    self.stage = stage
    self.every = every
    self.flops_per_token = flops_per_token
    self.peak_flops = peak_flops
    self.pending: PendingStep | None = None
    self.seconds = float('inf')  # of the last step that was timed
    self.resume()

  def __call__(self, step: int, state: TrainState, metrics: dict[str, Any]) -> None:
    # Some backends compute before they return: then the step has finished now.
    finished_at = time.perf_counter() if metrics['loss'].is_ready() else None
    self.flush(finished_at)
    self.pending = PendingStep(step, metrics, finished_at)

  def pause(self) -> None:
    """Before something other than steps: writes what is pending; no step is expected until `resume`."""
    self.flush()
    self.watchdog.pause()

  def resume(self) -> None:
    """Starts the clock anew, so that what came between two steps is not counted as their time."""
    self.since = time.perf_counter()

  def flush(self, finished_before: float | None = None) -> None:
    """Reads and writes the numbers of the pending step, which had finished at `finished_before` at the latest."""
    if self.pending is None:
      return
    pending, self.pending = self.pending, None
    numbers = as_numbers(pending.metrics)
    self.watchdog.beat(pending.step)
    self._measure(pending.finished_at or finished_before or time.perf_counter())
    num_skipped = int(numbers.pop('nonfinite'))
    numbers.update(self._speed(pending.step), skipped=num_skipped > 0)
    if pending.step % self.every == 0 or num_skipped > 0:
      self.writer.write('train', self.stage.name, pending.step, **numbers)
    self.progress.update(pending.step, memory=memory_in_use(), **numbers)
    if num_skipped > 0:
      self._warn_of_skipped(pending.step, num_skipped)

  def _measure(self, finished_at: float) -> None:
    """Two short steps may be seen to end at once: then the time of the one before stands for both."""
    if finished_at > self.since:
      self.seconds = finished_at - self.since
      self.since = finished_at

  def _speed(self, step: int) -> dict[str, float]:
    tokens = self.stage.tokens_after(step)
    per_second = (tokens - self.stage.tokens_after(step - 1)) / self.seconds
    utilisation = per_second * self.flops_per_token(step) / self.peak_flops
    return {'step_seconds': self.seconds, 'tokens': tokens, 'tokens_per_second': per_second, 'mfu': utilisation}

  def _warn_of_skipped(self, step: int, in_a_row: int) -> None:
    """Raises Diverged after too many skipped steps in a row."""
    name = self.stage.name
    samples = f'{self.stage.samples_after(step - 1)} to {self.stage.samples_after(step) - 1}'
    self.writer.write('event', name, step, event=f'skipped: gradient not finite, samples {samples}')
    self.progress.message(f'{name}: step {step} skipped, its gradient is not finite (samples {samples})')
    if in_a_row >= self.stage.max_nonfinite:
      raise Diverged(f'{name}: the gradient was not finite {in_a_row} steps in a row up to step {step}; they changed '
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
    self.preemption = preemption
    self.log = log
    self.save = save

  def __call__(self, step: int, state: TrainState, metrics: Any) -> None:
    if self.preemption.requested():
      self.log.pause()
      self.save(step, state)
      raise Preempted(f'saved at step {step}')
