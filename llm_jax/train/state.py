"""Everything that a step changes, and nothing else: saved, restored and sharded as one pytree."""
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax


@flax.struct.dataclass
class TrainState:
  """step: of the stage, int32.   ema: like params, or None.

  nonfinite: steps in a row whose gradient was not finite, int32.
  """
  step: jax.Array
  params: Any
  opt_state: Any
  ema: Any
  nonfinite: jax.Array

  @classmethod
  def create(cls, params: Any, optimizer: optax.GradientTransformation, ema: bool) -> 'TrainState':
    zero = jnp.zeros((), jnp.int32)
    average = jax.tree.map(jnp.copy, params) if ema else None
    return cls(zero, params, optimizer.init(params), average, jnp.copy(zero))
