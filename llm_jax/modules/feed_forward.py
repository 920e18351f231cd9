"""The position-wise half of a block.

Shapes: B batch, T time, D model width, F feed-forward width.
"""
import functools

import flax.linen as nn
import jax

from llm_jax.config.model import architecture as config
from llm_jax.modules.execution import Execution
from llm_jax.modules.kernels.ordering import elementwise
from llm_jax.modules.layers import Linear
from llm_jax.sharding.rules import constrain

ACTIVATIONS = {
    'gelu_tanh': functools.partial(jax.nn.gelu, approximate=True),
    'gelu': functools.partial(jax.nn.gelu, approximate=False),
    'gelu_sigmoid': lambda x: x * jax.nn.sigmoid(1.702 * x),
    'silu': jax.nn.silu,
    'relu': jax.nn.relu,
}


class FeedForward(nn.Module):
  """MLP: down(act(up x)).   GLU: down(act(gate x) * up x).

  'gelu' is exact; 'gelu_tanh' and 'gelu_sigmoid' are its approximations (Hendrycks & Gimpel 2016, section 2).
  """
  config: config.MLP | config.GLU
  execution: Execution
  std: float
  residual_std: float

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    D = x_BTD.shape[-1]
    F = self.config.width(D)
    bias, act = self.config.bias, ACTIVATIONS[self.config.activation]
    kernels = self.execution.kernel_set

    def project(name: str) -> jax.Array:
      y_BTF = Linear((D, F), self.execution, bias=bias, std=self.std, name=name)(x_BTD)
      return constrain(y_BTF, 'batch', 'seq', 'mlp')

    match self.config:
      case config.MLP():
        h_BTF = elementwise(act, project('up'), kernels=kernels)
      case config.GLU():
        h_BTF = elementwise(lambda gate, up: act(gate) * up, project('gate'), project('up'), kernels=kernels)
    return Linear((F, D), self.execution, bias=bias, std=self.residual_std, name='down')(h_BTF)
