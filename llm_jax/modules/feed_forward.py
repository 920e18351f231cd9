"""The position-wise half of a block."""
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
  """MLP: down(act(up x)).   GLU: down(act(gate x) * up x).   Activations of the GELU family: Hendrycks & Gimpel 2016,
  exact ('gelu'), and its approximations by tanh and by x sigmoid(1.702 x)."""
  config: config.MLP | config.GLU
  execution: Execution
  std: float
  residual_std: float

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    D, bias, act = x_BTD.shape[-1], self.config.bias, ACTIVATIONS[self.config.activation]
    F = self.config.width(D)
    project = lambda name: constrain(
        Linear((D, F), self.execution, bias=bias, std=self.std, name=name)(x_BTD), 'batch', 'seq', 'mlp')
    match self.config:
      case config.MLP():
        h_BTF = elementwise(act, project('up'), kernels=self.execution.kernel_set)
      case config.GLU():
        gated = lambda gate, up: act(gate) * up
        h_BTF = elementwise(gated, project('gate'), project('up'), kernels=self.execution.kernel_set)
    return Linear((F, D), self.execution, bias=bias, std=self.residual_std, name='down')(h_BTF)
