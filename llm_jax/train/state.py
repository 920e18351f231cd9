"""Everything that a step changes, and nothing else: saved, restored and sharded as one pytree."""
import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax

from llm_jax.optim.rounding import widened
from llm_jax.train.spikes import RecentSpread


@flax.struct.dataclass
class TrainState:
  """step: of the stage, int32.   params: float32, or bfloat16 where the stage says so.

  ema: like params, but always float32; or None.

  skipped: steps in a row that changed nothing, since their gradient was not finite or they were spikes, int32.
  recent: how loss and gradient norm varied over the recent steps.
  """
  step: jax.Array
  params: Any
  opt_state: Any
  ema: Any
  skipped: jax.Array
  recent: RecentSpread

  @classmethod
  def create(cls, params: Any, optimizer: optax.GradientTransformation, ema: bool) -> 'TrainState':
    exact = widened(params)
    average = jax.tree.map(jnp.copy, exact) if ema else None
    return cls(jnp.zeros((), jnp.int32), params, optimizer.init(exact), average, **fresh_counters())

  def from_first_step(self) -> 'TrainState':
    """The state with which another stage begins: its counters start anew."""
    return dataclasses.replace(self, step=jnp.zeros_like(self.step), **fresh_counters())


def fresh_counters() -> dict[str, Any]:
  """What tells of the last steps, before there is one."""
  return {'skipped': jnp.zeros((), jnp.int32), 'recent': RecentSpread.create()}
