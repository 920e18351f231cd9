"""Models that answer what programs ask."""
from collections.abc import Callable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM

from llm_jax.prompting.program import Answer, Ask, Generate, Score, ScoredText


class HarnessAnswerer:
  """Any model of lm-evaluation-harness: ours, which batches and shares prefixes, or its `hf` backend.

  count_tokens: (prompt, text) -> tokens that the text has behind the prompt.
  """

  def __init__(self, model: LM, count_tokens: Callable[[str, str], int]):
    self.model = model
    self.count_tokens = count_tokens

  def __call__(self, asks: Sequence[Ask]) -> list[Answer]:
    texts = iter(self._texts([ask for ask in asks if isinstance(ask, Generate)]))
    scored = iter(self._scores([ask for ask in asks if isinstance(ask, Score)]))
    answers: list[Answer] = []
    for ask in asks:
      match ask:
        case Generate():
          answers.append(next(texts))
        case Score():
          answers.append(next(scored))
    return answers

  def _texts(self, asks: Sequence[Generate]) -> list[tuple[str, ...]]:
    requests: list[Instance] = []
    for ask in asks:
      options = options_of(ask)
      # Equal requests side by side: our model draws them behind one reading of the prompt.
      requests += [Instance('generate_until', {}, (ask.prompt, options), i) for i in range(ask.samples)]
    written = iter(self.model.generate_until(requests) if requests else [])
    return [tuple(next(written) for _ in range(ask.samples)) for ask in asks]

  def _scores(self, asks: Sequence[Score]) -> list[tuple[ScoredText, ...]]:
    pairs = [(ask.prompt, choice) for ask in asks for choice in ask.choices]
    requests = [Instance('loglikelihood', {}, pair, i) for i, pair in enumerate(pairs)]
    found = iter(self.model.loglikelihood(requests) if requests else [])
    return [tuple(ScoredText(next(found)[0], self.count_tokens(ask.prompt, choice)) for choice in ask.choices)
            for ask in asks]


def options_of(ask: Generate) -> dict[str, Any]:
  """The harness's `generation_kwargs`."""
  options: dict[str, Any] = {'until': list(ask.stops), 'max_gen_toks': ask.max_new_tokens}
  if ask.temperature > 0:
    options |= {'do_sample': True, 'temperature': ask.temperature}
    if ask.top_k is not None:
      options['top_k'] = ask.top_k
  else:
    options['do_sample'] = False
  return options
