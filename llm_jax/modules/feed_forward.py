"""The position-wise half of a block.

Shapes: B batch, T time, D model width, F feed-forward width.
"""
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

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


def inner(part: config.Dense) -> tuple[tuple[str, ...], Callable[..., jax.Array]]:
  """The projections of the input, and the function of them that is projected down.

  MLP: act(up).   GLU: act(gate) * up.   ClampedGLU: (up + 1) * gate * sigmoid(alpha gate), both cut.
  'gelu' is exact; 'gelu_tanh' and 'gelu_sigmoid' are its approximations (Hendrycks & Gimpel 2016, section 2).
  """
  match part:
    case config.MLP(activation=activation):
      return ('up',), ACTIVATIONS[activation]
    case config.GLU(activation=activation):
      act = ACTIVATIONS[activation]
      return ('gate', 'up'), lambda gate, up: act(gate) * up
    case config.ClampedGLU(limit=limit, alpha=alpha):
      def clamped(gate: jax.Array, up: jax.Array) -> jax.Array:
        gate = jnp.minimum(gate, limit)
        return (jnp.clip(up, -limit, limit) + 1) * gate * jax.nn.sigmoid(alpha * gate)
      return ('gate', 'up'), clamped


class FeedForward(nn.Module):
  """down(f(projections of x)), with the f of `inner`."""
  config: config.Dense
  execution: Execution
  std: float
  residual_std: float

  @nn.compact
  def __call__(self, x_BTD: jax.Array) -> jax.Array:
    D = x_BTD.shape[-1]
    F = self.config.width(D)
    bias = self.config.bias

    def project(name: str) -> jax.Array:
      y_BTF = Linear((D, F), self.execution, bias=bias, std=self.std, name=name)(x_BTD)
      return constrain(y_BTF, 'batch', 'seq', 'mlp')

    names, f = inner(self.config)
    h_BTF = elementwise(f, *map(project, names), kernels=self.execution.kernel_set)
    return Linear((F, D), self.execution, bias=bias, std=self.residual_std, name='down')(h_BTF)
