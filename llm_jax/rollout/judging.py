"""Asks a judge: which of two answers is better, or how good one is (`llm_jax/config/judges.py`)."""
import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from llm_jax.config.errors import require
from llm_jax.config.judges import Judge, PairJudge, RatingJudge
from llm_jax.config.model.architecture import Architecture
from llm_jax.data import fingerprints
from llm_jax.data.tokenizers import chat_templates
from llm_jax.data.tokenizers.base import Tokenizer, opened
from llm_jax.decode.score import BATCH_SIZE, score
from llm_jax.modules.execution import Execution
from llm_jax.runtime import activity


@dataclasses.dataclass(frozen=True)
class TwoAnswers:
  """What a judge compares: texts."""
  prompt: str
  first: str
  second: str


@dataclasses.dataclass(frozen=True)
class JudgeModel:
  """A language model that answers a judge's questions. Every process of a run asks the same.

  model, params, execution: as `decode.score` takes them.
  """
  model: Architecture
  params: Any
  tokenizer: Tokenizer
  execution: Execution | None = None
  batch_size: int = BATCH_SIZE

  def prefer(self, judge: PairJudge, pairs: Sequence[TwoAnswers]) -> np.ndarray:
    """How probable it is that the first answer of each pair is the better one, float64 [pairs]: the mean over both
    orders."""
    return self.in_both_orders(judge, pairs).mean(1)

  def in_both_orders(self, judge: PairJudge, pairs: Sequence[TwoAnswers]) -> np.ndarray:
    """The same where it is asked about first, and where it is asked about second: float64 [pairs, 2]."""
    principles = [principle_for(judge, pair) for pair in pairs]
    asked = [question(judge, pair, principle) for pair, principle in zip(pairs, principles, strict=True)]
    turned = [question(judge, TwoAnswers(pair.prompt, pair.second, pair.first), principle)
              for pair, principle in zip(pairs, principles, strict=True)]
    probabilities = self.probabilities(judge, [*asked, *turned])
    return np.stack([probabilities[:len(pairs), 0], probabilities[len(pairs):, 1]], 1)

  def rate(self, judge: RatingJudge, prompts: Sequence[str], answers: Sequence[str]) -> np.ndarray:
    """The rating of each answer, float64 [answers]."""
    asked = [judge.template.format(prompt=prompt, answer=answer)
             for prompt, answer in zip(prompts, answers, strict=True)]
    return self.probabilities(judge, asked) @ np.array(judge.worth)

  def probabilities(self, judge: Judge, questions: Sequence[str]) -> np.ndarray:
    """Of the options, which sum to 1, behind each question: float64 [questions, options]."""
    options = option_ids(judge, self.tokenizer)
    contexts = [question_ids(judge, text, self.tokenizer) for text in questions]
    found = score(self.model, self.params, [context for context in contexts for _ in options],
                  [(option,) for _ in contexts for option in options], execution=self.execution,
                  batch_size=self.batch_size, heartbeat=activity.beat)
    log_probs = np.array([scored.total for scored in found]).reshape(len(contexts), len(options))
    weights = np.exp(log_probs - log_probs.max(1, keepdims=True))
    return weights / weights.sum(1, keepdims=True)

  def win_rates(self, judge: PairJudge, prompts: Sequence[str], answers: Sequence[Sequence[str]]) -> np.ndarray:
    """The mean probability with which each answer is better than another one to its prompt, float64 [prompts, answers];
    0.5 where it is the only one.

    answers: of each prompt, as many for all.
    """
    count = len(answers[0])
    if count == 1:
      return np.full((len(prompts), 1), 0.5)
    places = list(itertools.combinations(range(count), 2))
    pairs = [TwoAnswers(prompt, group[i], group[j])
             for prompt, group in zip(prompts, answers, strict=True) for i, j in places]
    firsts = self.prefer(judge, pairs).reshape(len(prompts), len(places))
    wins = np.zeros((len(prompts), count))
    for (i, j), first in zip(places, firsts.T, strict=True):
      wins[:, i] += first
      wins[:, j] += 1 - first
    return wins / (count - 1)


def question(judge: PairJudge, pair: TwoAnswers, principle: str) -> str:
  """What the judge is asked about a pair."""
  return judge.template.format(prompt=pair.prompt, first=pair.first, second=pair.second, principle=principle)


def principle_for(judge: PairJudge, pair: TwoAnswers) -> str:
  """One of the judge's principles, drawn by the texts of the pair: the same in both orders, in every process, and
  when a run goes on."""
  if not judge.principles:
    return ''
  place = fingerprints.unit_interval(fingerprints.of([pair.prompt, *sorted((pair.first, pair.second))]))
  return judge.principles[int(place * len(judge.principles))]


def question_ids(judge: Judge, text: str, tokenizer: Tokenizer) -> list[int]:
  """The ids behind which the judge answers."""
  if judge.chat is None:
    return [int(token) for token in opened(tokenizer, tokenizer.encode(text))]
  return chat_templates.prompt_ids([{'role': 'user', 'content': text}], judge.chat, tokenizer).tolist()


def option_ids(judge: Judge, tokenizer: Tokenizer) -> list[int]:
  """The id of each option.

  Raises:
    ConfigError: an option is not one token, or two are the same; or the tokenizer has no such chat template.
  """
  if judge.chat is not None:
    chat_templates.check_template(judge.chat, tokenizer)
  found = [[int(token) for token in tokenizer.encode(option)] for option in judge.options]
  for option, ids in zip(judge.options, found, strict=True):
    require(len(ids) == 1, 'options', option, f'is {len(ids)} tokens to this tokenizer: use a text that is one')
  ids = [one for [one] in found]
  require(len(set(ids)) == len(ids), 'options', judge.options, 'two of them are the same token: use others')
  return ids
