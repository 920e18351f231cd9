"""Random ids have the probabilities that they are to have."""
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from llm_jax.draw import draw


@pytest.mark.parametrize('vocab', [2, 23, 1_024])
def test_ids_have_their_probabilities(vocab):
  """By a chi-squared test over the ids that are drawn five times or more; weights need not sum to 1."""
  rng = np.random.default_rng(0)
  weights = rng.exponential(size=(3, vocab)).astype(np.float32) * np.array([[1], [1e-6], [1e6]], np.float32)
  weights[:, ::5] = 0
  weights[:, 1] += weights.sum(1)
  count = 40_000
  drawn = np.asarray(draw(jnp.asarray(weights), jax.random.key(0), count))
  assert drawn.shape == (3, count) and drawn.dtype == np.int32
  for row, weight in zip(drawn, weights.astype(np.float64), strict=True):
    found, expected = np.bincount(row, minlength=vocab), count * weight / weight.sum()
    assert not found[weight == 0].any()
    often = expected >= 5
    if often.sum() > 1:
      chances = scipy.stats.chisquare(found[often], expected[often] * found[often].sum() / expected[often].sum()).pvalue
      assert chances > 1e-4
  assert vocab == 2 or not (drawn[0] == drawn[1]).all()  # of 2 one has no weight


def test_what_has_no_weight_is_never_drawn_from_a_large_vocabulary():
  """At both ends, and where all the weight is on the last id that has any."""
  weights = np.zeros((2, 128_256), np.float32)
  weights[0, 1_000:120_000] = 1
  weights[1, 120_000] = 1e-30
  drawn = np.asarray(draw(jnp.asarray(weights), jax.random.key(1), 5_000))
  assert 1_000 <= drawn[0].min() and drawn[0].max() < 120_000 and len(set(drawn[0].tolist())) > 4_500
  assert (drawn[1] == 120_000).all()


def test_rows_have_any_shape():
  drawn = draw(jnp.eye(6).reshape(2, 3, 6), jax.random.key(2), 4)
  np.testing.assert_array_equal(drawn, np.broadcast_to(np.arange(6).reshape(2, 3, 1), (2, 3, 4)))
