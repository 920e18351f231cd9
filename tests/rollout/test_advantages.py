"""Advantages against the formulas of the papers, written out."""
import numpy as np
import pytest
import torch

from llm_jax.config.policy_gradients import ADVANTAGES
from llm_jax.rollout.advantages import advantages, is_constant

REWARDS = np.array([[1.0, 0.0, 0.0, 0.5], [0.2, 0.2, 0.9, 0.1]])


def test_of_a_group():
  """TRL's: the standard deviation is torch's, with Bessel's correction, and 1e-4 more."""
  grouped = torch.tensor(REWARDS)
  want = (grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)
  np.testing.assert_allclose(advantages(REWARDS, 'group'), want.numpy(), rtol=1e-6)
  np.testing.assert_allclose(advantages(REWARDS, 'group_mean'), REWARDS - REWARDS.mean(1, keepdims=True), rtol=1e-6)


def test_leave_one_out():
  found = advantages(REWARDS, 'leave_one_out')
  for prompt, rewards in enumerate(REWARDS):
    for answer, reward in enumerate(rewards):
      others = np.delete(rewards, answer)
      assert found[prompt, answer] == pytest.approx(reward - others.mean(), rel=1e-6)


def test_of_the_rollout():
  np.testing.assert_allclose(advantages(REWARDS, 'batch'), REWARDS - REWARDS.mean(), rtol=1e-6)


def test_of_the_best():
  np.testing.assert_array_equal(advantages(REWARDS, 'best'), [[1, 0, 0, 0], [0, 0, 1, 0]])


@pytest.mark.parametrize('kind', ADVANTAGES)
@pytest.mark.parametrize('reward', [0.1, 1 / 3, -7.7])
def test_equal_rewards_give_exactly_0(kind, reward):
  """The mean of eight times 0.1 is not 0.1."""
  rewards = np.full((3, 7), reward)
  assert (advantages(rewards, kind) == 0).all()
  assert is_constant(rewards).all()
