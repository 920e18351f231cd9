"""Which source sample i of a weighted mixture comes from, known for any i without reading those before it."""
import fractions
import functools
import math
import threading
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from llm_jax.config.data import Weighted
from llm_jax.config.ramp import Phase

LONGEST_PERIOD = 1 << 16


class AnyMixture(Protocol):
  """locate(sample) gives (source, how many samples it has given before); given(samples), int64 [sources], how many of
  the first `samples` are from each."""

  def locate(self, sample: int) -> tuple[int, int]: ...

  def given(self, samples: int) -> np.ndarray: ...


def make_mixture(parts: Sequence[Weighted], steps: int, phases: Sequence[Phase]) -> AnyMixture:
  """The mixture of a stage; `steps` and `phases` matter where a weight changes."""
  if any(isinstance(part.weight, tuple) for part in parts):
    return ScheduledMixture(parts, steps, phases)
  return Mixture([part.weight for part in parts])


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

  def given(self, samples: int) -> np.ndarray:
    """int64 [sources]: how many of the first `samples` are from each."""
    periods, place = divmod(samples, len(self._source))
    return periods * self._counts + np.bincount(self._source[:place], minlength=len(self._counts))


class ScheduledMixture:
  """Weights that change with the step. After any number of steps a source has had its share, the sum of its shares of
  each step's samples, to within one sample.

  How many samples each source has given before a step is kept in a table (8 bytes a step and source), which grows as
  far as it is asked for: some 50 microseconds a step. After the last step the weights stay.
  """

  def __init__(self, parts: Sequence[Weighted], steps: int, phases: Sequence[Phase]):
    self._parts, self._steps, self._phases = parts, max(1, steps), phases
    self._due = np.zeros(len(parts))  # the sum of the shares up to where the table ends
    self._given, self._known = np.zeros((1_024, len(parts)), np.int64), 0
    self._lock = threading.Lock()  # rows are read by several threads

  def locate(self, sample: int) -> tuple[int, int]:
    before, order, rank, place = self._step_of(sample)
    source = int(order[place])
    return source, int(before[source] + rank[place])

  def given(self, samples: int) -> np.ndarray:
    """int64 [sources]: how many of the first `samples` are from each."""
    before, order, _, place = self._step_of(samples)
    return before + np.bincount(order[:place], minlength=len(before))

  def _step_of(self, sample: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """What each source has given before the sample's step, the sources and ranks in that step, the sample's place."""
    phase = next(phase for phase in reversed(self._phases) if phase.first_sample <= sample)
    steps, place = divmod(sample - phase.first_sample, phase.batch_size)
    step = phase.first_step + steps
    with self._lock:
      while self._known <= step:
        self._extend()
    before = self._given[step]
    return before, *_order(tuple((self._given[step + 1] - before).tolist())), place

  def _extend(self) -> None:
    """One more step: to each source the whole samples that it is due, the rest to those that are due most."""
    step = self._known
    batch_size = next(phase.batch_size for phase in reversed(self._phases) if phase.first_step <= step)
    now = np.array([part.at(step / self._steps) for part in self._parts])
    self._due = self._due + batch_size * (now / now.sum())
    missing = self._due - self._given[step]
    counts = np.maximum(0, np.floor(missing)).astype(np.int64)
    while (left := batch_size - counts.sum()) != 0:
      error = missing - counts
      if left > 0:
        counts[np.argmax(error)] += 1
      else:
        counts[np.argmin(np.where(counts > 0, error, np.inf))] -= 1
    if step + 1 == len(self._given):
      self._given = np.concatenate([self._given, np.zeros_like(self._given)])
    self._given[step + 1] = self._given[step] + counts
    self._known += 1


@functools.lru_cache(4_096)
def _order(counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
  """The sources of one step's samples, evenly interleaved, and how many the source has given before in the step."""
  sources = [source for source, count in enumerate(counts) if count]
  order = np.array(sources)[_schedule([counts[source] for source in sources])]
  rank = np.zeros(len(order), np.int64)
  for source in sources:
    rank[order == source] = np.arange(counts[source])
  return order, rank


def _apportion(shares: list[fractions.Fraction], period: int) -> list[int]:
  """Whole numbers nearest to the shares of `period`, at least 1 each, that add up to it (largest remainders)."""
  counts = [max(1, math.floor(share * period)) for share in shares]
  while (left := period - sum(counts)) != 0:
    error = [share * period - count for share, count in zip(shares, counts, strict=True)]
    chosen = max(error) if left > 0 else min(e for e, count in zip(error, counts, strict=True) if count > 1)
    counts[error.index(chosen)] += 1 if left > 0 else -1
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
