"""Random ids.

Shapes: V vocabulary.
"""
import jax
import jax.numpy as jnp


def draw(weights: jax.Array, key: jax.Array, count: int) -> jax.Array:
  """Ids with probabilities in proportion to the weights, drawn independently: int32 [..., count].

  It takes one random number an id, where `jax.random.categorical` takes one for each word of the vocabulary: on a CPU
  these are most of what a token costs. An id of weight 0 is never drawn.

  weights: float32 [..., vocab], 0 or more; of each row at least one is above 0.
  """
  *rows, vocab = weights.shape
  totals = jnp.cumsum(weights.reshape(-1, vocab), axis=-1)
  points = jax.random.uniform(key, (len(totals), count)) * totals[:, -1:]
  find = jax.vmap(lambda totals_V, points: jnp.searchsorted(totals_V, points, side='right'))
  return find(totals, points).reshape(*rows, count).astype(jnp.int32)
