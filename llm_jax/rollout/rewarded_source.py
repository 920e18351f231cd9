"""Rollouts of policy gradients and PPO: every answer is learnt from by its advantage over others."""
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from llm_jax.batch import RolloutBatch
from llm_jax.config.policy_gradients import PPO, KLInReward, PolicyGradient
from llm_jax.rollout.buffer import RolloutBuffer, token_weights
from llm_jax.rollout.credit import Credit, credit_of_critic, credit_of_groups
from llm_jax.rollout.log_probs import value_answers
from llm_jax.rollout.numbers import mismatch_numbers, sampled_entropy
from llm_jax.rollout.packing import in_parts
from llm_jax.rollout.sampling import Answer
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
    is_answer = buffer.is_answer(np.arange(len(sampled.answers)))
    old, numbers = self._old_log_probs(whole, buffer, sampled.answers, is_answer)
    reference = None
    if self._objective.has_reference:
      reference, _ = self._log_probs(self._policy.reference(frozen), buffer)
    credit = self._credit(whole, buffer, sampled.rewards, old, reference, is_answer)
    buffer = dataclasses.replace(buffer, advantages=credit.advantages, old_log_probs=old,
                                 reference_log_probs=reference, values=credit.values, returns=credit.returns)
    return buffer, numbers | credit.numbers

  @property
  def _learns_once(self) -> bool:
    """Whether the parameters that learn from an answer are those that have sampled it: ratios are 1, and their
    log-probabilities are those of the step."""
    needs_old = isinstance(self._objective, PPO) or isinstance(self._objective.kl, KLInReward)
    return self.rollout.steps == 1 and not needs_old

  def _old_log_probs(self, whole: Any, buffer: RolloutBuffer, answers: list[Answer], is_answer: np.ndarray
                     ) -> tuple[np.ndarray | None, dict[str, float]]:
    """Those that the steps compare with, None where none does, and numbers for people. The entropy of what learns once
    is estimated from what was sampled, which has no bias; of rollouts whose answers are shown it is exact.

    whole: all parameters.
    """
    if self._learns_once and not self._is_shown:
      return None, {'entropy': sampled_entropy(answers)}
    old, entropies = self._log_probs(whole, buffer, with_entropy=True)
    numbers = {**mismatch_numbers(answers, old, is_answer), 'entropy': float(entropies[is_answer].mean())}
    return None if self._learns_once else old, numbers

  def _credit(self, whole: Any, buffer: RolloutBuffer, rewards: np.ndarray,
              old: np.ndarray | None, reference: np.ndarray | None, is_answer: np.ndarray) -> Credit:
    """What the tokens of the answers are credited with.   whole: all parameters.   rewards: [answers]."""
    match self._objective:
      case PolicyGradient() as config:
        return credit_of_groups(config, rewards, old, reference, is_answer, self.rollout.answers)
      case PPO() as config:
        assert self._policy.values is not None and old is not None
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
      old = None if self._learns_once else real
      value = real if self._policy.values else None
      yield (count, length), RolloutBatch(self._abstract_text(count, length), real, old, reference, value, value)
