"""The data of one stage, opened."""
import dataclasses
from collections.abc import Mapping

from llm_jax.data.dataset import Dataset
from llm_jax.data.prompts import PromptSet


@dataclasses.dataclass(frozen=True)
class StageData:
  """train: the training split by sequence length, one for each that the stage's ramp has.

  validation: the split that scores the stage, in rows of the last of these lengths; None where nothing is set aside.
  prompts, held_out_prompts: the same two of a stage that learns from its own answers, which has no rows.
  pretraining: the text that such a stage learns beside them; None: none.
  """
  train: Mapping[int, Dataset]
  validation: Dataset | None
  prompts: PromptSet | None = None
  held_out_prompts: PromptSet | None = None
  pretraining: Dataset | None = None

  def open(self) -> None:
    """Opens what rows are looked up in, when the stage begins."""
    for dataset in (*self.train.values(), self.validation, self.pretraining):
      if dataset is not None:
        dataset.open()

  @property
  def fingerprints(self) -> list[dict[str, str] | None]:
    """Of all splits, by component."""
    splits = (*self.train.values(), self.validation, self.prompts, self.held_out_prompts, self.pretraining)
    return [None if split is None else split.fingerprint for split in splits]

  def changed_files(self) -> set[str]:
    """Paths of the files that no longer hold what they did when they were opened."""
    splits = (*self.train.values(), self.validation, self.prompts, self.held_out_prompts, self.pretraining)
    return {file for split in splits if split is not None for file in split.changed_files()}
