"""The training loop, whole. Everything else is a hook."""
from collections.abc import Callable, Sequence
from typing import Any

from llm_jax.train.state import TrainState

# Called after every step with the number of finished steps; may raise to stop the loop.
Hook = Callable[[int, TrainState, dict[str, Any]], None]


def train_loop(state: TrainState, frozen: Any, source: Any, train_step: Callable, steps: int,
               hooks: Sequence[Hook]) -> TrainState:
  """Runs from the state's step to `steps`. `source.next(state)` gives a batch; `train_step` is compiled."""
  for step in range(int(state.step), steps):
    batch = source.next(state)
    state, metrics = train_step(state, frozen, batch)
    for hook in hooks:
      hook(step + 1, state, metrics)
  return state
