"""Rollouts of objectives that compare two answers: online DPO and its kin (Guo et al. 2024)."""
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np

from llm_jax.batch import PreferenceBatch
from llm_jax.rollout.buffer import RolloutBuffer
from llm_jax.rollout.numbers import mismatch_numbers
from llm_jax.rollout.source import RolloutSource, Sampled, StepRows


class PairSource(RolloutSource):
  """Of the answers to every prompt the one with the highest reward is chosen and the one with the lowest rejected; of
  equal rewards the first. Where all are equal nothing is preferred, and the pair has no weight.

  In the buffer the answers of pair i are 2 i, the chosen one, and 2 i + 1.
  """
  answers_in_unit = 2

  @property
  def num_prompts(self) -> int:
    return self.num_units

  def learnt(self, sampled: Sampled, order: np.ndarray, params: Any, frozen: Any
             ) -> tuple[RolloutBuffer, dict[str, float]]:
    chosen, gaps = pairs_of(sampled.rewards.reshape(-1, self.rollout.answers))
    answers = [sampled.answers[i] for i in chosen.reshape(-1)]
    buffer = RolloutBuffer.of(answers, self._stage.seq_len, order)
    log_probs, entropies = self._log_probs(self._policy.whole(params, frozen), buffer, with_entropy=True)
    is_answer = buffer.is_answer(np.arange(len(answers)))
    is_preferred = gaps > 0
    signs = np.stack([is_preferred, -1.0 * is_preferred], 1).reshape(-1, 1)
    advantages = np.where(is_answer, signs, 0).astype(np.float32)
    numbers = {
      **mismatch_numbers(answers, log_probs, is_answer),
      'entropy': float(entropies[is_answer].mean()),
      'pairs_alike': float(1 - is_preferred.mean()),
      'reward_gap': float(gaps.mean()),
    }
    return dataclasses.replace(buffer, advantages=advantages, old_log_probs=log_probs), numbers

  def rows(self, buffer: RolloutBuffer, units: np.ndarray) -> StepRows:
    sides = 2 * units, 2 * units + 1
    both = np.concatenate(sides)
    length = buffer.shortest_length(both, self.lengths)
    weights = (buffer.advantages != 0).astype(np.float32)
    chosen, rejected = (buffer.text(side, length, weights[side]) for side in sides)
    num_tokens = int((buffer.lengths[both] - 1).sum())
    return StepRows(PreferenceBatch(chosen, rejected), num_tokens, len(both) * length)

  def shapes(self) -> Iterator[tuple[tuple[int, int], PreferenceBatch]]:
    count = self._stage.batch_size
    for length in self.lengths:
      side = self._abstract_text(count, length)
      yield (count, length), PreferenceBatch(side, side)


def pairs_of(rewards: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(numbers of the chosen and of the rejected answer of each prompt, int [prompts, 2], by how much the first has the
  higher reward, [prompts]).

  rewards: [prompts, answers].
  """
  best, worst = rewards.argmax(1), rewards.argmin(1)
  prompts, group = np.arange(len(rewards)), rewards.shape[1]
  worst = np.where(best == worst, group - 1, worst)  # all are equal: two answers that differ stand in the row
  numbers = np.stack([best, worst], 1) + group * prompts[:, None]
  return numbers, rewards[prompts, best] - rewards[prompts, worst]
