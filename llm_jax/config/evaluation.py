"""What every evaluation states, whatever it computes."""
import re
from typing import TYPE_CHECKING, ClassVar

from llm_jax.config.errors import require

if TYPE_CHECKING:
  from llm_jax.config.stage import Stage

__all__: list[str] = []  # nothing that an experiment names


class EvaluationConfig:
  """What every kind of evaluation states beside its own fields.

  implementation: the class that computes it, 'package.module:Class'.
  """
  implementation: ClassVar[str]

  @property
  def name(self) -> str:
    """How records and messages call it; the names of a stage's evaluations differ."""
    return re.sub(r'(?<!^)(?=[A-Z])', '_', type(self).__name__).lower()

  @property
  def row_lengths(self) -> tuple[int, ...]:
    """Sequence lengths that it reads beside the stage's own: the mesh must divide them too."""
    return ()

  @property
  def may_end_stage(self) -> bool:
    """Whether its result may end the stage before its last step."""
    return False

  def check(self, stage: 'Stage') -> None:
    """Raises ConfigError where the stage is none that it can evaluate."""


def check_every(every: int) -> None:
  require(every >= 0, 'every', every, 'use a number of steps, or 0 for none between the first and the last')
