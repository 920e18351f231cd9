"""What happens around the steps: numbers, held-out loss, samples, checkpoints, stopping."""
import time
from collections.abc import Callable
from typing import Any

import jax

from llm_jax.train.hardware import memory_in_use
from llm_jax.train.metrics import MetricsWriter
from llm_jax.train.progress import Progress
from llm_jax.train.state import TrainState


class Diverged(RuntimeError):
  """Too many steps in a row had a gradient that is not finite."""


class Preempted(Exception):
  """The machine asked the run to stop; its state is saved."""


class Log:
  """Writes a step's numbers while the next step runs, so that the device never waits for the host."""

  def __init__(self, writer: MetricsWriter, progress: Progress, stage: str, *, tokens_per_step: int,
               flops_per_token: float, peak_flops: float, max_nonfinite: int, every: int):
    self.writer, self.progress, self.stage, self.every = writer, progress, stage, every
    self.tokens_per_step, self.max_nonfinite = tokens_per_step, max_nonfinite
    self.utilisation = flops_per_token / peak_flops
    self.pending: tuple[int, dict[str, jax.Array]] | None = None
    self.rest()

  def __call__(self, step: int, state: TrainState, metrics: dict[str, jax.Array]) -> None:
    self.flush()
    self.pending = step, metrics

  def rest(self) -> None:
    """Starts the clock anew: what came between two steps is not counted as their time."""
    self.since = time.perf_counter()

  def flush(self) -> None:
    """Reads and writes the numbers of the step that is still pending."""
    if self.pending is None:
      return
    (step, metrics), self.pending = self.pending, None
    numbers = {name: value.item() for name, value in jax.device_get(metrics).items()}
    seconds, self.since = time.perf_counter() - self.since, time.perf_counter()
    speed = self.tokens_per_step / seconds
    in_a_row = int(numbers.pop('nonfinite'))
    numbers.update(step_seconds=seconds, tokens_per_second=speed, mfu=speed * self.utilisation, skipped=in_a_row > 0)
    if step % self.every == 0 or in_a_row:
      self.writer.write('train', self.stage, step, **numbers)
    self.progress.update(step, memory=memory_in_use(), **numbers)
    if in_a_row:
      first = (step - 1) * self.tokens_per_step
      self.writer.write('event', self.stage, step, event='skipped: gradient not finite', first_token=first)
      self.progress.message(f'{self.stage}: step {step} skipped, its gradient is not finite ({in_a_row} in a row)')
    if in_a_row >= self.max_nonfinite:
      raise Diverged(f'{self.stage}: {in_a_row} steps in a row up to step {step} had a gradient that is not finite. '
                     'Lower learning_rate.peak or clip_norm, or look at the data of these steps; '
                     'the last checkpoint is from before or within them.')


class Every:
  """Runs `action(step, state)` every so many steps, outside of the steps' clock."""

  def __init__(self, steps: int, log: Log, action: Callable[[int, TrainState], Any]):
    self.steps, self.log, self.action = steps, log, action

  def __call__(self, step: int, state: TrainState, metrics: Any) -> None:
    if self.steps and step % self.steps == 0:
      self.log.flush()
      self.action(step, state)
      self.log.rest()


class StopOnPreemption:
  """Saves and raises Preempted after the step in which the machine asked for it."""

  def __init__(self, preemption: Any, log: Log, save: Callable[[int, TrainState], Any]):
    self.preemption, self.log, self.save = preemption, log, save

  def __call__(self, step: int, state: TrainState, metrics: Any) -> None:
    if self.preemption.requested(step):
      self.log.flush()
      self.save(step, state)
      raise Preempted(f'saved at step {step}')
