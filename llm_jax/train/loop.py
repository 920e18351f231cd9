"""The training loop, whole. Everything else is a hook."""
import contextlib
from collections.abc import Callable, Generator, Sequence
from typing import Any

from llm_jax.data.batch_source import BatchSource
from llm_jax.objectives.frozen import Frozen
from llm_jax.runtime.errors import RewardError
from llm_jax.runtime.time_use import Use, within
from llm_jax.train.state import TrainState

# Called after every step with the number of finished steps. It may raise to stop the run; True ends the stage.
Hook = Callable[[int, TrainState, dict[str, Any]], bool | None]


def train_loop(state: TrainState, frozen: Frozen, source: BatchSource, train_step: Callable, steps: int,
               hooks: Sequence[Hook], rescue: Callable[[int, TrainState], None] = lambda step, state: None
               ) -> TrainState:
  """Trains from the state's step to `steps`, or until a hook ends the stage.

  source: `source.next(state)` gives the batch of the state's step.
  train_step: compiled (state, frozen, batch) -> (state, metrics).
  rescue: called with the steps done and the state where a reward fails, before the error goes on.
  """
  for step in range(int(state.step), steps):
    with within(Use.DATA), rescuing(rescue, step, state):
      batch = source.next(state, frozen)
    state, metrics = train_step(state, frozen, batch)
    metrics = {**metrics, **source.numbers()}
    with rescuing(rescue, step + 1, state):
      ends_stage = [hook(step + 1, state, metrics) for hook in hooks]
    if any(ends_stage):
      break
  return state


@contextlib.contextmanager
def rescuing(rescue: Callable[[int, TrainState], None], step: int, state: TrainState) -> Generator[None]:
  """Calls `rescue` where a reward fails in the body, which leaves the state whole."""
  try:
    yield
  except RewardError:
    rescue(step, state)
    raise
