"""The models that are distilled: `Distillation.teacher` is one of the types in this file."""
import dataclasses

from llm_jax.config.errors import require
from llm_jax.config.fields import Safe, Steps
from llm_jax.config.stage_init import HuggingFace, Params

__all__ = ['SavedRun', 'Teacher', 'TeacherIds']


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


@dataclasses.dataclass(frozen=True)
class TeacherIds:
  """Ids that a teacher draws once, before the stage's first step, for every target of the rows that it reads. They are
  kept in the cache folder, where other runs that read the same rows find them; the steps need no teacher.

  teacher: the model that draws them.
  count: how many at every target (Anshumann et al. 2025: 12).
  """
  teacher: Teacher
  count: int = 12

  def __post_init__(self):
    require(self.count >= 1, 'count', self.count, 'use 1 or more')
