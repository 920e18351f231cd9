"""The training loop, whole. Everything else is a hook."""
from collections.abc import Callable, Sequence
from typing import Any

from llm_jax.train.state import TrainState

# Called after every step with the number of finished steps; may raise to stop, or say with True that all is done.
Hook = Callable[[int, TrainState, dict[str, Any]], bool | None]


def train_loop(state: TrainState, frozen: Any, source: Any, train_step: Callable, steps: int,
               hooks: Sequence[Hook]) -> TrainState:
  """Runs from the state's step to `steps`, or until a hook says that it is done. `source.next(state)` gives a batch;
  `train_step` is compiled."""
  for step in range(int(state.step), steps):
    batch = source.next(state)
    state, metrics = train_step(state, frozen, batch)
    if any([hook(step + 1, state, metrics) for hook in hooks]):  # a list: every hook is called
      break
  return state
