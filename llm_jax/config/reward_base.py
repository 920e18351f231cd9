"""What every reward has."""
import math
import re

from llm_jax.config.errors import require


class RewardConfig:
  """weight: what the reward is multiplied by in the sum; below 0 it is a penalty, and with 0 it is only recorded.

  label: how records call it, where a reward has such a field; None: by its kind.
  """
  weight: float
  label: str | None = None

  def __post_init__(self):
    require(math.isfinite(self.weight), 'weight', self.weight, 'use a finite number')
    is_plain = self.label is None or re.fullmatch(r'[\w.-]+', self.label)
    require(bool(is_plain), 'label', self.label, 'use letters, digits, _, - and .')

  @property
  def name(self) -> str:
    """How records call it."""
    return self.label or re.sub(r'(?<!^)(?=[A-Z])', '_', type(self).__name__).lower()
