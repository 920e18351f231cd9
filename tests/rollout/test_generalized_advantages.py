"""Advantages by a critic against their definitions, written out as sums."""
import numpy as np
import pytest

from llm_jax.rollout.generalized_advantages import (
  explained_variance,
  generalized_advantages,
  token_rewards,
  whitened,
)

SPANS = ((2, 7), (0, 9), (4, 5), (1, 1))  # first and end of each answer; the last one has none


def is_answer():
  places = np.arange(9)
  return np.stack([(places >= first) & (places < end) for first, end in SPANS])


def numbers(seed):
  return np.random.default_rng(seed).standard_normal((len(SPANS), 9))


@pytest.mark.parametrize('gamma, decay', [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.97, 0.0)])
def test_the_sum_over_later_tokens(gamma, decay):
  """Equation 16 of the paper, a token at a time. What stands outside of answers counts for nothing."""
  rewards, values = numbers(0), numbers(1)
  found = generalized_advantages(np.where(is_answer(), rewards, 0), values, is_answer(), gamma, decay)
  for row, (first, end) in enumerate(SPANS):
    V = [*values[row, first:end], 0.0]
    surprise = [rewards[row, first + t] + gamma * V[t + 1] - V[t] for t in range(end - first)]
    for t in range(end - first):
      want = sum((gamma * decay)**k * surprise[t + k] for k in range(end - first - t))
      assert found[row, first + t] == pytest.approx(want, abs=1e-12)
    assert not found[row, :first].any() and not found[row, end:].any()


def test_with_all_of_the_decay_it_is_the_return_less_the_value():
  rewards, values = np.where(is_answer(), numbers(0), 0), numbers(1)
  found = generalized_advantages(rewards, values, is_answer(), 1.0, 1.0)
  returns = np.cumsum(rewards[:, ::-1], 1)[:, ::-1]
  np.testing.assert_allclose(found, np.where(is_answer(), returns - values, 0), atol=1e-12)


def test_the_score_is_at_the_last_token():
  penalties = np.abs(numbers(2))
  found = token_rewards(np.array([1.0, 2.0, 3.0, 4.0]), penalties, is_answer())
  for row, (first, end) in enumerate(SPANS[:3]):
    want = -penalties[row, first:end]
    want[-1] += row + 1
    np.testing.assert_allclose(found[row, first:end], want)
  assert found.sum() == pytest.approx(6 - penalties[is_answer()].sum())  # nothing elsewhere


def test_whitening():
  """Mean 0 and unbiased variance 1 over tokens of answers; without the shift the mean stays."""
  values = 3 + 2 * numbers(3)
  found = whitened(values, is_answer())[is_answer()]
  assert found.mean() == pytest.approx(0, abs=1e-12) and found.var(ddof=1) == pytest.approx(1, rel=1e-6)
  kept = whitened(values, is_answer(), shift=False)
  assert kept[is_answer()].mean() == pytest.approx(values[is_answer()].mean())
  assert not kept[~is_answer()].any()
  np.testing.assert_allclose(whitened(np.full((4, 9), 0.1), is_answer()), 0, atol=1e-10)


def test_explained_variance():
  returns = numbers(4)
  assert explained_variance(returns, returns + 5, is_answer()) == pytest.approx(1)
  assert explained_variance(returns, np.zeros_like(returns), is_answer()) == pytest.approx(0)
  assert explained_variance(returns, -returns, is_answer()) == pytest.approx(-3)
  assert np.isnan(explained_variance(np.ones_like(returns), returns, is_answer()))
