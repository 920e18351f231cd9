"""A model of lm-evaluation-harness whose answers are those of a prompting strategy.

The harness's prompts go in, and its filters and metrics read what comes out.
"""
from collections.abc import Sequence

from lm_eval.api.instance import Instance

from llm_jax.config.errors import require
from llm_jax.config.strategies import AutoCoT, SelfConsistency, Strategy, ZeroShotCoT
from llm_jax.harness.model import HarnessModel, Reader, arguments, prompt_ids, writing_of
from llm_jax.harness.text import HarnessText
from llm_jax.prompting.answerer import HarnessAnswerer
from llm_jax.prompting.answers import LAST_NUMBER, Extract
from llm_jax.prompting.auto_cot import auto_cot, word_vectors
from llm_jax.prompting.chain_of_thought import reason_then_answer, self_consistency
from llm_jax.prompting.few_shot import Layout
from llm_jax.prompting.program import Exemplar, Generate, Program, run_together

AS_IT_IS = Layout(question='{}')  # the harness has put the question already


class StrategyModel(HarnessModel):
  """Likelihoods are those of the model itself: a strategy changes what is written."""

  def __init__(self, text: HarnessText, reader: Reader, strategy: Strategy, extract: Extract = LAST_NUMBER,
               seed: int = 0):
    super().__init__(text, reader, seed)
    self.strategy = strategy
    self.extract = extract
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
        return self._behind_own_examples(asks, clusters, seed)

  def _texts(self, programs: Sequence[Program]) -> list[str]:
    return [found.text for found in run_together(programs, self._answerer)]

  @property
  def _answerer(self) -> HarnessAnswerer:
    return HarnessAnswerer(self.plain, lambda prompt, text: len(self.text.encode_pair(prompt, text)[1]))

  def _behind_own_examples(self, asks: Sequence[Generate], clusters: int, seed: int) -> list[str]:
    """Each answer behind the examples that the model wrote, but never behind one of its own question."""
    prompts = list(dict.fromkeys(ask.prompt for ask in asks))
    count = min(clusters, len(prompts))
    programs = auto_cot(prompts, word_vectors(prompts), count, seed, self.extract, AS_IT_IS)
    found = run_together(programs, self._answerer)
    self.exemplars = [exemplar for exemplar in found if exemplar is not None]
    behind = []
    for ask in asks:
      others = [exemplar for exemplar in self.exemplars if exemplar.question != ask.prompt]
      prompt = AS_IT_IS.prompt(ask.prompt, others)
      length = len(self.text.encode(prompt)) + ask.max_new_tokens
      require(length <= self.text.max_length, '--strategy', f'auto_cot:clusters={clusters}',
              f'a question with its examples takes {length} tokens, and the model reads {self.text.max_length}: use '
              'fewer clusters')
      behind.append(Generate(prompt, stops=ask.stops, max_new_tokens=ask.max_new_tokens))
    return [text for answer in self._answerer(behind) for text in answer if isinstance(text, str)]


def ask_of(request: Instance) -> Generate:
  """What the harness asks, as a program asks it: always for the likeliest text."""
  prompt, options = arguments(request)
  writing = writing_of(options)
  return Generate(prompt, stops=writing.stops, max_new_tokens=writing.max_new_tokens)


def check_room(text: HarnessText, strategy: Strategy, requests: Sequence[Instance]) -> None:
  """Refuses a strategy that would ask more than the model reads: ConfigError."""
  if not isinstance(strategy, ZeroShotCoT):
    return
  for request in requests:
    if request.request_type != 'generate_until':
      continue
    prompt, options = arguments(request)
    prompt_ids(text, prompt, writing_of(options))
    needed = len(text.encode(prompt)) + strategy.tokens + ANSWER_ROOM
    require(needed <= text.max_length, '--strategy', strategy.name,
            f'question {request.doc_id} with its reasoning takes up to {needed} tokens, and the model reads '
            f'{text.max_length}: use fewer examples, or {strategy.name}:tokens={strategy.tokens // 2}')


ANSWER_ROOM = 64  # tokens of the words between reasoning and answer, and of the answer
