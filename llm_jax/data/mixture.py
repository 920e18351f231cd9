"""Which source sample i of a weighted mixture comes from, known for any i without reading those before it."""
import dataclasses
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
FIRST_TABLE_STEPS = 1_024  # of a ScheduledMixture; it doubles whenever it is full


class AnyMixture(Protocol):
  """An endless order of samples of several sources."""

  def locate(self, sample: int) -> tuple[int, int]:
    """(source, how many samples it has given before this one)."""
    ...

  def given(self, samples: int) -> np.ndarray:
    """int64 [sources]: how many of the first `samples` are from each."""
    ...


def make_mixture(parts: Sequence[Weighted], steps: int, phases: Sequence[Phase]) -> AnyMixture:
  """The mixture of a stage; `steps` and `phases` matter where a weight changes."""
  constant: list[float] = []
  for part in parts:
    if isinstance(part.weight, tuple):  # (place in the stage, weight) points
      return ScheduledMixture(parts, steps, phases)
    constant.append(part.weight)
  return Mixture(constant)


class Mixture:
  """A schedule of sources that repeats. After any n samples a source has had its share of n to within one sample.

  (grain's own `MapDataset.mix` rounds weights to hundredths of the smallest: 0.7 and 0.3 become 2.33 to 1, a sample off
  after some thousand.) Shares are exact where the weights have a common denominator up to 65536, as decimals do; other
  weights are rounded to multiples of 1/65536.
  """

  def __init__(self, weights: Sequence[float]):
    exact = [fractions.Fraction(str(weight)) for weight in weights]
    shares = [weight / sum(exact) for weight in exact]
    period = min(math.lcm(*(share.denominator for share in shares)), LONGEST_PERIOD)
    counts = _apportion(shares, period)
    self._counts = np.array(counts)
    self._sources = _schedule(counts)
    self._ranks = _ranks(self._sources, len(counts))

  def locate(self, sample: int) -> tuple[int, int]:
    periods, place = divmod(sample, len(self._sources))
    source = int(self._sources[place])
    return source, periods * int(self._counts[source]) + int(self._ranks[place])

  def given(self, samples: int) -> np.ndarray:
    periods, place = divmod(samples, len(self._sources))
    return periods * self._counts + np.bincount(self._sources[:place], minlength=len(self._counts))


@dataclasses.dataclass(frozen=True)
class _Step:
  """The samples of one step.

  given_before: int64 [sources], samples of each source before the step.
  sources, ranks: [samples], where each sample is from and how many the source has given before it in the step.
  """
  given_before: np.ndarray
  sources: np.ndarray
  ranks: np.ndarray


class ScheduledMixture:
  """Weights that change with the step. After any number of steps a source has had its share, the sum of its shares of
  each step's samples, to within one sample.

  How many samples each source has given before a step is kept in a table (8 bytes a step and source), which grows as
  far as it is read: some 50 microseconds a step. After the last step the weights stay.
  """

  def __init__(self, parts: Sequence[Weighted], steps: int, phases: Sequence[Phase]):
    self._parts = parts
    self._num_steps = max(1, steps)
    self._phases = phases
    self._due = np.zeros(len(parts))  # samples, not rounded, up to where the table ends
    self._given = np.zeros((FIRST_TABLE_STEPS, len(parts)), np.int64)
    self._known = 0  # rows of the table that are filled, beside the first
    self._lock = threading.Lock()  # rows are read by several threads

  def locate(self, sample: int) -> tuple[int, int]:
    step, place = self._step_of(sample)
    source = int(step.sources[place])
    return source, int(step.given_before[source] + step.ranks[place])

  def given(self, samples: int) -> np.ndarray:
    step, place = self._step_of(samples)
    in_step = np.bincount(step.sources[:place], minlength=len(step.given_before))
    return step.given_before + in_step

  def _step_of(self, sample: int) -> tuple[_Step, int]:
    """The step that has the sample, and the sample's place in it."""
    phase = next(phase for phase in reversed(self._phases) if phase.first_sample <= sample)
    steps, place = divmod(sample - phase.first_sample, phase.batch_size)
    step = phase.first_step + steps
    with self._lock:
      while self._known <= step:
        self._extend()
    before = self._given[step]
    counts = (self._given[step + 1] - before).tolist()
    sources, ranks = _order(tuple(counts))
    return _Step(before, sources, ranks), place

  def _extend(self) -> None:
    """One more step: to each source the whole samples that it is due, the rest to those that are due most."""
    step = self._known
    phase = next(phase for phase in reversed(self._phases) if phase.first_step <= step)
    weights = np.array([part.at(step / self._num_steps) for part in self._parts])
    self._due = self._due + phase.batch_size * (weights / weights.sum())
    counts = _round_to_sum(self._due - self._given[step], phase.batch_size)
    if step + 1 == len(self._given):
      self._given = np.concatenate([self._given, np.zeros_like(self._given)])
    self._given[step + 1] = self._given[step] + counts
    self._known += 1


def _round_to_sum(due: np.ndarray, total: int) -> np.ndarray:
  """int64 [sources]: whole numbers of 0 or more, near to `due`, that add up to `total`."""
  counts = np.maximum(0, np.floor(due)).astype(np.int64)
  while (left := total - counts.sum()) != 0:
    missing = due - counts
    if left > 0:
      counts[np.argmax(missing)] += 1
    else:
      counts[np.argmin(np.where(counts > 0, missing, np.inf))] -= 1
  return counts


@functools.lru_cache(4_096)
def _order(counts: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
  """The sources of one step's samples, evenly interleaved, and how many the source has given before in the step."""
  present = [source for source, count in enumerate(counts) if count]
  schedule = _schedule([counts[source] for source in present])
  return np.array(present)[schedule], _ranks(schedule, len(present))


def _ranks(sources: np.ndarray, num_sources: int) -> np.ndarray:
  """int64, like `sources`: how many of the same source come before."""
  ranks = np.zeros(len(sources), np.int64)
  for source in range(num_sources):
    is_from_it = sources == source
    ranks[is_from_it] = np.arange(is_from_it.sum())
  return ranks


def _apportion(shares: Sequence[fractions.Fraction], period: int) -> list[int]:
  """Whole numbers nearest to the shares of `period`, at least 1 each, that add up to it (largest remainders)."""
  counts = [max(1, math.floor(share * period)) for share in shares]
  while (left := period - sum(counts)) != 0:
    missing = [share * period - count for share, count in zip(shares, counts, strict=True)]
    if left > 0:
      counts[missing.index(max(missing))] += 1
    else:
      reducible = [number for number, count in zip(missing, counts, strict=True) if count > 1]
      counts[missing.index(min(reducible))] -= 1
  return counts


def _schedule(counts: Sequence[int]) -> np.ndarray:
  """int32 [period] sources, by Tijdeman 1980, "The chairman assignment problem": no count is a whole sample off its
  share.

  Among the sources that a further sample would not bring too far ahead, the one whose next sample is due first.
  """
  period = sum(counts)
  scale = max(2, 2 * len(counts) - 2)  # both sides of each comparison are multiplied by it, to compare integers
  given = [0] * len(counts)
  schedule = np.zeros(period, np.int32)
  for step in range(1, period + 1):
    allowed = [i for i, count in enumerate(counts) if scale * (count * step - given[i] * period) >= period]
    source = min(allowed, key=lambda i: (scale * (given[i] + 1) - 1) / counts[i])
    schedule[step - 1] = source
    given[source] += 1
  return schedule
