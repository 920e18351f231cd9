"""Objectives of answers that the model samples itself: policy gradients, also by their papers' names, and PPO."""
import dataclasses
from typing import ClassVar

from llm_jax.config.errors import require, require_weights
from llm_jax.config.objective import ObjectiveConfig
from llm_jax.config.rows import PROMPTS, RowKind

__all__ = [
  'Clip', 'ClipWeight', 'KLInLoss', 'KLInReward', 'PPO', 'PolicyGradient', 'cispo', 'dapo', 'dr_grpo', 'grpo', 'gspo',
  'raft', 'reinforce', 'rloo',
]


# Over answers that the model has sampled itself; r is the ratio of a token's probability, or of an answer's, to that
# which it had when it was sampled, and A the advantage of its answer.
@dataclasses.dataclass(frozen=True)
class Clip:
  """-min(r A, clip(r, 1 - low, 1 + high) A) (Schulman et al. 2017, PPO, equation 7).

  low: how far below 1 the ratio still counts.
  high: how far above 1 it does; more than `low` lets rare tokens grow (Yu et al. 2025, DAPO, section 3.1: 0.28).
  most: the ratio counts as at most this, also where the advantage is below 0; None: whatever it is.
  """
  low: float = 0.2
  high: float = 0.2
  most: float | None = None

  def __post_init__(self):
    require(0 < self.low <= 1, 'low', self.low, 'use a number in (0, 1]')
    require(self.high > 0, 'high', self.high, 'use a number above 0')
    require(self.most is None or self.most > 1 + self.high, 'most', self.most,
            f'use more than {1 + self.high}, or None')


@dataclasses.dataclass(frozen=True)
class ClipWeight:
  """-min(r, most) A log p, the first factor without gradient, so that every token keeps one (MiniMax 2025, CISPO).

  most: the largest weight of a token.
  """
  most: float = 5.0

  def __post_init__(self):
    require(self.most > 0, 'most', self.most, 'use a number above 0')


@dataclasses.dataclass(frozen=True)
class KLInLoss:
  """A penalty in the loss, a token at a time, for leaving what the stage starts from.

  weight: what it is multiplied by.
  estimator: 'k1', d, or 'k3', exp(-d) - 1 + d, with d = log p - log q, q being the reference (Schulman 2020).
  corrected: whether it is multiplied by the ratio to the policy that sampled, so that its gradient is that of the KL.
  """
  weight: float
  estimator: str = 'k3'
  corrected: bool = True

  def __post_init__(self):
    require(self.weight > 0, 'weight', self.weight, 'use a number above 0')
    require(self.estimator in ('k1', 'k3'), 'estimator', self.estimator, "use 'k1' or 'k3'")


@dataclasses.dataclass(frozen=True)
class KLInReward:
  """A penalty in the reward of an answer: weight x the sum of log p - log q over its tokens, as they were sampled.

  weight: what it is multiplied by.
  """
  weight: float

  def __post_init__(self):
    require(self.weight > 0, 'weight', self.weight, 'use a number above 0')


ADVANTAGES = ('group', 'group_mean', 'leave_one_out', 'batch', 'best')
RATIOS = ('token', 'sequence_mean', 'sequence')
AGGREGATIONS = ('tokens', 'sequences', 'constant_length')


@dataclasses.dataclass(frozen=True)
class PolicyGradient(ObjectiveConfig):
  """What was rewarded more than the other answers becomes likelier. GRPO, Dr. GRPO, DAPO, RLOO, GSPO, CISPO, RAFT and
  REINFORCE are choices of these fields: the functions below.

  advantage: how an answer's reward is compared: 'group', 'group_mean', 'leave_one_out', 'batch' or 'best'. 'group': the
    mean of its group, divided by the group's standard deviation + 1e-4 (Shao et al. 2024, GRPO, section 4.1.2);
    'group_mean': not divided (Liu et al. 2025, Dr. GRPO); 'leave_one_out': the mean of the others of its group
    (Ahmadian et al. 2024, RLOO, equation 9); 'batch': the mean of the rollout; 'best': 1 for the best answer
    of a group whose answers have several rewards, 0 for the others (Dong et al. 2023, RAFT).
  ratio: of what r is: 'token', 'sequence' or 'sequence_mean'. 'sequence': of a whole answer; 'sequence_mean': the
    geometric mean over its tokens (Zheng et al. 2025, GSPO, equation 7).
  aggregation: how tokens are averaged: 'tokens', 'sequences' or 'constant_length'. 'tokens': over all of a step's
    (DAPO, equation 12); 'sequences': over each answer's, then over answers (GRPO, equation 3); 'constant_length': a sum
    over each answer's divided by the most tokens that one may have, then over answers (Dr. GRPO).
  clip: how far the ratio may move in the steps of one rollout; None: however far.
  kl: a penalty for leaving what the stage starts from; None: none, and no reference is kept.
  """
  advantage: str = 'group'
  ratio: str = 'token'
  aggregation: str = 'tokens'
  clip: Clip | ClipWeight | None = Clip()
  kl: KLInLoss | KLInReward | None = None
  implementation: ClassVar[str] = 'llm_jax.objectives.policy_gradient:PolicyGradientObjective'
  rows: ClassVar[RowKind] = PROMPTS
  title: ClassVar[str] = 'rewards'

  def __post_init__(self):
    require(self.advantage in ADVANTAGES, 'advantage', self.advantage, f'use one of {ADVANTAGES}')
    require(self.ratio in RATIOS, 'ratio', self.ratio, f'use one of {RATIOS}')
    require(self.aggregation in AGGREGATIONS, 'aggregation', self.aggregation, f'use one of {AGGREGATIONS}')

  @property
  def has_reference(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
    return self.kl is not None


CRITICS = ('apart', 'shared')


@dataclasses.dataclass(frozen=True)
class PPO(ObjectiveConfig):
  """Proximal policy optimisation with a critic (Schulman et al. 2017; InstructGPT, Ouyang et al. 2022, section 3.5).

  The policy's -min(r A, clip(r) A) and, times value_weight, half the larger of the squared errors of the critic's value
  and of that value clipped near the one that it was, both means over tokens.

  A are generalised advantages, whitened over the rollout. An answer is rewarded at its last token, each token with less
  by `kl`.

  gamma: what a reward one token later counts for.
  decay: lambda of generalised advantage estimation: 0 believes the critic's next value, 1 the rewards.
  clip: how far the ratio may move in the steps of one rollout.
  value_clip: how far a value may move in them.
  value_weight: of the critic's loss.
  kl: a penalty for leaving what the stage starts from; None: none, and no reference is kept.
  whiten_rewards: whether rewards are divided by their standard deviation over all tokens.
  critic: 'apart', a decoder of its own that starts as the policy does, or 'shared', a head on the policy's features.
  """
  gamma: float = 1.0
  decay: float = 0.95
  clip: Clip = Clip()
  value_clip: float = 0.2
  value_weight: float = 0.1
  kl: KLInReward | None = KLInReward(0.05)
  whiten_rewards: bool = False
  critic: str = 'apart'
  rows: ClassVar[RowKind] = PROMPTS
  title: ClassVar[str] = 'PPO'

  def __post_init__(self):
    for field in ('gamma', 'decay'):
      require(0 <= getattr(self, field) <= 1, field, getattr(self, field), 'use a number from 0 to 1')
    require(self.value_clip > 0, 'value_clip', self.value_clip, 'use a number above 0')
    require_weights(self, 'value_weight')
    require(self.critic in CRITICS, 'critic', self.critic, f'use one of {CRITICS}')
    require(self.clip.most is None, 'clip', self.clip, 'PPO has no bound on the ratio besides: leave `most` out')

  @property
  def implementation(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
    name = 'PPOWithCriticObjective' if self.critic == 'apart' else 'PPOObjective'
    return f'llm_jax.objectives.ppo:{name}'

  @property
  def has_reference(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
    return self.kl is not None


# ---------------------------------------------------------------------------------------------- by their papers' names
# Each is a choice of the fields of `PolicyGradient`.
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
