"""What a stage learns: `Stage.objective` is one of these; `llm_jax/objectives/` computes them.

Those of preferences are in `preferences.py`, those of answers that the model samples itself in `policy_gradients.py`.
To add one, write its class, name it in `Objective`, and write the class that `implementation` names.
"""
import dataclasses
import math
from typing import ClassVar

from llm_jax.config.errors import require, require_weights
from llm_jax.config.objective import Metric, ObjectiveConfig
from llm_jax.config.policy_gradients import PPO, Clip, ClipWeight, KLInLoss, KLInReward, PolicyGradient
from llm_jax.config.preferences import DPO, IPO, KTO, ORPO, APODown, APOZero, RewardModel, SimPO, SLiC
from llm_jax.config.rows import LABELLED, PROMPTS, TEXT, RowKind
from llm_jax.config.teachers import Teacher, TeacherIds

__all__ = [
  'APODown', 'APOZero', 'Classification', 'Clip', 'ClipWeight', 'DPO', 'Distillation', 'IPO', 'KLInLoss', 'KLInReward',
  'KTO', 'LanguageModel', 'ORPO', 'Objective', 'PPO', 'PolicyGradient', 'RewardModel', 'SLiC', 'SimPO',
]


@dataclasses.dataclass(frozen=True)
class LanguageModel(ObjectiveConfig):
  """Next-token cross-entropy, plus z_loss x logsumexp^2 (PaLM, section 5: 1e-4), plus the routers' own losses.

  z_loss: weight of the squared log-sum-exp of the logits.
  multi_token_weight: of the mean cross-entropy of `Architecture.multi_token` (DeepSeek-V3, equation 25 and section 4.2:
    0.3, in the last third of training 0.1).
  """
  z_loss: float = 0.0
  multi_token_weight: float = 0.3
  implementation: ClassVar[str] = 'llm_jax.objectives.language_model:LanguageModelObjective'
  rows: ClassVar[RowKind] = TEXT
  title: ClassVar[str] = 'next token'
  metrics: ClassVar[tuple[Metric, ...]] = (
    Metric('bits_per_byte', 'bits per byte', '{:.4f}', '{:.4f} bits per byte', '{:.3f} bits per byte'),
  )

  def __post_init__(self):
    require_weights(self, 'z_loss', 'multi_token_weight')


@dataclasses.dataclass(frozen=True)
class Distillation(ObjectiveConfig):
  """beta KL(teacher || M) + (1 - beta) KL(student || M) at every target, M being beta teacher + (1 - beta) student
  (Agarwal et al. 2024, GKD, equation 3), on what the data says so far. In a stage with a rollout, on what the student
  says itself.

  teacher: SavedRun(workdir), Params(stage) or HuggingFace(folder); its tokenizer is the run's. TeacherIds(one of them):
    ids that it has drawn once, for divergence 0 and temperature 1.
  divergence: beta; 0 is KL(teacher || student), 1 is KL(student || teacher), 0.5 the Jensen-Shannon divergence.
  temperature: what the logits of both are divided by.
  nll_weight: of the student's cross-entropy on the data, which is added.
  sampled: ids drawn from the teacher at every target, in the place of all its probabilities (Anshumann et al. 2025:
    12); None: all. Needs divergence 0 and temperature 1.
  own_answers: the share of prompts that the student answers itself, in a stage with a rollout. For the others the
    answer is in the prompt's row (algorithm 1: lambda).
  column: the field of the row that has it.
  """
  teacher: Teacher | TeacherIds
  divergence: float = 0.0
  temperature: float = 1.0
  nll_weight: float = 0.0
  sampled: int | None = None
  own_answers: float = 1.0
  column: str = 'answer'
  rows: ClassVar[RowKind] = TEXT
  title: ClassVar[str] = 'distillation'
  other_rows: ClassVar[tuple[RowKind, ...]] = (PROMPTS,)
  metrics: ClassVar[tuple[Metric, ...]] = (
    Metric('nll', 'loss on the data', '{:.4f}', '{:.4f} on the data', '{:.3f} on the data'),
    Metric('teacher_nll', "the teacher's", '{:.4f}', 'teacher {:.4f}', 'teacher {:.3f}'),
  )

  @property
  def implementation(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
    if self.teacher_ids is None:
      return 'llm_jax.objectives.distillation:DistillationObjective'
    return 'llm_jax.objectives.kept_distillation:KeptDistillationObjective'

  @property
  def reference_passes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
    return 1 if self.teacher_ids is None else 0

  @property
  def distilled(self) -> Teacher | None:
    return None if isinstance(self.teacher, TeacherIds) else self.teacher

  @property
  def teacher_ids(self) -> TeacherIds | None:
    """Ids that are drawn before the first step; None where the teacher is asked at every step."""
    return self.teacher if isinstance(self.teacher, TeacherIds) else None

  def __post_init__(self):
    require(0 <= self.divergence <= 1, 'divergence', self.divergence, 'use a number from 0 to 1')
    is_warm = math.isfinite(self.temperature) and self.temperature > 0
    require(is_warm, 'temperature', self.temperature, 'use a finite number above 0')
    require_weights(self, 'nll_weight')
    require(0 < self.own_answers <= 1, 'own_answers', self.own_answers, 'use a share in (0, 1]')
    is_plain = self.divergence == 0 and self.temperature == 1
    if self.teacher_ids is not None:
      require(is_plain and self.sampled is None, 'teacher', 'TeacherIds',
              'ids are drawn for divergence=0 and temperature=1 alone: use these, and count in the place of sampled')
    if self.sampled is not None:
      require(self.sampled >= 1, 'sampled', self.sampled, 'use 1 or more, or None for all probabilities')
      require(is_plain, 'sampled', self.sampled, 'ids are drawn for divergence=0 and temperature=1 alone: use these')


# ---------------------------------------------------------------------------------------------- classes
@dataclasses.dataclass(frozen=True)
class Classification(ObjectiveConfig):
  """L3 = L2 + lm_weight L1 (Radford et al. 2018, GPT-1, equation 5: 0.5).

  L2 is the cross-entropy of a text's class, by a linear head on the features of its last token; L1 is the language
  model's loss on the same text.

  lm_weight: of the language model's loss.
  """
  lm_weight: float = 0.5
  implementation: ClassVar[str] = 'llm_jax.objectives.classification:ClassificationObjective'
  rows: ClassVar[RowKind] = LABELLED
  title: ClassVar[str] = 'classes'
  metrics: ClassVar[tuple[Metric, ...]] = (
    Metric('accuracy', 'accuracy', '{:.2%}', '{:.1%} right', '{:.0%} right'),
    Metric('most_common_class', 'most common class', '{:.2%}', '{:.1%} are of the most common class',
           'most common {:.0%}'),
  )

  def __post_init__(self):
    require_weights(self, 'lm_weight')


Objective = (
  LanguageModel | Distillation | Classification | DPO | IPO | SLiC | APOZero | APODown | ORPO | SimPO | RewardModel |
  KTO | PolicyGradient | PPO
)
