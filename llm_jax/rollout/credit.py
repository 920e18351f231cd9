"""What each token of an answer is credited with: advantages, and of a critic the returns that it is to foresee."""
import dataclasses

import numpy as np

from llm_jax.config.policy_gradients import PPO, KLInReward, PolicyGradient
from llm_jax.rollout.advantages import advantages
from llm_jax.rollout.generalized_advantages import (
  explained_variance,
  generalized_advantages,
  token_rewards,
  whitened,
)


@dataclasses.dataclass(frozen=True)
class Credit:
  """float32 [answers, time], 0 where no token of an answer is predicted.

  values, returns: what the critic foresaw, and what it is to foresee; None without a critic.
  numbers: for people.
  """
  advantages: np.ndarray
  values: np.ndarray | None = None
  returns: np.ndarray | None = None
  numbers: dict[str, float] = dataclasses.field(default_factory=dict)


def credit_of_groups(config: PolicyGradient, rewards: np.ndarray, log_probs: np.ndarray | None,
                     reference: np.ndarray | None, is_answer: np.ndarray, group: int) -> Credit:
  """Every token of an answer has the answer's advantage over others.   rewards: [answers]."""
  if isinstance(config.kl, KLInReward):
    assert log_probs is not None and reference is not None
    rewards = rewards - config.kl.weight * (log_probs - reference).sum(1)
  found = advantages(rewards.reshape(-1, group), config.advantage).reshape(-1, 1)
  return Credit(np.where(is_answer, found, 0).astype(np.float32))


def credit_of_critic(config: PPO, rewards: np.ndarray, log_probs: np.ndarray, reference: np.ndarray | None,
                     values: np.ndarray, is_answer: np.ndarray) -> Credit:
  """Generalised advantages of the critic's values, whitened over the rollout (Huang et al. 2024, The N+ implementation
  details of RLHF with PPO). Returns are made of the advantages before that.   rewards: [answers].
  """
  penalties = np.zeros(values.shape)
  if config.kl is not None:
    assert reference is not None
    penalties = config.kl.weight * (log_probs - reference).astype(np.float64)
  rewarded = token_rewards(rewards, penalties, is_answer)
  if config.whiten_rewards:
    rewarded = whitened(rewarded, is_answer, shift=False)
  found = generalized_advantages(rewarded, values, is_answer, config.gamma, config.decay)
  returns = np.where(is_answer, found + values, 0)
  numbers = {
    'explained_variance': explained_variance(returns, values, is_answer),
    'value': float(values[is_answer].mean()),
    'return': float(returns[is_answer].mean()),
  }
  found = whitened(found, is_answer)
  return Credit(found.astype(np.float32), values.astype(np.float32), returns.astype(np.float32), numbers)
