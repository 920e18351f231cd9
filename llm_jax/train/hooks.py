"""What happens after a step: its numbers are written, the stage is evaluated and saved, the run stops."""
import dataclasses
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from llm_jax.config.stage import Stage
from llm_jax.objectives.loss import as_numbers
from llm_jax.runtime import activity
from llm_jax.runtime.hardware import memory_in_use
from llm_jax.runtime.preemption import Preempted, Preemption
from llm_jax.runtime.time_use import Use, clock
from llm_jax.tracking.metrics import MetricsWriter
from llm_jax.tracking.progress import Progress
from llm_jax.train.evaluations import Evaluations
from llm_jax.train.state import TrainState

MOST_STEPS_NAMED = 4
TIME_USE_SECONDS = 60  # between two records of it, so that a kill loses little


class Diverged(RuntimeError):
  """Too many steps in a row were skipped."""


def check_result(stage: Stage, skipped: int, hint: str) -> None:
  """Raises Diverged for a stage whose last steps, more than one, were all skipped: its parameters are no result."""
  if skipped > 1:
    raise Diverged(f'{stage.name}: its last {skipped} steps were skipped: it has no result. {hint}')


def divergence_hint(steps: Sequence[int], is_bound: bool) -> str:
  """What to do about a stage that has diverged.

  Args:
    steps: of its checkpoints, highest first.
    is_bound: whether any stage of the run has a checkpoint, so that the workdir takes no other configuration.
  """
  text = 'Lower learning_rate.peak, lengthen its warmup, or look at the data of these steps'
  if not is_bound:
    return f'{text}; nothing is saved yet, so the same workdir takes the change'
  saved = ', '.join(map(str, steps[:MOST_STEPS_NAMED]))
  others = f'saved are {saved}, and 0 is where the stage began' if steps else 'where the stage began'
  return (f'{text}; in the same workdir with --from_step={steps[0] if steps else 0} ({others}), or in another '
          'one')


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
  hint: what to do where the stage has diverged.
  done_before: steps that a process did which ended after its last checkpoint: up to there they are done once more.
  """

  def __init__(self, writer: MetricsWriter, progress: Progress, stage: Stage, *,
               flops_per_token: Callable[[int], float], peak_flops: float, every: int,
               hint: Callable[[], str] = lambda: '', done_before: int = 0):
    self.writer = writer
    self.progress = progress
    self.stage = stage
    self.every = every
    self.flops_per_token = flops_per_token
    self.peak_flops = peak_flops
    self.hint = hint
    self.done_before = done_before
    self.use = clock().use
    self.time_use_at = time.perf_counter()  # when the use of time was written last
    self.pending: PendingStep | None = None
    self.seconds = float('inf')  # of the last step that was timed
    self.resume()

  def __call__(self, step: int, state: TrainState, metrics: dict[str, Any]) -> None:
    # Some backends compute before they return: then the step has finished now.
    finished_at = time.perf_counter() if metrics['loss'].is_ready() else None
    self.flush(finished_at)
    self.pending = PendingStep(step, metrics, finished_at)

  def pause(self, doing: str, use: Use) -> None:
    """Before something other than steps, such as 'saves': writes what is pending; no step is expected until `resume`.
    """
    self.flush()
    activity.begin(f'{doing} of stage {self.stage.name}', use=use)

  def resume(self) -> None:
    """Starts the clock anew, so that what came between two steps is not counted as their time."""
    self.since = time.perf_counter()
    clock().begin(self.use)

  def flush(self, finished_before: float | None = None) -> None:
    """Reads and writes the numbers of the pending step, which had finished at `finished_before` at the latest."""
    if self.pending is None:
      return
    pending, self.pending = self.pending, None
    numbers = as_numbers(pending.metrics)
    self.use = Use.REDONE if pending.step < self.done_before else Use.STEP  # of the next step
    activity.begin(f'trains stage {self.stage.name}, after step {pending.step}', 1, use=self.use)
    self._write_time_use()
    self._measure(pending.finished_at or finished_before or time.perf_counter())
    num_skipped = int(numbers.pop('skipped'))
    reason = pop_reason(numbers)
    numbers.update(self._speed(pending.step, numbers), skipped=num_skipped > 0)
    if pending.step % self.every == 0 or num_skipped > 0:
      self.writer.write('train', self.stage.name, pending.step, **numbers)
    self.progress.update(pending.step, memory=memory_in_use(), **numbers)
    if num_skipped > 0:
      self._warn_of_skipped(pending.step, num_skipped, reason)

  def _write_time_use(self) -> None:
    if time.perf_counter() - self.time_use_at > TIME_USE_SECONDS:
      self.time_use_at = time.perf_counter()
      self.writer.time_use()

  def _measure(self, finished_at: float) -> None:
    """Two short steps may be seen to end at once: then the time of the one before stands for both."""
    if finished_at > self.since:
      self.seconds = finished_at - self.since
      self.since = finished_at

  def _speed(self, step: int, numbers: dict[str, float]) -> dict[str, float]:
    """A source whose batches differ in size counts its tokens itself."""
    tokens = numbers.pop('tokens', self.stage.tokens_after(step))
    of_step = numbers.pop('step_tokens', self.stage.tokens_after(step) - self.stage.tokens_after(step - 1))
    per_second = of_step / self.seconds
    utilisation = per_second * self.flops_per_token(step) / self.peak_flops
    return {'step_seconds': self.seconds, 'tokens': tokens, 'tokens_per_second': per_second, 'mfu': utilisation}

  def _warn_of_skipped(self, step: int, in_a_row: int, reason: str) -> None:
    """Raises Diverged after too many skipped steps in a row."""
    name = self.stage.name
    samples = f'{self.stage.samples_after(step - 1)} to {self.stage.samples_after(step) - 1}'
    self.writer.write('event', name, step, event=f'skipped: {reason}, samples {samples}')
    self.progress.message(f'{name}: step {step} skipped, {reason} (samples {samples})')
    if in_a_row >= self.stage.max_nonfinite:
      raise Diverged(f'{name}: {in_a_row} steps in a row were skipped up to step {step}, at last {reason}; they '
                     f'changed nothing. {self.hint()}')


def pop_reason(numbers: dict[str, float]) -> str:
  """Why a step was skipped, if it was; takes what says so out of its numbers."""
  limits = {name: numbers.pop(f'{name}_limit') for name in ('loss', 'grad_norm')}
  is_spike = numbers.pop('is_spike')
  if not is_spike:
    return 'gradient not finite'
  above = [f'{name} {numbers[name]:.4g} above {limit:.4g}' for name, limit in limits.items() if numbers[name] > limit]
  return f'spike ({" and ".join(above)})'


class SavePeriodically:
  """Saves every so many steps before the last one, outside of the steps' clock. 0: never.

  While steps are skipped it waits for one that is not: the parameters may be bad already, and must not push good ones
  out. At `pinned` steps, which another stage names, it saves in any case.
  """

  def __init__(self, steps: int, log: Log, save: Callable[[int, TrainState], None], pinned: Collection[int] = ()):
    self.steps = steps
    self.log = log
    self.save = save
    self.pinned = pinned
    self.is_due = False

  def __call__(self, step: int, state: TrainState, metrics: Any) -> None:
    self.is_due |= self.steps > 0 and step % self.steps == 0
    if not self.is_due or step >= self.log.stage.steps:
      return
    self.log.pause(f'saves step {step}', Use.CHECKPOINT)
    if int(state.skipped) == 0 or step in self.pinned:
      self.save(step, state)
      self.is_due = False
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
    self.log.pause(f'evaluates step {step}', Use.EVALUATION)
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
      self.log.pause(f'saves step {step}', Use.CHECKPOINT)
      self.save(step, state)
      raise Preempted(f'saved at step {step}')
