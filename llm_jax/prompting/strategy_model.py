"""A model of lm-evaluation-harness whose answers are those of a prompting strategy.

The harness's prompts go in, and its filters and metrics read what comes out.
"""
import pathlib
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance

from llm_jax.config.errors import require
from llm_jax.config.strategies import (
  ActivePrompt,
  AutoCoT,
  Chaining,
  Prompting,
  SelfConsistency,
  TreeOfThoughts,
  ZeroShotCoT,
)
from llm_jax.harness.model import HarnessModel, Reader, arguments, writing_of
from llm_jax.harness.text import HarnessText
from llm_jax.prompting.active import ask_often, most_unsure, read_annotations, write_annotations
from llm_jax.prompting.answerer import HarnessAnswerer
from llm_jax.prompting.answers import LAST_NUMBER, STRICT_NUMBER, Extract, disagreement, entropy
from llm_jax.prompting.auto_cot import auto_cot, word_vectors
from llm_jax.prompting.chain_of_thought import reason_then_answer, self_consistency
from llm_jax.prompting.chaining import Link, chain, read_links
from llm_jax.prompting.few_shot import Layout
from llm_jax.prompting.lines_of_thought import LinesOfThought, think_in_a_tree
from llm_jax.prompting.program import Exemplar, Generate, Program, run_together

AS_IT_IS = Layout(question='{}')  # the harness has put the question already
Files = tuple[Link, ...] | tuple[Exemplar, ...]  # what a strategy reads beside the questions
UNCERTAINTIES = {'disagreement': disagreement, 'entropy': entropy}


def read_files(strategy: Prompting) -> Files:
  """Raises ConfigError where a file of the strategy cannot be read."""
  match strategy:
    case Chaining(file=file):
      return read_links(pathlib.Path(file))
    case ActivePrompt(annotations=annotations) if pathlib.Path(annotations).exists():
      return tuple(read_annotations(pathlib.Path(annotations)))
    case _:
      return ()


class StrategyModel(HarnessModel):
  """Likelihoods are those of the model itself: a strategy changes what is written."""

  def __init__(self, text: HarnessText, reader: Reader, strategy: Prompting, extract: Extract = LAST_NUMBER,
               seed: int = 0, files: Files = ()):
    super().__init__(text, reader, seed)
    self.strategy = strategy
    self.extract = extract
    self.files: Any = files
    self.plain = HarnessModel(text, reader, seed)  # that the programs ask
    self.exemplars: list[Exemplar] = []

  def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
    asks = [ask_of(request) for request in requests]
    match self.strategy:
      case ZeroShotCoT(tokens=tokens):
        return self._texts([reason_then_answer(ask.prompt, self.extract, max_new_tokens=tokens) for ask in asks])
      case SelfConsistency(n=count, temperature=temperature, like_harness=like_harness):
        drawn = [Generate(ask.prompt, count, temperature, None, ask.stops, ask.max_new_tokens) for ask in asks]
        return self._texts([self_consistency(ask, self.extract, not like_harness) for ask in drawn])
      case AutoCoT(clusters=clusters, seed=seed):
        self.exemplars = self._own_examples([ask.prompt for ask in asks], clusters, seed)
        return self._behind(asks, self.exemplars)
      case Chaining():
        answers = run_together([chain(self.files, ask.prompt) for ask in asks], self._answerer)
        return [of_chain[-1] for of_chain in answers]
      case TreeOfThoughts() as tree:
        return self._texts([self._in_a_tree(ask, tree) for ask in asks])
      case ActivePrompt():
        return self._behind(asks, self.files)

  def _texts(self, programs: Sequence[Program]) -> list[str]:
    return [found.text for found in run_together(programs, self._answerer)]

  @property
  def _answerer(self) -> HarnessAnswerer:
    return HarnessAnswerer(self.plain, lambda prompt, text: len(self.text.encode_pair(prompt, text)[1]))

  def _in_a_tree(self, ask: Generate, tree: TreeOfThoughts) -> Program:
    problem = LinesOfThought(ask.prompt, STRICT_NUMBER, tree.thoughts, tree.temperature, tree.tokens)
    return think_in_a_tree(problem, tree.breadth, tree.depth, tree.votes, tree.temperature, self.extract)

  def _own_examples(self, prompts: Sequence[str], clusters: int, seed: int) -> list[Exemplar]:
    distinct = list(dict.fromkeys(prompts))
    count = min(clusters, len(distinct))
    programs = auto_cot(distinct, word_vectors(distinct), count, seed, self.extract, AS_IT_IS)
    found = run_together(programs, self._answerer)
    return [exemplar for exemplar in found if exemplar is not None]

  def _behind(self, asks: Sequence[Generate], exemplars: Sequence[Exemplar]) -> list[str]:
    """Each answer behind the examples, but never behind one of its own question."""
    behind = []
    for ask in asks:
      prompt = AS_IT_IS.prompt(ask.prompt, without(exemplars, ask.prompt))
      check_length(self.text, self.strategy, prompt, ask.max_new_tokens)
      behind.append(Generate(prompt, stops=ask.stops, max_new_tokens=ask.max_new_tokens))
    return [text for answer in self._answerer(behind) for text in answer if isinstance(text, str)]

  def annotate(self, requests: Sequence[Instance], strategy: ActivePrompt) -> int:
    """Writes the questions that the model is least sure of into the file of annotations; how many."""
    asks = {ask.prompt: ask for ask in map(ask_of, requests)}
    programs = [ask_often(Generate(prompt, strategy.n, strategy.temperature, None, ask.stops, ask.max_new_tokens),
                          prompt, self.extract, UNCERTAINTIES[strategy.uncertainty]) for prompt, ask in asks.items()]
    chosen = most_unsure(run_together(programs, self._answerer), min(strategy.count, len(asks)))
    write_annotations(chosen, pathlib.Path(strategy.annotations))
    return len(chosen)


def without(exemplars: Sequence[Exemplar], prompt: str) -> list[Exemplar]:
  """The examples but that of the question itself."""
  return [exemplar for exemplar in exemplars if exemplar.question != prompt]


def ask_of(request: Instance) -> Generate:
  """What the harness asks, as a program asks it: always for the likeliest text."""
  prompt, options = arguments(request)
  writing = writing_of(options)
  return Generate(prompt, stops=writing.stops, max_new_tokens=writing.max_new_tokens)


def check_length(text: HarnessText, strategy: Prompting, prompt: str, max_new_tokens: int) -> None:
  """Refuses a question that is too long with its examples: ConfigError."""
  length = len(text.encode(prompt)) + max_new_tokens
  require(length <= text.max_length, '--strategy', strategy.name,
          f'a question with its examples takes {length} tokens, and the model reads {text.max_length}: use fewer')
