"""Rewards of code that answers a function's signature and documentation; `llm_jax/rollout/code_rewards.py` computes
them.

The prompt is the beginning of a function of Python, `def NAME(...):` and its docstring. An answer is in form where it
has ended and is one fenced block of Python that parses. Any other gets 0 of each.
"""
import dataclasses

from llm_jax.config.errors import require
from llm_jax.config.reward_base import RewardConfig

__all__ = ['ArgumentsUsed', 'LengthNear', 'NamesDefined', 'PromptWords', 'PythonBlock', 'UniqueToPrompt']


@dataclasses.dataclass(frozen=True)
class PythonBlock(RewardConfig):
  """1 for an answer in form."""
  weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class NamesDefined(RewardConfig):
  """The share of the names that the code reads that are arguments, are set in the code, are Python's own or are read by
  the reference too.

  column: the field of the row that has the reference, one fenced block.
  """
  column: str = 'answer'
  weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class ArgumentsUsed(RewardConfig):
  """The share of the function's arguments that the code reads."""
  weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class LengthNear(RewardConfig):
  """The length of the code over that of the reference in characters, or the reverse where that is less.

  column: the field of the row that has the reference, one fenced block.
  """
  column: str = 'answer'
  weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class PromptWords(RewardConfig):
  """Words of the function's name and documentation that are in names of the code, up to `enough`, as a share of that or
  of how many there are. Words of fewer than four letters and arguments do not count.

  enough: how many words give 1.
  """
  enough: int = 2
  weight: float = 1.0

  def __post_init__(self):
    super().__post_init__()
    require(self.enough >= 1, 'enough', self.enough, 'use 1 or more')


@dataclasses.dataclass(frozen=True)
class UniqueToPrompt(RewardConfig):
  """1 for an answer in form whose code is no answer to another prompt of those that are scored at once: what answers
  anything does not answer the question."""
  weight: float = 1.0


CodeReward = PythonBlock | NamesDefined | ArgumentsUsed | LengthNear | PromptWords | UniqueToPrompt
