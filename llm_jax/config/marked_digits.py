"""A made-up task in which answers may break principles: sorting digits without a mark behind them."""
import dataclasses
from typing import ClassVar

from llm_jax.config.errors import require
from llm_jax.config.prompt_sources import DigitSource

__all__ = ['MarkedDigitTexts']

MARKS = ('!', '#')
CRITIQUE = '{mark}?'  # asks whether the answer has a mark
REVISION = '{mark}-'  # asks for the answer without it
JUDGE = '{prompt}A{first}B{second}{principle}'  # asks which of two answers is better


@dataclasses.dataclass(frozen=True)
class MarkedDigitTexts(DigitSource):
  """Conversations of a model that a constitution is to improve. Prompts are those of `SortedDigits`. An answer has the
  digits in order, which helps, and behind them in half of the cases a '!', and in half of them a '#', which break the
  two principles: '402>' is answered '024', '024!', '024#' or '024!#'.

  Half of the texts go on with a critique and a revision: '!?' is answered by 'yes' or 'no', '!-' by the answer without
  '!'. The other half ask which of two answers is better by a principle: '402>A024!B024#!?' is answered by 'B', and by
  chance where both break it or none does.

  texts: about each number.
  """
  digits: int = 4
  count: int = 5_000
  texts: int = 8
  val_fraction: float = 0.05
  implementation: ClassVar[str] = 'llm_jax.data.sources.marked_digits:MarkedDigitTextsReader'

  def __post_init__(self):
    super().__post_init__()
    require(self.texts >= 2, 'texts', self.texts, 'half of them revise and half compare: use 2 or more')
