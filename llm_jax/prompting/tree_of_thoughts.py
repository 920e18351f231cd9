"""Tree of Thoughts: a search over partial solutions, which the model proposes and judges (Yao et al. 2023)."""
import dataclasses
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from llm_jax.config.errors import require
from llm_jax.prompting.program import Generate, Program, texts

S = TypeVar('S')
J = TypeVar('J', contravariant=True)


class Problem(Protocol[S]):
  """A problem whose solution is found thought by thought. S: a partial solution, which can be hashed."""

  def root(self) -> S:
    """Where the search begins."""
    ...

  def propose(self, state: S) -> Generate:
    """Asks for next thoughts: many in one text (propose), or one in each of several samples (sample)."""
    ...

  def grow(self, state: S, said: Sequence[str]) -> Sequence[S]:
    """The partial solutions that these texts lead to; what is no legal thought is left out."""
    ...

  def is_solved(self, state: S) -> bool:
    """Whether nothing is left to be thought."""
    ...


class Judge(Protocol[J]):
  """How good partial solutions are."""

  def ask(self, states: Sequence[J]) -> list[Generate]:
    """What the model is asked about them."""
    ...

  def values(self, states: Sequence[J], said: Sequence[Sequence[str]]) -> list[float]:
    """The value of each, out of the texts for each question of `ask`; the larger the better."""
    ...


@dataclasses.dataclass(frozen=True)
class Found(Generic[S]):
  """What a search has found.

  best: the solved states, the best first; where none is solved, what the search ended with.
  is_solved: whether they are solved.   visited: how many states were judged.
  """
  best: tuple[S, ...]
  is_solved: bool
  visited: int


def breadth_first(problem: Problem[S], judge: Judge[S], breadth: int, depth: int) -> Program[Found[S]]:
  """Keeps the `breadth` best partial solutions of each level (algorithm 1). With a breadth of 1 it is a greedy chain of
  thoughts."""
  require(breadth >= 1, 'breadth', breadth, 'use 1 or more')
  kept: list[S] = [problem.root()]
  visited = 0
  for _ in range(depth):
    unsolved = [state for state in kept if not problem.is_solved(state)]
    if not unsolved:
      break
    said = yield [problem.propose(state) for state in unsolved]
    grown = [child for state, answer in zip(unsolved, said, strict=True)
             for child in problem.grow(state, texts(answer))]
    if not grown:
      break
    solved = [state for state in kept if problem.is_solved(state)]
    distinct = list(dict.fromkeys([*solved, *grown]))
    judged = yield list(judge.ask(distinct))
    values = judge.values(distinct, [texts(answer) for answer in judged])
    visited += len(distinct)
    order = sorted(range(len(distinct)), key=lambda i: -values[i])  # of equals the first
    kept = [distinct[i] for i in order[:breadth]]
  solved = [state for state in kept if problem.is_solved(state)]
  return Found(tuple(solved or kept), bool(solved), visited)


def depth_first(problem: Problem[S], judge: Judge[S], threshold: float, depth: int, budget: int
                ) -> Program[Found[S]]:
  """Follows the best thought first, and goes back where none is better than `threshold` (algorithm 2).

  budget: states that are judged at most.
  """
  waiting: list[tuple[S, int]] = [(problem.root(), 0)]
  last = problem.root()
  visited = 0
  while waiting:
    last, level = waiting.pop()
    if problem.is_solved(last):
      return Found((last,), True, visited)
    if level == depth or visited >= budget:
      continue
    [said] = yield [problem.propose(last)]
    grown = list(dict.fromkeys(problem.grow(last, texts(said))))[:budget - visited]
    if not grown:
      continue
    judged = yield list(judge.ask(grown))
    values = judge.values(grown, [texts(answer) for answer in judged])
    visited += len(grown)
    promising = [i for i in range(len(grown)) if values[i] > threshold]
    ordered = sorted(promising, key=lambda i: values[i])  # the best is on top; of equals the last
    waiting += [(grown[i], level + 1) for i in ordered]
  return Found((last,), False, visited)


def votes(ballots: Sequence[str], count: int) -> list[float]:
  """How often each of `count` states is named, by its number from 1, in the last number of a ballot (vote)."""
  found = [0.0] * count
  for ballot in ballots:
    numbers = [int(word) for word in ballot.replace('.', ' ').replace(':', ' ').split() if word.isdigit()]
    if numbers and 1 <= numbers[-1] <= count:
      found[numbers[-1] - 1] += 1
  return found


@dataclasses.dataclass(frozen=True)
class ByVote(Generic[S]):
  """Asks which of all states is the best, and counts the votes (section 3, "vote across states").

  instruction: what stands before the numbered states.   show: a state in words.   samples: ballots.
  """
  instruction: str
  show: Callable[[S], str]
  samples: int = 5
  temperature: float = 0.7

  def ask(self, states: Sequence[S]) -> list[Generate]:
    choices = '\n'.join(f'Choice {number}: {self.show(state)}' for number, state in enumerate(states, 1))
    prompt = f'{self.instruction}\n\n{choices}\n\nThe best choice is'
    return [Generate(prompt, self.samples, self.temperature, stops=('\n\n',), max_new_tokens=128)]

  def values(self, states: Sequence[S], said: Sequence[Sequence[str]]) -> list[float]:
    return votes(said[0], len(states))
