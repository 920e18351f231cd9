"""Prompts that a model answers, of files, of generators, and of a made-up task of sorting digits."""
import dataclasses
from typing import ClassVar

from llm_jax.config.errors import require
from llm_jax.config.fields import Safe
from llm_jax.config.rows import PROMPTS, RowKind
from llm_jax.config.source import TEMPLATES, SourceConfig

__all__ = ['DigitTexts', 'PromptSource', 'Prompts', 'ReasoningGym', 'SortedDigits', 'StandardLibraryPrompts']


@dataclasses.dataclass(frozen=True)
class Prompts(SourceConfig):
  """JSON lines (optionally .gz or .zst) with a prompt, a text or a list of {"role", "content"}, under `field`. What
  else a row has, such as the right answer, is for the rewards.

  template: the chat template that writes the prompt ('plain', 'chatml', 'llama2', 'llama3', 'model'). None: the
    prompt is a text that the model goes on with as it is.
  """
  path: Safe[str]
  template: str | None = 'chatml'
  field: str = 'prompt'
  val_fraction: float = 0.05
  implementation: ClassVar[str] = 'llm_jax.data.sources.prompts:PromptsReader'
  rows: ClassVar[RowKind] = PROMPTS

  def __post_init__(self):
    require(self.template is None or self.template in TEMPLATES, 'template', self.template,
            f'use one of {TEMPLATES}, or None')

  @property
  def chat_template(self) -> str | None:
    return self.template


@dataclasses.dataclass(frozen=True)
class ReasoningGym(SourceConfig):
  """Questions that a generator of the package `reasoning-gym` makes, such as 'chain_sum' or 'gsm_symbolic', with the
  right answer under 'answer', for the reward `Exact`. (`launch.evaluate --tasks=reasoning_gym.NAME` asks others.)

  generator: its name.
  count: questions.
  seed: of the questions; `launch.evaluate` has 0 and 1.
  template: as `Prompts` has it.
  """
  generator: str
  count: int = 5_000
  seed: int = 2
  template: str | None = 'chatml'
  val_fraction: float = 0.05
  implementation: ClassVar[str] = 'llm_jax.data.sources.reasoning:ReasoningGymReader'
  rows: ClassVar[RowKind] = PROMPTS
  packages: ClassVar[tuple[str, ...]] = ('reasoning_gym',)
  extra: ClassVar[str] = 'eval'

  def __post_init__(self):
    require(self.template is None or self.template in TEMPLATES, 'template', self.template,
            f'use one of {TEMPLATES}, or None')
    require(self.count >= 1, 'count', self.count, 'use 1 or more')

  @property
  def chat_template(self) -> str | None:
    return self.template


@dataclasses.dataclass(frozen=True)
class StandardLibraryPrompts(SourceConfig):
  """The questions of `StandardLibraryChats`; the function's own body, fenced, is under 'answer'.

  template: as `Prompts` has it.
  """
  template: str = 'chatml'
  val_fraction: float = 0.05
  implementation: ClassVar[str] = 'llm_jax.data.sources.prompts:StandardLibraryPromptsReader'
  rows: ClassVar[RowKind] = PROMPTS

  def __post_init__(self):
    require(self.template in TEMPLATES, 'template', self.template, f'use one of {TEMPLATES}')

  @property
  def chat_template(self) -> str:
    return self.template


class DigitSource(SourceConfig):
  """Random digits, no two rows alike. Rows with the same digits are in the same split in every source that has the same
  `val_fraction`.

  digits: of a prompt.
  count: rows.
  """
  digits: int
  count: int

  def __post_init__(self):
    require(self.digits >= 1, 'digits', self.digits, 'use 1 or more')
    require(1 <= self.count <= 10**self.digits // 2, 'count', self.count,
            f'use 1 to {10**self.digits // 2}, half of the numbers that there are with digits={self.digits}')


@dataclasses.dataclass(frozen=True)
class SortedDigits(DigitSource):
  """Prompts of a made-up task, '402>', whose right answer, under 'answer', is the digits in order: '024'."""
  digits: int = 6
  count: int = 6_000
  val_fraction: float = 0.05
  implementation: ClassVar[str] = 'llm_jax.data.sources.prompts:SortedDigitsReader'
  rows: ClassVar[RowKind] = PROMPTS


@dataclasses.dataclass(frozen=True)
class DigitTexts(DigitSource):
  """Texts to begin the task of `SortedDigits` from: the digits, and behind them half of the time the same digits, three
  times in ten in reverse, and twice in order: '402>402', '402>204', '402>024'."""
  digits: int = 6
  count: int = 60_000
  val_fraction: float = 0.05
  implementation: ClassVar[str] = 'llm_jax.data.sources.prompts:DigitTextsReader'


PromptSource = Prompts | ReasoningGym | SortedDigits | StandardLibraryPrompts
