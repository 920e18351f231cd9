"""When a training step is skipped because its loss or gradient norm is far above what they were."""
import dataclasses

from llm_jax.config.errors import require
from llm_jax.config.fields import Steps

__all__ = ['SkipSpikes']


@dataclasses.dataclass(frozen=True)
class SkipSpikes:
  """A step changes nothing where its loss or gradient norm is so far above the recent ones that something is wrong.

  Both are compared on a logarithmic scale, by mean and standard deviation over the steps before. While few steps are
  known, six deviations stand for a jump of 100 times; with many, their real spread decides.

  deviations: standard deviations above the mean, from which on a step is skipped.
  window: steps over which mean and deviation are taken; older ones fade.
  """
  deviations: float = 6.0
  window: Steps = 128

  def __post_init__(self):
    require(self.deviations > 0, 'deviations', self.deviations, 'use a number above 0')
    require(self.window >= 2, 'window', self.window, 'use 2 or more')
