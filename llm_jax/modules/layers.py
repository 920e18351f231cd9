"""The leaves: each holds one weight (and its bias)."""
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from llm_jax.config.model import architecture as config
from llm_jax.modules.execution import Execution
from llm_jax.modules.kernels import wide
from llm_jax.modules.kernels.linear import linear
from llm_jax.modules.kernels.norm import normalize
from llm_jax.sharding.rules import constrain


class Linear(nn.Module):
  """Contracts x's last `contract` axes with the first `contract` axes of a weight of `shape`; returns x's dtype, also
  where a float32 adapter has been added to the weight."""
  shape: tuple[int, ...]
  execution: Execution
  contract: int = 1
  bias: bool = False
  std: float = 0.02

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    w = self.param('w', nn.initializers.normal(self.std), self.shape)
    y = linear(x, jnp.asarray(w, x.dtype), self.contract, self.execution.kernel_set)
    if self.bias:  # added in float32, for its gradient is a sum over all tokens
      y = y.astype(wide(y)) + self.param('b', nn.initializers.zeros, self.shape[self.contract:])
    return y.astype(x.dtype)


class Embedding(nn.Module):
  """A table of `count` vectors of width `size`, read by index."""
  count: int
  size: int
  dtype: jnp.dtype
  std: float = 0.02

  def setup(self):
    self.w = self.param('w', nn.initializers.normal(self.std), (self.count, self.size))

  def __call__(self, index: jax.Array) -> jax.Array:
    return _rows(self.w, index, self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rows(w_VD: jax.Array, index: jax.Array, dtype: jnp.dtype) -> jax.Array:
  """The rows of a table in another dtype; their gradients are summed in the table's own: a frequent token has
  thousands, and a sum in bfloat16 stops growing at a few hundred."""
  return _rows_forward(w_VD, index, dtype)[0]


def _rows_forward(w_VD, index, dtype):
  # The table is gathered over its width first: a gather from a table sharded on both axes is replicated by XLA.
  return constrain(jnp.asarray(w_VD, dtype), 'vocab', None)[index], (w_VD, index)


def _rows_backward(dtype, saved, d):
  w_VD, index = saved
  return constrain(jnp.zeros(w_VD.shape, w_VD.dtype).at[index].add(d.astype(w_VD.dtype)), 'vocab', None), None


_rows.defvjp(_rows_forward, _rows_backward)


class Norm(nn.Module):
  """A norm over the last axis, computed in float32, returned in x's dtype."""
  config: config.Norm
  execution: Execution

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    weight = lambda name, initial: self.param(name, initial, (x.shape[-1],))
    match self.config:
      case config.LayerNorm():
        scale, bias = weight('scale', nn.initializers.ones), weight('bias', nn.initializers.zeros)
      case config.RMSNorm():
        scale, bias = weight('scale', nn.initializers.ones), None
      case config.ZeroCenteredRMSNorm():
        scale, bias = 1 + weight('scale', nn.initializers.zeros), None
    return normalize(x, scale, bias, self.config.eps, self.execution.kernel_set)
