"""Rewards that ask a model: a reward model, or a language model as a judge."""
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from llm_jax.config.errors import located
from llm_jax.config.rewards import JudgePreference, JudgeRating, Rewarded, RewardModelScore, WithModel
from llm_jax.data.prompts import PromptSet
from llm_jax.data.tokenizers.base import Tokenizer
from llm_jax.objectives.frozen import Frozen
from llm_jax.rollout.judging import JudgeModel, TwoAnswers, option_ids
from llm_jax.rollout.log_probs import Place
from llm_jax.rollout.reward_models import RewardModels
from llm_jax.rollout.rewards import ModelScorer, column_of
from llm_jax.rollout.sampling import Answer
from llm_jax.runtime.errors import RewardError


def make_model_scorer(answering: Rewarded, frozen: Frozen, prompts: PromptSet, group: int, rows_at_once: int,
                      lengths: tuple[int, ...], place: Place) -> ModelScorer:
  """What asks the models of rewards.

  group: how many answers to a prompt stand side by side.
  """
  return ModelRewards(answering.reward_models, frozen, prompts.tokenizer, group, rows_at_once,
                      RewardModels(frozen, prompts.end, rows_at_once, lengths, place))


def check_judges(answering: Rewarded, tokenizer: Tokenizer, place: str) -> None:
  """Refuses judges whose options are no single tokens, or whose chat template the tokenizer cannot write.

  place: of what has the rewards, for errors.
  """
  for i, reward in enumerate(answering.rewards):
    if isinstance(reward, JudgeRating | JudgePreference):
      with located(f'{place}.rewards[{i}].judge'):
        option_ids(reward.judge, tokenizer)


@dataclasses.dataclass(frozen=True)
class ModelRewards:
  """(name of a reward, answers) -> its scores [answers].

  rewards: by name.   frozen: has their models under `reward`.
  group: how many answers to a prompt stand side by side.   rows_at_once: of one forward pass.
  """
  rewards: Mapping[str, WithModel]
  frozen: Frozen
  tokenizer: Tokenizer
  group: int
  rows_at_once: int
  reward_models: RewardModels

  def __call__(self, name: str, answers: Sequence[Answer]) -> np.ndarray:
    match self.rewards[name]:
      case RewardModelScore():
        return self.reward_models(name, answers)
      case JudgeRating(judge):
        return self._judge(name).rate(judge, [answer.prompt.text for answer in answers], texts_of(answers))
      case JudgePreference(judge, against=None):
        groups = [answers[first:first + self.group] for first in range(0, len(answers), self.group)]
        prompts = [group[0].prompt.text for group in groups]
        return self._judge(name).win_rates(judge, prompts, [texts_of(group) for group in groups]).reshape(-1)
      case JudgePreference(judge, against=column):
        assert column is not None
        return self._judge(name).prefer(judge, [against(name, answer, column) for answer in answers])

  def _judge(self, name: str) -> JudgeModel:
    assert self.frozen.reward is not None
    found = self.frozen.reward[name]
    return JudgeModel(found.model.config, found.params, self.tokenizer, found.model.execution, self.rows_at_once)


def texts_of(answers: Sequence[Answer]) -> list[str]:
  return [answer.text for answer in answers]


def against(name: str, answer: Answer, column: str) -> TwoAnswers:
  """An answer, and the one that its prompt's row has. Raises RewardError where it has none."""
  try:
    return TwoAnswers(answer.prompt.text, answer.text, str(column_of(answer, column)))
  except KeyError as error:
    raise RewardError(f'reward {name}: {error.args[0]}') from error
