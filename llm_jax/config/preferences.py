"""Objectives of answers that were compared or rated: direct preference optimisation and its kin, reward models, KTO."""
import dataclasses
from typing import ClassVar

from llm_jax.config.errors import require, require_weights
from llm_jax.config.objective import Metric, ObjectiveConfig
from llm_jax.config.rows import PAIRS, PROMPTS, RANKED, RATED, RowKind

__all__ = ['APODown', 'APOZero', 'DPO', 'IPO', 'KTO', 'ORPO', 'RewardModel', 'SLiC', 'SimPO']


# Over pairs of answers; p and q are the log-probabilities of an answer under the policy and the reference, and
# margin = beta ((p_chosen - q_chosen) - (p_rejected - q_rejected)).
class PreferenceConfig(ObjectiveConfig):
  """beta: what the log-ratios to the reference are multiplied by; the larger, the less the policy leaves it."""
  beta: float
  rows: ClassVar[RowKind] = PAIRS
  other_rows: ClassVar[tuple[RowKind, ...]] = (PROMPTS,)  # pairs of answers that a stage with a rollout samples
  metrics: ClassVar[tuple[Metric, ...]] = (
    Metric('accuracy', 'accuracy', '{:.2%}', '{:.0%} right', '{:.0%} right'),
    Metric('reward_margin', 'margin of rewards', '{:.3f}', 'margin {:.3f}', 'margin {:.2f}'),
  )

  def __post_init__(self):
    require(self.beta > 0, 'beta', self.beta, 'use a number above 0')


@dataclasses.dataclass(frozen=True)
class DPO(PreferenceConfig):
  """-log sigmoid(margin) (Rafailov et al. 2023, equation 7); the reference is what the stage starts from. Where a row
  says that its chosen answer is the better one with probability p, -p log sigmoid(margin) - (1 - p) log
  sigmoid(-margin).

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
  reads_soft_labels: ClassVar[bool] = True

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

  m is the margin that a row states, 0 where it states none (Touvron et al. 2023, Llama 2, equation 2). Where a row says
  that its chosen answer is the better one with probability p, the first term is -p log sigmoid(r_chosen - r_rejected -
  margin m) - (1 - p) log sigmoid(r_rejected - r_chosen + margin m) (Bai et al. 2022, section 4.1).

  Of several ranked answers to a prompt it is the mean over all pairs of different rank, so that every prompt counts
  alike (InstructGPT, section 3.4: K answers are read once for their K (K - 1) / 2 pairs).

  margin: what the margins of the rows are multiplied by; 0 leaves them out (Llama 3, section 4.1.3).
  center: weight of the squared sum of the scores, which holds their mean near 0 (Eisenstein et al. 2023: 0.01).
  """
  margin: float = 1.0
  center: float = 0.0
  implementation: ClassVar[str] = 'llm_jax.objectives.reward_model:RewardModelObjective'
  rows: ClassVar[RowKind] = PAIRS
  other_rows: ClassVar[tuple[RowKind, ...]] = (RANKED,)
  title: ClassVar[str] = 'reward model'
  reads_margins: ClassVar[bool] = True
  reads_soft_labels: ClassVar[bool] = True
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
