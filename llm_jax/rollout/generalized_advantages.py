"""Advantages of single tokens by a critic: generalised advantage estimation (Schulman et al. 2016, GAE).

Arrays are [answers, time]; `is_answer` says which places predict a token that the model has said. Between two of them
may stand what it was told, such as the result of a function: the next token is then the next that it says.
"""
import numpy as np

SMALLEST_VARIANCE = 1e-8  # added to the variance, as TRL does


def token_rewards(scores: np.ndarray, penalties: np.ndarray, is_answer: np.ndarray) -> np.ndarray:
  """What each token is rewarded with, float64: less its penalty, and at an answer's last token its score besides.

  scores: [answers].   penalties: [answers, time], such as the weighted KL to a reference.
  """
  places = np.arange(is_answer.shape[1])
  last = np.where(is_answer, places, 0).max(1)
  rewards = np.where(is_answer, -penalties.astype(np.float64), 0.0)
  rewards[np.arange(len(scores)), last] += np.where(is_answer.any(1), scores, 0.0)
  return rewards


def generalized_advantages(rewards: np.ndarray, values: np.ndarray, is_answer: np.ndarray, gamma: float, decay: float
                           ) -> np.ndarray:
  """The sum over later tokens k of (gamma decay)^k (r + gamma V(next) - V), float64 (equation 16); the value behind an
  answer's last token is 0."""
  values = np.where(is_answer, values.astype(np.float64), 0.0)
  found = np.zeros_like(rewards)
  next_value = np.zeros(len(rewards))
  next_advantage = np.zeros(len(rewards))
  for place in reversed(range(rewards.shape[1])):
    surprise = rewards[:, place] + gamma * next_value - values[:, place]
    advantage = np.where(is_answer[:, place], surprise + gamma * decay * next_advantage, 0.0)
    found[:, place] = advantage
    next_value = np.where(is_answer[:, place], values[:, place], next_value)
    next_advantage = np.where(is_answer[:, place], advantage, next_advantage)
  return found


def whitened(values: np.ndarray, is_answer: np.ndarray, shift: bool = True) -> np.ndarray:
  """Values whose variance over all answers' tokens is 1, and whose mean there is 0, float64; 0 elsewhere. The variance
  is divided by one less than their number.

  shift: whether the mean is taken away; else it stays as it was.
  """
  found = values[is_answer].astype(np.float64)
  mean = found.mean()
  variance = found.var(ddof=1) if len(found) > 1 else 0.0
  scaled = (found - mean) / np.sqrt(variance + SMALLEST_VARIANCE)
  whole = np.zeros(values.shape)
  whole[is_answer] = scaled if shift else scaled + mean
  return whole


def explained_variance(returns: np.ndarray, values: np.ndarray, is_answer: np.ndarray) -> float:
  """1 - Var(return - value) / Var(return) over the tokens of answers: 1 where the critic knows all, 0 where it knows
  no more than the mean. NaN where all returns are one number."""
  wanted, known = returns[is_answer].astype(np.float64), values[is_answer].astype(np.float64)
  variance = wanted.var()
  return float(1 - (wanted - known).var() / variance) if variance > 0 else float('nan')
