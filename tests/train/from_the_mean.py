"""A loss that is no sum of what each row gives alone."""
import jax
import jax.numpy as jnp

from llm_jax.objectives.loss import Loss, Mean, Metrics
from llm_jax.objectives.protocol import Objective


class FromTheMean(Objective):
  """Sum over rows of (w x - mean of x over all rows)^2, which takes statistics."""
  depends_on_microbatches = False
  has_statistics = True

  def statistics(self, params, frozen, rows, rng):
    return {'sum': jax.lax.stop_gradient(params['w']) * rows.sum(), 'count': jnp.float32(len(rows))}

  def __call__(self, params, frozen, rows, rng, statistics=None):
    statistics = statistics or self.statistics(params, frozen, rows, rng)
    error = params['w'] * rows - statistics['sum'] / statistics['count']
    return Loss(jnp.sum(error ** 2), jnp.float32(len(rows)), self.metrics(rows, error))

  def metrics(self, rows: jax.Array, error: jax.Array) -> Metrics:
    return {'own': Mean(jnp.sum(error), jnp.float32(2))}
