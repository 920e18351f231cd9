"""Reasoning before the answer: zero-shot and few-shot chains of thought, and a vote among several."""
import dataclasses
from collections.abc import Sequence

from llm_jax.prompting.answers import LAST_NUMBER, Extract, majority
from llm_jax.prompting.few_shot import PLAIN, Layout
from llm_jax.prompting.program import Exemplar, Generate, Program, texts

THINK = "Let's think step by step."  # Kojima et al. 2022, table 4, template 1
THEREFORE = 'Therefore, the answer (arabic numerals) is'  # section 4 there, for numbers
QUESTION_STOPS = ('Q:', '</s>', '<|im_end|>')  # of gsm8k_cot


@dataclasses.dataclass(frozen=True)
class Reasoned:
  """What a question was answered.

  answer: as `extract` reads it.
  texts: all that the model wrote.
  answers: of each text, where several were drawn.
  """
  answer: str
  texts: tuple[str, ...]
  answers: tuple[str, ...] = ()

  @property
  def text(self) -> str:
    """The first text that gives the answer."""
    return next((text for text, answer in zip(self.texts, self.answers, strict=False) if answer == self.answer),
                self.texts[0])


def zero_shot_cot(question: str, extract: Extract = LAST_NUMBER, layout: Layout = PLAIN, think: str = THINK,
                  therefore: str = THEREFORE, max_new_tokens: int = 256) -> Program[Reasoned]:
  """Asks for reasoning first, and then for the answer behind it (Kojima et al. 2022, section 3.1)."""
  return reason_then_answer(layout.put(question), extract, think, therefore, max_new_tokens)


def reason_then_answer(prompt: str, extract: Extract, think: str = THINK, therefore: str = THEREFORE,
                       max_new_tokens: int = 256) -> Program[Reasoned]:
  """`zero_shot_cot` behind any prompt. Its text is the reasoning and the answer, with the words between them."""
  thinking = f'{prompt} {think}'
  [reasoning] = yield [Generate(thinking, stops=QUESTION_STOPS, max_new_tokens=max_new_tokens)]
  reason = texts(reasoning)[0].rstrip()
  asking = f'{thinking}{reason}\n{therefore}'
  [said] = yield [Generate(asking, stops=('\n',), max_new_tokens=32)]
  answer = texts(said)[0]
  return Reasoned(extract(answer), (f'{reason}\n{therefore}{answer}',))


def few_shot_cot(question: str, exemplars: Sequence[Exemplar], extract: Extract = LAST_NUMBER, layout: Layout = PLAIN,
                 max_new_tokens: int = 256) -> Program[Reasoned]:
  """One chain behind examples that reason (Wei et al. 2022, section 2)."""
  ask = Generate(layout.prompt(question, exemplars), stops=QUESTION_STOPS, max_new_tokens=max_new_tokens)
  [said] = yield [ask]
  [text] = texts(said)
  return Reasoned(extract(text), (text,), (extract(text),))


def self_consistency(ask: Generate, extract: Extract = LAST_NUMBER, drop_unparsed: bool = True) -> Program[Reasoned]:
  """The answer that most of the drawn chains agree on (Wang et al. 2022, section 2).

  ask: with the samples and the temperature to draw.   drop_unparsed: see `majority`.
  """
  [said] = yield [ask]
  chains = texts(said)
  answers = [extract(chain) for chain in chains]
  return Reasoned(majority(answers, drop_unparsed), tuple(chains), tuple(answers))
