"""Answers out of what a model wrote, and votes among them."""
import collections
import dataclasses
import math
import re
from collections.abc import Callable, Sequence

UNPARSED = '[invalid]'  # as lm-evaluation-harness has it

Extract = Callable[[str], str]


@dataclasses.dataclass(frozen=True)
class Pattern:
  """The answer that a regular expression finds; UNPARSED where it finds none. As the harness's filter `regex`.

  which: of several matches, counted from 0; -1 is the last. Of a match with groups the first that is not empty counts.
  """
  expression: str
  which: int = 0

  def __call__(self, text: str) -> str:
    found = re.findall(self.expression, text)
    if not found:
      return UNPARSED
    match = found[self.which]
    if isinstance(match, tuple):
      filled = [group for group in match if group]
      match = filled[0] if filled else UNPARSED
    return match.strip()


STRICT_NUMBER = Pattern(r'The answer is (\-?[0-9\.\,]+).')  # gsm8k_cot's strict-match
LAST_NUMBER = Pattern(r'(-?[$0-9.,]{2,})|(-?[0-9]+)', -1)  # its flexible-extract


def majority(answers: Sequence[str], drop_unparsed: bool = True) -> str:
  """The answer that most agree on; of several the one that came first.

  drop_unparsed: answers that could not be read have no vote (Wang et al. 2022, section 2), unless there are no others.
    The harness's `majority_vote` counts them like any other.
  """
  read = [answer for answer in answers if answer != UNPARSED] if drop_unparsed else list(answers)
  return collections.Counter(read or answers).most_common(1)[0][0]


def disagreement(answers: Sequence[str]) -> float:
  """The share of different answers among all (Diao et al. 2023, Active-Prompt, section 2.1)."""
  return len(set(answers)) / len(answers)


def entropy(answers: Sequence[str]) -> float:
  """Of the answers' frequencies, in nats (equation 2 there)."""
  shares = [count / len(answers) for count in collections.Counter(answers).values()]
  return -sum(share * math.log(share) for share in shares)
