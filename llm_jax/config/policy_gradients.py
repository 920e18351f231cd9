"""Policy gradients by their papers' names, each a choice of `PolicyGradient`'s fields."""
from llm_jax.config.objectives import Clip, ClipWeight, KLInLoss, KLInReward, PolicyGradient

__all__ = ['cispo', 'dapo', 'dr_grpo', 'grpo', 'gspo', 'raft', 'reinforce', 'rloo']


def grpo(kl: float = 0.0) -> PolicyGradient:
  """Shao et al. 2024 (DeepSeekMath), equation 3; there with kl=0.04, which is not corrected by the ratio."""
  penalty = KLInLoss(kl, corrected=False) if kl else None
  return PolicyGradient('group', 'token', 'sequences', Clip(), penalty)


def dr_grpo() -> PolicyGradient:
  """Liu et al. 2025: neither divided by the group's spread nor by an answer's length."""
  return PolicyGradient('group_mean', 'token', 'constant_length')


def dapo() -> PolicyGradient:
  """Yu et al. 2025, equation 8: the mean over all tokens, and more room above than below."""
  return PolicyGradient('group', 'token', 'tokens', Clip(low=0.2, high=0.28))


def rloo(kl: float = 0.0) -> PolicyGradient:
  """Ahmadian et al. 2024, equation 9, with the ratio of whole answers clipped as TRL does it; there with kl=0.05."""
  penalty = KLInReward(kl) if kl else None
  return PolicyGradient('leave_one_out', 'sequence', 'sequences', Clip(), penalty)


def gspo() -> PolicyGradient:
  """Zheng et al. 2025, equation 5, with the clip of their section 5.1."""
  return PolicyGradient('group', 'sequence_mean', 'sequences', Clip(low=3e-4, high=4e-4))


def cispo(most: float = 5.0) -> PolicyGradient:
  """MiniMax 2025 (MiniMax-M1), section 3.1: the weight of a token is cut, its gradient is not."""
  return PolicyGradient('group', 'token', 'tokens', ClipWeight(most))


def raft() -> PolicyGradient:
  """Dong et al. 2023, algorithm 1: the best answer of each group is learnt as a text would be."""
  return PolicyGradient('best', 'token', 'tokens', clip=None)


def reinforce() -> PolicyGradient:
  """Williams 1992, with the mean reward of the rollout as the baseline."""
  return PolicyGradient('batch', 'token', 'tokens', clip=None)
