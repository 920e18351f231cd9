"""Steps whose loss or gradient norm jumps far above the recent ones: a pure function of the training state.

The state is saved with every checkpoint, so that a resumed run skips the same steps.
"""
import math

import flax.struct
import jax
import jax.numpy as jnp

from llm_jax.config.spikes import SkipSpikes

# Before any step is known, the spread is taken to be such that 6 standard deviations are a factor of 100. That counts
# like so many steps beside those that are known.
PRIOR_DEVIATION = math.log(100) / 6
PRIOR_STEPS = 8


@flax.struct.dataclass
class RecentSpread:
  """Mean and variance of the logarithms of (loss, gradient norm) over the recent steps that were not skipped.

  count: int32 [2], steps known, up to the window.   mean, variance: float32 [2].
  """
  count: jax.Array
  mean: jax.Array
  variance: jax.Array

  @classmethod
  def create(cls) -> 'RecentSpread':
    return cls(jnp.zeros(2, jnp.int32), jnp.zeros(2, jnp.float32), jnp.zeros(2, jnp.float32))


def limits(recent: RecentSpread, rule: SkipSpikes) -> jax.Array:
  """The loss and the gradient norm above which a step is a spike, float32 [2]; infinite where nothing is known."""
  known = recent.count.astype(jnp.float32)
  variance = (PRIOR_STEPS * PRIOR_DEVIATION ** 2 + known * recent.variance) / (PRIOR_STEPS + known)
  highest = jnp.exp(recent.mean + rule.deviations * jnp.sqrt(variance))
  return jnp.where(recent.count > 0, highest, jnp.inf)


def observe(recent: RecentSpread, values: jax.Array, rule: SkipSpikes) -> RecentSpread:
  """With the loss and the gradient norm of one more step, float32 [2]. Those that have no logarithm are left out."""
  has_logarithm = (values > 0) & jnp.isfinite(values)
  count = jnp.minimum(recent.count + 1, rule.window)
  share = 1 / count.astype(jnp.float32)  # that of a mean over all; once the window is full, older steps fade
  difference = jnp.log(jnp.where(has_logarithm, values, 1)) - recent.mean
  new = RecentSpread(
    count=count,
    mean=recent.mean + share * difference,
    variance=(1 - share) * (recent.variance + share * difference ** 2),
  )
  return jax.tree.map(lambda new, old: jnp.where(has_logarithm, new, old), new, recent)
