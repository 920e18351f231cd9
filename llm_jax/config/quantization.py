"""Training for weights that will be stored in fewer bits."""
import dataclasses

from llm_jax.config.errors import require

__all__ = ['QuantizationAware']

WEIGHTS = ('int8', 'int4', 'nf4')


@dataclasses.dataclass(frozen=True)
class QuantizationAware:
  """Quantisation-aware training: every pass computes with the weights as `launch.convert --quantize` would store them,
  and the gradient goes straight through to the float32 weights that are trained (Jacob et al. 2018, section 3;
  Bengio et al. 2013).

  weights: how the matrices of the blocks are stored: 'int8', 'int4' or 'nf4'.
  """
  weights: str = 'int4'

  def __post_init__(self):
    require(self.weights in WEIGHTS, 'weights', self.weights, f'use one of {", ".join(WEIGHTS)}')
