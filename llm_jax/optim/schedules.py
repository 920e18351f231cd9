"""Learning rates as pure functions of the step within a stage, from Optax's schedules.

With w = warmup and n = steps of the stage, update number `step` (0 to n-1) is made with `schedule(step)`:

| step        | rate                                                                     |
| ----------- | ------------------------------------------------------------------------ |
| 0           | peak / (w+1): the first update is never empty (as in nanoGPT)            |
| step < w    | peak (step+1) / (w+1)                                                    |
| w           | peak, exactly                                                            |
| w to n      | what the schedule's formula gives                                        |
| n-1         | the last update: one step above the end of the decay, so never empty     |
| n and later | `final` x peak (`LinearToZero`: 0)                                       |
"""
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from llm_jax.config.schedules import WSD, Constant, Cosine, LinearToZero, Schedule

StepFunction = Callable[[jax.typing.ArrayLike], jax.Array]


def make_schedule(config: Schedule, steps: int) -> StepFunction:
  """The learning rate at an integer step (scalar or array) of a stage of `steps` steps, as float32."""
  peak, warmup = config.peak, config.warmup
  length = max(steps - warmup, 1)  # from the peak to the end; a stage may be nothing but warm-up
  decay_start = warmup
  match config:
    case Constant():
      decay = optax.constant_schedule(peak)
    case Cosine():
      decay = optax.cosine_decay_schedule(peak, length, alpha=config.final)
    case LinearToZero():
      decay = optax.linear_schedule(peak, 0.0, length)
    case WSD():
      decay_steps = min(max(round(config.decay * steps), 1), length)
      decay = optax.linear_schedule(peak, peak * config.final, decay_steps)
      decay_start = max(steps - decay_steps, warmup)

  pieces, boundaries = [], []
  if warmup > 0:
    pieces.append(optax.linear_schedule(peak / (warmup + 1), peak, warmup))
    boundaries.append(warmup)
  if decay_start > warmup:
    pieces.append(optax.constant_schedule(peak))
    boundaries.append(decay_start)
  pieces.append(decay)
  joined = optax.join_schedules(pieces, boundaries)
  return lambda step: jnp.broadcast_to(joined(jnp.asarray(step)), jnp.shape(step)).astype(jnp.float32)
