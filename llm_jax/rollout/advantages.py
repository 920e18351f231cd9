"""How much better an answer was than others: rewards less a baseline."""
import numpy as np

SMALLEST_SPREAD = 1e-4  # added to a group's standard deviation, as TRL does


def advantages(rewards: np.ndarray, kind: str) -> np.ndarray:
  """float32 [prompts, answers]; exactly 0 where all that is compared has one reward.

  rewards: [prompts, answers].
  kind: `PolicyGradient.advantage`.
  """
  rewards = rewards.astype(np.float64)
  num_answers = rewards.shape[1]
  if kind == 'batch':
    return (without_rounding(rewards - rewards.mean(), rewards)).astype(np.float32)
  above_mean = rewards - rewards.mean(1, keepdims=True)
  match kind:
    case 'group':
      found = above_mean / (rewards.std(1, ddof=1, keepdims=True) + SMALLEST_SPREAD)
    case 'group_mean':
      found = above_mean
    case 'leave_one_out':  # less the mean of the others
      found = above_mean * num_answers / (num_answers - 1)
    case 'best':  # of several that are best, the first
      found = np.arange(num_answers) == rewards.argmax(1)[:, None]
    case _:
      raise ValueError(kind)
  is_group_constant = is_constant(rewards)[:, None]
  return np.where(is_group_constant, 0, found).astype(np.float32)


def without_rounding(found: np.ndarray, rewards: np.ndarray) -> np.ndarray:
  """0 where all rewards are one number, whose mean is that number only to rounding."""
  return np.zeros_like(found) if rewards.max() == rewards.min() else found


def is_constant(rewards: np.ndarray) -> np.ndarray:
  """Groups whose answers all have one reward, of which nothing is learnt, bool [prompts]."""
  return rewards.max(1) == rewards.min(1)
