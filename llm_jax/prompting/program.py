"""What a prompting strategy is: a generator that yields what it asks a model, gets the answers and returns a result.

A program knows nothing of models or batches. `run_together` steps the programs of all questions at once: what they ask
at the same time is answered in one go, batched and with common beginnings read once. A function that knows the answers
by heart takes the place of the model in tests.
"""
import dataclasses
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

T = TypeVar('T')


@dataclasses.dataclass(frozen=True)
class Generate:
  """Asks for texts behind a prompt; the answer is a tuple of `samples` texts.

  temperature: 0 takes the likeliest token always, and samples are then equal.
  stops: a text ends before one of these.
  """
  prompt: str
  samples: int = 1
  temperature: float = 0.0
  top_k: int | None = None
  stops: tuple[str, ...] = ()
  max_new_tokens: int = 256


@dataclasses.dataclass(frozen=True)
class Score:
  """Asks how likely texts are behind a prompt; the answer is a `ScoredText` for each choice."""
  prompt: str
  choices: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ScoredText:
  """log_prob: of the whole text, in nats.   num_tokens: that it has behind its prompt."""
  log_prob: float
  num_tokens: int


Ask = Generate | Score
Answer = tuple[str, ...] | tuple[ScoredText, ...]
Program = Generator[list[Ask], list[Answer], T]
Model = Callable[[Sequence[Ask]], Sequence[Answer]]


@dataclasses.dataclass(frozen=True)
class Exemplar:
  """A question with its answer, which stands before other questions.

  rationale: the reasoning that leads to the answer; '' for none.
  """
  question: str
  answer: str
  rationale: str = ''


def run_together(programs: Sequence[Program[T]], model: Model) -> list[T]:
  """The results of all programs. In each round everything that they ask is answered at once."""
  results: dict[int, T] = {}
  asked: dict[int, list[Ask]] = {}

  def step(number: int, answers: list[Answer] | None) -> None:
    try:
      program = programs[number]
      asked[number] = next(program) if answers is None else program.send(answers)
    except StopIteration as ended:
      results[number] = ended.value
      asked.pop(number, None)

  for number in range(len(programs)):
    step(number, None)
  while asked:
    turn = list(asked.items())
    answers = iter(model([ask for _, asks in turn for ask in asks]))
    for number, asks in turn:
      step(number, [next(answers) for _ in asks])
  return [results[number] for number in range(len(programs))]


def texts(answer: Answer) -> list[str]:
  """The texts that a `Generate` is answered with."""
  return [text for text in answer if isinstance(text, str)]


def scores(answer: Answer) -> list[ScoredText]:
  """What a `Score` is answered with."""
  return [scored for scored in answer if isinstance(scored, ScoredText)]
