"""Tree of Thoughts over lines of reasoning behind any prompt, for tasks that have no problem of their own."""
import dataclasses
from collections.abc import Sequence

from llm_jax.prompting.answers import UNPARSED, Extract
from llm_jax.prompting.chain_of_thought import THEREFORE, Reasoned
from llm_jax.prompting.program import Generate, Program, texts
from llm_jax.prompting.tree_of_thoughts import ByVote, breadth_first

Lines = tuple[str, ...]
INSTRUCTION = 'Decide which of the choices goes on best behind the following text.'
ANSWER_TOKENS = 32


@dataclasses.dataclass(frozen=True)
class LinesOfThought:
  """A partial solution is some lines behind the prompt. It is solved where the last one gives an answer.

  samples, temperature: next lines that are drawn for each.   tokens: of a line, at most.
  """
  prompt: str
  extract: Extract
  samples: int
  temperature: float
  tokens: int

  def root(self) -> Lines:
    return ()

  def propose(self, state: Lines) -> Generate:
    return Generate(self.prompt + shown(state), self.samples, self.temperature, stops=('\n',),
                    max_new_tokens=self.tokens)

  def grow(self, state: Lines, said: Sequence[str]) -> list[Lines]:
    return [(*state, line) for line in said if line.strip()]

  def is_solved(self, state: Lines) -> bool:
    return bool(state) and self.extract(state[-1]) != UNPARSED


def shown(state: Lines) -> str:
  """The lines, each with its end."""
  return ''.join(f'{line}\n' for line in state)


def think_in_a_tree(problem: LinesOfThought, breadth: int, depth: int, votes: int, temperature: float, extract: Extract
                    ) -> Program[Reasoned]:
  """The best lines that are found, and the answer behind them, which is asked for where they give none.

  extract: reads the answer that is asked for.
  """
  instruction = f'{INSTRUCTION}\n\n{problem.prompt}'
  judge: ByVote[Lines] = ByVote(instruction, lambda state: shown(state).strip(), votes, temperature)
  found = yield from breadth_first(problem, judge, breadth, depth)
  best = found.best[0]
  lines = shown(best).rstrip()
  if problem.is_solved(best):
    return Reasoned(problem.extract(best[-1]), (lines,))
  [said] = yield [Generate(f'{problem.prompt}{lines}\n{THEREFORE}', stops=('\n',), max_new_tokens=ANSWER_TOKENS)]
  answer = texts(said)[0]
  return Reasoned(extract(answer), (f'{lines}\n{THEREFORE}{answer}',))
