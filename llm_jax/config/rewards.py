"""What scores an answer: `Rollout.rewards` is a tuple of these; `llm_jax/rollout/rewards.py` computes them.

Every reward has a weight; an answer's reward is the weighted sum.
"""
import dataclasses
import math
import re

from llm_jax.config.code_rewards import (
  ArgumentsUsed,
  CodeReward,
  LengthNear,
  NamesDefined,
  PromptWords,
  PythonBlock,
  UniqueToPrompt,
)
from llm_jax.config.errors import require
from llm_jax.config.judges import PairJudge, RatingJudge
from llm_jax.config.reward_base import RewardConfig
from llm_jax.config.stage_init import Params
from llm_jax.config.teachers import SavedRun, Teacher

__all__ = [
  'ArgumentsUsed', 'Contains', 'Exact', 'Function', 'JudgePreference', 'JudgeRating', 'Length', 'LengthNear',
  'NamesDefined', 'PromptWords', 'PythonBlock', 'PythonParses', 'PythonPasses', 'Regex', 'Reward', 'RewardModelScore',
  'UniqueToPrompt',
]


@dataclasses.dataclass(frozen=True)
class Exact(RewardConfig):
  """1 for an answer that has ended and is what the prompt's row has under `column`, white space around both aside.

  column: the field of the row that has the right answer.
  """
  column: str = 'answer'
  weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Contains(RewardConfig):
  """1 for an answer in which stands what the prompt's row has under `column`.

  column: the field of the row that has the text.
  label: how records call it; None: contains.
  """
  column: str = 'answer'
  weight: float = 1.0
  label: str | None = None


@dataclasses.dataclass(frozen=True)
class Regex(RewardConfig):
  """1 for an answer in which the expression is found.

  pattern: a regular expression of Python; begin it with \\A and end it with \\Z for the whole answer.
  label: how records call it; None: regex.
  """
  pattern: str
  weight: float = 1.0
  label: str | None = None

  def __post_init__(self):
    super().__post_init__()
    try:
      re.compile(self.pattern)
      problem = ''
    except re.error as error:
      problem = str(error)
    require(not problem, 'pattern', self.pattern, f'no regular expression: {problem}')


@dataclasses.dataclass(frozen=True)
class PythonParses(RewardConfig):
  """1 for an answer that has ended and is Python that parses: one fenced block, or all of the answer."""
  weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class PythonPasses(RewardConfig):
  """1 for an answer that has ended and whose Python passes the tests of the prompt's row, run behind it in a sandbox
  (`llm_jax/runtime/sandbox.py`): the last fenced block, or all of the answer where there is none.

  tests: the field of the row that has them, a program that raises where something is wrong, or a list of such.
  allow_code: that what the model writes may be run on this machine; nothing is run without it.
  seconds: that one answer may take with its tests.
  memory_mib: that it may use.
  """
  tests: str = 'tests'
  allow_code: bool = False
  seconds: float = 5.0
  memory_mib: int = 1_024
  weight: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    require(self.allow_code, 'allow_code', self.allow_code,
            'it runs code that the model writes, in a sandbox: say allow_code=True')
    require(0 < self.seconds < math.inf, 'seconds', self.seconds, 'use a finite number above 0')
    require(self.memory_mib >= 64, 'memory_mib', self.memory_mib, 'Python needs 64 or more')


@dataclasses.dataclass(frozen=True)
class Length(RewardConfig):
  """0 up to `longest` - `margin` tokens, then falling in a straight line to -1 at `longest` and beyond (Yu et al. 2025,
  DAPO, equation 13).

  longest: tokens of an answer from which on it gets -1.
  margin: over how many tokens it falls.
  """
  longest: int
  margin: int
  weight: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    require(self.margin >= 1, 'margin', self.margin, 'use 1 or more')
    require(self.longest >= self.margin, 'longest', self.longest, f'use margin={self.margin} or more')


@dataclasses.dataclass(frozen=True)
class Function(RewardConfig):
  """A function of yours: (prompts, answers, **columns) -> a number for each answer. The three are lists of one length;
  a column has what the rows of the prompts have under its name.

  path: the file and the function, 'rewards.py:length_near_100'.
  """
  path: str
  weight: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    file, _, function = self.path.rpartition(':')
    require(file.endswith('.py') and function.isidentifier(), 'path', self.path,
            "name a file and a function of it, such as 'rewards.py:score'")

  @property
  def name(self) -> str:
    return self.path.rpartition(':')[2]


@dataclasses.dataclass(frozen=True)
class RewardModelScore(RewardConfig):
  """The score that a reward model gives to prompt and answer (Ouyang et al. 2022, InstructGPT, section 3.5).

  The model has learnt with the objective `RewardModel`, and its tokenizer is the run's. It may have another size.

  model: Params(stage) of the same run, or SavedRun(workdir).
  label: how records call it; None: by the name of its stage.
  """
  model: SavedRun | Params
  label: str | None = None
  weight: float = 1.0

  @property
  def name(self) -> str:
    return self.label or self.model.stage or super().name


@dataclasses.dataclass(frozen=True)
class JudgeRating(RewardConfig):
  """How good a language model finds an answer: the expected value of what it says.

  judge: the model, and what it is asked.
  label: how records call it; None: judge_rating.
  """
  judge: RatingJudge
  label: str | None = None
  weight: float = 1.0

  @property
  def model(self) -> Teacher:
    return self.judge.model


@dataclasses.dataclass(frozen=True)
class JudgePreference(RewardConfig):
  """How probable a language model finds it that an answer is better than another to its prompt: the mean over the other
  answers of its group, each asked about in both orders. An answer without another gets 0.5.

  judge: the model, and what it is asked.
  against: the field of the prompt's row with an answer that each is compared with instead; None: the others of its
    group.
  label: how records call it; None: judge_preference.
  """
  judge: PairJudge
  against: str | None = None
  label: str | None = None
  weight: float = 1.0

  @property
  def model(self) -> Teacher:
    return self.judge.model


WithoutModel = Exact | Contains | Regex | PythonParses | PythonPasses | Length | Function | CodeReward
WithModel = RewardModelScore | JudgeRating | JudgePreference
Reward = WithoutModel | WithModel


def reward_names(rewards: tuple[Reward, ...]) -> tuple[str, ...]:
  """How records call each of them; no two alike."""
  names: list[str] = []
  for reward in rewards:
    earlier = sum(name.partition(':')[0] == reward.name for name in names)
    names.append(f'{reward.name}:{earlier + 1}' if earlier else reward.name)
  return tuple(names)


class Rewarded:
  """What has rewards, which score the answers that it samples."""
  rewards: tuple[Reward, ...]

  @property
  def names(self) -> tuple[str, ...]:
    """How records call the rewards."""
    return reward_names(self.rewards)

  @property
  def reward_models(self) -> dict[str, WithModel]:
    """Those of the rewards that ask a model, by the names of records."""
    named = zip(self.names, self.rewards, strict=True)
    return {name: reward for name, reward in named if isinstance(reward, WithModel)}
