"""How sure a score is, and whether two models differ (Miller 2024, "Adding Error Bars to Evals").
"""
import dataclasses
import math
from collections.abc import Hashable, Sequence

import numpy as np
from scipy import stats

from llm_jax.config.errors import require

CONFIDENCE = 0.95
Z = float(stats.norm.ppf(0.5 + CONFIDENCE / 2))


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean over items.

  error: its standard error; NaN for a single item, or for items that are all of one cluster.
  """
  mean: float
  error: float
  count: int

  @property
  def interval(self) -> tuple[float, float]:
    """95 % of such intervals hold the true mean, where there are many items."""
    return self.mean - Z * self.error, self.mean + Z * self.error


@dataclasses.dataclass(frozen=True)
class Difference:
  """Two models on the same items.

  estimate: of the second's value less the first's, item by item.
  p_value: of the null hypothesis that both are equally good, two-sided.
  first_only, second_only: where all values are 0 or 1, how many items only one of them has right; else None.
  """
  estimate: Estimate
  p_value: float
  first_only: int | None = None
  second_only: int | None = None

  @property
  def is_distinguishable(self) -> bool:
    return self.p_value < 1 - CONFIDENCE

  @property
  def in_words(self) -> str:
    low, high = self.estimate.interval
    verdict = 'better' if self.estimate.mean > 0 else 'worse'
    verdict = verdict if self.is_distinguishable else 'not distinguishable'
    return f'{verdict}: {self.estimate.mean:+.4f}, 95 % interval [{low:+.4f}, {high:+.4f}], p = {self.p_value:.3g}'


def estimate(values: Sequence[float] | np.ndarray, clusters: Sequence[Hashable] | None = None) -> Estimate:
  """The mean and its standard error.

  clusters: for each item what it shares with others, such as the passage that several questions are about. Items of one
    cluster do not vary apart from each other (equation 4); without, every item is its own (equation 1).
  """
  array = np.asarray(values, np.float64)
  require(array.ndim == 1 and len(array) > 0, 'values', list(array.shape), 'give one number for each item')
  count = len(array)
  mean = float(array.mean())
  if clusters is None:
    error = float(array.std(ddof=1) / math.sqrt(count)) if count > 1 else math.nan
    return Estimate(mean, error, count)
  require(len(clusters) == count, 'clusters', len(clusters), f'give one for each of the {count} items')
  sums: dict[Hashable, float] = {}
  for cluster, rest in zip(clusters, array - mean, strict=True):
    sums[cluster] = sums.get(cluster, 0.0) + float(rest)
  if len(sums) < 2:
    return Estimate(mean, math.nan, count)
  variance = sum(total ** 2 for total in sums.values()) / count ** 2
  few = len(sums) / (len(sums) - 1)  # as `std(ddof=1)` does, which it equals where every item is its own cluster
  return Estimate(mean, math.sqrt(few * variance), count)


def pooled(parts: Sequence[Estimate], weights: Sequence[float]) -> Estimate:
  """The weighted mean of the means of several strata, whose items were drawn apart (Cochran 1977, section 5.3)."""
  total = sum(weights)
  shares = [weight / total for weight in weights]
  mean = sum(share * part.mean for share, part in zip(shares, parts, strict=True))
  variance = sum((share * part.error) ** 2 for share, part in zip(shares, parts, strict=True))
  return Estimate(mean, math.sqrt(variance), sum(part.count for part in parts))


def difference(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray,
               clusters: Sequence[Hashable] | None = None) -> Difference:
  """The paired difference of two models (section 4.2): most of what varies between items is the same for both.

  Where every value is right or wrong, and no items share anything, the p-value is that of McNemar's exact test.
  """
  require(len(first) == len(second), 'second', len(second), f'give the same {len(first)} items as of the first')
  one, other = np.asarray(first, np.float64), np.asarray(second, np.float64)
  found = estimate((other - one).tolist(), clusters)
  is_binary = bool(np.isin(np.concatenate([one, other]), (0.0, 1.0)).all())
  if not is_binary:
    return Difference(found, _normal_p(found))
  first_only = int(((one == 1) & (other == 0)).sum())
  second_only = int(((one == 0) & (other == 1)).sum())
  p_value = mcnemar(first_only, second_only) if clusters is None else _normal_p(found)
  return Difference(found, p_value, first_only, second_only)


def mcnemar(first_only: int, second_only: int) -> float:
  """The exact two-sided p-value of two models of which each alone has so many items right (McNemar 1947)."""
  count = first_only + second_only
  return float(stats.binomtest(second_only, count, 0.5).pvalue) if count else 1.0


def _normal_p(found: Estimate) -> float:
  if found.mean == 0 or math.isnan(found.error):
    return 1.0
  return float(2 * stats.norm.sf(abs(found.mean) / found.error)) if found.error else 0.0


def pass_at_k(samples: int, correct: int, k: int) -> float:
  """The chance that one of k answers is right, of a problem of whose `samples` answers so many are: the unbiased
  estimate 1 - C(n - c, k) / C(n, k) (Chen et al. 2021, Codex, equation 1)."""
  require(1 <= k <= samples, 'k', k, f'use 1 to {samples}, the number of answers')
  require(0 <= correct <= samples, 'correct', correct, f'use 0 to {samples}')
  return 1.0 - math.comb(samples - correct, k) / math.comb(samples, k)
