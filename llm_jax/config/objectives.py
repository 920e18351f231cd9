"""What is learnt; `llm_jax/objectives/` computes it."""
import dataclasses

from llm_jax.config.errors import require

__all__ = [
  'Classification', 'DPO', 'IPO', 'LanguageModel', 'ORPO', 'Objective', 'Preference', 'Referenced', 'SLiC', 'SimPO',
]


@dataclasses.dataclass(frozen=True)
class LanguageModel:
  """Next-token cross-entropy, plus z_loss x logsumexp^2 (PaLM, section 5: 1e-4), plus the routers' own losses.

  multi_token_weight: of the mean cross-entropy of `Architecture.multi_token` (DeepSeek-V3, equation 25 and section 4.2:
    0.3, in the last third of training 0.1).
  """
  z_loss: float = 0.0
  multi_token_weight: float = 0.3

  def __post_init__(self):
    for field in ('z_loss', 'multi_token_weight'):
      require(getattr(self, field) >= 0, field, getattr(self, field), 'use 0 or more')


# ---------------------------------------------------------------------------------------------- classes
@dataclasses.dataclass(frozen=True)
class Classification:
  """L3 = L2 + lm_weight L1 (Radford et al. 2018, GPT-1, equation 5: 0.5): the cross-entropy of a text's class, of a
  linear head on the features of its last token, and the language model's loss on the same text."""
  lm_weight: float = 0.5

  def __post_init__(self):
    require(self.lm_weight >= 0, 'lm_weight', self.lm_weight, 'use 0 or more')


# ---------------------------------------------------------------------------------------------- preferences
# Over pairs of answers; p and q are the log-probabilities of an answer under the policy and the reference, and
# margin = beta ((p_chosen - q_chosen) - (p_rejected - q_rejected)).
@dataclasses.dataclass(frozen=True)
class DPO:
  """-log sigmoid(margin) (Rafailov et al. 2023, equation 7); the reference is what the stage starts from.

  nll_weight: of the chosen answer's negative log-likelihood a token (Pang et al. 2024; Llama 3, section 4.1.4: 0.2).
  label_smoothing: the probability that a label is wrong (Mitchell 2023, conservative DPO).
  """
  beta: float = 0.1
  nll_weight: float = 0.0
  label_smoothing: float = 0.0

  def __post_init__(self):
    _check_beta(self.beta)
    require(0 <= self.label_smoothing < 0.5, 'label_smoothing', self.label_smoothing, 'use a number in [0, 0.5)')
    require(self.nll_weight >= 0, 'nll_weight', self.nll_weight, 'use 0 or more')


@dataclasses.dataclass(frozen=True)
class IPO:
  """(margin / beta - 1 / (2 beta))^2, the log-probabilities averaged over tokens (Azar et al. 2023, equation 17)."""
  beta: float = 0.1

  def __post_init__(self):
    _check_beta(self.beta)


@dataclasses.dataclass(frozen=True)
class SLiC:
  """max(0, 1 - margin) (Zhao et al. 2023, SLiC-HF, on DPO's margin)."""
  beta: float = 0.1

  def __post_init__(self):
    _check_beta(self.beta)


@dataclasses.dataclass(frozen=True)
class ORPO:
  """The chosen answer's mean negative log-likelihood, and -beta log sigmoid of the log odds ratio of the two answers,
  without a reference (Hong et al. 2024, equations 6 and 7)."""
  beta: float = 0.1

  def __post_init__(self):
    _check_beta(self.beta)


@dataclasses.dataclass(frozen=True)
class SimPO:
  """-log sigmoid(beta (p_chosen - p_rejected) - gamma) with p averaged over tokens, without a reference
  (Meng et al. 2024, equation 6)."""
  beta: float = 2.0
  gamma: float = 1.0

  def __post_init__(self):
    _check_beta(self.beta)


def _check_beta(beta: float) -> None:
  require(beta > 0, 'beta', beta, 'use a number above 0')


Referenced = DPO | IPO | SLiC  # those that compare with a frozen reference
Preference = Referenced | ORPO | SimPO
Objective = LanguageModel | Classification | DPO | IPO | SLiC | ORPO | SimPO
