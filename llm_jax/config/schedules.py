"""Learning rates as functions of the step inside a stage; `llm_jax/optim/schedules.py` evaluates them."""
import dataclasses
import math

from llm_jax.config.errors import require
from llm_jax.config.fields import Steps

__all__ = ['Constant', 'Cosine', 'LinearToZero', 'Schedule', 'WSD']


@dataclasses.dataclass(frozen=True)
class Constant:
  """Linear warm-up, then constant.

  peak: the highest learning rate.
  warmup: first steps, over which it rises from 0.
  """
  peak: float
  warmup: Steps = 0

  def __post_init__(self):
    check_schedule(self)


@dataclasses.dataclass(frozen=True)
class Cosine:
  """Warm-up, then half a cosine down to `final` x peak at the stage's end (GPT-3, appendix B; Llama).

  peak: the highest learning rate.
  warmup: first steps, over which it rises from 0.
  final: the last rate, as a fraction of the peak.
  """
  peak: float
  warmup: Steps = 0
  final: float = 0.1

  def __post_init__(self):
    check_schedule(self)


@dataclasses.dataclass(frozen=True)
class WSD:
  """Warm-up, stable, decay: constant, then linear to `final` x peak (Hu et al. 2024, MiniCPM, section 4).

  peak: the highest learning rate.
  warmup: first steps, over which it rises from 0.
  decay: the fraction of the stage's steps, its last ones, over which it falls.
  final: the last rate, as a fraction of the peak.
  """
  peak: float
  warmup: Steps = 0
  decay: float = 0.2
  final: float = 0.0

  def __post_init__(self):
    check_schedule(self)
    require(0 <= self.decay <= 1, 'decay', self.decay, 'use the fraction of steps that decay, in [0, 1]')


@dataclasses.dataclass(frozen=True)
class LinearToZero:
  """Warm-up, then linear to zero at the stage's end (Llama 3's annealing, section 3.4.3).

  peak: the highest learning rate.
  warmup: first steps, over which it rises from 0.
  """
  peak: float
  warmup: Steps = 0

  def __post_init__(self):
    check_schedule(self)


Schedule = Constant | Cosine | WSD | LinearToZero


def check_schedule(schedule: Schedule) -> None:
  require(math.isfinite(schedule.peak) and schedule.peak >= 0, 'peak', schedule.peak,
          'use a finite learning rate of 0 or more, such as 3e-4')
  require(schedule.warmup >= 0, 'warmup', schedule.warmup, 'use a number of steps of 0 or more')
  final = getattr(schedule, 'final', 0.0)
  require(0 <= final <= 1, 'final', final, 'use a fraction of the peak in [0, 1]')
