"""Means over a validation split: exact whatever its batches are, and each over what it counts."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llm_jax.evaluation.held_out import evaluate
from llm_jax.objectives.loss import Loss, Mean
from llm_jax.objectives.protocol import Objective

ROWS = np.random.default_rng(0).standard_normal(12).astype(np.float32)
PARAMS = {'w': jnp.float32(3)}


class Squares(Objective):
  """(w x)^2, with the share of positive rows among those above 1 in size."""

  def __call__(self, params, frozen, batch, rng, statistics=None):
    is_large = jnp.abs(batch) > 1
    positive = Mean(jnp.sum(is_large & (batch > 0), dtype=jnp.float32), jnp.sum(is_large, dtype=jnp.float32))
    nothing = Mean(jnp.float32(0), jnp.float32(0))
    total = jnp.sum(jnp.square(params['w'] * batch))
    return Loss(total, jnp.float32(len(batch)), {'x': jnp.sum(batch), 'positive': positive, 'nothing': nothing})


class Deviations(Objective):
  """(w x - mean of w x over all rows)^2."""
  has_statistics = True

  def statistics(self, params, frozen, batch, rng):
    return {'sum': jnp.sum(params['w'] * batch), 'count': jnp.float32(len(batch))}

  def __call__(self, params, frozen, batch, rng, statistics=None):
    error = params['w'] * batch - statistics['sum'] / statistics['count']
    return Loss(jnp.sum(jnp.square(error)), jnp.float32(len(batch)), {}, {'not': jnp.zeros(3)})


def in_batches(size):
  return lambda: (ROWS[start:start + size] for start in range(0, len(ROWS), size))


@pytest.mark.parametrize('size', (1, 5, 12))
def test_a_metric_is_a_mean_over_what_it_counts(size):
  found = evaluate(Squares(None, None), PARAMS, None, in_batches(size))
  x = ROWS.astype(np.float64)
  large = x[np.abs(x) > 1]
  assert found.keys() == {'loss', 'x', 'positive', 'weight'}  # of nothing there is no mean
  np.testing.assert_allclose(found['loss'], np.mean((3 * x) ** 2), rtol=1e-6)
  np.testing.assert_allclose(found['x'], x.mean(), rtol=1e-5)
  np.testing.assert_allclose(found['positive'], np.mean(large > 0), rtol=1e-6)
  assert found['weight'] == len(ROWS)


@pytest.mark.parametrize('size', (1, 5, 12))
def test_rows_that_depend_on_each_other_are_compared_with_all_of_them(size):
  found = evaluate(Deviations(None, None), PARAMS, None, in_batches(size))
  np.testing.assert_allclose(found['loss'], np.var(3 * ROWS.astype(np.float64)), rtol=1e-5)


def test_no_rows_have_no_loss():
  found = evaluate(Deviations(None, None), PARAMS, None, lambda: ())
  assert np.isnan(found['loss']) and found['weight'] == 0
  assert jax.tree.leaves(found) == [found['loss'], 0.0]
