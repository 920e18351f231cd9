"""What a person sees of a rollout."""
from collections.abc import Sequence

import numpy as np

from llm_jax.rollout.advantages import is_constant
from llm_jax.rollout.sampling import Answer

FEW_DISTINCT = 1.5  # answers to a prompt that differ, in the mean
LOW_ENTROPY = 0.02  # nats a token


def answer_numbers(answers: Sequence[Answer], group: int) -> dict[str, float]:
  """Of the answers, `group` to each prompt."""
  lengths = np.array([answer.is_own.sum() for answer in answers])
  ids = [answer.ids for answer in answers]
  distinct = [len(set(ids[first:first + group])) for first in range(0, len(ids), group)]
  numbers = {
    'answer_length': float(lengths.mean()),
    'answer_length_max': float(lengths.max()),
    'sampling_padding': float(1 - lengths.sum() / (len(lengths) * lengths.max())),
    'cut_off': float(np.mean([not answer.ended for answer in answers])),
    'distinct': float(np.mean(distinct) / group),
  }
  replies = [len(answer.replies) for answer in answers]
  return {**numbers, 'tool_replies': float(np.mean(replies))} if any(replies) else numbers


def reward_numbers(rewards: np.ndarray, parts: dict[str, np.ndarray], group: int) -> dict[str, float]:
  """Of their rewards.   rewards: float [answers].   parts: each reward by itself, not weighted."""
  by_group = rewards.reshape(-1, group)
  numbers = {
    'reward': rewards.mean(),
    'reward_std': rewards.std(),
    'reward_std_in_group': by_group.std(1).mean(),
    'groups_alike': is_constant(by_group).mean(),
  }
  if len(parts) > 1:
    numbers |= {f'reward/{name}': scores.mean() for name, scores in parts.items()}
  return {name: float(value) for name, value in numbers.items()}


def mismatch_numbers(answers: Sequence[Answer], old_log_probs: np.ndarray, is_answer: np.ndarray) -> dict[str, float]:
  """How far the sampler's log-probabilities are from the trainer's, in absolute value a token."""
  sampled = np.concatenate([answer.own_log_probs for answer in answers])
  difference = np.abs(old_log_probs[is_answer] - sampled)
  return {'sampler_mismatch': float(difference.mean()), 'sampler_mismatch_max': float(difference.max())}


def sampled_entropy(answers: Sequence[Answer]) -> float:
  """Nats a token, estimated: the mean of -log p over the tokens that were sampled."""
  return float(-np.concatenate([answer.own_log_probs for answer in answers]).mean())


def collapse(numbers: dict[str, float], group: int) -> dict[str, str]:
  """In which ways the policy may have collapsed, in words. Where its rewards are high it may only have solved the task:
  the words say what they are; without rewards nothing is said."""
  found: dict[str, str] = {}
  if 'reward' not in numbers:
    return found
  reward = f'the mean reward is {numbers["reward"]:.3g}'
  if numbers['reward_std'] == 0:
    found['reward'] = f'all answers have one reward, so that nothing is learnt from them; {reward}'
  if group > 1 and numbers['distinct'] * group < FEW_DISTINCT:
    found['distinct'] = f'the {group} answers to a prompt are nearly all the same; {reward}'
  if numbers['entropy'] < LOW_ENTROPY:
    found['entropy'] = f'the entropy is {numbers["entropy"]:.2g} nats a token: nothing is left to chance; {reward}'
  return found
