"""Passages before a question: as a model of lm-evaluation-harness, and what they do to the likelihood of the answer.

Lewis et al. 2020 (RAG) and Guu et al. 2020 (REALM) put the passages that are found for a question into the prompt.
"""
import dataclasses
import functools
import random
from collections.abc import Callable, Collection, Sequence

from lm_eval.api.instance import Instance

from llm_jax.config.errors import require
from llm_jax.harness.model import HarnessModel, Reader, arguments, writing_of
from llm_jax.harness.statistics import Difference, Estimate, difference, estimate
from llm_jax.harness.text import HarnessText, joint
from llm_jax.prompting.program import Model, Program, Score, run_together, scores
from llm_jax.retrieve.prompt import BETWEEN, behind_passages
from llm_jax.retrieve.ranking import Retriever

NONE, RANDOM, RETRIEVED, GOLD = PROMPTS = ('no passage', 'random', 'retrieved', 'gold')


# ---------------------------------------------------------------------------------------------- on tasks
@dataclasses.dataclass(frozen=True)
class Passages:
  """What stands before the questions of a task.

  texts: of all passages.
  retriever: finds their numbers.
  count: before each question.
  field: of a question's row, which is searched for; '': the last part of the prompt, behind the examples.
  """
  texts: Sequence[str]
  retriever: Retriever
  count: int = 1
  field: str = ''


class RetrievalModel(HarnessModel):
  """Scores and writes behind the passages that are found for each question. Whole texts are scored without any.

  In conversations the passages stand in the user's last message, before what it says.
  """

  def __init__(self, text: HarnessText, reader: Reader, passages: Passages, seed: int = 0):
    super().__init__(text, reader, seed)
    self.passages = passages

  def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
    return super().loglikelihood(self._behind_passages(requests), disable_tqdm)

  def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
    return super().generate_until(self._behind_passages(requests), disable_tqdm)

  def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    """Of a message with examples in it the last part is searched for."""
    history = list(chat_history)
    place = max(i for i, message in enumerate(history) if message['role'] == 'user')
    said = history[place]['content']
    found = self._search(last_part(said))
    history[place] = {**history[place], 'content': behind_passages(found, said)}
    return super().apply_chat_template(history, add_generation_prompt)

  @functools.cached_property
  def _search(self) -> Callable[[str], list[str]]:
    """The passages for a text; the harness asks for its conversations one by one, and more than once."""
    @functools.cache
    def search(query: str) -> list[str]:
      [found] = self.passages.retriever.search_all([query], self.passages.count)
      return [self.passages.texts[place] for place in found]

    return search

  def _behind_passages(self, requests: Sequence[Instance]) -> list[Instance]:
    """The same requests with passages before their contexts; one without a context stays as it is, and so does a
    conversation, which has its passages."""
    if self.text.template is not None:
      return list(requests)
    queries = [query_of(request, self.passages.field) for request in requests]
    wanted = list(dict.fromkeys(filter(None, queries)))
    found = dict(zip(wanted, self.passages.retriever.search_all(wanted, self.passages.count), strict=True))
    made: list[Instance] = []
    for request, query in zip(requests, queries, strict=True):
      context, *rest = arguments(request)
      if query:
        context = behind_passages([self.passages.texts[place] for place in found[query]], context)
      made.append(Instance(request.request_type, request.doc, (context, *rest), request.idx))
    return made


def query_of(request: Instance, field: str) -> str:
  """What is searched for.   field: see `Passages`."""
  context = arguments(request)[0]
  if not field:
    return last_part(context)
  row: dict[str, object] = request.doc
  require(field in row, '--strategy', f'field={field}', f'is no field of a question: use one of {", ".join(row)}')
  return str(row[field])


def last_part(text: str) -> str:
  """What stands behind the examples of a prompt."""
  return text.split(BETWEEN)[-1].strip()


def check_passages(text: HarnessText, texts: Sequence[str], count: int, field: str, requests: Sequence[Instance]
                   ) -> None:
  """Refuses, before anything is searched, what is too long with the longest passages: ConfigError."""
  lengths = sorted((len(text.encode(passage + BETWEEN, begins=False)) for passage in texts), reverse=True)
  longest = sum(lengths[:count])
  for request in requests:
    if request.request_type == 'loglikelihood_rolling':
      continue
    query_of(request, field)
    needed = longest + _length(text, request)
    require(needed <= text.max_length, '--strategy', f'retrieval:count={count}',
            f'question {request.doc_id} with its passages takes up to {needed} tokens, and the model reads '
            f'{text.max_length}: use fewer or shorter passages, or fewer examples')


def _length(text: HarnessText, request: Instance) -> int:
  """Tokens of a request, with what is written."""
  if request.request_type == 'generate_until':
    prompt, options = arguments(request)
    return len(text.encode(prompt)) + writing_of(options).max_new_tokens
  context, continuation = arguments(request)
  return sum(map(len, text.encode_pair(context, continuation)))


# ---------------------------------------------------------------------------------------------- likelihoods
@dataclasses.dataclass(frozen=True)
class Question:
  """gold: numbers of the passages that hold the answer."""
  question: str
  answer: str
  gold: Collection[int]


@dataclasses.dataclass(frozen=True)
class Likelihood:
  """Log-probability of the answers, in nats an answer.

  prompt: what stands before the question, one of PROMPTS.
  gain: over no passage, question by question; None for that itself.
  """
  prompt: str
  estimate: Estimate
  gain: Difference | None


def likelihoods(model: Model, questions: Sequence[Question], texts: Sequence[str], found: Sequence[Sequence[int]],
                put: Callable[[str], str], seed: int = 0) -> list[Likelihood]:
  """How likely the right answers are without a passage, with a random one, the best that was found and a right one.

  texts: of all passages.   found: for each question the numbers of those that were found, the best first.
  put: a question, with the passages before it, as a prompt.
  """
  rng = random.Random(seed)
  programs = [_answer_behind(question, [None, rng.randrange(len(texts)), places[0], min(question.gold)], texts, put)
              for question, places in zip(questions, found, strict=True)]
  rows = run_together(programs, model)
  columns = dict(zip(PROMPTS, zip(*rows, strict=True), strict=True))
  alone = columns[NONE]
  return [Likelihood(prompt, estimate(values), None if prompt == NONE else difference(alone, values))
          for prompt, values in columns.items()]


def _answer_behind(question: Question, places: Sequence[int | None], texts: Sequence[str], put: Callable[[str], str]
                   ) -> Program[list[float]]:
  prompts = [put(behind_passages([] if place is None else [texts[place]], question.question)) for place in places]
  answers = yield [Score(prompt, (joint(prompt) + question.answer,)) for prompt in prompts]
  return [scores(answer)[0].log_prob for answer in answers]
