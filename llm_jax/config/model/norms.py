"""The kinds of normalisation."""
import dataclasses

from llm_jax.config.errors import require_weights


@dataclasses.dataclass(frozen=True)
class LayerNorm:
  """Ba et al. 2016, with scale and bias.

  eps: added to the variance.
  """
  eps: float = 1e-5

  def __post_init__(self):
    require_weights(self, 'eps')


@dataclasses.dataclass(frozen=True)
class RMSNorm:
  """Zhang & Sennrich 2019, with scale.

  eps: added to the mean square.
  """
  eps: float = 1e-5

  def __post_init__(self):
    require_weights(self, 'eps')


@dataclasses.dataclass(frozen=True)
class ZeroCenteredRMSNorm:
  """RMSNorm whose stored scale is the difference from 1, so that it starts at 0 (Gemma).

  eps: added to the mean square.
  """
  eps: float = 1e-6

  def __post_init__(self):
    require_weights(self, 'eps')


Norm = LayerNorm | RMSNorm | ZeroCenteredRMSNorm
