"""In-context learning: the likeliest of a few answers behind examples (Brown et al. 2020, GPT-3, section 2.4)."""
import dataclasses
import enum
from collections.abc import Sequence

from llm_jax.prompting.program import Exemplar, Program, Score, ScoredText, scores


class Normalisation(enum.Enum):
  """What a choice's log-probability is compared by.

  NONE: as it is.   PER_BYTE: divided by the choice's bytes.   PER_TOKEN: by its tokens.
  UNCONDITIONAL: less what the choice has behind a prompt without the question, such as 'Answer:'.
  """
  NONE = 'none'
  PER_BYTE = 'per byte'
  PER_TOKEN = 'per token'
  UNCONDITIONAL = 'unconditional'


@dataclasses.dataclass(frozen=True)
class Layout:
  """How questions and answers become a prompt.

  question: with `{}` for its text.   before_answer: between a question and an answer.   between: examples.
  """
  question: str = 'Q: {}\nA:'
  before_answer: str = ' '
  between: str = '\n\n'

  def put(self, question: str) -> str:
    return self.question.format(question)

  def example(self, exemplar: Exemplar) -> str:
    """An example with its reasoning, if any, and its answer."""
    said = f'{exemplar.rationale} {exemplar.answer}' if exemplar.rationale else exemplar.answer
    return f'{self.put(exemplar.question)}{self.before_answer}{said}'

  def prompt(self, question: str, exemplars: Sequence[Exemplar]) -> str:
    return self.between.join([*map(self.example, exemplars), self.put(question)])


PLAIN = Layout()


def choose(question: str, choices: Sequence[str], exemplars: Sequence[Exemplar] = (),
           normalisation: Normalisation = Normalisation.NONE, layout: Layout = PLAIN,
           unconditional: str = 'Answer:') -> Program[int]:
  """The place of the choice that is likeliest behind the question; with no exemplars zero-shot, with one one-shot.

  unconditional: the prompt without a question, for that normalisation.
  """
  behind = tuple(layout.before_answer + choice for choice in choices)
  asks = [Score(layout.prompt(question, exemplars), behind)]
  if normalisation is Normalisation.UNCONDITIONAL:
    asks.append(Score(unconditional, behind))
  answers = yield list(asks)
  values = compared(choices, scores(answers[0]), [scored for answer in answers[1:] for scored in scores(answer)],
                    normalisation)
  return values.index(max(values))


def compared(choices: Sequence[str], scored: Sequence[ScoredText], alone: Sequence[ScoredText],
             normalisation: Normalisation) -> list[float]:
  """What is compared of each choice.   alone: their scores behind the prompt without a question."""
  match normalisation:
    case Normalisation.NONE:
      return [one.log_prob for one in scored]
    case Normalisation.PER_BYTE:
      return [one.log_prob / len(choice.encode()) for one, choice in zip(scored, choices, strict=True)]
    case Normalisation.PER_TOKEN:
      return [one.log_prob / one.num_tokens for one in scored]
    case Normalisation.UNCONDITIONAL:
      return [one.log_prob - other.log_prob for one, other in zip(scored, alone, strict=True)]
