"""What a stage learns: `Stage.objective` is one of these; `llm_jax/objectives/` computes them.

To add one, write its class here, name it in `Objective`, and write the class that `implementation` names.
"""
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

from llm_jax.config.errors import require, require_weights
from llm_jax.config.rows import LABELLED, PAIRS, PROMPTS, RATED, TEXT, RowKind
from llm_jax.config.teachers import Teacher

__all__ = [
  'APODown', 'APOZero', 'Classification', 'Clip', 'ClipWeight', 'DPO', 'Distillation', 'IPO', 'KLInLoss', 'KLInReward',
  'KTO', 'LanguageModel', 'ORPO', 'Objective', 'PPO', 'PolicyGradient', 'RewardModel', 'SLiC', 'SimPO',
]


@dataclasses.dataclass(frozen=True)
class Metric:
  """A number of the validation split, and how it is shown. A format takes the number.

  name: under which records have it.
  label: what tables call it.
  table, status, headline: its formats in tables, beside the loss in the terminal, and in the stage's box of the
    report's recipe.
  """
  name: str
  label: str
  table: str
  status: str
  headline: str


LOSS = Metric('loss', 'loss', '{:.4f}', 'loss {:.4f}', 'held-out loss {:.3f}')


class ObjectiveConfig:
  """What every objective states beside its own fields.

  implementation: the class that computes it, 'package.module:Class'.
  rows: the kind of rows that it learns from.
  title: what the report's recipe calls it.
  reference_passes: forward passes of a batch that its loss takes beside the one that is differentiated, such as the
    reference's.
  has_reference: whether it compares with the parameters that the stage starts from, which stay as they are.
  reads_margins: whether it heeds what a row says of how much better one of two answers is.
  metrics: what a person looks at first, beside the loss.
  """
  implementation: ClassVar[str]
  rows: ClassVar[RowKind]
  title: ClassVar[str]
  reference_passes: ClassVar[int] = 0
  has_reference: ClassVar[bool] = False
  reads_margins: ClassVar[bool] = False

  @property
  def distilled(self) -> Teacher | None:
    """The model whose probabilities are learnt; None where none is."""
    return None

  metrics: ClassVar[tuple[Metric, ...]] = ()

  def status(self, found: Mapping[str, Any]) -> str:
    """The loss and what is known of `metrics`, as the terminal shows them."""
    return '  '.join(
      metric.status.format(found[metric.name]) for metric in (LOSS, *self.metrics) if metric.name in found
    )

  def headline(self, found: Mapping[str, Any]) -> str:
    """What is known of `metrics` in a few words, or else the loss."""
    known = [metric for metric in self.metrics if metric.name in found]
    return ', '.join(metric.headline.format(found[metric.name]) for metric in known or [LOSS])


@dataclasses.dataclass(frozen=True)
class LanguageModel(ObjectiveConfig):
  """Next-token cross-entropy, plus z_loss x logsumexp^2 (PaLM, section 5: 1e-4), plus the routers' own losses.

  z_loss: weight of the squared log-sum-exp of the logits.
  multi_token_weight: of the mean cross-entropy of `Architecture.multi_token` (DeepSeek-V3, equation 25 and section 4.2:
    0.3, in the last third of training 0.1).
  """
  z_loss: float = 0.0
  multi_token_weight: float = 0.3
  implementation: ClassVar[str] = 'llm_jax.objectives.language_model:LanguageModelObjective'
  rows: ClassVar[RowKind] = TEXT
  title: ClassVar[str] = 'next token'
  metrics: ClassVar[tuple[Metric, ...]] = (
    Metric('bits_per_byte', 'bits per byte', '{:.4f}', '{:.4f} bits per byte', '{:.3f} bits per byte'),
  )

  def __post_init__(self):
    require_weights(self, 'z_loss', 'multi_token_weight')


@dataclasses.dataclass(frozen=True)
class Distillation(ObjectiveConfig):
  """beta KL(teacher || M) + (1 - beta) KL(student || M) at every target, M being beta teacher + (1 - beta) student
  (Agarwal et al. 2024, GKD, equation 3), on what the data says so far.

  teacher: SavedRun(workdir), Params(stage) or HuggingFace(folder); its tokenizer is the run's.
  divergence: beta; 0 is KL(teacher || student), 1 is KL(student || teacher), 0.5 the Jensen-Shannon divergence.
  temperature: what the logits of both are divided by.
  nll_weight: of the student's cross-entropy on the data, which is added.
  sampled: ids drawn from the teacher at every target, in the place of all its probabilities (Anshumann et al. 2025:
    12); None: all. Needs divergence 0 and temperature 1.
  """
  teacher: Teacher
  divergence: float = 0.0
  temperature: float = 1.0
  nll_weight: float = 0.0
  sampled: int | None = None
  implementation: ClassVar[str] = 'llm_jax.objectives.distillation:DistillationObjective'
  rows: ClassVar[RowKind] = TEXT
  title: ClassVar[str] = 'distillation'
  reference_passes: ClassVar[int] = 1
  metrics: ClassVar[tuple[Metric, ...]] = (
    Metric('nll', 'loss on the data', '{:.4f}', '{:.4f} on the data', '{:.3f} on the data'),
    Metric('teacher_nll', "the teacher's", '{:.4f}', 'teacher {:.4f}', 'teacher {:.3f}'),
  )

  @property
  def distilled(self) -> Teacher:
    return self.teacher

  def __post_init__(self):
    require(0 <= self.divergence <= 1, 'divergence', self.divergence, 'use a number from 0 to 1')
    is_warm = math.isfinite(self.temperature) and self.temperature > 0
    require(is_warm, 'temperature', self.temperature, 'use a finite number above 0')
    require_weights(self, 'nll_weight')
    if self.sampled is not None:
      require(self.sampled >= 1, 'sampled', self.sampled, 'use 1 or more, or None for all probabilities')
      is_plain = self.divergence == 0 and self.temperature == 1
      require(is_plain, 'sampled', self.sampled, 'ids are drawn for divergence=0 and temperature=1 alone: use these')


# ---------------------------------------------------------------------------------------------- classes
@dataclasses.dataclass(frozen=True)
class Classification(ObjectiveConfig):
  """L3 = L2 + lm_weight L1 (Radford et al. 2018, GPT-1, equation 5: 0.5).

  L2 is the cross-entropy of a text's class, by a linear head on the features of its last token; L1 is the language
  model's loss on the same text.

  lm_weight: of the language model's loss.
  """
  lm_weight: float = 0.5
  implementation: ClassVar[str] = 'llm_jax.objectives.classification:ClassificationObjective'
  rows: ClassVar[RowKind] = LABELLED
  title: ClassVar[str] = 'classes'
  metrics: ClassVar[tuple[Metric, ...]] = (
    Metric('accuracy', 'accuracy', '{:.2%}', '{:.1%} right', '{:.0%} right'),
    Metric('most_common_class', 'most common class', '{:.2%}', '{:.1%} are of the most common class',
           'most common {:.0%}'),
  )

  def __post_init__(self):
    require_weights(self, 'lm_weight')


# ---------------------------------------------------------------------------------------------- preferences
# Over pairs of answers; p and q are the log-probabilities of an answer under the policy and the reference, and
# margin = beta ((p_chosen - q_chosen) - (p_rejected - q_rejected)).
class PreferenceConfig(ObjectiveConfig):
  """beta: what the log-ratios to the reference are multiplied by; the larger, the less the policy leaves it."""
  beta: float
  rows: ClassVar[RowKind] = PAIRS
  metrics: ClassVar[tuple[Metric, ...]] = (
    Metric('accuracy', 'accuracy', '{:.2%}', '{:.0%} right', '{:.0%} right'),
    Metric('reward_margin', 'margin of rewards', '{:.3f}', 'margin {:.3f}', 'margin {:.2f}'),
  )

  def __post_init__(self):
    require(self.beta > 0, 'beta', self.beta, 'use a number above 0')


@dataclasses.dataclass(frozen=True)
class DPO(PreferenceConfig):
  """-log sigmoid(margin) (Rafailov et al. 2023, equation 7); the reference is what the stage starts from.

  nll_weight: of the chosen answer's negative log-likelihood a token (Pang et al. 2024; Llama 3, section 4.1.4: 0.2).
  label_smoothing: the probability that a label is wrong (Mitchell 2023, conservative DPO).
  """
  beta: float = 0.1
  nll_weight: float = 0.0
  label_smoothing: float = 0.0
  implementation: ClassVar[str] = 'llm_jax.objectives.preference:DPOObjective'
  title: ClassVar[str] = 'DPO'
  reference_passes: ClassVar[int] = 1
  has_reference: ClassVar[bool] = True

  def __post_init__(self):
    super().__post_init__()
    require(0 <= self.label_smoothing < 0.5, 'label_smoothing', self.label_smoothing, 'use a number in [0, 0.5)')
    require_weights(self, 'nll_weight')


@dataclasses.dataclass(frozen=True)
class IPO(PreferenceConfig):
  """(margin / beta - 1 / (2 beta))^2, the log-probabilities averaged over tokens (Azar et al. 2023, equation 17)."""
  beta: float = 0.1
  implementation: ClassVar[str] = 'llm_jax.objectives.preference:IPOObjective'
  title: ClassVar[str] = 'IPO'
  reference_passes: ClassVar[int] = 1
  has_reference: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class SLiC(PreferenceConfig):
  """max(0, 1 - margin) (Zhao et al. 2023, SLiC-HF, on DPO's margin)."""
  beta: float = 0.1
  implementation: ClassVar[str] = 'llm_jax.objectives.preference:SLiCObjective'
  title: ClassVar[str] = 'SLiC'
  reference_passes: ClassVar[int] = 1
  has_reference: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class APOZero(PreferenceConfig):
  """1 - sigmoid(r_chosen) + sigmoid(r_rejected) with r = beta (p - q) (D'Oosterlinck et al. 2024, equation 7).

  The chosen answer becomes likelier than under the reference, the rejected one less likely: for chosen answers that are
  better than what the model writes.
  """
  beta: float = 0.1
  implementation: ClassVar[str] = 'llm_jax.objectives.preference:APOZeroObjective'
  title: ClassVar[str] = 'APO-zero'
  reference_passes: ClassVar[int] = 1
  has_reference: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class APODown(PreferenceConfig):
  """sigmoid(r_chosen) + 1 - sigmoid(margin) with r = beta (p - q) (D'Oosterlinck et al. 2024, equation 8).

  Both answers become less likely than under the reference, the rejected one more so: for chosen answers that are worse
  than what the model writes.
  """
  beta: float = 0.1
  implementation: ClassVar[str] = 'llm_jax.objectives.preference:APODownObjective'
  title: ClassVar[str] = 'APO-down'
  reference_passes: ClassVar[int] = 1
  has_reference: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class ORPO(PreferenceConfig):
  """The chosen answer's mean negative log-likelihood, and -beta log sigmoid of the log odds ratio of the two answers,
  without a reference (Hong et al. 2024, equations 6 and 7).

  beta: weight of the log odds ratio.
  """
  beta: float = 0.1
  implementation: ClassVar[str] = 'llm_jax.objectives.preference:ORPOObjective'
  title: ClassVar[str] = 'ORPO'


@dataclasses.dataclass(frozen=True)
class SimPO(PreferenceConfig):
  """-log sigmoid(beta (p_chosen - p_rejected) - gamma) with p averaged over tokens, without a reference
  (Meng et al. 2024, equation 6).

  beta: what the mean log-probabilities are multiplied by.
  gamma: the margin that is asked for.
  """
  beta: float = 2.0
  gamma: float = 1.0
  implementation: ClassVar[str] = 'llm_jax.objectives.preference:SimPOObjective'
  title: ClassVar[str] = 'SimPO'


# ---------------------------------------------------------------------------------------------- reward models
@dataclasses.dataclass(frozen=True)
class RewardModel(ObjectiveConfig):
  """-log sigmoid(r_chosen - r_rejected - margin m) + center (r_chosen + r_rejected)^2, r being the score that a linear
  head of one output reads at an answer's last token (Ouyang et al. 2022, InstructGPT, equation 1).

  m is the margin that a row states, 0 where it states none (Touvron et al. 2023, Llama 2, equation 2).

  margin: what the margins of the rows are multiplied by; 0 leaves them out (Llama 3, section 4.1.3).
  center: weight of the squared sum of the scores, which holds their mean near 0 (Eisenstein et al. 2023: 0.01).
  """
  margin: float = 1.0
  center: float = 0.0
  implementation: ClassVar[str] = 'llm_jax.objectives.reward_model:RewardModelObjective'
  rows: ClassVar[RowKind] = PAIRS
  title: ClassVar[str] = 'reward model'
  reads_margins: ClassVar[bool] = True
  metrics: ClassVar[tuple[Metric, ...]] = PreferenceConfig.metrics

  def __post_init__(self):
    require_weights(self, 'margin', 'center')


# ---------------------------------------------------------------------------------------------- rated answers
@dataclasses.dataclass(frozen=True)
class KTO(ObjectiveConfig):
  """w (1 - sigmoid(beta (r - z))) of a desirable answer and w (1 - sigmoid(beta (z - r))) of an undesirable one, r
  being its log-probability less that under the reference, which is what the stage starts from (Ethayarajh et al. 2024,
  equation 7).

  z is the mean of r over answers to other prompts, at least 0, over all that a step learns from, without gradient.

  beta: what r - z is multiplied by; the larger, the less the policy leaves the reference.
  desirable_weight: weight of desirable answers.
  undesirable_weight: weight of undesirable answers.
  """
  beta: float = 0.1
  desirable_weight: float = 1.0
  undesirable_weight: float = 1.0
  implementation: ClassVar[str] = 'llm_jax.objectives.kto:KTOObjective'
  rows: ClassVar[RowKind] = RATED
  title: ClassVar[str] = 'KTO'
  # The reference's passes over both sequences cost what the mismatched one saves: it has no backward pass.
  reference_passes: ClassVar[int] = 0
  has_reference: ClassVar[bool] = True
  metrics: ClassVar[tuple[Metric, ...]] = (
    Metric('accuracy', 'accuracy', '{:.2%}', '{:.0%} right', '{:.0%} right'),
    Metric('reward_desirable', 'reward of desirable answers', '{:.3f}', 'desirable {:.3f}', 'desirable {:.2f}'),
    Metric('reward_undesirable', 'reward of undesirable answers', '{:.3f}', 'undesirable {:.3f}', 'undesirable {:.2f}'),
  )

  def __post_init__(self):
    require(self.beta > 0, 'beta', self.beta, 'use a number above 0')
    require_weights(self, 'desirable_weight', 'undesirable_weight')


# ---------------------------------------------------------------------------------------------- sampled answers
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
  REINFORCE are choices of these fields, see `policy_gradients.py`.

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


Objective = (
  LanguageModel | Distillation | Classification | DPO | IPO | SLiC | APOZero | APODown | ORPO | SimPO | RewardModel |
  KTO | PolicyGradient | PPO
)
