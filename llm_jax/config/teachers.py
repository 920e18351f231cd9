"""The models that are distilled: `Distillation.teacher` is one of the types in this file."""
import dataclasses

from llm_jax.config.errors import require
from llm_jax.config.fields import Safe, Steps
from llm_jax.config.stage_init import HuggingFace, Params

__all__ = ['SavedRun', 'Teacher']


@dataclasses.dataclass(frozen=True)
class SavedRun:
  """A model that another run has saved, of the same tokenizer and of any size.

  workdir: the folder of that run.
  stage: name of one of its stages; None: the last one that has a checkpoint.
  step: of the checkpoint; None: the newest.
  """
  workdir: Safe[str]
  stage: str | None = None
  step: Steps | None = None

  def __post_init__(self):
    require(bool(self.workdir), 'workdir', self.workdir, 'name the folder of a run')
    require(self.step is None or self.stage is not None, 'stage', self.stage, f'step={self.step} is of which stage?')


Teacher = SavedRun | Params | HuggingFace
