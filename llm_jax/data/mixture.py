"""Which source sample i of a weighted mixture comes from, known for any i without those before it."""
import fractions
import math
from collections.abc import Sequence

import numpy as np

LONGEST_PERIOD = 1 << 16


class Mixture:
  """A schedule of sources that repeats. After any n samples a source has had its share of n to within one sample.

  (grain's own `MapDataset.mix` rounds weights to hundredths of the smallest: 0.7 and 0.3 become 2.33 to 1, a sample off
  after some thousand.) Shares are exact where the weights have a common denominator up to 65536, as decimals do; other
  weights are rounded to multiples of 1/65536.
  """

  def __init__(self, weights: Sequence[float]):
    exact = [fractions.Fraction(str(weight)) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    period = math.lcm(*(share.denominator for share in shares))
    if period > LONGEST_PERIOD:
      period = LONGEST_PERIOD
    counts = _apportion(shares, period)
    self._source = _schedule(counts)
    self._counts = np.array(counts)
    self._rank = np.zeros(period, np.int64)
    for source, count in enumerate(counts):
      self._rank[self._source == source] = np.arange(count)

  def locate(self, sample: int) -> tuple[int, int]:
    """(source, how many samples it has given before)."""
    periods, place = divmod(sample, len(self._source))
    source = int(self._source[place])
    return source, periods * int(self._counts[source]) + int(self._rank[place])


def _apportion(shares: list[fractions.Fraction], period: int) -> list[int]:
  """Whole numbers nearest to the shares of `period`, at least 1 each, that add up to it (largest remainders)."""
  counts = [max(1, math.floor(share * period)) for share in shares]
  while (left := period - sum(counts)) != 0:
    error = [share * period - count for share, count in zip(shares, counts, strict=True)]
    counts[error.index(max(error) if left > 0 else min(error))] += 1 if left > 0 else -1
  return counts


def _schedule(counts: list[int]) -> np.ndarray:
  """[period] sources, by Tijdeman 1980, "The chairman assignment problem": no count is a whole sample off its share.

  Among the sources that a further sample would not bring too far ahead, the one whose next sample is due first.
  """
  period, scale = sum(counts), max(2, 2 * len(counts) - 2)  # everything times these, so that the numbers stay whole
  given, schedule = [0] * len(counts), np.zeros(period, np.int32)
  for step in range(1, period + 1):
    allowed = [i for i, count in enumerate(counts) if scale * (count * step - given[i] * period) >= period]
    source = min(allowed, key=lambda i: (scale * (given[i] + 1) - 1) / counts[i])
    schedule[step - 1] = source
    given[source] += 1
  return schedule
