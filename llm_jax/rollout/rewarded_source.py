"""Rollouts of policy gradients and PPO: every answer is learnt from by its advantage over others."""
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from llm_jax.batch import RolloutBatch
from llm_jax.config.policy_gradients import PPO, PolicyGradient
from llm_jax.rollout.buffer import RolloutBuffer, token_weights
from llm_jax.rollout.credit import Credit, credit_of_critic, credit_of_groups
from llm_jax.rollout.log_probs import value_answers
from llm_jax.rollout.numbers import mismatch_numbers
from llm_jax.rollout.packing import in_parts
from llm_jax.rollout.source import RolloutSource, Sampled, StepRows


class RewardedSource(RolloutSource):
  """Several answers share a row of a step."""

  @property
  def _objective(self) -> PolicyGradient | PPO:
    assert isinstance(self._stage.objective, PolicyGradient | PPO)
    return self._stage.objective

  def learnt(self, sampled: Sampled, order: np.ndarray, params: Any, frozen: Any
             ) -> tuple[RolloutBuffer, dict[str, float]]:
    buffer = RolloutBuffer.of(sampled.answers, self._stage.seq_len, order)
    whole = self._policy.whole(params, frozen)
    old, entropies = self._log_probs(whole, buffer, with_entropy=True)
    reference = None
    if self._objective.has_reference:
      reference, _ = self._log_probs(self._policy.reference(frozen), buffer)
    is_answer = buffer.is_answer(np.arange(len(sampled.answers)))
    credit = self._credit(whole, buffer, sampled.rewards, old, reference, is_answer)
    numbers = {
      **mismatch_numbers(sampled.answers, old, is_answer),
      'entropy': float(entropies[is_answer].mean()),
      **credit.numbers,
    }
    buffer = dataclasses.replace(buffer, advantages=credit.advantages, old_log_probs=old,
                                 reference_log_probs=reference, values=credit.values, returns=credit.returns)
    return buffer, numbers

  def _credit(self, whole: Any, buffer: RolloutBuffer, rewards: np.ndarray, old: np.ndarray,
              reference: np.ndarray | None, is_answer: np.ndarray) -> Credit:
    """What the tokens of the answers are credited with.   whole: all parameters.   rewards: [answers]."""
    match self._objective:
      case PolicyGradient() as config:
        return credit_of_groups(config, rewards, old, reference, is_answer, self.rollout.answers)
      case PPO() as config:
        assert self._policy.values is not None
        values = value_answers(self._policy.values, whole, buffer, self._sizes, self._place)
        return credit_of_critic(config, rewards, old, reference, values, is_answer)

  def rows(self, buffer: RolloutBuffer, units: np.ndarray) -> StepRows:
    [layout] = in_parts(buffer.pack(units), self.row_counts)
    aggregation = self._objective.aggregation if isinstance(self._objective, PolicyGradient) else 'tokens'
    is_answer = buffer.is_answer(np.arange(len(buffer.ids)))
    weights = token_weights(is_answer, aggregation, self.rollout.max_new_tokens)
    return StepRows(buffer.batch(layout, weights), layout.num_tokens, layout.answers.size)

  def shapes(self) -> Iterator[tuple[tuple[int, int], RolloutBatch]]:
    length = self._stage.seq_len
    for count in self.row_counts:
      real = self._abstract(count, length)
      reference = real if self._objective.has_reference else None
      value = real if self._policy.values else None
      yield (count, length), RolloutBatch(self._abstract_text(count, length), real, real, reference, value, value)
