"""The data of one stage, opened."""
import dataclasses
from collections.abc import Mapping

from llm_jax.data.dataset import Dataset


@dataclasses.dataclass(frozen=True)
class StageData:
  """train: the training split by sequence length, one for each that the stage's ramp has.

  validation: the split that scores the stage, in rows of the last of these lengths; None where nothing is set aside.
  """
  train: Mapping[int, Dataset]
  validation: Dataset | None
