"""The Game of 24 as a problem of Tree of Thoughts: four numbers, and arithmetic that makes 24 of them (Yao et al. 2023,
section 4.1)."""
import dataclasses
import re
from collections.abc import Sequence
from fractions import Fraction

from llm_jax.prompting.program import Generate

STEP = re.compile(r'^\s*(-?[\d./]+)\s*([-+*/])\s*(-?[\d./]+)\s*=')
VALUES = {'impossible': 0.001, 'likely': 1.0, 'sure': 20.0}  # of the authors' code
GOAL = 24


@dataclasses.dataclass(frozen=True)
class Left:
  """numbers: that are left, sorted.   steps: of arithmetic so far, such as `4 + 8 = 12`."""
  numbers: tuple[Fraction, ...]
  steps: tuple[str, ...] = ()

  @property
  def shown(self) -> str:
    return ' '.join(map(str, self.numbers))

  def after(self, line: str) -> 'Left | None':
    """What is left when a line such as `4 + 8 = 12` is carried out; None where it is no legal step. The result is
    computed here, whatever the line says."""
    found = STEP.match(line)
    if found is None:
      return None
    try:
      one, other = Fraction(found[1]), Fraction(found[3])
    except (ValueError, ZeroDivisionError):
      return None
    rest = list(self.numbers)
    for number in (one, other):
      if number not in rest:
        return None
      rest.remove(number)
    result = computed(one, found[2], other)
    if result is None:
      return None
    step = f'{one} {found[2]} {other} = {result}'
    return Left(tuple(sorted([*rest, result])), (*self.steps, step))


def computed(one: Fraction, sign: str, other: Fraction) -> Fraction | None:
  match sign:
    case '+':
      return one + other
    case '-':
      return one - other
    case '*':
      return one * other
    case '/':
      return one / other if other else None
    case _:
      raise ValueError(sign)


@dataclasses.dataclass(frozen=True)
class GameOf24:
  """numbers: the four.   examples: that stand before a request for steps."""
  numbers: tuple[int, ...]
  examples: str = 'Input: 2 8 8 14\nPossible next steps:\n2 + 8 = 10\n8 / 2 = 4\n14 - 8 = 6\n\n'

  def root(self) -> Left:
    return Left(tuple(sorted(map(Fraction, self.numbers))))

  def propose(self, state: Left) -> Generate:
    prompt = f'{self.examples}Input: {state.shown}\nPossible next steps:\n'
    return Generate(prompt, stops=('\n\n',), max_new_tokens=128)

  def grow(self, state: Left, said: Sequence[str]) -> list[Left]:
    found = [state.after(line) for text in said for line in text.splitlines()]
    return [left for left in found if left is not None]

  def is_solved(self, state: Left) -> bool:
    return state.numbers == (GOAL,)


@dataclasses.dataclass(frozen=True)
class ByValue:
  """Asks of every state whether it can reach 24.   samples: answers, whose values are added up."""
  samples: int = 3

  def ask(self, states: Sequence[Left]) -> list[Generate]:
    return [Generate(f'Evaluate if given numbers can reach 24 (sure/likely/impossible)\n{state.shown}\n', self.samples,
                     0.7 if self.samples > 1 else 0.0, stops=('\n\n',), max_new_tokens=64) for state in states]

  def values(self, states: Sequence[Left], said: Sequence[Sequence[str]]) -> list[float]:
    return [sum(_value(text) for text in answers) for answers in said]


def _value(text: str) -> float:
  words = re.findall(r'[a-z]+', text.lower())
  named = [word for word in words if word in VALUES]
  return VALUES[named[-1]] if named else 0.0
