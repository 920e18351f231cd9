"""How a stage is evaluated: `Stage.evals` is a tuple of these; `llm_jax/evaluation/` computes them.

To add one, write its class here, name it in `Evaluation`, and write the class that `implementation` names.
"""
import dataclasses
import math
import re
from typing import TYPE_CHECKING, ClassVar

from llm_jax.config.errors import require
from llm_jax.config.evaluation import EvaluationConfig, check_every
from llm_jax.config.fields import Safe, Steps, Tokens
from llm_jax.config.sources import Plain
from llm_jax.config.verified_answers import VerifiedAnswers

if TYPE_CHECKING:
  from llm_jax.config.stage import Stage

__all__ = [
  'Answers', 'Baselines', 'Evaluation', 'Generations', 'GoldBitsPerByte', 'HeldOut', 'MultipleChoice', 'Needles',
  'PassRate', 'Tasks', 'VerifiedAnswers',
]


@dataclasses.dataclass(frozen=True)
class HeldOut(EvaluationConfig):
  """The objective's loss and metrics on the validation split, and bits per byte where that is text.

  every: steps between evaluations; 0: only the one at the end, which reads all of the split.
  batches: how many each of the others reads.
  """
  every: Steps = 0
  batches: int = 16
  implementation: ClassVar[str] = 'llm_jax.evaluation.held_out:HeldOutEvaluation'

  def __post_init__(self):
    check_every(self.every)
    require(self.batches >= 1, 'batches', self.batches, 'use 1 or more')


@dataclasses.dataclass(frozen=True)
class Needles(EvaluationConfig):
  """Needle in a haystack (Kamradt 2023): a fact is planted somewhere in validation text and asked for at its end, of
  the model that the stage starts from and of the one that it makes.

  seq_lens: lengths of the text, in tokens.
  depths: at how many evenly spaced places, from the start of the text to its end.
  rows: texts for each of them.
  every: steps between evaluations; 0: only at the start and at the end.
  target_recall: share of needles found at which the stage ends; None: it takes all its steps. So many must be found at
    every depth of every length, while the held-out loss at the sequence length of the stage before has risen by at most
    `max_short_loss_increase` (Dubey et al. 2024, Llama 3, section 3.4.2).
  max_short_loss_increase: share by which the loss on shorter sequences may have risen when the stage ends.
  """
  seq_lens: tuple[int, ...]
  depths: int = 5
  rows: int = 16
  every: Steps = 0
  target_recall: float | None = None
  max_short_loss_increase: float = 0.01
  implementation: ClassVar[str] = 'llm_jax.evaluation.needles:NeedlesEvaluation'

  def __post_init__(self):
    require(len(self.seq_lens) > 0 and min(self.seq_lens) >= 32, 'seq_lens', self.seq_lens,
            'give lengths of 32 tokens or more')
    for field in ('depths', 'rows'):
      require(getattr(self, field) >= 1, field, getattr(self, field), 'use 1 or more')
    check_every(self.every)
    is_share = self.target_recall is None or 0 < self.target_recall <= 1
    require(is_share, 'target_recall', self.target_recall, 'use a share in (0, 1], or None')
    require(self.max_short_loss_increase >= 0, 'max_short_loss_increase', self.max_short_loss_increase,
            'use 0 or more')
    require(self.target_recall is None or self.every > 0, 'every', self.every,
            'target_recall is looked at then: use 1 step or more')

  @property
  def row_lengths(self) -> tuple[int, ...]:
    return self.seq_lens

  @property
  def may_end_stage(self) -> bool:
    return self.target_recall is not None

  def check(self, stage: 'Stage') -> None:
    source = stage.validation_data.sources[0].source
    has_text = isinstance(source, Plain) and source.val_fraction > 0
    require(has_text, 'seq_lens', self.seq_lens,
            f'needles are planted in text of the first source of the validation data, a {type(source).__name__}: let '
            'that be text with val_fraction above 0')


@dataclasses.dataclass(frozen=True)
class Generations(EvaluationConfig):
  """What the model writes after each prompt, drawn at temperature 0.8 and top-p 0.95.

  prompts: texts to continue; in a stage with conversations, what the user says.
  every: steps between them; 0: only at the end.
  max_new_tokens: tokens of each.
  """
  prompts: tuple[str, ...]
  every: Steps = 0
  max_new_tokens: Tokens = 96
  implementation: ClassVar[str] = 'llm_jax.evaluation.generations:GenerationsEvaluation'

  def __post_init__(self):
    require(len(self.prompts) > 0, 'prompts', self.prompts, 'give at least one text')
    check_every(self.every)
    require(self.max_new_tokens >= 1, 'max_new_tokens', self.max_new_tokens, 'use 1 or more')


@dataclasses.dataclass(frozen=True)
class Answers(EvaluationConfig):
  """Greedy answers to the validation split's conversations, at the start and at the end: the share that ends its turn,
  and, where code was asked for, the share that is code. Nothing in a stage without conversations.

  questions: how many are answered.
  """
  questions: int = 64
  implementation: ClassVar[str] = 'llm_jax.evaluation.answers:AnswersEvaluation'

  def __post_init__(self):
    require(self.questions >= 1, 'questions', self.questions, 'use 1 or more')


@dataclasses.dataclass(frozen=True)
class Baselines(EvaluationConfig):
  """Bits per byte of the validation text by a trigram model of the training tokens and by `xz -9`, at the end. Nothing
  in a stage whose data is not all text.

  max_tokens: with more training tokens no trigram model is fitted.
  """
  max_tokens: Tokens = 50_000_000
  implementation: ClassVar[str] = 'llm_jax.evaluation.baselines:BaselinesEvaluation'

  def __post_init__(self):
    require(self.max_tokens >= 0, 'max_tokens', self.max_tokens, 'use 0 or more')


@dataclasses.dataclass(frozen=True)
class MultipleChoice(EvaluationConfig):
  """Questions whose answer is the likeliest of a few given texts (Brown et al. 2020, GPT-3, section 2.4).

  path: JSON lines of {"question", "choices", "answer"}. The answer is the place of the right one, counted from 0.
  task: how records call it; '' means the file's name.
  every: steps between evaluations; 0: only at the end.
  limit: how many questions are asked, from the first on; None: all.
  delimiter: what stands between a question and each of its choices.
  """
  path: Safe[str]
  task: str = ''
  every: Steps = 0
  limit: int | None = None
  delimiter: str = ' '
  implementation: ClassVar[str] = 'llm_jax.evaluation.multiple_choice:MultipleChoiceEvaluation'

  def __post_init__(self):
    check_every(self.every)
    require(self.limit is None or self.limit >= 1, 'limit', self.limit, 'use 1 or more, or None for all')

  @property
  def name(self) -> str:
    return self.task or re.split(r'[/\\]', self.path)[-1].split('.')[0]


@dataclasses.dataclass(frozen=True)
class Tasks(EvaluationConfig):
  """Tasks of lm-evaluation-harness, by its own definitions and metrics.

  names: of tasks, or .yaml files of one's own; stdlib_bodies and stdlib_names need no data.
  data: `TASK=FILE`: the questions of a task, with the columns of its official data set.
  every: steps between evaluations; 0: only at the end.
  limit: how many questions of each task are asked, from the first on; None: all.
  num_fewshot: examples before each question; None: as the task says.
  chat: whether questions are put as conversations, by the stage's chat template.
  """
  names: tuple[str, ...]
  data: tuple[str, ...] = ()
  every: Steps = 0
  limit: int | None = None
  num_fewshot: int | None = None
  chat: bool = False
  implementation: ClassVar[str] = 'llm_jax.evaluation.tasks:TasksEvaluation'
  packages: ClassVar[tuple[str, ...]] = ('lm_eval',)
  extra: ClassVar[str] = 'eval'

  def __post_init__(self):
    _check_tasks(self.names, self.data, self.limit, self.num_fewshot)
    check_every(self.every)

  def check(self, stage: 'Stage') -> None:
    require(not self.chat or stage.data.template is not None, 'chat', self.chat,
            'the stage has no conversations and so no chat template: leave it out')


@dataclasses.dataclass(frozen=True)
class GoldBitsPerByte(EvaluationConfig):
  """Bits per byte of the right answer behind its question. Smooth where a small model's accuracy is still by chance
  (Bhagia et al. 2024, section 3.1).

  names: of tasks, or .yaml files of one's own; stdlib_bodies and stdlib_names need no data.
  data: `TASK=FILE`: the questions of a task, with the columns of its official data set.
  every: steps between evaluations; 0: only at the end.
  limit: how many questions of each task are asked, from the first on; None: all.
  num_fewshot: examples before each question; None: as the task says.
  """
  names: tuple[str, ...]
  data: tuple[str, ...] = ()
  every: Steps = 0
  limit: int | None = None
  num_fewshot: int | None = None
  implementation: ClassVar[str] = 'llm_jax.evaluation.gold_bits:GoldBitsPerByteEvaluation'
  packages: ClassVar[tuple[str, ...]] = ('lm_eval',)
  extra: ClassVar[str] = 'eval'

  def __post_init__(self):
    _check_tasks(self.names, self.data, self.limit, self.num_fewshot)
    check_every(self.every)


def _check_tasks(names: tuple[str, ...], data: tuple[str, ...], limit: int | None, num_fewshot: int | None) -> None:
  require(len(names) > 0 and all(names), 'names', names, 'give the name of at least one task')
  for text in data:
    task, equals, path = text.partition('=')
    require(task in names and bool(equals and path), 'data', text, f'write it as TASK=FILE, TASK being one of {names}')
  require(limit is None or limit >= 1, 'limit', limit, 'use 1 or more, or None for all')
  require(num_fewshot is None or num_fewshot >= 0, 'num_fewshot', num_fewshot, 'use 0 or more, or None')


@dataclasses.dataclass(frozen=True)
class PassRate(EvaluationConfig):
  """The share of held-out prompts whose answer, greedy and sampled, gets the rewards of the stage's rollout or samples,
  at the start and at the end. For stages that learn from their own answers, or from those of an earlier stage.

  every: steps between evaluations; 0: only the two.
  prompts: how many are answered, spread over those that are held out.
  samples: sampled answers to each, beside the greedy one.
  passing: the reward from which on an answer passes.
  reward: the one of the rewards that decides, by the name of its records, such as 'exact'; None: the weighted sum.
  temperature: of the sampled answers; None: that of the rollout or samples.
  """
  every: Steps = 0
  prompts: int = 256
  samples: int = 1
  passing: float = 1.0
  reward: str | None = None
  temperature: float | None = None
  implementation: ClassVar[str] = 'llm_jax.evaluation.pass_rate:PassRateEvaluation'

  def __post_init__(self):
    check_every(self.every)
    for field in ('prompts', 'samples'):
      require(getattr(self, field) >= 1, field, getattr(self, field), 'use 1 or more')
    require(self.temperature is None or 1e-3 <= self.temperature < math.inf, 'temperature', self.temperature,
            'use 0.001 or more, or None for that of the rollout')

  def check(self, stage: 'Stage') -> None:
    require(stage.answering is not None, 'passing', self.passing,
            'the stage has neither a rollout nor samples, whose rewards are asked for')
    names = () if stage.answering is None else stage.answering.names
    require(self.reward is None or self.reward in names, 'reward', self.reward,
            f'the rewards of the stage are {", ".join(names)}: use one of them, or None')


Evaluation = (
  HeldOut | Needles | Generations | Answers | Baselines | MultipleChoice | Tasks | GoldBitsPerByte | PassRate |
  VerifiedAnswers
)
